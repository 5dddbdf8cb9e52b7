"""Text as it comes: whole characters, and nothing from a stop string on."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from engine.infer.detokenizer import Detokenizer, StopStrings
from tests.engine.infer.world import SENTENCES, write_tokenizer

TEXTS = st.text(max_size=60) | st.lists(
    st.sampled_from(["é", "🦊", "我", " ", "a", "\u200d", "\n", "the quick"]), max_size=40
).map("".join)


def byte_level(folder: Path) -> Tokenizer:
    write_tokenizer(folder)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def metaspace(_: Path) -> Tokenizer:
    """As Llama 2 and Gemma have it: pieces with ▁, and bytes for what has no piece."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁a", "a", "t", "h", "e"]
    vocabulary = {piece: at for at, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, [("▁", "a")], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


@pytest.fixture(scope="module", params=[byte_level, metaspace])
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    made: Tokenizer = request.param(tmp_path_factory.mktemp("tokenizer"))
    return made


@given(text=TEXTS)
def test_the_pieces_add_up_to_the_text_and_have_no_half_characters(
    tokenizer: Tokenizer, text: str
) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(token) for token in ids]
    pieces.append(detokenizer.flush())
    whole = tokenizer.decode(ids)
    assert "".join(pieces) == whole
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@given(text=TEXTS, at=st.integers(0, 60))
def test_text_goes_on_after_any_prompt(tokenizer: Tokenizer, text: str, at: int) -> None:
    """A continuation is what the whole text has more than the prompt, its first space too."""
    text = "".join(character for character in text if character.isprintable())
    ids = tokenizer.encode("a the" + text, add_special_tokens=False).ids
    at = min(at, len(ids))
    texts = [tokenizer.decode(ids[:end]) for end in range(at + 1)]
    before = [text for text in texts if not text.endswith("\ufffd")][-1]
    detokenizer = Detokenizer(tokenizer, ids[:at])
    made = "".join(detokenizer.push(token) for token in ids[at:]) + detokenizer.flush()
    if at >= 1:
        assert before + made == tokenizer.decode(ids)


@given(ids=st.lists(st.integers(2, 399), max_size=120))
def test_bytes_that_are_no_text_are_given_up_in_the_end(
    ids: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    tokenizer = byte_level(tmp_path_factory.getbasetemp())
    detokenizer = Detokenizer(tokenizer)
    made = "".join(detokenizer.push(token) for token in ids) + detokenizer.flush()
    assert made.replace("\ufffd", "") == tokenizer.decode(ids).replace("\ufffd", "")


def test_tokens_that_never_make_a_character_do_not_pile_up(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path)
    lead = tokenizer.encode("é", add_special_tokens=False).ids[0]
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(lead) for _ in range(200)]
    assert len("".join(pieces)) >= 160


@given(
    pieces=st.lists(st.text("abc", max_size=3), max_size=20),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
)
def test_text_is_passed_on_until_the_first_stop_string(pieces: list[str], stops: list[str]) -> None:
    cut = StopStrings(stops)
    out, seen = "", ""
    for piece in pieces:
        out += cut.push(piece)
        seen += piece
        if cut.hit:
            break
        assert not any(stop in seen for stop in stops)
        assert seen.startswith(out)
    if cut.hit:
        assert out == seen[: min(seen.index(stop) for stop in stops if stop in seen)]
    else:
        assert out + cut.flush() == "".join(pieces)


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    cut = StopStrings(["</answer>"])
    assert cut.push("x <") == "x "
    assert cut.push("/ans") == ""
    assert cut.push("on>") == "</anson>"
    assert cut.push("<") == ""
    assert cut.flush() == "<"


def test_the_sentences_come_out_as_they_are(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path)
    for text in SENTENCES:
        detokenizer = Detokenizer(tokenizer)
        assert "".join(detokenizer.push(token) for token in tokenizer.encode(text).ids) == text
