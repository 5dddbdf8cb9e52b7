"""The data folder of one machine: who serves from it, its first tenant, and the key for the CLI."""

import fcntl
import json
import os
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

from cli.failure import CommandFailed

if TYPE_CHECKING:
    from jobs.settings import Settings

TENANT = "default"
_LOCK = "serve.json"
_HEIRS_S = 10.0  # children of a serve that was killed end within this


def key_path(data_dir: Path) -> Path:
    return data_dir / "key"


def prepare(settings: "Settings") -> None:
    """Make the database, the default tenant and a first key, where they are missing."""
    from jobs.opening import open_store

    store = open_store(settings)
    try:
        path = key_path(settings.data_dir)
        tenant = store.tenants.create(TENANT)
        if not path.exists() or store.tenants.authenticate(path.read_text().strip()) is None:
            key, _ = store.tenants.issue_key(tenant.id, "first key")
            _write_secret(path, key + "\n")
    finally:
        store.close()


def _write_secret(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.touch(mode=0o600)
    draft.write_text(text)
    draft.replace(path)


class Occupation:
    """The lock on a data folder, and the note of who holds it.

    Children inherit the lock, so the folder is free when the last of them has ended.
    """

    def __init__(self, data_dir: Path) -> None:
        data_dir.mkdir(parents=True, exist_ok=True)
        self._file: IO[str] = (data_dir / _LOCK).open("a+")
        deadline = time.monotonic() + _HEIRS_S
        while not self._try():
            holder = _note(data_dir).get("pid")
            if time.monotonic() > deadline or (isinstance(holder, int) and _alive(holder)):
                self._file.close()
                raise CommandFailed(
                    f"Another `luthier serve` (process {holder}) works in {data_dir}. "
                    "Stop it, or choose another folder with --data-dir."
                )
            time.sleep(0.1)
        self.announce("")

    @property
    def fd(self) -> int:
        return self._file.fileno()

    def _try(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def announce(self, url: str) -> None:
        """Note who serves from this folder and where, for the commands that talk to it."""
        self._file.seek(0)
        self._file.truncate()
        self._file.write(json.dumps({"pid": os.getpid(), "url": url}))
        self._file.flush()

    def release(self) -> None:
        self.announce("")
        self._file.close()


def served_at(data_dir: Path) -> str | None:
    """The URL of the service that runs from this folder, if one does."""
    note = _note(data_dir)
    url, pid = note.get("url"), note.get("pid")
    return str(url) if url and isinstance(pid, int) and _alive(pid) else None


def _note(data_dir: Path) -> dict[str, object]:
    try:
        note = json.loads((data_dir / _LOCK).read_text())
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
