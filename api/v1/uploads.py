"""OpenAI's uploads: a file in parts of up to 64 MiB, which is a file like any other in the end."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Annotated, Literal

import anyio
import structlog
from fastapi import APIRouter, Request
from pydantic import Field, StringConstraints

from api.auth import TenantId
from api.batches import batches
from api.bodies import PART_BYTES, StrictRoute
from api.calls import in_thread, read
from api.envelope import Body, Wire, refusals
from api.errors import BodyTooLarge, Invalid, MediaTypeUnsupported
from api.forms import FORM, Form, form_schema, is_form
from api.intake import Intake, UploadOptions, format_of, name_of
from api.paging import UploadId
from api.services import FromServices, Services
from api.v1.files import ExpiresAfter, FileView, Purpose, required_purpose, view
from engine.rows import OPENAI
from jobs.errors import Conflict, NotFound
from jobs.model import Dataset, Upload, UploadPart, new_id
from jobs.quotas import UPLOAD_S
from jobs.uploads import MAX_PARTS, missing
from storage.keys import upload_part, upload_prefix
from storage.objects import ObjectNotFound, ObjectWriter, StorageError

router = APIRouter(prefix="/v1/uploads", tags=["openai"], route_class=StrictRoute)
log = structlog.get_logger()

MOST_BYTES = 8_000_000_000  # as OpenAI has it; the server's own limit may be lower
Text = Annotated[
    str, StringConstraints(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")
]


class UploadBody(Body):
    """What will come. `mime_type` and `filename` say the format; by default it is JSONL."""

    bytes: int = Field(ge=1, le=2**63 - 1)
    filename: Text
    mime_type: Text
    purpose: Purpose
    expires_after: ExpiresAfter | None = None


class CompleteBody(Body):
    """The parts in the order in which they make the file; `md5` is of its bytes, in hex."""

    part_ids: tuple[Annotated[str, Field(max_length=64)], ...] = Field(
        min_length=1, max_length=MAX_PARTS
    )
    md5: Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{32}$")] | None = None


class UploadView(Wire):
    """A file that comes in parts. `file` is there once it is complete."""

    object: Literal["upload"] = "upload"
    id: str
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: Literal["fine-tune"] = "fine-tune"
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: FileView | None = None


class PartView(Wire):
    object: Literal["upload.part"] = "upload.part"
    id: str
    created_at: int
    upload_id: str


def shown(upload: Upload, dataset: Dataset | None = None) -> UploadView:
    return UploadView(
        id=upload.id,
        bytes=upload.size_bytes,
        created_at=int(upload.created_at),
        expires_at=int(upload.created_at + UPLOAD_S),
        filename=upload.name,
        status="expired" if upload.late else upload.status,
        file=view(dataset) if dataset else None,
    )


@router.post("", responses=refusals())
async def create_upload(
    body: UploadBody, tenant_id: TenantId, services: FromServices
) -> UploadView:
    """Begin a file that comes in parts. It has an hour, and its bytes count as stored meanwhile."""
    required_purpose(body.purpose)
    most = min(MOST_BYTES, services.settings.max_upload_bytes)
    if body.bytes > most:
        raise Invalid(f"bytes is above {most:,}, the largest file here.", param="bytes")
    name = name_of(body.filename) or "upload"
    upload = Upload(
        id=new_id("up"),
        tenant_id=tenant_id,
        name=name,
        format=format_of(body.mime_type, name) or "jsonl",
        size_bytes=body.bytes,
        expires_after_s=body.expires_after.seconds if body.expires_after else None,
        status="pending",
        created_at=0.0,
    )
    return shown(await in_thread(services.store.uploads.create, upload))


class PartForm:
    """The one field of a form: a part, on its way to where it is stored."""

    def __init__(self, writer: ObjectWriter, upload: Upload) -> None:
        self._writer, self._upload = writer, upload
        self.size_bytes = 0

    def set(self, field: str, value: str) -> None:
        raise Invalid(f"There is no such field: {field}; remove it.", param=field)

    def begin(self, content_type: str, file_name: str | None) -> None:
        """A part has no format."""

    def write(self, data: bytes) -> None:
        self.size_bytes += len(data)
        if self.size_bytes > PART_BYTES:
            raise BodyTooLarge(f"A part is at most {PART_BYTES:,} bytes; send smaller ones.")
        if self.size_bytes > self._upload.size_bytes:  # before more of it is stored
            said = f"Upload {self._upload.id} was to have {self._upload.size_bytes:,} bytes"
            raise Conflict(f"{said}, and this part alone has more. Start another one.")
        self._writer.write(data)


PART_BODY = {
    "requestBody": {
        "required": True,
        "content": form_schema({"data": {"type": "string", "format": "binary"}}, ["data"]),
    }
}


@router.post("/{id}/parts", responses=refusals(404, 408, 409, 413, 415), openapi_extra=PART_BODY)
async def add_part(
    request: Request, id: UploadId, tenant_id: TenantId, services: FromServices
) -> PartView:
    """Add a part of at most 64 MiB. Parts may come in any order, and several at once."""
    upload = await read(services.store, services.store.uploads.open, tenant_id, id)
    content_type = request.headers.get("content-type", "")
    if not is_form(content_type):
        raise MediaTypeUnsupported(f"Send the part in a form: {FORM}, field `data`.")
    part_id = new_id("pt")
    writer = await in_thread(services.objects.writer, upload_part(tenant_id, id, part_id))
    try:
        form = PartForm(writer, upload)
        fed = Form(content_type, frozenset(), form, file="data")
        async for batch in batches(request.stream()):
            await in_thread(fed.feed, batch)
        fed.close()
        part = UploadPart(id=part_id, upload_id=id, size_bytes=form.size_bytes, created_at=0.0)
        added = await in_thread(_keep, services, tenant_id, writer, part)
    finally:
        with anyio.CancelScope(shield=True):
            await in_thread(writer.abort)
    return PartView(id=added.id, created_at=int(added.created_at), upload_id=id)


def _keep(services: Services, tenant_id: str, writer: ObjectWriter, part: UploadPart) -> UploadPart:
    if not part.size_bytes:
        raise Invalid("The part is empty; send at least a byte.", param="data")
    writer.commit()
    try:
        return services.store.uploads.add_part(tenant_id, part.upload_id, part)
    except (Conflict, NotFound):
        with suppress(StorageError):  # it goes with its upload at the latest
            services.objects.delete(upload_part(tenant_id, part.upload_id, part.id))
        raise


@router.post("/{id}/complete", responses=refusals(404, 409))
async def complete_upload(
    id: UploadId, body: CompleteBody, tenant_id: TenantId, services: FromServices
) -> UploadView:
    """Make the file of its parts: checked as in POST /v1/files. The same call again is answered so.

    A file that is refused leaves the upload as it was.
    """
    async with services.completing.of(tenant_id), services.slow:
        return await in_thread(_complete, services, tenant_id, id, body)


def _complete(services: Services, tenant_id: str, upload_id: str, body: CompleteBody) -> UploadView:
    uploads, digest = services.store.uploads, _digest(body)
    upload = uploads.get(tenant_id, upload_id)
    try:
        uploads.open(tenant_id, upload_id)
        _require_parts(upload, body.part_ids, uploads.parts(tenant_id, upload_id))
        dataset = _assembled(services, upload, body, digest)
    except (Conflict, Invalid, ObjectNotFound):
        upload = uploads.get(tenant_id, upload_id)
        if upload.completed_by != digest or upload.dataset_id is None:
            uploads.open(tenant_id, upload_id)  # cancelled meanwhile?
            raise
        return shown(upload, services.store.datasets.get(tenant_id, upload.dataset_id))
    _forget_parts(services, tenant_id, upload_id)
    return shown(uploads.get(tenant_id, upload_id), dataset)


def _assembled(services: Services, upload: Upload, body: CompleteBody, digest: str) -> Dataset:
    """The dataset of the parts, read one after another."""
    add = partial(services.store.uploads.complete, upload, digest)
    options = UploadOptions(name=upload.name, format=upload.format)
    intake = Intake(
        services.store, services.objects, upload.tenant_id, options, rules=OPENAI, add=add
    )
    md5 = hashlib.md5(usedforsecurity=False)
    try:
        intake.begin("", None)
        for chunk in _chunks(services, upload, body.part_ids):
            md5.update(chunk)
            intake.write(chunk)
        if body.md5 is not None and body.md5.lower() != md5.hexdigest():
            said = f"The parts' md5 is {md5.hexdigest()}; check their order, or send them again."
            raise Invalid(said, param="md5")
        return intake.finish(expires_after_s=upload.expires_after_s)
    finally:
        intake.abort()


def _chunks(services: Services, upload: Upload, part_ids: tuple[str, ...]) -> Iterator[bytes]:
    for part_id in part_ids:
        yield from services.objects.stream(upload_part(upload.tenant_id, upload.id, part_id))


def _require_parts(upload: Upload, part_ids: tuple[str, ...], parts: dict[str, UploadPart]) -> None:
    """Raises Invalid unless these are the upload's parts and make up its bytes."""
    if unknown := missing(part_ids, parts):
        raise Invalid(f"Upload {upload.id} has no part {unknown[0]!r}.", param="part_ids")
    if len(set(part_ids)) < len(part_ids):
        raise Invalid("A part is there twice; name each once.", param="part_ids")
    size_bytes = sum(parts[part_id].size_bytes for part_id in part_ids)
    if size_bytes != upload.size_bytes:
        raise Invalid(
            f"The parts have {size_bytes:,} bytes, and the upload was to have "
            f"{upload.size_bytes:,}; name all parts, or send the ones that are missing.",
            param="part_ids",
        )


def _digest(body: CompleteBody) -> str:
    return hashlib.sha256(json.dumps(body.model_dump(mode="json")).encode()).hexdigest()


@router.post("/{id}/cancel", responses=refusals(404, 409))
async def cancel_upload(id: UploadId, tenant_id: TenantId, services: FromServices) -> UploadView:
    """Give an upload up; its parts are removed."""
    upload = await in_thread(services.store.uploads.cancel, tenant_id, id)
    await in_thread(_forget_parts, services, tenant_id, id)
    return shown(upload)


def _forget_parts(services: Services, tenant_id: str, upload_id: str) -> None:
    """The rows decide; bytes that cannot be removed now go with the upload's row."""
    try:
        services.objects.delete_prefix(upload_prefix(tenant_id, upload_id))
    except StorageError as error:
        log.warning("upload.bytes_left", upload=upload_id, error=type(error).__name__)
