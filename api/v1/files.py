"""OpenAI's files: the tenant's datasets by another name. `purpose` is always fine-tune."""

from collections.abc import Callable
from typing import Annotated, Any, Literal
from urllib.parse import quote

import anyio
from fastapi import APIRouter, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from pydantic import Field, ValidationError

from api.auth import TenantId
from api.batches import batches
from api.bodies import StrictRoute
from api.calls import in_thread, read
from api.datasets import remove
from api.envelope import Deleted, ListOf, Wire, refusals
from api.errors import Invalid, MediaTypeUnsupported
from api.forms import FORM, Form, form_schema, is_form
from api.intake import Intake, UploadOptions, format_of
from api.paging import After, DatasetId
from api.services import FromServices
from engine.rows import OPENAI
from jobs.model import Dataset
from storage.keys import dataset_source

router = APIRouter(prefix="/v1/files", tags=["openai"], route_class=StrictRoute)

MIN_EXPIRES_S, MAX_EXPIRES_S = 3600, 2_592_000  # an hour, thirty days
PURPOSE: Literal["fine-tune"] = "fine-tune"
Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
WHY_NOT = "This server fine-tunes: a file's purpose must be 'fine-tune', not {given!r}."


class ExpiresAfter(Wire):
    """When a file goes by itself, unless a job that has not ended needs it then."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=MIN_EXPIRES_S, le=MAX_EXPIRES_S)


class FileView(Wire):
    """A dataset as OpenAI's SDKs know files. It was checked when it came, so it is processed."""

    object: Literal["file"] = "file"
    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: Literal["fine-tune"] = PURPOSE
    status: Literal["processed"] = "processed"
    expires_at: int | None = None
    status_details: str | None = None


class FileDeleted(Deleted):
    object: str = "file"


def view(dataset: Dataset) -> FileView:
    return FileView(
        id=dataset.id,
        bytes=dataset.size_bytes,
        created_at=int(dataset.created_at),
        filename=dataset.name,
        expires_at=None if dataset.expires_at is None else int(dataset.expires_at),
    )


def required_purpose(given: str) -> None:
    """Raises Invalid for what this server does not do."""
    if given != PURPOSE:
        raise Invalid(WHY_NOT.format(given=given[:64]), param="purpose")


ANCHOR, SECONDS = "expires_after[anchor]", "expires_after[seconds]"
FORM_FIELDS = frozenset({"purpose", ANCHOR, SECONDS})
UPLOAD_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": form_schema(
            {
                "file": {"type": "string", "format": "binary"},
                "purpose": {"type": "string", "enum": [PURPOSE]},
                ANCHOR: {"type": "string", "enum": ["created_at"]},
                SECONDS: {
                    "type": "integer",
                    "minimum": MIN_EXPIRES_S,
                    "maximum": MAX_EXPIRES_S,
                },
            },
            ["file", "purpose"],
        ),
    }
}


class FileForm:
    """What a form says of a file, in any order, and the file, which goes to `begin` and `write`."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._given: dict[str, str] = {}
        self.write: Callable[[bytes], None] = intake.write

    def set(self, field: str, value: str) -> None:
        if field in self._given:
            raise Invalid(f"{field} is there twice; send it once.", param=field)
        if field == "purpose":
            required_purpose(value)
        self._given[field] = value

    def begin(self, content_type: str, file_name: str | None) -> None:
        """OpenAI's files are JSONL, whatever they are called; CSV and Parquet are taken too."""
        format = format_of(content_type, file_name) or "jsonl"
        self._intake.options = UploadOptions(format=format)
        self._intake.begin(content_type, file_name)

    def finish(self) -> Dataset:
        """Raises Invalid where the form does not say what it must."""
        if "purpose" not in self._given:
            raise Invalid("Say what the file is for: purpose=fine-tune.", param="purpose")
        return self._intake.finish(expires_after_s=self.expires_after_s())

    def expires_after_s(self) -> int | None:
        names = {ANCHOR: "anchor", SECONDS: "seconds"}
        given = {names[f]: value for f, value in self._given.items() if f in names}
        if not given:
            return None
        try:
            return ExpiresAfter.model_validate_strings(given).seconds
        except ValidationError as error:
            errors = [e | {"loc": ("body", "expires_after", *e["loc"])} for e in error.errors()]
            raise RequestValidationError(errors) from None


@router.post("", responses=refusals(408, 413, 415), openapi_extra=UPLOAD_BODY)
async def create_file(request: Request, tenant_id: TenantId, services: FromServices) -> FileView:
    """Upload a file of rows for fine-tuning, in OpenAI's formats or in any of POST /datasets.

    It is checked line by line as it arrives: at least 10 examples, the last message of a chat from
    the assistant. Other purposes than `fine-tune` are refused. `expires_after` is kept to, but for
    files that a job needs which has not ended.
    """
    content_type = request.headers.get("content-type", "")
    if not is_form(content_type):
        raise MediaTypeUnsupported(f"Send the file in a form: {FORM}, field `file`.")
    await read(services.store, services.store.datasets.require_bytes, tenant_id, 1)
    intake = Intake(services.store, services.objects, tenant_id, UploadOptions(), rules=OPENAI)
    fields = FileForm(intake)
    try:
        form = Form(content_type, FORM_FIELDS, fields, file_last=False)
        async for batch in batches(request.stream()):
            await in_thread(form.feed, batch)
        form.close()
        dataset = await in_thread(fields.finish)
    finally:
        with anyio.CancelScope(shield=True):
            await in_thread(intake.abort)
    return view(dataset)


class FileList(ListOf[FileView]):
    first_id: str | None
    last_id: str | None


@router.get("", responses=refusals(404))
async def list_files(
    tenant_id: TenantId,
    services: FromServices,
    after: After,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose: Annotated[str, Query(max_length=64, description="only these")] = PURPOSE,
) -> FileList:
    """The tenant's files, by when they came. None has another purpose than fine-tune."""
    if purpose != PURPOSE:
        return FileList(data=(), first_id=None, last_id=None)
    page = await in_thread(
        services.store.datasets.page, tenant_id, after=after, limit=limit, oldest=order == "asc"
    )
    data = tuple(map(view, page.data))
    ids = (data[0].id, data[-1].id) if data else (None, None)
    return FileList(data=data, has_more=page.has_more, first_id=ids[0], last_id=ids[1])


@router.get("/{id}", responses=refusals(404))
async def get_file(id: DatasetId, tenant_id: TenantId, services: FromServices) -> FileView:
    """One file."""
    return view(await read(services.store, services.store.datasets.get, tenant_id, id))


@router.delete("/{id}", responses=refusals(404, 409))
async def delete_file(id: DatasetId, tenant_id: TenantId, services: FromServices) -> FileDeleted:
    """Delete a file that no waiting or running job needs. What was made from it stays."""
    await in_thread(remove, services, tenant_id, id, False)
    return FileDeleted(id=id)


BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


@router.get(
    "/{id}/content",
    response_class=StreamingResponse,
    responses=refusals(404) | {200: {"content": BYTES}},
)
async def get_content(
    id: DatasetId, tenant_id: TenantId, services: FromServices
) -> StreamingResponse:
    """The bytes of a file as they were uploaded."""
    dataset = await read(services.store, services.store.datasets.get, tenant_id, id)
    chunks = await in_thread(services.objects.stream, dataset_source(tenant_id, id))
    headers = {
        "content-disposition": f"attachment; filename*=UTF-8''{quote(dataset.name, safe='')}",
        "content-length": str(dataset.size_bytes),
    }
    return StreamingResponse(chunks, headers=headers, media_type="application/octet-stream")
