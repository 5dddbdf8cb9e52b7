"""Which files an adapter may consist of; nothing that can hold code."""

from collections.abc import Iterable
from pathlib import Path

from adapters.errors import AdapterInvalid
from adapters.manifest import MANIFEST_NAME

WEIGHTS_NAME = "adapter_model.safetensors"
TEXT_FILES = {
    "README.md", "LICENSE", MANIFEST_NAME, "tokenizer.json", "tokenizer_config.json",
    "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "chat_template.jinja", "chat_template.json", "trainer_state.json",
}  # fmt: skip
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz"}


def check_files(folder: Path, allowed: Iterable[str]) -> None:
    """AdapterInvalid: link_in_archive, pickle_in_archive, unexpected_file."""
    for path in sorted(folder.iterdir()):
        if path.is_symlink():
            raise AdapterInvalid(
                "link_in_archive", f"{path.name!r} is a link; send the file itself"
            )
        if path.suffix.lower() in _PICKLES:
            text = f"{path.name!r} can hold code; send weights as safetensors and leave it out"
            raise AdapterInvalid("pickle_in_archive", text)
        if not path.is_file() or path.name not in allowed:
            raise AdapterInvalid("unexpected_file", f"{path.name!r} is not part of an adapter")
