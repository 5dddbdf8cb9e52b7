"""From settings to open things: the database, the object store, the pepper."""

import secrets
from pathlib import Path

import structlog

import storage.opening
from jobs.errors import StoreUnavailable
from jobs.quotas import Quotas
from jobs.settings import Settings
from jobs.store import Store
from storage.objects import ObjectStore

log = structlog.get_logger()


def open_store(settings: Settings) -> Store:
    """The jobs database. SQLite is brought to the newest schema; PostgreSQL must be there already.

    Raises StoreUnavailable when it does not answer or waits for `luthier migrate`.
    """
    store = Store(
        settings.database,
        pepper=pepper(settings),
        lease_s=settings.lease_s,
        max_attempts=settings.max_attempts,
        quotas=quotas(settings),
    )
    if store.database.dialect == "sqlite":
        store.database.migrate()
    elif not store.database.current():
        raise StoreUnavailable("The database's schema is not the newest; run `luthier migrate`.")
    return store


def quotas(settings: Settings) -> Quotas:
    """The operator's defaults for every tenant."""
    return Quotas(**{name: getattr(settings, name) for name in Quotas.model_fields})


def open_objects(settings: Settings) -> ObjectStore:
    secret = settings.s3_secret_key
    return storage.opening.open_store(
        settings.storage,
        endpoint_url=settings.s3_endpoint_url,
        region=settings.s3_region,
        access_key=settings.s3_access_key,
        secret_key=secret.get_secret_value() if secret else None,
    )


def pepper(settings: Settings) -> str:
    """The configured pepper, else one that the first role on this machine makes."""
    given = settings.pepper.get_secret_value()
    if given:
        return given
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    path = settings.data_dir / "pepper"
    if not path.exists():
        if settings.database_url:  # which other machines may use, with keys made under theirs
            log.warning("pepper.of_this_machine_only", path=str(path), instead="LUTHIER_PEPPER")
        _create_once(path, secrets.token_urlsafe(32))
    return path.read_text()


def _create_once(path: Path, text: str) -> None:
    """Write a secret whole under its name, unless another process was first."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    draft.touch(mode=0o600)
    draft.write_text(text)
    try:
        path.hardlink_to(draft)
    except FileExistsError:
        return
    finally:
        draft.unlink()
