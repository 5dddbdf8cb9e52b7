"""Parquet records out of a file. Run as a module, it is the reader that quarantine.py starts."""

import json
import os
import resource
import sys
from collections.abc import Iterator
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from engine.rows.model import MAX_LINE_BYTES, MAX_ROWS, RowType
from engine.rows.parser import TOO_LONG, RowInvalid, RowParser, Unreadable
from engine.rows.written import Fault

BATCH_ROWS = 256
BATCH_BYTES = 64 << 20
READ_BUFFER_BYTES = 1 << 20
MAX_READER_BYTES = 1 << 30
MAX_READER_CPU_S = 600
# What the columns may hold once unpacked, by what their file takes; text packs five- to tenfold.
MAX_EXPANSION = 50
MIN_EXPANDED_BYTES = 64 << 20
MESSAGE_COLUMNS = ("messages", "prompt", "completion", "chosen", "rejected")

Records = Iterator[tuple[int, dict[str, Any]]]


def parquet_records(source: IO[bytes], size_bytes: int, parser: RowParser) -> Records:
    """The rows of a file, numbered from 1, a few in memory at a time; raises Unreadable."""
    row = 0
    if not size_bytes:
        return
    try:
        with pq.ParquetFile(source, buffer_size=READ_BUFFER_BYTES, pre_buffer=False) as file:
            batch_rows = check_footer(file, size_bytes, parser)
            for batch in file.iter_batches(batch_size=batch_rows, use_threads=False):
                if long := first_long_row(batch):
                    raise Unreadable(row + long, [Fault(None, TOO_LONG)])
                for record in batch.to_pylist():
                    row += 1
                    yield row, {name: plain(name, cell) for name, cell in record.items()}
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        said = f"cannot be read as Parquet, write the file again ({first_line(error)})"
        raise Unreadable(row + 1, [Fault(None, said)]) from None


def first_long_row(batch: pa.RecordBatch) -> int | None:
    """Its number in the batch, before anything of that size becomes Python objects."""
    if batch.nbytes <= MAX_LINE_BYTES:
        return None
    sizes = (batch.slice(i, 1).nbytes for i in range(batch.num_rows))
    return next((i for i, size in enumerate(sizes, start=1) if size > MAX_LINE_BYTES), None)


def check_footer(file: pq.ParquetFile, size_bytes: int, parser: RowParser) -> int:
    """How many rows to read at once so that any batch is small; raises Unreadable."""
    rows = file.metadata.num_rows
    if rows > MAX_ROWS:
        said = f"the file has {rows:,} rows, more than {MAX_ROWS:,}; split the dataset"
        raise Unreadable(1, [Fault(None, said)])
    groups = group_sizes(file.metadata)
    limit = max(MIN_EXPANDED_BYTES, MAX_EXPANSION * size_bytes)
    if sum(groups) > limit:
        said = f"the file unpacks to {sum(groups):,} bytes, more than {limit:,}; upload it as JSONL"
        raise Unreadable(1, [Fault(None, said)])
    try:
        parser.check_columns(file.schema_arrow.names)
    except RowInvalid as invalid:
        raise Unreadable(1, invalid.faults) from None
    if faults := [fault for field in file.schema_arrow for fault in faults_of_column(field)]:
        raise Unreadable(1, faults)
    # One value of a dictionary may be as large as its row group, and stand in every row of a batch.
    return min(BATCH_ROWS, max(1, BATCH_BYTES // max(1, *groups, 1)))


def group_sizes(metadata: pq.FileMetaData) -> list[int]:
    """Unpacked. (Asking for a column's metadata instead aborts the process on a damaged footer.)"""
    return [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]


def faults_of_column(field: "pa.Field[Any]") -> list[Fault]:
    kind = field.type
    if field.name == "label":
        good, wanted = types.is_boolean(kind) or types.is_integer(kind), "booleans"
    elif field.name == "margin":
        tests = (types.is_float32, types.is_float64, types.is_integer, types.is_null)
        good, wanted = any(test(kind) for test in tests), "numbers"
    elif field.name == "messages":
        good, wanted = is_messages(kind), "lists of messages"
    elif field.name in MESSAGE_COLUMNS:
        good, wanted = is_text(kind) or is_messages(kind), "strings or lists of messages"
    else:
        good, wanted = is_text(kind), "strings"
    return [] if good else [Fault(field.name, f"is a column of {kind}; it must hold {wanted}")]


def is_text(kind: pa.DataType) -> bool:
    tests = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
    return any(test(kind) for test in tests)


def is_messages(kind: pa.DataType) -> bool:
    if not (types.is_list(kind) or types.is_large_list(kind)):
        return False
    item = kind.value_type
    return bool(types.is_struct(item)) and all(is_text(part.type) for part in item)


def plain(name: str, value: Any) -> Any:
    """A cell as JSON would have it: labels of 0 and 1 are booleans, absent fields are not null.

    A table must fill what some messages do not have, and fills it with nulls.
    """
    if isinstance(value, list):
        return [plain(name, item) for item in value]
    if isinstance(value, dict):
        return {name: item for name, item in value.items() if item is not None}
    return bool(value) if name == "label" and value in (0, 1) else value


def first_line(error: Exception) -> str:
    line = (str(error) or type(error).__name__).splitlines()[0][:200]
    return "".join(char if char.isprintable() else "?" for char in line)


def main() -> None:
    """Reads the file at descriptor 0; writes a JSON line a row, and `!` before what ended it."""
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_READER_BYTES, MAX_READER_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_READER_CPU_S, MAX_READER_CPU_S))
    parser = RowParser(cast(RowType | None, sys.argv[1] if len(sys.argv) > 1 else None))
    with open(0, "rb", closefd=False) as source, open(1, "wb", closefd=False) as out:
        try:
            for _, record in parquet_records(source, os.fstat(0).st_size, parser):
                out.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        except Unreadable as unreadable:
            out.write(b"!" + json.dumps([unreadable.line, unreadable.faults]).encode() + b"\n")


if __name__ == "__main__":
    main()
