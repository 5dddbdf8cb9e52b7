"""S8: whatever clients call things, what is stored lies under their tenant's own prefix."""

import re
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api.services import Services
from storage.keys import check_key
from tests.api.making import peft_files, tar_of
from tests.record import Record

pytestmark = pytest.mark.anyio

ROW = b'{"prompt": "q", "completion": "a"}\n'
NASTY = st.sampled_from(
    ["../../x", "/etc/passwd", "..", ".", "a//b", "a\\..\\b", "%2e%2e%2f", "\u2024\u2024/x",
     "\uff0e\uff0e\uff0fx", "tenants/tn_" + "0" * 24, "con", "a\u202eb", "x" * 256, "~", "$HOME",
     "`id`", "a;b", "a'b", 'a"b', "\u0000", "a\nb", "\ud7ff", "\U0010ffff", " "]
)  # fmt: skip
NAMES = NASTY | st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


async def test_names_are_data_and_no_part_of_any_key(
    client: httpx.AsyncClient, services: Services, record: Record
) -> None:
    tenant_id = services.store.tenants.find("ours").id
    archive = tar_of(peft_files())
    stored, tried = 0, 0
    names: list[str] = []

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(NAMES)
    def collect(name: str) -> None:
        names.append(name)

    collect()
    for name in names:
        params: dict[str, Any] = {"name": name, "format": "jsonl"}
        answers = [
            await client.post("/datasets", params=params, content=ROW),
            await client.post(
                "/datasets", files={"file": (name or "x", ROW)}, params={"format": "jsonl"}
            ),
        ]
        if len(names) % 5 == 0:
            imported = {"name": name, "base_model": "tiny"}
            answers.append(await client.post("/adapters/import", params=imported, content=archive))
        for answer in answers:
            tried += 1
            assert answer.status_code in (201, 400, 422), answer.text
            stored += answer.status_code == 201
            if answer.status_code == 201 and answer is not answers[1]:
                assert answer.json()["name"] == name
    keys = [info.key for info in services.objects.list("")]
    assert len(keys) >= stored
    for key in keys:
        assert check_key(key) == key
        assert all(SEGMENT.fullmatch(part) and ".." not in part for part in key.split("/"))
        assert key.startswith((f"tenants/{tenant_id}/", "index/adapters/ad_"))
    record("S8", "objects under odd names, all under their tenant's prefix", len(keys), at_least=50)
    record("S8", "odd names tried", tried, at_least=100)


async def test_an_odd_path_never_leaves_the_routes(
    client: httpx.AsyncClient, record: Record
) -> None:
    odd = [
        "/datasets/../../etc/passwd", "/datasets/%2e%2e/%2e%2e/etc/passwd", "/datasets//",
        "/datasets/%00", "/jobs/%ff%fe", "/docs/static/../../app.py", "/docs/static/%2e%2e/app.py",
        "/docs/static/..%2f..%2f..%2f..%2fetc%2fpasswd", "/docs/static//etc/passwd",
        "/adapters/ad_%2f..%2f/download", "//jobs", "/jobs;x=1", "/jobs%20",
    ]  # fmt: skip
    for path in odd:
        answer = await client.get(path)
        assert answer.status_code in (404, 405), path
        assert "root:" not in answer.text
        assert set(answer.json()) == {"error"}
    record("S8", "odd paths, all 404 in the envelope", len(odd), at_least=10)
