"""From tokens to text as they come: whole characters only, and nothing from a stop string on."""

from collections.abc import Sequence

from tokenizers import Tokenizer

_UNFINISHED = "\ufffd"
_CONTEXT_TOKENS = 5  # decoders look back: the first token's leading space depends on those before
_CHARACTER_BYTES = 4
_MAX_PENDING = 32  # tokens that never become a character are given up after so many


class Detokenizer:
    """The text of a growing list of tokens.

    A decoder shows the bytes of an unfinished character as U+FFFD; such a tail is held back until
    it is whole. Text is cut from decodings of a short window, because a token's text depends on
    its neighbours and not on far ones.
    """

    def __init__(
        self, tokenizer: Tokenizer, before: Sequence[int] = (), *, skip_special_tokens: bool = True
    ) -> None:
        self._tokenizer, self._skip = tokenizer, skip_special_tokens
        # From the last but one clean point on, that is, from the start of a character.
        self._window: list[int] = []
        self._clean = 0  # tokens of the window before the last clean point
        self._emitted = 0  # characters of the window's text that are out
        self._begin(list(before[-2 * (_CONTEXT_TOKENS + _CHARACTER_BYTES) :]))

    def push(self, token_id: int) -> str:
        """The text that this token completes."""
        self._window.append(token_id)
        text = self._decode()
        whole = text.rstrip(_UNFINISHED)
        if whole != text and len(self._window) - self._clean < _MAX_PENDING:
            return self._emit(whole)
        out = self._emit(text)
        self._window, self._clean = self._window[self._clean :], len(self._window) - self._clean
        self._emitted = len(self._decode())
        return out

    def flush(self) -> str:
        """What is still held back; an unfinished character shows as U+FFFD."""
        return self._emit(self._decode())

    def _begin(self, before: list[int]) -> None:
        """Take in the last tokens of the prompt, from the start of a character on."""
        for unfinished in range(_CHARACTER_BYTES):  # tokens of a character the prompt cuts off
            end = len(before) - unfinished
            for size in range(_CONTEXT_TOKENS, _CONTEXT_TOKENS + _CHARACTER_BYTES):
                start = max(end - size, 0)
                self._window = before[start:end]
                text = self._decode()
                if not text.startswith(_UNFINISHED) and not text.endswith(_UNFINISHED):
                    self._window, self._clean = before[start:], len(self._window)
                    self._emitted = len(text)
                    return
        self._window = []

    def _decode(self) -> str:
        return self._tokenizer.decode(self._window, skip_special_tokens=self._skip)

    def _emit(self, text: str) -> str:
        out = text[self._emitted :]
        self._emitted = max(self._emitted, len(text))
        return out


class StopStrings:
    """Passes text on up to the first stop string, holding back what may be the start of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.hit: str | None = None

    def push(self, text: str) -> str:
        """The text that is safe to send. Once there is a `hit`, it was the last."""
        self._held += text
        found = [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            at, self.hit = min(found, key=lambda hit: hit[0])
            out, self._held = self._held[:at], ""
            return out
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        out, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return out

    def flush(self) -> str:
        """What was held back, once no more will come."""
        out, self._held = self._held, ""
        return out


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of text that begins stop."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
