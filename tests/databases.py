"""Databases at the newest schema, copied from one: migrating takes longer than most tests."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from jobs.database import Database
from tests.servers import fresh_database


def new_sqlite(path: Path) -> str:
    """The URL of a fresh one there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_sqlite())
    return f"sqlite:///{path}"


@cache
def _sqlite() -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "new.db"
        with closing(Database(f"sqlite:///{path}")) as database:
            database.migrate()
        return path.read_bytes()


@contextmanager
def postgres_template(server_url: str) -> Iterator[str]:
    """The name of a database to copy."""
    with fresh_database(server_url) as url:
        with closing(Database(url)) as database:
            database.migrate()
        yield url.rpartition("/")[2]
