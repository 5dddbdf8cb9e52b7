"""A prompt as token ids, and what it looks like when it is echoed."""

from dataclasses import dataclass

from tokenizers import Tokenizer

from engine.infer.detokenizer import Detokenizer
from engine.infer.errors import RequestInvalid
from engine.infer.loader import Served


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """offsets[i]: where token i starts in the text. A prompt of ids has text only for an echo."""

    ids: tuple[int, ...]
    text: str = ""
    offsets: tuple[int, ...] = ()


def encode_prompt(tokenizer: Tokenizer, prompt: str | list[int], *, echo: bool) -> EncodedPrompt:
    """Text is encoded with the tokenizer's special tokens, as vLLM does; ids are taken as is."""
    if isinstance(prompt, list):
        return _decoded(tokenizer, prompt) if echo else EncodedPrompt(tuple(prompt))
    encoding = tokenizer.encode(prompt)
    latest, offsets = 0, []
    for start, _ in encoding.offsets:  # special tokens that were added have (0, 0)
        latest = max(latest, start)
        offsets.append(latest)
    return EncodedPrompt(tuple(encoding.ids), prompt, tuple(offsets))


def _decoded(tokenizer: Tokenizer, ids: list[int]) -> EncodedPrompt:
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=False)
    parts, offsets, length = [], [], 0
    for token in ids:
        offsets.append(length)
        parts.append(detokenizer.push(token))
        length += len(parts[-1])
    return EncodedPrompt(tuple(ids), "".join(parts) + detokenizer.flush(), tuple(offsets))


def room_for(served: Served, prompt: EncodedPrompt, wanted: int | None) -> int:
    """How many tokens may be generated after this prompt. Raises RequestInvalid."""
    if not prompt.ids:
        raise RequestInvalid(
            "The prompt has no tokens; send at least one.", param="prompt", code="empty_prompt"
        )
    vocabulary = served.model.vocabulary
    if max(prompt.ids) >= vocabulary:
        raise RequestInvalid(
            f"Token id {max(prompt.ids)} is not in the model's vocabulary of {vocabulary}; "
            "encode the prompt with the model's own tokenizer.",
            param="prompt",
            code="invalid_token_id",
        )
    context, virtual = served.model.context_length, served.virtual_tokens
    room = context - len(prompt.ids) - (virtual.count if virtual else 0)
    if room < 0 or (room == 0 and wanted != 0):
        taken = f", {virtual.count} of them the adapter's virtual ones" if virtual else ""
        raise RequestInvalid(
            f"The prompt has {len(prompt.ids)} tokens and the model's context holds "
            f"{context}{taken}, at least one of them generated; shorten the prompt.",
            param="prompt",
            code="context_length_exceeded",
        )
    return room if wanted is None else min(wanted, room)
