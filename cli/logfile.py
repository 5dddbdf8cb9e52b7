"""A role's log file: what is new in it, its last words, and its size kept in bounds."""

import os
import shutil
from pathlib import Path

from cli.logs import parse
from cli.look import CROSS

MAX_BYTES = 20 << 20
_READ_BYTES = 1 << 20
_LAST_BYTES = 1 << 14
_LAST_LINES = 6


class LogFile:
    """Reads a file that others append to, from where it ended when this was made."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.touch()
        self._offset = self._start = path.stat().st_size
        self._rest = b""

    def new_lines(self) -> list[str]:
        """Complete lines since the last call."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read(_READ_BYTES)
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line.decode(errors="replace") for line in lines]

    def rotate(self) -> None:
        """Move a log that has grown large to `.1`. Its writers append, so emptying it is safe."""
        if self._offset > MAX_BYTES:
            shutil.copyfile(self._path, self._path.with_suffix(self._path.suffix + ".1"))
            os.truncate(self._path, 0)
            self._offset = self._start = 0

    def last_words(self) -> list[str]:
        """What a process said last: its own verdict where it gave one, else the last lines."""
        with self._path.open("rb") as file:
            file.seek(max(self._start, self._path.stat().st_size - _LAST_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
        verdicts = [line for line in lines if line.startswith(CROSS)]
        said = [line for line in lines if line.strip() and parse(line) is None]
        return [verdicts[-1].removeprefix(CROSS).strip()] if verdicts else said[-_LAST_LINES:]
