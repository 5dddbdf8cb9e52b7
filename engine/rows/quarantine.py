"""Parquet from strangers, read in a process of its own: a broken file can abort its reader.

The footer stands at the end of the file, so an upload is spooled until it is complete.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import IO

from engine.rows.parser import RowParser, Unreadable
from engine.rows.written import Fault

CRASHED = "cannot be read as Parquet, write the file again (its reader crashed)"


class ParquetRecords:
    """Spools what it is fed; close() has it read. discard() ends the reader and the spool."""

    def __init__(self, parser: RowParser) -> None:
        self._parser = parser
        # Closed by discard(); it has no name, so a killed process leaves nothing either.
        self._spool: IO[bytes] = tempfile.TemporaryFile(prefix="luthier-")  # noqa: SIM115
        self._reader: subprocess.Popen[bytes] | None = None

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        self._spool.write(data)
        return iter(())

    def close(self) -> Iterator[tuple[int, bytes]]:
        """The rows as lines of JSON; raises Unreadable."""
        self._spool.seek(0)
        self._reader = subprocess.Popen(
            [sys.executable, "-m", "engine.rows.parquet", *filter(None, [self._parser.row_type])],
            stdin=self._spool,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PYTHONPATH": os.pathsep.join(sys.path)},  # and none of our secrets
        )
        assert self._reader.stdout is not None
        row = 0
        for row, line in enumerate(self._reader.stdout, start=1):
            if line.startswith(b"!"):
                at, faults = json.loads(line[1:])
                raise Unreadable(at, [Fault(*fault) for fault in faults])
            if line.endswith(b"\n"):  # else it is where the reader crashed
                yield row, line
        if self._reader.wait() != 0:
            raise Unreadable(row + 1, [Fault(None, CRASHED)])

    def discard(self) -> None:
        self._spool.close()
        if self._reader is not None and self._reader.stdout is not None:
            self._reader.kill()
            self._reader.wait()
            self._reader.stdout.close()
