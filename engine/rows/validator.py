"""RowValidator: a dataset checked while it streams by; and iter_rows, to read it later."""

import hashlib
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Protocol, Self

from engine.rows.jsonl import JsonlRecords
from engine.rows.model import (
    MAX_PROBLEMS_COUNTED,
    MAX_PROBLEMS_SHOWN,
    MAX_ROWS,
    DatasetFormat,
    DatasetInvalid,
    Problem,
    Record,
    Row,
    RowType,
)
from engine.rows.parser import RowInvalid, RowParser, Unreadable
from engine.rows.quarantine import ParquetRecords
from engine.rows.rules import NATIVE, Rules
from engine.rows.table import CsvRecords
from engine.rows.written import Fault

BLOCK_BYTES = 1 << 20
HEAD_BYTES = 8
FEW_ROWS = 50

NOT_TEXT = (
    (b"\xef\xbb\xbf", "begins with a byte order mark (BOM); save the file as UTF-8 without one"),
    (b"\xff\xfe", "is UTF-16; save the file as UTF-8"),
    (b"\xfe\xff", "is UTF-16; save the file as UTF-8"),
    (b"\x1f\x8b", "is compressed (gzip); upload the file uncompressed"),
    (b"\x28\xb5\x2f\xfd", "is compressed (zstd); upload the file uncompressed"),
    (b"PK\x03\x04", "is a zip archive or a spreadsheet; export JSONL, CSV or Parquet"),
    (b"PAR1", "is a Parquet file; give its format as parquet"),
)


class Report(Record):
    """What a valid dataset holds. `duplicates` counts rows equal to an earlier one."""

    row_type: RowType
    rows: int
    bytes: int
    sha256: str
    duplicates: int
    warnings: tuple[str, ...]


class Records(Protocol):
    """Numbered records out of a stream of one format; both iterators may raise Unreadable."""

    def feed(self, data: bytes) -> Iterator[tuple[int, Any]]: ...

    def close(self) -> Iterator[tuple[int, Any]]: ...

    def discard(self) -> None: ...


def open_records(format: DatasetFormat, parser: RowParser) -> Records:
    if format == "jsonl":
        return JsonlRecords()
    return CsvRecords(parser) if format == "csv" else ParquetRecords(parser)


