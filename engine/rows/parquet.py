"""Parquet records. The footer stands at the end of the file, so an upload is spooled first."""

import tempfile
from collections.abc import Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from engine.rows.model import MAX_LINE_BYTES, MAX_ROWS
from engine.rows.parser import TOO_LONG, RowInvalid, RowParser, Unreadable
from engine.rows.spellings import Fault

BATCH_ROWS = 256
BATCH_BYTES = 64 << 20
READ_BUFFER_BYTES = 1 << 20
# What the columns may hold once unpacked, by what their file takes; text packs five- to tenfold.
MAX_EXPANSION = 50
MIN_EXPANDED_BYTES = 64 << 20
MESSAGE_COLUMNS = ("messages", "prompt", "completion", "chosen", "rejected")

Records = Iterator[tuple[int, dict[str, Any]]]


class ParquetRecords:
    """Spools what it is fed; close() reads it. discard() removes the spool."""

    def __init__(self, parser: RowParser) -> None:
        self._parser = parser
        # Closed by discard(); it has no name, so a killed process leaves nothing either.
        self._spool: IO[bytes] = tempfile.TemporaryFile(prefix="luthier-")  # noqa: SIM115
        self._bytes = 0

    def feed(self, data: bytes) -> Records:
        self._bytes += self._spool.write(data)
        return iter(())

    def close(self) -> Records:
        self._spool.seek(0)
        return parquet_records(self._spool, self._bytes, self._parser)

    def discard(self) -> None:
        self._spool.close()


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
                    yield row, {name: without_nulls(cell) for name, cell in record.items()}
    except (pa.ArrowException, OSError, ValueError) as error:
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
    chunks = chunk_sizes(file.metadata)
    limit = max(MIN_EXPANDED_BYTES, MAX_EXPANSION * size_bytes)
    if sum(chunks) > limit:
        said = f"the file unpacks to {sum(chunks):,} bytes, more than {limit:,}; upload it as JSONL"
        raise Unreadable(1, [Fault(None, said)])
    try:
        parser.check_columns(file.schema_arrow.names)
    except RowInvalid as invalid:
        raise Unreadable(1, invalid.faults) from None
    if faults := [fault for field in file.schema_arrow for fault in faults_of_column(field)]:
        raise Unreadable(1, faults)
    # One value of a dictionary may be as large as its chunk, and stand in every row of a batch.
    return min(BATCH_ROWS, max(1, BATCH_BYTES // max(chunks, default=1)))


def chunk_sizes(metadata: pq.FileMetaData) -> list[int]:
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    return [
        group.column(i).total_uncompressed_size
        for group in groups
        for i in range(group.num_columns)
    ]


def faults_of_column(field: "pa.Field[Any]") -> list[Fault]:
    kind = field.type
    if field.name == "label":
        good, wanted = types.is_boolean(kind) or types.is_integer(kind), "booleans"
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


def without_nulls(value: Any) -> Any:
    """A null in a message is an absent field: a table must fill what some messages do not have."""
    if isinstance(value, dict):
        return {name: item for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def first_line(error: Exception) -> str:
    line = (str(error) or type(error).__name__).splitlines()[0][:200]
    return "".join(char if char.isprintable() else "?" for char in line)
