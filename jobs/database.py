"""One database, SQLite or PostgreSQL: transactions, migrations, failures by our names."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from jobs.errors import StoreUnavailable

MIGRATIONS = Path(__file__).parent / "migrations"

# InternalError: a server that became a standby answers so to every write.
AWAY = (
    sa.exc.OperationalError,
    sa.exc.InterfaceError,
    sa.exc.InternalError,
    sa.exc.TimeoutError,
)

# A server that is gone without a word (a lost node, a cut cable) is noticed by TCP itself: idle
# connections are probed, and what was sent must be acknowledged in time. A process that stops in
# the middle of a transaction holds locks that a sweep passes over: the server ends that session.
POSTGRESQL: dict[str, Any] = {
    "connect_timeout": 2,
    "options": "-c statement_timeout=30000 -c idle_in_transaction_session_timeout=10000",
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}


class Database:
    """Transactions over one SQLAlchemy engine. `url` is any SQLAlchemy URL of the two dialects."""

    def __init__(self, url: str) -> None:
        self.url = sa.make_url(url)
        self.dialect = self.url.get_backend_name()
        if self.dialect == "sqlite":
            self.engine = _sqlite(self.url)
        elif self.dialect == "postgresql":
            self.engine = _postgresql(self.url)
        else:
            raise ValueError(
                f"database {self.dialect!r} is not supported; use sqlite or postgresql"
            )

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A transaction that only reads."""
        with _translated(), self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction that writes; it commits when the block ends without an exception."""
        with (
            _translated(),
            self.engine.connect().execution_options(luthier_write=True) as connection,
            connection.begin(),
        ):
            yield connection

    def ping(self) -> None:
        """Raise StoreUnavailable unless the database answers."""
        with self.read() as connection:
            connection.execute(sa.text("select 1"))

    def migrate(self) -> None:
        """Bring the schema to the newest revision; several processes may call it at once."""
        with self.write() as connection:
            if self.dialect == "postgresql":
                connection.execute(sa.text("select pg_advisory_xact_lock(7205759)"))
            command.upgrade(self._alembic(connection), "head")

    def current(self) -> bool:
        """True where the schema is the newest that this version knows, or a later version's.

        Migrations only add, so what still runs during an upgrade goes on with the new schema.
        """
        with self.read() as connection:
            revision = MigrationContext.configure(connection).get_current_revision()
        script = ScriptDirectory.from_config(self._alembic(None))
        if revision is None:
            return False
        known = {one.revision for one in script.walk_revisions()}
        return revision == script.get_current_head() or revision not in known

    def _alembic(self, connection: sa.Connection | None) -> Config:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        config.attributes["connection"] = connection
        return config

    def close(self) -> None:
        self.engine.dispose()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except AWAY as error:
        raise StoreUnavailable(f"The database does not answer: {type(error).__name__}.") from error


def _sqlite(url: sa.URL) -> sa.Engine:
    if url.database and url.database != ":memory:":
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(url, connect_args={"timeout": 30})

    @sa.event.listens_for(engine, "connect")
    def _connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves, below
        _write_ahead(connection)
        connection.execute("PRAGMA synchronous=FULL")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        # A writer takes its lock at once: a deferred one may fail midway with "database is locked".
        write = connection.get_execution_options().get("luthier_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Switch to the write-ahead log; SQLite does not wait by itself while others do the same."""
    deadline = time.monotonic() + 10
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _postgresql(url: sa.URL) -> sa.Engine:
    if url.get_driver_name() != "psycopg":
        url = url.set(drivername="postgresql+psycopg")
    return sa.create_engine(
        url,
        pool_pre_ping=True,
        pool_timeout=2,
        pool_size=10,
        max_overflow=20,
        connect_args=POSTGRESQL,
    )