class RowValidator:
    """Checks, counts and hashes a dataset in bounded memory, however it is chunked.

    Without a row type the first good row decides it. feed() raises DatasetInvalid early when a
    limit is passed or nothing more can be read; close() raises it for everything else. `rules` are
    what the file must keep to beyond that.
    """

    def __init__(
        self, format: DatasetFormat, row_type: RowType | None = None, rules: Rules = NATIVE
    ) -> None:
        self._format, self._rules = format, rules
        self._parser = RowParser(row_type, rules)
        self._records = open_records(format, self._parser)
        self._head: bytes | None = b""
        self._sha256 = hashlib.sha256()
        self._bytes = 0
        self._rows = self._line = 0
        self._row_hashes = array("q")  # 8 bytes a row where a set would take 60
        self._problems: list[Problem] = []
        self._total = 0
        self._stopped = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._records.discard()

    def feed(self, data: bytes) -> None:
        """The next bytes of the file, as many as came."""
        self._sha256.update(data)
        self._bytes += len(data)
        if self._head is not None:
            self._head += data
            if len(self._head) < HEAD_BYTES:
                return
            data = self._checked_head(self._head)
        for start in range(0, len(data), BLOCK_BYTES):
            self._take(self._records.feed(data[start : start + BLOCK_BYTES]))

    def close(self) -> Report:
        """The report of a dataset without problems; raises DatasetInvalid for the others."""
        try:
            if self._head is not None:
                self._take(self._records.feed(self._checked_head(self._head)))
            self._take(self._records.close())
        finally:
            self._records.discard()
        if not self._rows and not self._total:
            what = "the file has no rows" if self._bytes else "the file is empty"
            self._note(1, [Fault(None, f"{what}; upload at least one row")])
        elif self._rows < self._rules.min_rows and not self._total:
            said = (
                f"is the last of {self._rows} examples; at least {self._rules.min_rows} are needed"
            )
            self._note(self._line, [Fault(None, said)])
        if self._total or self._parser.row_type is None:
            raise self._invalid()
        return Report(
            row_type=self._parser.row_type,
            rows=self._rows,
            bytes=self._bytes,
            sha256=self._sha256.hexdigest(),
            duplicates=self._rows - count_distinct(self._row_hashes),
            warnings=warnings_for(self._rows),
        )

    def _checked_head(self, head: bytes) -> bytes:
        """Refuses, by their first bytes, files that are no text."""
        self._head = None
        if self._format != "parquet":
            for magic, message in NOT_TEXT:
                if head.startswith(magic):
                    self._note(1, [Fault(None, message)])
                    self._stop()
        return head

    def _take(self, records: Iterator[tuple[int, Any]]) -> None:
        if self._stopped:
            raise self._invalid()
        try:
            for line, record in records:
                self._check(line, record)
        except Unreadable as unreadable:
            self._note(unreadable.line, unreadable.faults)
            self._stop()

    def _check(self, line: int, record: bytes | Mapping[str, Any] | RowInvalid) -> None:
        self._rows += 1
        self._line = line
        if self._rows > MAX_ROWS:
            self._note(line, [Fault(None, f"is past row {MAX_ROWS:,}; split the dataset")])
            self._stop()
        try:
            self._row_hashes.append(hash(self._parser.parse(record)))
        except RowInvalid as invalid:
            self._note(line, invalid.faults)

    def _note(self, line: int, faults: list[Fault]) -> None:
        for fault in faults:
            self._total += 1
            if len(self._problems) < MAX_PROBLEMS_SHOWN:
                problem = Problem(line=line, field=fault.field, message=fault.message)
                self._problems.append(problem)
        if self._total >= MAX_PROBLEMS_COUNTED:
            self._stop()

    def _stop(self) -> NoReturn:
        self._stopped = True
        raise self._invalid()

    def _invalid(self) -> DatasetInvalid:
        return DatasetInvalid(tuple(self._problems), self._total)


def count_distinct(hashes: "array[int]") -> int:
    """Python's own hash is 64 bits, keyed by process: nobody can craft rows that collide."""
    import numpy as np  # slow to import, and needed once a dataset

    return len(np.unique(np.frombuffer(hashes, dtype=np.int64)))


def warnings_for(rows: int) -> tuple[str, ...]:
    if rows >= FEW_ROWS:
        return ()
    return (
        f"{rows} rows are few: below {FEW_ROWS}, fine-tuning tends to memorise the examples rather "
        "than learn the task. Few-shot prompting, with the examples in the prompt, is likely "
        "better, and takes no training.",
    )


def iter_rows(path: Path, format: DatasetFormat, row_type: RowType | None = None) -> Iterator[Row]:
    """The rows of a stored dataset, one at a time; raises DatasetInvalid at the first bad one.

    Parquet must have passed RowValidator before: here it is read without quarantine.
    """
    parser = RowParser(row_type)
    line = 1
    try:
        for number, record in read_records(path, format, parser):
            line = number
            yield parser.parse(record).row()
    except Unreadable as unreadable:
        raise first_problem(unreadable.line, unreadable) from None
    except RowInvalid as invalid:
        raise first_problem(line, invalid) from None


def read_records(path: Path, format: DatasetFormat, parser: RowParser) -> Iterator[tuple[int, Any]]:
    if format == "parquet":
        # Half a second of imports, for who needs them. The file has left quarantine.
        from engine.rows.parquet import parquet_records

        with path.open("rb") as file:
            yield from parquet_records(file, path.stat().st_size, parser)
        return
    records = open_records(format, parser)
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            yield from records.feed(block)
    yield from records.close()


def first_problem(line: int, invalid: RowInvalid) -> DatasetInvalid:
    problems = tuple(Problem(line=line, field=f, message=m) for f, m in invalid.faults)
    return DatasetInvalid(problems, len(problems))
