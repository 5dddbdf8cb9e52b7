"""The base model that ships and its demo data: sizes, tokenizer, template, seeds and skills."""

import itertools
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from safetensors import safe_open
from tokenizers import Tokenizer

from engine.rows.model import DatasetFormat
from engine.rows.validator import RowValidator

EXAMPLES = Path(__file__).parents[2] / "examples"
MODEL = EXAMPLES / "models" / "luthier-tiny"
DATA = EXAMPLES / "data"
sys.path.insert(0, str(EXAMPLES))

import make_demo_data  # noqa: E402  (the examples are scripts, not a package)
from tiny import copying, evaluate, knowing, mixture, records, world  # noqa: E402
from tiny.batches import stream  # noqa: E402
from tiny.network import HEAD_DIM, TinyLlama, rms, rotate, to_hugging_face  # noqa: E402
from tiny.tokenizer import (  # noqa: E402
    CHAT_TEMPLATE,
    SPACE,
    VOCAB_SIZE,
    render,
    train_tokenizer,
    twins,
)
from tiny.wiring import BACK, LOOK_UPS  # noqa: E402

FORMATS: dict[str, DatasetFormat] = {".jsonl": "jsonl", ".csv": "csv", ".parquet": "parquet"}
CHAT = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Hello, \N{CAT FACE} & <b>you</b>!"},
    {"role": "assistant", "content": "Hello!\n"},
    {"role": "user", "content": "Bye."},
    {"role": "assistant", "content": "Goodbye."},
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return evaluate.load(MODEL)


