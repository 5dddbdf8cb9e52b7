"""Uploads: files that come in parts within an hour, and are datasets when they are complete.

The bytes that an upload says it will have count against the tenant's quota from its start, until
its dataset's do. Its parts' rows come after their objects, and go before them.
"""

from collections.abc import Sequence

import sqlalchemy as sa

from jobs.audit import note
from jobs.database import Database
from jobs.datasets import add_dataset
from jobs.errors import Conflict, NotFound
from jobs.model import Dataset, Upload, UploadPart
from jobs.quotas import DEFAULTS, UPLOAD_S, Quotas, require_bytes, under_way
from jobs.tables import now, upload_parts, uploads

KEPT_S = 24 * 3600.0  # how long it can be asked again how an upload ended
EXPIRED_AT_ONCE = 500
MAX_PARTS = 10_000
SENT_AGAIN = 2  # a part whose answer was lost is there twice, and its upload is still to be whole


class Uploads:
    def __init__(self, database: Database, defaults: Quotas = DEFAULTS) -> None:
        self._db, self._defaults = database, defaults

    def create(self, upload: Upload) -> Upload:
        """Keep room for an upload. `created_at` is set by the database. Raises QuotaExceeded."""
        values = upload.model_dump(mode="json", exclude={"late"}) | {"created_at": now()}
        with self._db.write() as connection:
            require_bytes(connection, upload.tenant_id, upload.size_bytes, self._defaults)
            note(connection, upload.tenant_id, "upload.create", upload.id)
            connection.execute(uploads.insert().values(values))
            return _find(connection, upload.tenant_id, upload.id)

    def get(self, tenant_id: str, upload_id: str) -> Upload:
        """Raises NotFound."""
        with self._db.read() as connection:
            return _find(connection, tenant_id, upload_id)

    def open(self, tenant_id: str, upload_id: str) -> Upload:
        """One that takes parts. Raises NotFound, and Conflict where its end has come."""
        with self._db.read() as connection:
            return _open(_find(connection, tenant_id, upload_id))

    def add_part(self, tenant_id: str, upload_id: str, part: UploadPart) -> UploadPart:
        """Make a stored part known. Raises NotFound and Conflict."""
        values = part.model_dump(mode="json") | {"created_at": now()}
        query = upload_parts.insert().values(values).returning(upload_parts)
        with self._db.write() as connection:
            upload = _open(_find(connection, tenant_id, upload_id, lock=True))
            there = connection.execute(
                sa.select(
                    sa.func.count(), sa.func.coalesce(sa.func.sum(upload_parts.c.size_bytes), 0)
                ).where(upload_parts.c.upload_id == upload_id)
            ).one()
            if there[0] >= MAX_PARTS:
                raise Conflict(f"Upload {upload_id} has {MAX_PARTS:,} parts; send larger ones.")
            if there[1] + part.size_bytes > SENT_AGAIN * upload.size_bytes:
                raise Conflict(
                    f"Upload {upload_id} was to have {upload.size_bytes:,} bytes; with this part "
                    f"it would have {there[1] + part.size_bytes:,}, more than all of it sent "
                    "twice. Start another one."
                )
            return UploadPart.model_validate(dict(connection.execute(query).mappings().one()))

    def parts(self, tenant_id: str, upload_id: str) -> dict[str, UploadPart]:
        """The parts that have come, by id. Raises NotFound."""
        query = sa.select(upload_parts).where(upload_parts.c.upload_id == upload_id)
        with self._db.read() as connection:
            _find(connection, tenant_id, upload_id)
            rows = connection.execute(query).mappings().all()
        return {row["id"]: UploadPart.model_validate(dict(row)) for row in rows}

    def complete(self, upload: Upload, completed_by: str, dataset: Dataset) -> Dataset:
        """The upload's dataset, visible now. Raises Conflict where another call was first."""
        values = {
            "status": "completed",
            "dataset_id": dataset.id,
            "completed_by": completed_by,
        }
        with self._db.write() as connection:
            found = _find(connection, upload.tenant_id, upload.id, lock=True)
            if found.status != "pending":  # late or not: its parts were there to the end
                _open(found)
            _settle(connection, upload.id, values)
            return add_dataset(connection, dataset, self._defaults)

    def cancel(self, tenant_id: str, upload_id: str) -> Upload:
        """Give an upload up; again, it is as it was. Raises NotFound and Conflict."""
        with self._db.write() as connection:
            found = _find(connection, tenant_id, upload_id, lock=True)
            if found.status == "cancelled":
                return found
            _open(found)
            _settle(connection, upload_id, {"status": "cancelled"})
            note(connection, tenant_id, "upload.cancel", upload_id)
            return _find(connection, tenant_id, upload_id)

    def expire(self) -> list[tuple[str, str]]:
        """Forget uploads whose hour is over, and ended ones after a day: by tenant and id."""
        over = sa.or_(
            sa.and_(uploads.c.status == "pending", uploads.c.created_at <= now() - UPLOAD_S),
            uploads.c.created_at <= now() - KEPT_S,
        )
        query = sa.select(uploads.c.tenant_id, uploads.c.id).where(over).limit(EXPIRED_AT_ONCE)
        with self._db.write() as connection:
            locked = query.with_for_update(skip_locked=True)
            gone = [(row.tenant_id, row.id) for row in connection.execute(locked)]
            ids = [upload_id for _, upload_id in gone]
            connection.execute(upload_parts.delete().where(upload_parts.c.upload_id.in_(ids)))
            connection.execute(uploads.delete().where(uploads.c.id.in_(ids)))
        return gone


def _find(
    connection: sa.Connection, tenant_id: str, upload_id: str, *, lock: bool = False
) -> Upload:
    late = sa.and_(uploads.c.status == "pending", sa.not_(under_way())).label("late")
    query = sa.select(uploads, late).where(
        uploads.c.tenant_id == tenant_id, uploads.c.id == upload_id
    )
    row = connection.execute(query.with_for_update() if lock else query).mappings().first()
    if row is None:
        raise NotFound("upload", upload_id)
    return Upload.model_validate(dict(row))


def _open(upload: Upload) -> Upload:
    if upload.status != "pending":
        raise Conflict(f"Upload {upload.id} is {upload.status}; start another one.")
    if upload.late:
        raise Conflict(f"Upload {upload.id} has expired after an hour; start another one.")
    return upload


def _settle(connection: sa.Connection, upload_id: str, values: dict[str, str]) -> None:
    connection.execute(upload_parts.delete().where(upload_parts.c.upload_id == upload_id))
    connection.execute(uploads.update().where(uploads.c.id == upload_id).values(values))


def missing(part_ids: Sequence[str], parts: dict[str, UploadPart]) -> list[str]:
    """The ids that are of no part."""
    return [part_id for part_id in part_ids if part_id not in parts]
