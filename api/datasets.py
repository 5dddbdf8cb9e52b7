"""Datasets over HTTP: upload, list, show, delete. What is inside one is in previews.py."""

from collections.abc import Callable
from typing import Annotated, Literal

import anyio
import structlog
from fastapi import APIRouter, Query, Request
from pydantic import Field

from adapters import registry
from api.auth import TenantId
from api.batches import batches
from api.bodies import StrictRoute
from api.calls import in_thread, read
from api.envelope import Deleted, ListOf, Wire, absent, refusals
from api.forms import Form, form_schema, is_form
from api.intake import FORMAT_OF_TYPE, Intake, UploadOptions
from api.paging import After, DatasetId, Limit
from api.services import FromServices, Services
from jobs.lineage import Derived
from jobs.model import Dataset
from storage.keys import dataset_prefix, job_prefix
from storage.objects import StorageError

router = APIRouter(prefix="/datasets", tags=["datasets"], route_class=StrictRoute)
log = structlog.get_logger()

FORM_FIELDS = frozenset(UploadOptions.model_fields)

_FILE = {"type": "string", "format": "binary"}
_OPTION = {"type": "string"}
UPLOAD_BODY = {
    "requestBody": {
        "required": True,
        "description": "The file itself, or a form with the file in its last field, `file`.",
        "content": {
            kind: {"schema": _FILE} for kind in (*FORMAT_OF_TYPE, "application/octet-stream")
        }
        | form_schema(dict.fromkeys(sorted(FORM_FIELDS), _OPTION) | {"file": _FILE}, ["file"]),
    }
}


class DerivedView(Wire):
    """What was made from a dataset: jobs that read it, what they made, and whatever went on from
    there.
    """

    object: Literal["dataset.derived"] = "dataset.derived"
    jobs: tuple[str, ...]
    checkpoints: tuple[str, ...]
    adapters: tuple[str, ...]


class DatasetDeleted(Deleted):
    """`derived` is what was made from it; `derived_deleted` says whether that is gone too."""

    derived: DerivedView
    derived_deleted: bool


class DatasetView(Wire):
    """Immutable rows of one type. `warnings` are for people; `sha256` is of the uploaded bytes.

    `expires_at` is there where `POST /v1/files` was told when the file is to go.
    """

    object: Literal["dataset"] = "dataset"
    id: str
    name: str
    format: Literal["jsonl", "csv", "parquet"]
    row_type: str
    rows: int
    bytes: int
    sha256: str
    duplicates: int
    warnings: tuple[str, ...]
    created_at: int
    expires_at: int | None = Field(None, exclude_if=absent)


def view(dataset: Dataset) -> DatasetView:
    return DatasetView(
        id=dataset.id,
        name=dataset.name,
        format=dataset.format,
        row_type=dataset.row_type,
        rows=dataset.rows,
        bytes=dataset.size_bytes,
        sha256=dataset.sha256,
        duplicates=dataset.duplicates,
        warnings=dataset.warnings,
        created_at=int(dataset.created_at),
        expires_at=None if dataset.expires_at is None else int(dataset.expires_at),
    )


@router.post("", status_code=201, responses=refusals(408, 413, 415), openapi_extra=UPLOAD_BODY)
async def upload(
    request: Request,
    tenant_id: TenantId,
    services: FromServices,
    options: Annotated[UploadOptions, Query()],
) -> DatasetView:
    """Store a dataset, checked row by row as it arrives. Problems are told by line and field."""
    await read(services.store, services.store.datasets.require_bytes, tenant_id, 1)
    intake = Intake(services.store, services.objects, tenant_id, options)
    content_type = request.headers.get("content-type", "")
    try:
        feed, close = await in_thread(_reader, content_type, intake)
        async for batch in batches(request.stream()):
            await in_thread(feed, batch)
        close()
        dataset = await in_thread(intake.finish)
    finally:
        with anyio.CancelScope(shield=True):
            await in_thread(intake.abort)
    return view(dataset)


def _reader(
    content_type: str, intake: Intake
) -> tuple[Callable[[bytes], None], Callable[[], None]]:
    """Where the body's bytes go, and what to call after the last."""
    if is_form(content_type):
        form = Form(content_type, FORM_FIELDS, intake)
        return form.feed, form.close
    intake.begin(content_type, None)
    return intake.write, lambda: None


@router.get("", responses=refusals(404))
async def list_datasets(
    tenant_id: TenantId, services: FromServices, after: After, limit: Limit = 20
) -> ListOf[DatasetView]:
    """The tenant's datasets, newest first."""
    datasets = services.store.datasets
    page = await read(services.store, datasets.page, tenant_id, after=after, limit=limit)
    return ListOf(data=tuple(map(view, page.data)), has_more=page.has_more)


@router.get("/{id}", responses=refusals(404))
async def get_dataset(id: DatasetId, tenant_id: TenantId, services: FromServices) -> DatasetView:
    """One dataset with the report of its check."""
    return view(await read(services.store, services.store.datasets.get, tenant_id, id))


@router.delete("/{id}", responses=refusals(404, 409))
async def delete_dataset(
    id: DatasetId,
    tenant_id: TenantId,
    services: FromServices,
    derived: Annotated[
        bool, Query(description="also its jobs, checkpoints and adapters, and what came of them")
    ] = False,
) -> DatasetDeleted:
    """Delete a dataset that no waiting or running job needs; what was made from it is listed."""
    found = await in_thread(remove, services, tenant_id, id, derived)
    return DatasetDeleted(
        id=id,
        object="dataset",
        derived=DerivedView.model_validate(found.model_dump()),
        derived_deleted=derived,
    )


@router.get("/{id}/derived", responses=refusals(404))
async def list_derived(id: DatasetId, tenant_id: TenantId, services: FromServices) -> DerivedView:
    """What was made from a dataset, by ids: jobs, checkpoints and adapters, the oldest first."""
    found = await in_thread(services.store.datasets.derived, tenant_id, id)
    return DerivedView.model_validate(found.model_dump())


def remove(services: Services, tenant_id: str, dataset_id: str, derived: bool) -> Derived:
    """The rows decide; bytes that cannot be removed now are only a waste of space."""
    found = services.store.datasets.delete(tenant_id, dataset_id, derived=derived)
    try:
        services.objects.delete_prefix(dataset_prefix(tenant_id, dataset_id))
        for adapter_id in found.adapters if derived else ():
            registry.remove(services.objects, tenant_id, adapter_id)
        for job_id in found.jobs if derived else ():
            services.objects.delete_prefix(job_prefix(tenant_id, job_id))
    except StorageError as error:
        log.warning("dataset.bytes_left", dataset=dataset_id, error=type(error).__name__)
    return found
