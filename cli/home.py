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
_NOTE, _HEIRS = "serve.json", "serve.lock"
_HEIRS_S = 10.0  # children of a serve that was killed end within this
_GLANCE_S = 0.3  # a command that looks whether somebody serves holds the lock for a moment


def key_path(data_dir: Path) -> Path:
    return data_dir / "key"


def prepare(settings: "Settings") -> None:
    """Make the database, the default tenant and a first key, where they are missing."""
    from jobs.audit import Actor, acting_as
    from jobs.keys import SCOPES
    from jobs.opening import open_store

    store = open_store(settings)
    try:
        with acting_as(Actor("operator")):
            path = key_path(settings.data_dir)
            tenant = store.tenants.create(TENANT)
            if path.exists() and store.tenants.authenticate(path.read_text().strip()):
                return
            key, _ = store.tenants.issue_key(tenant.id, "first key", SCOPES)
            _write_secret(path, key + "\n")
    finally:
        store.close()


def _write_secret(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.touch(mode=0o600)
    draft.write_text(text)
    draft.replace(path)


class Occupation:
    """The locks on a data folder, and the note of who serves from it and where.

    One lock is this process's alone and says whether it lives. Its children inherit the other one,
    so the folder is free when the last of them has ended.
    """

    def __init__(self, data_dir: Path) -> None:
        data_dir.mkdir(parents=True, exist_ok=True)
        self._note = (data_dir / _NOTE).open("a+")
        if not _locked_within(self._note, _GLANCE_S):
            self._note.close()
            raise CommandFailed(
                f"Another `luthier serve` (process {_read(data_dir).get('pid')}) works in "
                f"{data_dir}. Stop it, or choose another folder with --data-dir."
            )
        self._heirs = (data_dir / _HEIRS).open("a")
        if not _locked_within(self._heirs, _HEIRS_S):
            self.release()
            raise CommandFailed(
                f"Processes of an earlier `luthier serve` still work in {data_dir}; end them first."
            )
        self.announce("")

    @property
    def fd(self) -> int:
        """What children inherit."""
        return self._heirs.fileno()

    def announce(self, url: str) -> None:
        """Note who serves from this folder and where, for the commands that talk to it."""
        self._note.seek(0)
        self._note.truncate()
        self._note.write(json.dumps({"pid": os.getpid(), "url": url}))
        self._note.flush()

    def release(self) -> None:
        self.announce("")
        self._heirs.close()
        self._note.close()


def served_at(data_dir: Path) -> str | None:
    """The URL of the service that runs from this folder, if one does."""
    try:
        with (data_dir / _NOTE).open() as note:
            if _lock(note, fcntl.LOCK_SH):
                return None  # nobody holds it
    except OSError:
        return None
    url = _read(data_dir).get("url")
    return str(url) if url else None


def _read(data_dir: Path) -> dict[str, object]:
    try:
        note = json.loads((data_dir / _NOTE).read_text())
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _locked_within(file: IO[str], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not _lock(file, fcntl.LOCK_EX):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _lock(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