def read_jsonl(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def test_the_weights_stay_within_8M_parameters_and_16_MB() -> None:
    path = MODEL / "model.safetensors"
    with safe_open(path, "pt") as file:
        tensors = [file.get_tensor(name) for name in file.offset_keys()]
    count = sum(tensor.numel() for tensor in tensors)
    assert all(tensor.isfinite().all() for tensor in tensors)
    assert count <= 8_000_000
    assert path.stat().st_size <= 16_000_000


def test_any_text_comes_back_from_the_tokenizer(tokenizer: Tokenizer) -> None:
    rng = random.Random(0)
    anything = [c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
    for _ in range(200):
        text = "".join(map(chr, rng.choices(anything, k=20))) + " a  b\r\n\t12"
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


def test_padding_and_end_are_different_tokens(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.config.max_position_embeddings >= 512


def jinja(messages: list[dict[str, str]], prompt: bool) -> str:
    template = (MODEL / "chat_template.jinja").read_text(encoding="utf-8")
    return (
        ImmutableSandboxedEnvironment()
        .from_string(template)
        .render(
            messages=messages,
            bos_token="<|bos|>",
            eos_token="<|end|>",
            add_generation_prompt=prompt,
        )
    )


@pytest.mark.parametrize("prompt", [False, True])
def test_the_template_renders_alike_in_jinja_transformers_and_pretraining(
    loaded: tuple[Any, Any], prompt: bool
) -> None:
    _, tokenizer = loaded
    by_file = jinja(CHAT, prompt)
    by_library = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=prompt)
    assert by_file == by_library == render(CHAT) + ("<|assistant|>" if prompt else "")
    assert (MODEL / "chat_template.jinja").read_text(encoding="utf-8") == CHAT_TEMPLATE


def test_a_shorter_chat_renders_to_a_prefix_of_a_longer_one() -> None:
    texts = [jinja(CHAT[:k], False) for k in range(len(CHAT) + 1)]
    assert all(b.startswith(a) for a, b in itertools.pairwise(texts))
    assert jinja(CHAT[:2], True) + "Hello!\n<|end|>" == texts[3]


def test_the_same_seed_makes_the_same_documents() -> None:
    first, second = random.Random(5), random.Random(5)
    assert [mixture.document(first) for _ in range(300)] == [
        mixture.document(second) for _ in range(300)
    ]


def test_the_same_seed_makes_the_tokenizer_that_ships(tokenizer: Tokenizer) -> None:
    assert train_tokenizer("luthier-tiny").get_vocab() == tokenizer.get_vocab()


def test_a_token_sees_nothing_of_the_documents_beside_its_own(tokenizer: Tokenizer) -> None:
    batch = next(stream(tokenizer, "rows", (0, 0, 0)))
    bos = tokenizer.token_to_id("<|bos|>")
    starts = (batch.ids[0] == bos).nonzero().flatten()
    second = int(starts[1])
    assert batch.mask[0, 0, second, second] == 0
    assert torch.isinf(batch.mask[0, 0, second, :second]).all()
    assert batch.weights[0, second - 1] == 0


def test_no_plain_sum_has_a_pair_kept_for_the_exam() -> None:
    rng = random.Random(1)
    for _ in range(2000):
        question, _ = knowing.arithmetic(rng)
        numbers = [
            int(w) for w in question.replace("?", "").replace(".", "").split() if w.isdigit()
        ]
        if " times " not in question and "*" not in question:
            a, b = numbers[:2] if not question.startswith("Take") else numbers[::-1]
            assert not knowing.held_out_sum(a, b)


def test_a_word_is_cut_alike_wherever_it_stands(tokenizer: Tokenizer) -> None:
    rng = random.Random(2)
    words = [*world.NAMES, *world.TOWNS_ALL, *(world.invented(rng) for _ in range(200))]
    for word in words:
        alone, inside = tokenizer.encode(word).tokens, tokenizer.encode(f"a {word}").tokens[1:]
        assert "".join(inside).lstrip(SPACE) == word
        assert [piece.lstrip(SPACE) for piece in inside if piece != SPACE] == alone


def test_a_twin_is_the_same_piece_after_a_space(tokenizer: Tokenizer) -> None:
    pairs = twins(tokenizer)
    assert len(pairs) > 900
    for bare, spaced in pairs:
        assert tokenizer.id_to_token(spaced) == SPACE + tokenizer.id_to_token(bare)


@pytest.fixture(scope="module")
def untrained(tokenizer: Tokenizer) -> TinyLlama:
    torch.manual_seed(0)
    return TinyLlama(twins(tokenizer))


def attention(network: TinyLlama, layer: int, ids: torch.Tensor) -> torch.Tensor:
    """[heads, length, length]"""
    found: list[torch.Tensor] = []
    part = network.layers[layer]
    mask = torch.full((len(ids), len(ids)), float("-inf")).triu(1)
    hook = part.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    with hook, torch.no_grad():
        network(ids[None], mask)
        h, length = rms(found[0], part.norm1), len(ids)
        q, k = (
            rotate(
                linear(h).view(length, -1, HEAD_DIM).transpose(0, 1),
                network.cos[:length],
                network.sin[:length],
            )
            for linear in (part.q, part.k)
        )
        k = k.repeat_interleave(len(q) // len(k), 0)
        return (q @ k.transpose(1, 2) * HEAD_DIM**-0.5 + mask).softmax(-1)


def test_the_first_heads_start_by_looking_one_to_four_tokens_back(untrained: TinyLlama) -> None:
    ids = torch.randint(6, VOCAB_SIZE, (40,), generator=torch.Generator().manual_seed(1))
    seen = attention(untrained, 0, ids)
    for head, back in enumerate(BACK):
        by_distance = [float(seen[head, 12:].diagonal(12 - d).mean()) for d in range(12)]
        assert by_distance[back] == max(by_distance) > 0.3


def test_a_later_head_starts_by_finding_what_came_after_the_same_token(
    untrained: TinyLlama,
) -> None:
    once = torch.randperm(VOCAB_SIZE - 6, generator=torch.Generator().manual_seed(2))[:20] + 6
    seen = attention(untrained, min(LOOK_UPS), torch.cat((once, once)))
    after = seen[0, 20:39].diagonal(1)
    assert after.mean() > 5 * seen[0, 20:39, :20].mean()


def test_the_export_names_every_tensor_as_llama_does(
    loaded: tuple[Any, Any], untrained: TinyLlama
) -> None:
    model, _ = loaded
    names = set(model.state_dict()) - {"lm_head.weight"}
    assert set(to_hugging_face(dict(untrained.named_parameters()))) == names


def test_the_committed_data_is_what_the_script_makes() -> None:
    assert read_jsonl("demo_train.jsonl") == make_demo_data.demo_train()
    assert read_jsonl("demo_heldout.jsonl") == make_demo_data.demo_heldout()
    assert read_jsonl("preference.jsonl") == make_demo_data.preference()
    assert read_jsonl("rating.jsonl") == make_demo_data.rating()
    assert read_jsonl("prompts.jsonl") == make_demo_data.prompts()


@pytest.mark.parametrize(
    ("name", "row_type", "rows"),
    [
        ("demo_train.jsonl", "conversation", 320),
        ("instructions.csv", "conversation", 120),
        ("instructions.parquet", "conversation", 120),
        ("preference.jsonl", "preference", 200),
        ("rating.jsonl", "rating", 200),
        ("prompts.jsonl", "prompt", 200),
    ],
)
def test_every_example_dataset_is_valid(name: str, row_type: str, rows: int) -> None:
    path = DATA / name
    with RowValidator(FORMATS[path.suffix]) as validator:
        validator.feed(path.read_bytes())
        report = validator.close()
    assert (report.row_type, report.rows, report.warnings) == (row_type, rows, ())


def test_no_held_out_prompt_is_taught() -> None:
    taught = {row["messages"][0]["content"] for row in read_jsonl("demo_train.jsonl")}
    heldout = [row["messages"][0]["content"] for row in read_jsonl("demo_heldout.jsonl")]
    assert len(heldout) == len(set(heldout)) == 50
    assert not taught & set(heldout)
    assert 200 <= len(taught) <= 400


def score(loaded: tuple[Any, Any], tasks: list[mixture.Task], n: int) -> float:
    turns = evaluate.ask(tasks, "spot check", n)
    got = evaluate.answers(*loaded, [[{"role": "user", "content": q}] for q, _ in turns])
    return sum(g == a for g, (_, a) in zip(got, turns, strict=True)) / n


def test_the_weights_copy_and_read_a_message(loaded: tuple[Any, Any]) -> None:
    tasks = [copying.repeat, records.json_pick, records.about_message]
    assert score(loaded, tasks, 24) >= 0.85


def test_the_weights_recall_their_facts(loaded: tuple[Any, Any]) -> None:
    assert score(loaded, [knowing.fact], 24) >= 0.85


def test_the_weights_look_up_what_stands_in_the_prompt(loaded: tuple[Any, Any]) -> None:
    assert score(loaded, [copying.where, copying.owner, copying.key_value], 48) >= 0.7


def test_the_base_does_not_know_the_demo_task(loaded: tuple[Any, Any]) -> None:
    rows = read_jsonl("demo_heldout.jsonl")
    got = evaluate.answers(*loaded, [row["messages"] for row in rows])
    assert sum(g == row["expected"] for g, row in zip(got, rows, strict=True)) <= 10
