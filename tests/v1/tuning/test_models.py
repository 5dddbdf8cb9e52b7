"""/v1/models by OpenAI's own SDK: bases, the tenant's adapters, ids with a slash."""

from collections.abc import Callable
from typing import Any

import openai
import pytest
import sqlalchemy as sa

from jobs.model import new_id
from tests.api.making import publish_adapter
from tests.v1.tuning.service import Service


@pytest.fixture
def model(live: Service) -> str:
    return publish_adapter(live.services, "ours", live.folder / "adapter")


def test_bases_and_adapters_are_listed_together(
    sdk: openai.OpenAI,
    model: str,
    other: Callable[[], openai.OpenAI],
) -> None:
    shown = {one.id: one for one in sdk.models.list()}
    assert list(shown) == ["tiny", "org/tiny", model]
    assert [one.owned_by for one in shown.values()] == ["luthier", "luthier", "tenant"]
    assert all(one.created > 0 for one in shown.values())
    extra = shown[model].model_dump()
    assert (extra["parent"], extra["root"]) == ("tiny", model)
    assert extra["max_model_len"] == shown["tiny"].model_dump()["max_model_len"] > 0
    with other() as stranger:
        assert [one.id for one in stranger.models.list()] == ["tiny", "org/tiny"]


def test_what_is_deleted_meanwhile_breaks_no_list(
    live: Service, sdk: openai.OpenAI, model: str
) -> None:
    adapters, tenant_id = live.store.adapters, live.tenant_id
    first = adapters.get(tenant_id, model)
    for _ in range(120):
        adapters.add(first.model_copy(update={"id": new_id("ad")}))
    seen_last = adapters.page(tenant_id, limit=100).data[-1].id
    deleted: list[str] = []

    def delete(_: Any, __: Any, statement: str, *___: Any) -> None:
        if "FROM adapters" in statement and not deleted:
            deleted.append(seen_last)
            adapters.delete(tenant_id, seen_last)

    sa.event.listen(live.store.database.engine, "after_cursor_execute", delete)
    assert len(list(sdk.models.list())) == 123
    assert deleted


def test_an_id_survives_url_encoding(sdk: openai.OpenAI, model: str) -> None:
    for id in ("tiny", "org/tiny", model):
        assert sdk.models.retrieve(id).id == id
    for id in ("org/other", "ft:tiny:org::1", "ad_nonsense", "ad_" + "0" * 24):
        with pytest.raises(openai.NotFoundError) as missing:
            sdk.models.retrieve(id)
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")


def test_a_tuned_model_is_deleted_and_a_base_is_not(
    sdk: openai.OpenAI,
    model: str,
    other: Callable[[], openai.OpenAI],
) -> None:
    with other() as stranger, pytest.raises(openai.NotFoundError):
        stranger.models.delete(model)
    deleted = sdk.models.delete(model)
    assert (deleted.id, deleted.deleted, deleted.object) == (model, True, "model")
    with pytest.raises(openai.NotFoundError):
        sdk.models.retrieve(model)
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        sdk.models.delete("org/tiny")
    assert refused.value.param == "model"
    assert sdk.models.retrieve("org/tiny").id == "org/tiny"


@pytest.mark.anyio
async def test_the_async_client_does_it_all_too(
    async_sdk: openai.AsyncOpenAI,
    model: str,
) -> None:
    assert model in [one.id async for one in async_sdk.models.list()]
    assert (await async_sdk.models.retrieve("org/tiny")).owned_by == "luthier"
    assert (await async_sdk.models.delete(model)).deleted
