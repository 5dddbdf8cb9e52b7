"""Parquet records. The footer stands at the end of the file, so an upload is spooled first."""

import tempfile
from collections.abc import Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from engine.rows.model import MAX_ROWS
from engine.rows.parser import RowInvalid, RowParser, Unreadable
from engine.rows.spellings import Fault

BATCH_ROWS = 256
READ_BUFFER_BYTES = 1 << 20


class ParquetRecords:
    """Spools what it is fed; close() reads it. discard() removes the spool."""

    def __init__(self, parser: RowParser) -> None:
        self._parser = parser
        # Closed by discard(); it has no name, so a killed process leaves nothing either.
        self._spool: IO[bytes] = tempfile.TemporaryFile(prefix="luthier-")  # noqa: SIM115

    def feed(self, data: bytes) -> Iterator[tuple[int, dict[str, Any] | RowInvalid]]:
        self._spool.write(data)
        return iter(())

    def close(self) -> Iterator[tuple[int, dict[str, Any] | RowInvalid]]:
        self._spool.seek(0)
        yield from parquet_records(self._spool, self._parser)

    def discard(self) -> None:
        self._spool.close()


def parquet_records(
    source: IO[bytes] | str, parser: RowParser
) -> Iterator[tuple[int, dict[str, Any] | RowInvalid]]:
    """The rows of a file, numbered from 1, a few in memory at a time; raises Unreadable."""
    row = 0
    try:
        with pq.ParquetFile(source, buffer_size=READ_BUFFER_BYTES, pre_buffer=False) as file:
            check_footer(file, parser)
            for batch in file.iter_batches(batch_size=BATCH_ROWS, use_threads=False):
                for record in batch.to_pylist():
                    row += 1
                    yield row, {name: without_nulls(cell) for name, cell in record.items()}
    except (pa.ArrowException, OSError, UnicodeDecodeError, RecursionError) as error:
        fault = Fault(None, f"cannot be read as Parquet: {first_line(error)}; write the file again")
        raise Unreadable(row + 1, [fault]) from None


def check_footer(file: pq.ParquetFile, parser: RowParser) -> None:
    if file.metadata.num_rows > MAX_ROWS:
        said = f"has {file.metadata.num_rows:,} rows, more than {MAX_ROWS:,}; split the dataset"
        raise Unreadable(1, [Fault(None, said)])
    try:
        parser.check_columns(file.schema_arrow.names)
    except RowInvalid as invalid:
        raise Unreadable(1, invalid.faults) from None


def without_nulls(value: Any) -> Any:
    """A null in a message is an absent field: a table must fill what some messages do not have."""
    if isinstance(value, dict):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
