"""The builder of tests/corpus/adapters: one archive a case, and the code that refuses it.

`python -m tests.adapters.corpus` writes the folder anew. A new attack or bug becomes a line here.
"""

import bz2
import gzip
import io
import json
import lzma
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.adapters.crafting import (
    BASE,
    HIDDEN,
    KEY,
    RANK,
    SIZES,
    VIRTUAL,
    Tensors,
    adapter,
    dora,
    file_of,
    lora,
    name_of,
    numbers,
    prefix_tuning,
    prompt_tuning,
    safetensors,
    special,
    tar,
    tar_of,
    with_weights,
)

FOLDER = Path(__file__).parents[1] / "corpus" / "adapters"
MAX_RANK = 64
MAX_BYTES = 1 << 20
ACCEPTED = "accepted"
Q_PROJ = "model.layers.0.self_attn.q_proj"

# What unpickling would run; nothing here or anywhere unpickles it.
_PICKLE = b"cbuiltins\nexec\n(S'raise SystemExit(\"unpickled\")'\ntR."


def cases() -> Iterator[tuple[str, str, bytes]]:
    """File name, expected code, bytes."""
    yield from _good()
    yield from _archives()
    yield from _files()
    yield from _configs()
    yield from _headers()
    yield from _weights()
    yield from _virtual_tokens()


def _good() -> Iterator[tuple[str, str, bytes]]:
    files = adapter()
    yield "good.tar", ACCEPTED, tar(files)
    yield "good-bf16.tar", ACCEPTED, tar(with_weights(safetensors(lora(dtype="BF16"))))
    yield (
        "good-f16-rslora.tar",
        ACCEPTED,
        tar(with_weights(safetensors(lora(dtype="F16")), use_rslora=True)),
    )
    yield "good-dora.tar", ACCEPTED, tar(with_weights(safetensors(dora()), use_dora=True))
    folder = special("my-adapter", tarfile.DIRTYPE)
    inside = [(f"my-adapter/{name}", data) for name, data in files.items()]
    yield "good-in-a-folder.tar", ACCEPTED, tar_of(folder, *inside)
    dotted = [(f"./{name}", data) for name, data in files.items()]
    apple = [(f"./._{name}", b"\0\5\x16\7" * 9) for name in files]
    yield "good-from-macos.tar", ACCEPTED, tar_of(special(".", tarfile.DIRTYPE), *apple, *dotted)
    yield "good-with-pax-times.tar", ACCEPTED, _with_times(files)


