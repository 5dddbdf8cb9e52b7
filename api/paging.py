"""Ids in paths and cursors in queries: an id of the wrong shape is as unknown as any other."""

import re
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Path, Query

from jobs.errors import NotFound

ID_SHAPE = re.compile(r"[a-z]{2,3}_[0-9a-f]{24}")


def known(kind: str, id: str) -> str:
    """The id, unless it cannot be one; so nothing odd reaches the database."""
    if not ID_SHAPE.fullmatch(id):
        raise NotFound(kind, id)
    return id


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
AdapterId = Annotated[str, Depends(_checked("adapter", "ad"))]
After = Annotated[str | None, Depends(_cursor)]
Limit = Annotated[int, Query(ge=1, le=100, description="how many at most")]
