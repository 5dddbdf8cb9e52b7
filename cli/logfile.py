"""A role's log file: what is new in it, its last words, and its size kept in bounds."""

import os
import shutil
from pathlib import Path

MAX_BYTES = 20 << 20
_READ_BYTES = 1 << 20


class LogFile:
    """Reads a file that others append to, from where it ended when this was made."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.touch()
        self._offset = path.stat().st_size
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
            self._offset = 0

    def last_words(self, count: int = 6) -> list[str]:
        """The last lines that say something."""
        with self._path.open("rb") as file:
            file.seek(max(0, self._path.stat().st_size - (1 << 14)))
            lines = file.read().decode(errors="replace").splitlines()
        return [line for line in lines if line.strip()][-count:]
