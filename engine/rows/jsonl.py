"""Physical lines out of a byte stream, and JSONL records out of lines."""

from collections.abc import Iterator

from engine.rows.model import MAX_LINE_BYTES
from engine.rows.parser import TOO_LONG, Unreadable
from engine.rows.written import Fault


class Lines:
    """Cuts what it is fed at newlines, however it was chunked; keeps at most one line."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._count = 0

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """The lines that end in this data, with their numbers; raises Unreadable at a long one."""
        cut = data.rfind(b"\n")
        if cut >= 0:
            whole = bytes(self._pending) + data[:cut]
            self._pending.clear()
            for line in whole.split(b"\n"):
                self._count += 1
                if len(line) > MAX_LINE_BYTES:
                    raise Unreadable(self._count, [Fault(None, TOO_LONG)])
                yield self._count, line
        self._pending += data[cut + 1 :]
        if len(self._pending) > MAX_LINE_BYTES:
            raise Unreadable(self._count + 1, [Fault(None, TOO_LONG)])

    def close(self) -> Iterator[tuple[int, bytes]]:
        """The last line, if no newline ended it."""
        if self._pending:
            yield self._count + 1, bytes(self._pending)
            self._pending.clear()


class JsonlRecords:
    """Each line that is not blank is a record."""

    def __init__(self) -> None:
        self._lines = Lines()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        return unblank(self._lines.feed(data))

    def close(self) -> Iterator[tuple[int, bytes]]:
        return unblank(self._lines.close())

    def discard(self) -> None:
        """Nothing is kept outside memory."""


def unblank(lines: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    return ((number, line) for number, line in lines if line and not line.isspace())
