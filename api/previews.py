"""What a dataset is to a base model: its token statistics, and its first rows as real tokens."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Query

from api.auth import TenantId
from api.bodies import StrictRoute
from api.calls import in_thread
from api.copies import LINE_BYTES, dataset_copy
from api.envelope import ListOf, Wire, refusals
from api.paging import DatasetId
from api.rendering import base_named, renderer_of
from api.services import FromServices, Services
from engine.bases import BaseModel
from engine.rows import Row, iter_rows
from engine.tokens import Bucket, PreviewRow, preview, statistics
from jobs.model import Dataset

router = APIRouter(prefix="/datasets", tags=["datasets"], route_class=StrictRoute)

BaseName = Annotated[
    str | None, Query(max_length=256, description="default: the first of GET /models")
]


class StatisticsView(Wire):
    """Lengths in tokens, before truncation; a preference row is as long as its longer answer.

    `truncated` rows are longer than max_length; `empty_mask` rows have nothing left to learn there.
    """

    object: Literal["dataset.statistics"] = "dataset.statistics"
    dataset: str
    base_model: str
    duplicates: int
    rows: int
    tokens: int
    trained_tokens: int
    longest: int
    max_length: int
    truncated: int
    empty_mask: int
    histogram: tuple[Bucket, ...]


@router.get("/{id}/statistics", responses=refusals(404))
async def get_statistics(
    id: DatasetId,
    tenant_id: TenantId,
    services: FromServices,
    base_model: BaseName = None,
    max_length: Annotated[int, Query(ge=8, le=1_048_576)] = 512,
) -> StatisticsView:
    """Tokens per row under a base model; every row is rendered, which may take a while."""
    async with services.slow:
        return await in_thread(_statistics, services, tenant_id, id, base_model, max_length)


@router.get("/{id}/preview", responses=refusals(404))
async def get_preview(
    id: DatasetId,
    tenant_id: TenantId,
    services: FromServices,
    base_model: BaseName = None,
    max_length: Annotated[int, Query(ge=8, le=8192)] = 512,
    limit: Annotated[int, Query(ge=1, le=20)] = 3,
) -> ListOf[PreviewRow]:
    """The first rows as a base model will see them; `trained` marks what is learned."""
    async with services.slow:
        return await in_thread(_preview, services, tenant_id, id, base_model, max_length, limit)


def _statistics(
    services: Services, tenant_id: str, dataset_id: str, base_model: str | None, max_length: int
) -> StatisticsView:
    dataset, base = _chosen(services, tenant_id, dataset_id, base_model)
    with dataset_copy(services, dataset) as path:
        rows = _rows(path, dataset)
        found = statistics(rows, renderer_of(base), max_length)
    return StatisticsView(
        dataset=dataset.id,
        base_model=base.name,
        duplicates=dataset.duplicates,
        **{name: getattr(found, name) for name in type(found).model_fields},
    )


def _preview(
    services: Services,
    tenant_id: str,
    dataset_id: str,
    base_model: str | None,
    max_length: int,
    limit: int,
) -> ListOf[PreviewRow]:
    dataset, base = _chosen(services, tenant_id, dataset_id, base_model)
    wanted = None if dataset.format == "parquet" else (limit + 2) * LINE_BYTES
    with dataset_copy(services, dataset, wanted) as path:
        rows = islice(_rows(path, dataset), limit)
        shown = preview(rows, renderer_of(base), max_length, limit)
    return ListOf(data=shown, has_more=dataset.rows > limit)


def _chosen(
    services: Services, tenant_id: str, dataset_id: str, base_model: str | None
) -> tuple[Dataset, BaseModel]:
    dataset = services.store.datasets.get(tenant_id, dataset_id)
    return dataset, base_named(services.bases, base_model)


def _rows(path: Path, dataset: Dataset) -> Iterator[Row]:
    return iter_rows(path, dataset.format, dataset.row_type)