def _with_times(files: dict[str, bytes]) -> bytes:
    """What Python's tarfile writes for a file of the disk: a pax header for a broken second."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            info = special(name, tarfile.REGTYPE, size=len(data), mtime=1.25)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def _archives() -> Iterator[tuple[str, str, bytes]]:
    plain, weights = tar(adapter()), adapter()["adapter_model.safetensors"]
    yield "path-traversal.tar", "path_traversal", tar_of(("../../etc/cron.d/x", b"x"))
    yield "path-traversal-inside.tar", "path_traversal", tar_of(("a/../../x", b"x"))
    yield "path-absolute.tar", "path_traversal", tar_of(("/etc/passwd", b"x"))
    yield "path-backslash.tar", "path_traversal", tar_of(("..\\x", b"x"))
    yield "path-drive.tar", "path_traversal", tar_of(("c:x", b"x"))
    yield "path-traversal-folder.tar", "path_traversal", tar_of(special("../x", tarfile.DIRTYPE))
    long_name = "../" * 60 + "etc/passwd"
    yield "path-traversal-pax.tar", "path_traversal", tar_of((long_name, b"x"))
    yield "path-traversal-gnu.tar", "path_traversal", _gnu_long_name(long_name)
    symlink = special("adapter_config.json", tarfile.SYMTYPE, linkname="/etc/passwd")
    yield "link.tar", "link_in_archive", tar_of(symlink)
    hard = special("adapter_config.json", tarfile.LNKTYPE, linkname="/etc/passwd")
    yield "link-hard.tar", "link_in_archive", tar_of(hard)
    fifo = special("adapter_config.json", tarfile.FIFOTYPE)
    yield "fifo.tar", "special_file_in_archive", tar_of(fifo)
    device = special("adapter_config.json", tarfile.CHRTYPE, devmajor=1, devminor=5)
    yield "device.tar", "special_file_in_archive", tar_of(device)
    yield "folder-nested.tar", "nested_folder", tar_of(("a/b/adapter_config.json", b"{}"))
    yield "folder-two.tar", "nested_folder", tar_of(("a/x.json", b""), ("b/y.json", b""))
    yield "name-odd.tar", "odd_file_name", tar_of(("adapter config?.json", b"x"))
    yield "name-control.tar", "odd_file_name", tar_of(("adapter\x1b[31m.json", b"x"))
    yield "name-not-utf8.tar", "archive_malformed", _renamed(plain, b"\xff\xfe")
    yield "compressed.tar.gz", "archive_compressed", gzip.compress(plain, mtime=0)
    yield "compressed.tar.bz2", "archive_compressed", bz2.compress(plain)
    yield "compressed.tar.xz", "archive_compressed", lzma.compress(plain)
    yield "compressed.zip", "archive_compressed", _zip(adapter())
    yield "empty.tar", "archive_malformed", b""
    yield "empty-of-files.tar", "archive_malformed", bytes(1024)
    yield "not-a-tar.tar", "archive_malformed", weights
    yield "cut-in-header.tar", "archive_malformed", plain[:300]
    yield "cut-in-file.tar", "archive_malformed", plain[:700]
    yield "cut-before-end.tar", "archive_malformed", plain[:-1024]
    yield "bit-flipped-header.tar", "archive_malformed", bytes([plain[0] ^ 1]) + plain[1:]
    yield "trailing-zip.tar", "archive_malformed", plain + _zip({"x": b"y"})
    twice = [("adapter_config.json", b"{}"), ("Adapter_config.json", b"{}")]
    yield "twice.tar", "archive_malformed", tar_of(*twice)
    yield "too-large.tar", "archive_too_large", _entry("adapter_model.safetensors", 1 << 40)
    yield "too-large-pax.tar", "archive_too_large", _pax(b"size=99999999999") + plain
    yield "pax-bomb.tar", "archive_malformed", _entry("x", 1 << 30, tarfile.XHDTYPE)
    yield "pax-broken.tar", "archive_malformed", _pax(b"path") + plain
    yield "gnu-name-bomb.tar", "archive_malformed", _entry("x", 1 << 30, tarfile.GNUTYPE_LONGNAME)
    many = [(f"f{number}.json", b"") for number in range(201)]
    yield "too-many-files.tar", "too_many_files", tar_of(*many)


def _files() -> Iterator[tuple[str, str, bytes]]:
    good = adapter()
    for name in ("adapter_model.bin", "training_args.bin", "optimizer.pt", "scheduler.PKL"):
        yield f"pickle-{name}.tar", "pickle_in_archive", tar({**good, name: _PICKLE})
    yield "pickle-as-safetensors.tar", "bad_safetensors", tar(with_weights(_PICKLE))
    yield "torch-zip-as-safetensors.tar", "bad_safetensors", tar(with_weights(_zip({"a": b"b"})))
    yield "script.tar", "unexpected_file", tar({**good, "modeling_x.py": b"import os"})
    yield (
        "config-missing.tar",
        "config_missing",
        tar({"adapter_model.safetensors": good["adapter_model.safetensors"]}),
    )
    yield (
        "weights-missing.tar",
        "weights_missing",
        tar({"adapter_config.json": good["adapter_config.json"]}),
    )
    yield "weights-none.tar", "weights_missing", tar(with_weights(safetensors({})))


def _configs() -> Iterator[tuple[str, str, bytes]]:
    odd = {
        "not-json": b"{", "a-list": b"[]", "nested": b"[" * 100_000, "not-utf8": b'{"r": "\xff"}',
        "long-number": b'{"peft_type": "LORA", "r": ' + b"9" * 5000 + b"}",
        "lone-surrogate": b'{"peft_type": "\\ud800"}',
    }  # fmt: skip
    codes = {"lone-surrogate": "peft_type_unsupported"}
    for name, data in odd.items():
        code = codes.get(name, "config_malformed")
        yield f"config-{name}.tar", code, tar({**adapter(), "adapter_config.json": data})
    for name, code, changes in (
        ("loha", "peft_type_unsupported", {"peft_type": "LOHA"}),
        ("prefix-tuning", "config_malformed", {"peft_type": "PREFIX_TUNING"}),
        ("classifier", "task_type_unsupported", {"task_type": "SEQ_CLS"}),
        ("rank-zero", "config_malformed", {"r": 0}),
        ("rank-true", "config_malformed", {"r": True}),
        ("rank-too-high", "rank_too_high", {"r": 4096}),
        ("rank-pattern-too-high", "rank_too_high", {"rank_pattern": {"q_proj": 4096}}),
        ("rank-pattern-regex", "config_malformed", {"rank_pattern": {"(a+)+$": 2}}),
        ("alpha-pattern-regex", "config_malformed", {"alpha_pattern": {"(a+)+$": 2}}),
        ("alpha-nan", "config_malformed", {"lora_alpha": float("nan")}),
        ("alpha-text", "config_malformed", {"lora_alpha": "32"}),
        ("targets-odd", "config_malformed", {"target_modules": ["../../x"]}),
        ("targets-other", "config_mismatch", {"target_modules": ["q_proj"]}),
        ("dora", "dora_magnitude_missing", {"use_dora": True}),
        ("bias", "lora_bias_unsupported", {"bias": "all"}),
        ("lora-bias", "lora_bias_unsupported", {"lora_bias": True}),
        ("modules-to-save", "modules_to_save_unsupported", {"modules_to_save": ["lm_head"]}),
        ("replication", "layer_replication_unsupported", {"layer_replication": [[0, 2]]}),
        ("parameters", "target_parameters_unsupported", {"target_parameters": ["experts.w"]}),
        ("tokens", "trainable_tokens_unsupported", {"trainable_token_indices": [1]}),
        ("alora", "lora_variant_unsupported", {"alora_invocation_tokens": [1, 2]}),
        ("pissa", "changed_base_unsupported", {"init_lora_weights": "pissa"}),
        ("auto-mapping", "config_malformed", {"auto_mapping": {"parent_library": "os"}}),
    ):
        yield f"config-{name}.tar", code, tar(adapter(**changes))


def _headers() -> Iterator[tuple[str, str, bytes]]:
    weights = safetensors(lora())
    length = int.from_bytes(weights[:8], "little")
    header, data = json.loads(weights[8 : 8 + length]), weights[8 + length :]
    first, second = list(header)[:2]

    def changed(name: str, **changes: object) -> bytes:
        return file_of({**header, name: {**header[name], **changes}}, data)

    start, end = header[second]["data_offsets"]
    twice = json.dumps(header).encode()[:-1] + b', "' + first.encode() + b'": {}}'
    for name, code, file in (
        ("bomb", "header_too_large", file_of(header, data, declared=1 << 62)),
        ("cut", "bad_safetensors", weights[: length // 2]),
        ("seven-bytes", "bad_safetensors", weights[:7]),
        ("not-json", "bad_safetensors", file_of(b"{" * 64)),
        ("a-list", "bad_safetensors", file_of([1])),
        ("nested", "bad_safetensors", file_of(b"[" * 100_000)),
        ("not-utf8", "bad_safetensors", file_of(b'{"\xff": 1}')),
        ("name-twice", "bad_safetensors", file_of(twice, data)),
        ("metadata-odd", "bad_safetensors", file_of({**header, "__metadata__": {"a": 1}}, data)),
        ("entry-odd", "bad_safetensors", file_of({**header, first: 7}, data)),
        ("entry-extra", "bad_safetensors", changed(first, extra=1)),
        ("dtype-unknown", "bad_safetensors", changed(first, dtype="F12")),
        ("dtype-list", "bad_safetensors", changed(first, dtype=["F32"])),
        ("shape-negative", "bad_safetensors", changed(first, shape=[-2, -8])),
        ("shape-true", "bad_safetensors", changed(first, shape=[True, 16])),
        ("shape-fraction", "bad_safetensors", changed(first, shape=[2.0, 8])),
        ("shape-deep", "bad_safetensors", changed(first, shape=[1] * 40 + [16])),
        ("shape-huge", "bad_safetensors", changed(first, shape=[1 << 40, 1 << 40])),
        ("shape-lies", "bad_safetensors", changed(first, shape=[3, 8])),
        ("offsets-three", "bad_safetensors", changed(first, data_offsets=[0, 64, 64])),
        ("offsets-reversed", "bad_safetensors", changed(second, data_offsets=[end, start])),
        ("overlap", "tensors_overlap", changed(second, data_offsets=[start - 8, end - 8])),
        ("overlap-whole", "tensors_overlap", changed(second, data_offsets=[0, 64])),
        ("hole", "hole_between_tensors", _with_hole(header, data)),
        ("hole-at-start", "hole_between_tensors", _with_hole(header, data, start=0)),
        ("trailing-bytes", "trailing_bytes", weights + b"x"),
        ("trailing-zip", "trailing_bytes", weights + _zip({"a": b"b"})),
        ("data-cut", "bad_safetensors", weights[:-1]),
    ):
        yield f"header-{name}.tar", code, tar(with_weights(file))


def _with_hole(header: dict[str, dict[str, list[int]]], data: bytes, start: int = 64) -> bytes:
    """Every tensor from `start` on moved by 8 bytes."""
    moved = {
        name: {**entry, "data_offsets": [o + 8 for o in entry["data_offsets"]]}
        if entry["data_offsets"][0] >= start
        else entry
        for name, entry in header.items()
    }
    return file_of(moved, data[:start] + bytes(8) + data[start:])


def _weights() -> Iterator[tuple[str, str, bytes]]:
    for name, code, tensors in _tensors():
        yield f"weights-{name}.tar", code, tar(with_weights(safetensors(tensors)))
    yield from _dora()
    rank = RANK + 1
    yield "weights-rank-other.tar", "wrong_shape", tar(with_weights(safetensors(lora(rank))))
    wide = safetensors(lora(scale=2))
    yield "weights-wrong-base.tar", "wrong_base", tar(with_weights(wide))
    yield (
        "weights-wrong-layers.tar",
        "wrong_base",
        tar(
            with_weights(safetensors(lora(base={f"gpt.{n}": s for n, s in _other_base().items()})))
        ),
    )


def _tensors() -> Iterator[tuple[str, str, Tensors]]:
    good, a, b = lora(), name_of(Q_PROJ, "A"), name_of(Q_PROJ, "B")
    for dtype, kind in (("F32", "nan"), ("F32", "inf"), ("F64", "nan"), ("F16", "inf"),
                        ("BF16", "nan"), ("BF16", "inf")):  # fmt: skip
        yield f"{kind}-{dtype.lower()}", f"{kind}_weights", _spoilt(dtype, float(kind))
    yield "int8", "dtype_unsupported", {**good, a: ("I8", [2, 8], bytes(16))}
    yield "float8", "dtype_unsupported", {**good, a: ("F8_E4M3", [2, 8], bytes(16))}
    yield "wrong-shape-a", "wrong_shape", {**good, a: numbers((RANK, 9))}
    yield "wrong-shape-b", "wrong_shape", {**good, b: numbers((9, RANK))}
    yield "wrong-rank-b", "wrong_shape", {**good, b: numbers((8, RANK + 1))}
    yield "no-matrix", "wrong_shape", {**good, a: numbers((16,))}
    yield "empty-matrix", "wrong_shape", {**good, a: numbers((0, 8))}
    yield "rank-too-high", "rank_too_high", {**good, a: numbers((512, 8)), b: numbers((8, 512))}
    yield "half-a-pair", "lora_pair_incomplete", {n: t for n, t in good.items() if n != b}
    ghosts = {f"t{number}": numbers((0,)) for number in range(10_000)}
    yield "too-many", "too_many_tensors", {**good, **ghosts}
    yield "name-path", "odd_tensor_name", {**good, "../../etc/passwd": numbers((2, 2))}
    yield "name-other-half", "odd_tensor_name", {**good, a.replace("_A", "_C"): numbers((2, 8))}
    yield "name-unicode", "odd_tensor_name", {**good, name_of("model.ü", "A"): numbers((2, 8))}
    dora = {a.replace("lora_A.weight", "lora_magnitude_vector"): numbers((8,))}
    yield "dora", "config_mismatch", {**good, **dora}
    embedding = "base_model.model.model.embed_tokens.lora_embedding_A"
    yield "embedding", "embedding_lora_unsupported", {**good, embedding: numbers((2, 16))}
    extra = "model.layers.7.self_attn.q_proj"
    pair = {name_of(extra, "A"): numbers((RANK, 8)), name_of(extra, "B"): numbers((8, RANK))}
    yield "layer-not-in-base", "module_not_in_base", {**good, **pair}


def _dora() -> Iterator[tuple[str, str, bytes]]:
    good = dora()
    last = list(good)[-1]
    dtype, shape, raw = good[last]
    for name, code, tensors in (
        ("long", "wrong_shape", {**good, last: numbers((shape[0] + 1,))}),
        ("matrix", "wrong_shape", {**good, last: numbers((1, *shape))}),
        ("one-missing", "dora_magnitude_missing", {n: t for n, t in good.items() if n != last}),
        ("odd-module", "config_mismatch", {**good, "base_model.model.lm.lora_magnitude_vector":
                                           numbers((8,))}),
        ("nan", "nan_weights", {**good, last: (dtype, shape, raw[:-4] + b"\0\0\xc0\x7f")}),
        ("weight", "odd_tensor_name", {**good, f"{last}.weight": good[last]}),
    ):  # fmt: skip
        yield f"dora-{name}.tar", code, tar(with_weights(safetensors(tensors), use_dora=True))


def _virtual_tokens() -> Iterator[tuple[str, str, bytes]]:
    prompt, prefix = prompt_tuning(), prefix_tuning()
    yield "good-prompt.tar", ACCEPTED, tar(prompt)
    yield "good-prefix.tar", ACCEPTED, tar(prefix)
    projected = {"prefix_projection": True, "encoder_hidden_size": 99}
    yield "good-prefix-projected.tar", ACCEPTED, tar(prefix_tuning(**projected))
    for name, code, changes in (
        ("count-zero", "config_malformed", {"num_virtual_tokens": 0}),
        ("count-text", "config_malformed", {"num_virtual_tokens": "3"}),
        ("count-other", "wrong_shape", {"num_virtual_tokens": 4}),
        ("count-of-context", "too_many_virtual_tokens", {"num_virtual_tokens": 64}),
        ("count-huge", "too_many_virtual_tokens", {"num_virtual_tokens": 1 << 60}),
        ("other-width", "wrong_base", {"token_dim": 16}),
        ("width-text", "config_malformed", {"token_dim": "8"}),
        ("seq2seq", "task_type_unsupported", {"task_type": "SEQ_2_SEQ_LM"}),
        ("two-stacks", "config_malformed", {"num_transformer_submodules": 2}),
        ("modules-to-save", "modules_to_save_unsupported", {"modules_to_save": ["lm_head"]}),
        ("auto-mapping", "config_malformed", {"auto_mapping": {"parent_library": "os"}}),
    ):
        yield f"prompt-{name}.tar", code, tar(prompt_tuning(**changes))
    for name, code, changes in (
        ("other-heads", "wrong_base", {"num_attention_heads": 2}),
        ("other-layers", "wrong_base", {"num_layers": 9}),
    ):
        yield f"prefix-{name}.tar", code, tar(prefix_tuning(**changes))
    config, rows = prompt["adapter_config.json"], numbers((VIRTUAL, HIDDEN))
    nan = (rows[0], rows[1], rows[2][:-4] + b"\0\0\xc0\x7f")
    for name, code, tensors in (
        ("flat", "wrong_shape", {KEY: numbers((VIRTUAL * HIDDEN,))}),
        ("wide", "wrong_shape", {KEY: numbers((VIRTUAL, HIDDEN * 2))}),
        ("nan", "nan_weights", {KEY: nan}),
        ("int8", "dtype_unsupported", {KEY: numbers((VIRTUAL, HIDDEN), "I8")}),
        ("lora-too", "odd_tensor_name", {KEY: rows, **lora()}),
        ("name-path", "odd_tensor_name", {"../../etc/passwd": rows}),
        ("none", "weights_missing", {}),
    ):
        files = {"adapter_config.json": config, "adapter_model.safetensors": safetensors(tensors)}
        yield f"prompt-{name}.tar", code, tar(files)
    yield "prompt-no-weights.tar", "weights_missing", tar({"adapter_config.json": config})
    yield "prompt-pickle.tar", "pickle_in_archive", tar({**prompt, "prompt.pt": _PICKLE})


def _spoilt(dtype: str, value: float) -> Tensors:
    """An adapter with one bad number, the last of its last tensor."""
    tensors = lora(dtype=dtype)
    name, (_, shape, raw) = list(tensors.items())[-1]
    if dtype == "BF16":
        bad = struct.pack("<f", value)[2:]
    else:
        bad = np.array(value, {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype]).tobytes()
    return {**tensors, name: (dtype, shape, raw[: -len(bad)] + bad)}


def _other_base() -> dict[str, tuple[int, ...]]:
    return {name.replace("layers", "blocks"): shape for name, shape in BASE.items()}


def _zip(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return out.getvalue()


def _entry(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header that promises `size` bytes, and then only a block of them."""
    return special(name, kind, size=size).tobuf(tarfile.GNU_FORMAT) + bytes(512)


