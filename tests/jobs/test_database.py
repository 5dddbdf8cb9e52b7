"""Schemas of this version, of none, and of a later one."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from jobs.database import Database
from jobs.opening import open_store
from jobs.settings import Settings


@pytest.fixture(params=["sqlite", "postgresql"])
def database(
    request: pytest.FixtureRequest, tmp_path: Path, postgres_database: Callable[[], str]
) -> Iterator[Database]:
    embedded = request.param == "sqlite"
    database = Database(f"sqlite:///{tmp_path / 'luthier.db'}" if embedded else postgres_database())
    yield database
    database.close()


def test_an_empty_database_is_not_current_and_a_migrated_one_is(database: Database) -> None:
    assert not database.current()
    database.migrate()
    assert database.current()


def test_an_older_schema_is_not_current(database: Database) -> None:
    database.migrate()
    _stamp(database, "0001")
    assert not database.current()


def test_a_later_versions_schema_is_taken_as_it_is(database: Database) -> None:
    database.migrate()
    _stamp(database, "9999")
    assert database.current()


def test_a_role_starts_while_an_upgrade_has_brought_the_schema_ahead(
    tmp_path: Path, postgres_url: str
) -> None:
    database = Database(postgres_url)
    database.migrate()
    _stamp(database, "9999")
    database.close()
    store = open_store(Settings(data_dir=tmp_path, database_url=postgres_url))
    assert store.tenants.create("tests").name == "tests"
    store.close()


def _stamp(database: Database, revision: str) -> None:
    with database.write() as connection:
        connection.execute(
            sa.text("update alembic_version set version_num = :revision"), {"revision": revision}
        )
