"""Renderer: messages to text and tokens under one render contract, with the assistant's marked."""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from engine.contract import (
    DEFAULT_TEMPLATE,
    RenderContract,
    contract_of,
    contract_with,
    load_tokenizer,
    tokenizer_sha256,
)
from engine.rows import Conversation, Message, Preference, Prompt, Row
from engine.template import RenderError, TemplateUnsupported
from engine.unwritten import require_all_written

__all__ = [
    "DEFAULT_TEMPLATE",
    "RenderContract",
    "RenderError",
    "Rendered",
    "Renderer",
    "TemplateUnsupported",
    "contract_of",
    "load_renderer",
]

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Rendered:
    """The tokens of one sequence; loss_mask is true where a token is learned."""

    token_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    truncated: bool

    @property
    def end(self) -> int:
        """Just past the last learned token, behind which the template may write more; 0: none."""
        return max((i + 1 for i, learned in enumerate(self.loss_mask) if learned), default=0)


class Renderer:
    """The template writes every special token, so encoding adds none."""

    def __init__(self, contract: RenderContract, tokenizer: Tokenizer) -> None:
        """Takes over the tokenizer: its own truncation and padding are turned off."""
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.contract = contract
        self.tokenizer = tokenizer
        self._template = contract.template()
        self._special = frozenset(
            i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special
        )
        self._raw_prefix = raw_prefix(contract, tokenizer)

    def prompt_text(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> str:
        """The conversation so far, up to where the assistant is to speak.

        Raises RenderError when the template refuses it or leaves something of it out.
        """
        return self._whole(messages, tools or (), datetime.now(), add_generation_prompt=True)

    def prompt_ids(
        self, prompt: Sequence[Message] | str, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """Tokens of a conversation so far; or of raw text, with bos if the tokenizer wants one."""
        if isinstance(prompt, str):
            raw: list[int] = self.tokenizer.encode(prompt, add_special_tokens=False).ids
            return raw if raw[:1] == self._raw_prefix else self._raw_prefix + raw
        text = self.prompt_text(prompt, tools)
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def conversation(
        self, messages: Conversation | Sequence[Message], max_length: int | None = None
    ) -> Rendered:
        """A conversation with its assistant's turns marked, cut to its first max_length tokens.

        Raises TemplateUnsupported, and RenderError when the template refuses the messages.
        """
        if not isinstance(messages, Conversation):
            messages = Conversation(messages=tuple(messages))
        text, spans = self._spans(messages)
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        ids: list[int] = encoding.ids
        mask = self._mask(text, ids, encoding.offsets, spans)
        truncated = max_length is not None and len(ids) > max_length
        return Rendered(tuple(ids[:max_length]), tuple(mask[:max_length]), truncated)

    def sequences(self, row: Row, max_length: int | None = None) -> tuple[Rendered, ...]:
        """What a row of any type trains on: one sequence, or chosen and rejected.

        Some templates write an earlier turn otherwise than the last (they drop its reasoning). Then
        a conversation is one sequence a learned turn, each as the model is to generate it.
        """
        if isinstance(row, Conversation):
            try:
                return (self.conversation(row, max_length),)
            except TemplateUnsupported:
                return tuple(self.conversation(turn, max_length) for turn in last_turns(row))
        if isinstance(row, Prompt):
            ids = self.prompt_ids(row.prompt, row.tools)
            cut = tuple(ids[:max_length])
            return (Rendered(cut, (False,) * len(cut), len(ids) > len(cut)),)
        if isinstance(row, Preference):
            pair = (answered(row.prompt, answer, row.tools_json) for answer in row.answers)
            return tuple(self.conversation(one, max_length) for one in pair)
        return (self.conversation(answered(row.prompt, row.completion), max_length),)

    def _whole(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]],
        now: datetime,
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        """The text of a conversation in which nothing that was said is missing."""

        def written(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> str:
            return self._template.render(
                messages, add_generation_prompt=add_generation_prompt, now=now, tools=tools
            )

        text = written(messages, tools)
        require_all_written(text, messages, tools, written)
        return text

    def _spans(self, conversation: Conversation) -> tuple[str, list[Span]]:
        """The text, and where in it the learned turns stand, each with all that closes it."""
        messages, tools, now = conversation.messages, conversation.tools, datetime.now()
        render = partial(self._template.render, now=now, tools=tools)
        text = self._whole(messages, tools, now)
        spans = []
        for i in conversation.learned():
            before = render(messages[:i], add_generation_prompt=True)
            after = text
            if i + 1 < len(messages):
                after = render(messages[: i + 1], add_generation_prompt=False)
            if not (after.startswith(before) and text.startswith(after)):
                raise TemplateUnsupported(rewrites(i))
            spans.append((len(before), len(after)))
        return text, spans

    def _mask(
        self, text: str, ids: list[int], offsets: list[Span], spans: list[Span]
    ) -> list[bool]:
        """A token is learned if it holds text of a span, up to the token that ends the turn."""
        mask = [False] * len(ids)
        for start, end in spans:
            first = bisect_right(offsets, start, key=itemgetter(1))
            last = bisect_left(offsets, end, lo=first, key=itemgetter(0))
            last = self._turn_end(text, ids, offsets, first, last)
            mask[first:last] = [True] * (last - first)
        return mask

    def _turn_end(
        self, text: str, ids: list[int], offsets: list[Span], first: int, last: int
    ) -> int:
        """Just past the earliest stop token of the special and blank tokens that close a span."""
        end = last
        for i in range(last - 1, first - 1, -1):
            if ids[i] in self.contract.stop_token_ids:
                end = i + 1
            elif ids[i] not in self._special and text[slice(*offsets[i])].strip():
                break
        return end


def last_turns(conversation: Conversation) -> list[Conversation]:
    """The conversation up to each learned turn, with that turn alone to learn."""
    return [
        conversation.model_copy(
            update={"messages": conversation.messages[: i + 1], "context": i, "unlearned": ()}
        )
        for i in conversation.learned()
    ]


def answered(
    prompt: tuple[Message, ...], answer: tuple[Message, ...], tools_json: str = "[]"
) -> Conversation:
    return Conversation(messages=prompt + answer, context=len(prompt), tools_json=tools_json)


def rewrites(i: int) -> str:
    return (
        f"this base model's chat template does not write message {i + 1} the same way alone and "
        "with what follows it, so the assistant's tokens cannot be told from the others; use rows "
        "with one assistant turn (prompt and completion), or a base with a plainer template"
    )


def raw_prefix(contract: RenderContract, tokenizer: Tokenizer) -> list[int]:
    """The bos token, for tokenizers that begin a text with one."""
    if contract.bos_token is None:
        return []
    added: list[int] = tokenizer.encode("", add_special_tokens=True).ids
    return added[:1] if added[:1] == [tokenizer.token_to_id(contract.bos_token)] else []


def load_renderer(model_dir: Path, contract: RenderContract | None = None) -> Renderer:
    """The renderer of a model folder, under an adapter's contract if given; raises RenderError."""
    tokenizer = load_tokenizer(model_dir)
    if contract is None:
        return Renderer(contract_with(model_dir, tokenizer), tokenizer)
    if tokenizer_sha256(model_dir) != contract.tokenizer_sha256:
        raise RenderError(
            f"the tokenizer of {model_dir.name} is not the one this adapter was trained with; "
            "use the base revision of its manifest"
        )
    return Renderer(contract, tokenizer)