def _pax(record: bytes) -> bytes:
    """A pax header of one record, right length or not."""
    line = b"%d %s\n" % (len(record) + 4, record)
    return special("x", tarfile.XHDTYPE, size=len(line)).tobuf() + line.ljust(512, b"\0")


def _gnu_long_name(name: str) -> bytes:
    header = special("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=len(name) + 1)
    named = name.encode().ljust(512, b"\0")
    return header.tobuf(tarfile.GNU_FORMAT) + named + tar_of(("short", b"x"))


def _renamed(archive: bytes, name: bytes) -> bytes:
    """The first entry under a raw name, with its checksum made right again."""
    block = bytearray(archive[:512])
    block[: len(name)] = name
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + archive[512:]


def expected() -> dict[str, object]:
    """What expected.json says."""
    return {
        "config": SIZES,
        "base": {name: list(shape) for name, shape in BASE.items()},
        "max_rank": MAX_RANK,
        "max_bytes": MAX_BYTES,
        "codes": {name: code for name, code, _ in cases()},
    }


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for old in FOLDER.iterdir():
        old.unlink()
    for name, _, data in cases():
        (FOLDER / name).write_bytes(data)
    (FOLDER / "expected.json").write_text(json.dumps(expected(), indent=1) + "\n")


if __name__ == "__main__":
    main()
