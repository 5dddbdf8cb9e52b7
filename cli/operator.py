"""The jobs database for commands of who runs the service: what they do is the operator's deed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cli.configuration import read_settings

if TYPE_CHECKING:
    from jobs.store import Store


@contextmanager
def operators_store(data_dir: Path | None) -> Iterator["Store"]:
    from jobs.audit import Actor, acting_as
    from jobs.opening import open_store

    store = open_store(read_settings(data_dir=data_dir))
    try:
        with acting_as(Actor("operator")):
            yield store
    finally:
        store.close()
