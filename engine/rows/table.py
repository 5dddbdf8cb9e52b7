"""CSV records out of a byte stream: RFC 4180, a header first, quoted cells may hold newlines."""

import csv
import re
from collections.abc import Iterator
from typing import Any

from engine.rows.jsonl import Lines
from engine.rows.model import MAX_LINE_BYTES
from engine.rows.parser import TOO_LONG, RowInvalid, RowParser, Unreadable, json_of
from engine.rows.written import Fault

# The csv module refuses cells above 128 KiB unless told; ours are bounded with their record.
csv.field_size_limit(MAX_LINE_BYTES)

# A quote opens a cell only at its start; inside, two are one; after it has closed, they are text.
QUOTED = rb'"(?:[^"]++|"")*+'
CELLS = rb"(?:(?:" + QUOTED + rb'"[^,]*+|[^,"][^,]*+|),)*+'
OPENS = re.compile(CELLS + QUOTED + rb"\Z")
CLOSES = re.compile(rb'(?:[^"]++|"")*+"')
REOPENS = re.compile(rb"[^,]*+," + CELLS + QUOTED + rb"\Z")


class CsvRecords:
    """Each record after the header is a mapping of column to cell, or says why it is none."""

    def __init__(self, parser: RowParser) -> None:
        self._parser = parser
        self._lines = Lines()
        self._columns: list[str] = []
        self._open: list[bytes] = []  # the lines so far of a record whose quote is still open
        self._open_bytes = 0
        self._start = 0

    def feed(self, data: bytes) -> Iterator[tuple[int, dict[str, Any] | RowInvalid]]:
        """Raises Unreadable when nothing after can be told."""
        for number, line in self._lines.feed(data):
            yield from self._take(number, line)

    def close(self) -> Iterator[tuple[int, dict[str, Any] | RowInvalid]]:
        for number, line in self._lines.close():
            yield from self._take(number, line)
        if self._open:
            fault = Fault(None, "opens a quote that is never closed; close it, or double it")
            raise Unreadable(self._start, [fault])

    def discard(self) -> None:
        """Nothing is kept outside memory."""

    def _take(self, number: int, line: bytes) -> Iterator[tuple[int, dict[str, Any] | RowInvalid]]:
        if not self._open and not line.strip():
            return
        if not self._open:
            self._start, self._open_bytes = number, 0
        still_open = self._stays_open(line)
        self._open.append(line)
        self._open_bytes += len(line) + 1
        if self._open_bytes > MAX_LINE_BYTES + 1:
            hint = f"{TOO_LONG}; is a quote opened in it that is never closed?"
            raise Unreadable(self._start, [Fault(None, hint)])
        if not still_open:
            record = b"\n".join(self._open)
            self._open.clear()
            yield from self._record(record)

    def _stays_open(self, line: bytes) -> bool:
        if b'"' not in line:
            return bool(self._open)
        if not self._open:
            return OPENS.match(line) is not None
        closing = CLOSES.match(line)
        return closing is None or REOPENS.match(line, closing.end()) is not None

    def _record(self, record: bytes) -> Iterator[tuple[int, dict[str, Any] | RowInvalid]]:
        if not self._columns:
            self._columns = self._header(record)
            return
        try:
            yield self._start, self._mapping(cells_of(record))
        except RowInvalid as invalid:
            yield self._start, invalid

    def _header(self, record: bytes) -> list[str]:
        try:
            columns = cells_of(record)
            if twice := sorted({name for name in columns if columns.count(name) > 1}):
                raise RowInvalid([Fault(name, "is there twice in the header") for name in twice])
            self._parser.check_columns(columns)
        except RowInvalid as invalid:
            raise Unreadable(self._start, invalid.faults) from None
        return columns

    def _mapping(self, cells: list[str]) -> dict[str, Any]:
        if len(cells) != len(self._columns):
            said = f"has {len(cells)} cell(s), the header {len(self._columns)}"
            raise RowInvalid([Fault(None, f"{said}; quote cells that hold commas or newlines")])
        record: dict[str, Any] = dict(zip(self._columns, cells, strict=True))
        if "messages" in record:
            record["messages"] = messages_of(record["messages"])
        if record.get("margin") == "":  # a cell cannot be left out
            record["margin"] = None
        return record


def cells_of(record: bytes) -> list[str]:
    try:
        return next(csv.reader([record.decode().removesuffix("\r")], strict=True))
    except UnicodeDecodeError as bad:
        said = f"is not UTF-8 (byte {bad.start + 1} of the record); save the file as UTF-8"
        raise RowInvalid([Fault(None, said)]) from None
    except csv.Error as error:
        raise RowInvalid([Fault(None, f"is not CSV: {error}")]) from None


def messages_of(cell: str) -> Any:
    """A table has no lists: the messages stand in their cell as JSON."""
    try:
        return json_of(cell.encode())
    except RowInvalid as invalid:
        raise RowInvalid([Fault("messages", fault.message) for fault in invalid.faults]) from None
