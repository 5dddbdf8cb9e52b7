"""Adapters as archives: download of one, import of one that was made elsewhere."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import Field, StringConstraints
from starlette.background import BackgroundTask

from adapters.archive import unpack
from adapters.download import download
from adapters.errors import AdapterError
from adapters.geometry import Geometry, base_geometry
from adapters.manifest import Lineage, Manifest
from adapters.registry import publish, remove
from api.adapters import AdapterView, view
from api.auth import TenantId
from api.batches import batches
from api.bodies import StrictRoute
from api.calls import in_thread
from api.envelope import Wire, refusals
from api.errors import MediaTypeUnsupported
from api.paging import AdapterId
from api.rendering import renderer_of
from api.services import FromServices, Services
from engine.bases import BaseModel, BaseUnusable
from engine.spec import PEFT_OF_KIND
from jobs.errors import NotFound, StoreUnavailable
from jobs.model import Adapter, new_id
from storage.objects import StorageError

if TYPE_CHECKING:
    from adapters.kinds import Checked

router = APIRouter(prefix="/adapters", tags=["adapters"], route_class=StrictRoute)

TAR = "application/x-tar"
TAR_SCHEMA = {"schema": {"type": "string", "format": "binary"}}
CHECKED_FIRST_BYTES = 1 << 30  # larger ones are checked while they are sent

ImportName = Annotated[
    str, StringConstraints(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")
]


class ImportOptions(Wire):
    """What an archive cannot say for itself."""

    base_model: str = Field(max_length=256, description="a name of GET /models")
    name: ImportName | None = Field(None, description="default: the new adapter's id")


@router.get(
    "/{id}/download",
    response_class=StreamingResponse,
    responses=refusals(404, 500) | {200: {"content": {TAR: TAR_SCHEMA}}},
)
async def download_adapter(
    id: AdapterId, tenant_id: TenantId, services: FromServices
) -> StreamingResponse:
    """The adapter as one plain tar. Unpacked, peft's `PeftModel.from_pretrained` loads it."""
    headers = {"content-disposition": f'attachment; filename="{id}.tar"'}
    adapter = await in_thread(services.store.adapters.get, tenant_id, id)
    chunks = await in_thread(download, services.objects, tenant_id, id)
    if adapter.size_bytes > CHECKED_FIRST_BYTES:
        return StreamingResponse(chunks, headers=headers, media_type=TAR)
    file = await in_thread(_spooled, chunks)
    headers["content-length"] = str(file.tell())
    closing = BackgroundTask(file.close)
    return StreamingResponse(_read(file), headers=headers, media_type=TAR, background=closing)


def _spooled(chunks: Iterator[bytes]) -> IO[bytes]:
    """The whole archive in a file without a name, so that damage is an error, not a cut answer."""
    with ExitStack() as failing:
        file = failing.enter_context(tempfile.TemporaryFile(prefix="luthier-"))
        for chunk in chunks:
            file.write(chunk)
        failing.pop_all()
    return file


def _read(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        file.seek(0)
        while chunk := file.read(1 << 20):
            yield chunk


@router.post(
    "/import",
    status_code=201,
    responses=refusals(408, 413, 415),
    openapi_extra={"requestBody": {"required": True, "content": {TAR: TAR_SCHEMA}}},
)
async def import_adapter(
    request: Request,
    tenant_id: TenantId,
    services: FromServices,
    options: Annotated[ImportOptions, Query()],
) -> AdapterView:
    """Bring in a PEFT adapter (LoRA, prompt or prefix tuning) as a plain tar.

    It is checked in full before it exists.
    """
    if request.headers.get("content-type", "").startswith("multipart/"):
        raise MediaTypeUnsupported("Send the tar itself as the body, not in a form.")
    with tempfile.TemporaryDirectory(prefix="luthier-", ignore_cleanup_errors=True) as folder:
        archive = Path(folder) / "adapter.tar"
        with archive.open("wb") as file:
            async for batch in batches(request.stream()):
                await in_thread(file.write, batch)
        async with services.slow:
            adapter = await in_thread(_import, services, tenant_id, archive, options)
    return view(adapter)


def _import(services: Services, tenant_id: str, archive: Path, options: ImportOptions) -> Adapter:
    from adapters.kinds import Base, validate_adapter  # with numpy, which is slow to import

    base = services.bases.find(options.base_model, weights=True)
    limit, max_rank = services.settings.max_upload_bytes, services.settings.max_lora_rank
    folder = archive.with_name("adapter")
    unpack(archive, folder, max_bytes=limit)
    held_against = Base(_shapes(base), lambda: _sizes(base))
    checked = validate_adapter(folder, held_against, max_rank=max_rank)
    manifest = publish(services.objects, tenant_id, folder, _manifest(base, checked))
    try:
        return services.store.adapters.add(
            Adapter(
                id=manifest.adapter_id,
                tenant_id=tenant_id,
                name=options.name or manifest.adapter_id,
                kind=manifest.kind,
                base_model=base.name,
                job_id=None,
                size_bytes=manifest.size_bytes,
                manifest=manifest.model_dump(mode="json"),
                created_at=0.0,
            )
        )
    except Exception:
        _withdraw(services, tenant_id, manifest.adapter_id)
        raise


def _withdraw(services: Services, tenant_id: str, adapter_id: str) -> None:
    """Remove the files, unless the row is there: the database may have done it unsaid."""
    with suppress(StorageError, StoreUnavailable):
        try:
            services.store.adapters.get(tenant_id, adapter_id)
        except NotFound:
            remove(services.objects, tenant_id, adapter_id)


def _shapes(base: BaseModel) -> dict[str, tuple[int, ...]]:
    from adapters.tensors import base_shapes  # as above

    try:
        return base_shapes(base.path)
    except AdapterError as error:
        raise BaseUnusable(f"Base model {base.name!r} has no readable weights here.") from error


def _sizes(base: BaseModel) -> Geometry:
    try:
        return base_geometry(base.path)
    except AdapterError as error:
        raise BaseUnusable(f"Base model {base.name!r} does not state its sizes.") from error


def _manifest(base: BaseModel, checked: "Checked") -> Manifest:
    contract = renderer_of(base).contract
    known = PEFT_OF_KIND[checked.kind].model_fields
    peft = {"type": checked.kind} | checked.summary.model_dump(mode="json", include=set(known))
    return Manifest(
        adapter_id=new_id("ad"),
        kind=checked.kind,
        base_model=base.name,
        base_revision=base.revision,
        tokenizer_sha256=contract.tokenizer_sha256,
        contract=contract.model_dump(mode="json"),
        lineage=Lineage(imported=True),
        peft=peft,
        created_at=time.time(),
    )
