"""Ids in paths and cursors in queries: an id of the wrong shape is as unknown as any other."""

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Path, Query

from jobs.model import checked_id

known = checked_id


def _checked(kind: str, prefix: str) -> Callable[..., Awaitable[str]]:
    example = f"{prefix}_0123456789abcdef01234567"

    async def check(id: Annotated[str, Path(examples=[example], max_length=512)]) -> str:
        return known(kind, id)

    return check


async def _cursor(
    after: Annotated[str | None, Query(description="the last id of the page before")] = None,
) -> str | None:
    return None if after is None else known("cursor", after)


DatasetId = Annotated[str, Depends(_checked("dataset", "ds"))]
JobId = Annotated[str, Depends(_checked("job", "job"))]
PipelineId = Annotated[str, Depends(_checked("pipeline", "pl"))]
AdapterId = Annotated[str, Depends(_checked("adapter", "ad"))]
UploadId = Annotated[str, Depends(_checked("upload", "up"))]
After = Annotated[str | None, Depends(_cursor)]
Limit = Annotated[int, Query(ge=1, le=100, description="how many at most")]
