"""A prompt as token ids, and what it looks like when it is echoed."""

from dataclasses import dataclass

from tokenizers import Tokenizer

from engine.infer.detokenizer import Detokenizer
from engine.infer.errors import RequestInvalid
from engine.infer.model import ServedModel


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """`text` as given, None when it came as ids; offsets[i]: where token i starts in the text."""

    ids: tuple[int, ...]
    text: str | None
    offsets: tuple[int, ...] | None


def encode_prompt(tokenizer: Tokenizer, prompt: str | list[int]) -> EncodedPrompt:
    """Text is encoded with the tokenizer's special tokens, as vLLM does; ids are taken as is."""
    if isinstance(prompt, list):
        return EncodedPrompt(tuple(prompt), None, None)
    encoding = tokenizer.encode(prompt)
    latest, offsets = 0, []
    for start, _ in encoding.offsets:  # special tokens that were added have (0, 0)
        latest = max(latest, start)
        offsets.append(latest)
    return EncodedPrompt(tuple(encoding.ids), prompt, tuple(offsets))


def echo_of(tokenizer: Tokenizer, prompt: EncodedPrompt) -> tuple[str, tuple[int, ...]]:
    """The prompt's text, and where each token starts in it."""
    if prompt.text is not None and prompt.offsets is not None:
        return prompt.text, prompt.offsets
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=False)
    text, offsets = "", []
    for token in prompt.ids:
        offsets.append(len(text))
        text += detokenizer.push(token)
    return text + detokenizer.flush(), tuple(offsets)


def room_for(model: ServedModel, prompt: EncodedPrompt, wanted: int | None) -> int:
    """How many tokens may be generated after this prompt. Raises RequestInvalid."""
    if not prompt.ids:
        raise RequestInvalid(
            "The prompt has no tokens; send at least one.", param="prompt", code="empty_prompt"
        )
    if max(prompt.ids) >= model.vocabulary:
        raise RequestInvalid(
            f"Token id {max(prompt.ids)} is not in the model's vocabulary of {model.vocabulary}; "
            "encode the prompt with the model's own tokenizer.",
            param="prompt",
            code="invalid_token_id",
        )
    room = model.context_length - len(prompt.ids)
    if room < 0 or (room == 0 and wanted != 0):
        raise RequestInvalid(
            f"The prompt has {len(prompt.ids)} tokens and the model's context holds "
            f"{model.context_length}, at least one of them generated; shorten the prompt.",
            param="prompt",
            code="context_length_exceeded",
        )
    return room if wanted is None else min(wanted, room)
