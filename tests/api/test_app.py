"""The application as a whole: cheap to import, one envelope and a request id on every answer."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from prometheus_client import generate_latest

from api.app import create_app
from api.services import Services
from jobs import tracing

pytestmark = pytest.mark.anyio

REPO = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "peft", "trl", "datasets", "accelerate")


@pytest.mark.parametrize("statement", ["import api.app", "import api.app; api.app.app"])
def test_the_application_loads_no_torch(statement: str, tmp_path: Path) -> None:
    check = f"{statement}; import sys; print([n for n in {HEAVY} if n in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", check],
        cwd=REPO,
        env={"LUTHIER_DATA_DIR": str(tmp_path / "data")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "[]"
    assert (tmp_path / "data" / "luthier.db").exists() == ("api.app.app" in statement)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nope", 404, "route_not_found"),
        ("GET", "/jobs/", 404, "route_not_found"),
        ("PUT", "/jobs", 405, "method_not_allowed"),
    ],
)
async def test_what_is_no_route_is_answered_in_the_envelope(
    client: httpx.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    answer = await client.request(method, path)
    assert answer.status_code == status
    assert set(answer.json()) == {"error"}
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.json()["error"]["code"] == code


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/jobs", "GET, POST"),
        ("/jobs/estimate", "POST"),
        ("/adapters/merge", "POST"),
        ("/adapters/ad_0123456789abcdef01234567", "DELETE, GET"),
    ],
)
async def test_what_a_path_takes_is_said_of_this_path_alone(
    client: httpx.AsyncClient, path: str, allowed: str
) -> None:
    answer = await client.request("PATCH", path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


async def test_every_answer_has_a_request_id_and_a_good_one_is_kept(
    client: httpx.AsyncClient, nobody: httpx.AsyncClient
) -> None:
    for answer in (
        await client.get("/jobs"),
        await client.get("/nope"),
        await nobody.get("/jobs"),
        await nobody.get("/healthz"),
    ):
        assert answer.headers["x-request-id"].startswith("req_")
    ours = await client.get("/jobs", headers={"x-request-id": "trace-0123456789"})
    odd = await client.get("/jobs", headers={"x-request-id": "a b\tc"})
    assert ours.headers["x-request-id"] == "trace-0123456789"
    assert odd.headers["x-request-id"].startswith("req_")


async def test_a_fault_is_a_500_that_says_nothing_of_the_inside(
    services: Services,
    app: FastAPI,
    client: httpx.AsyncClient,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def broken() -> None:
        raise RuntimeError("secret-canary")

    app.add_api_route("/broken", broken)

    answer = await client.get("/broken")

    assert answer.status_code == 500
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert answer.headers["x-request-id"] in error["message"]
    logged = capsys.readouterr().out
    assert "RuntimeError" in logged
    assert answer.headers["x-request-id"] in logged
    assert "secret-canary" not in logged + answer.text


async def test_the_span_of_a_fault_has_its_class_and_nothing_that_was_sent_or_said(
    app: FastAPI, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken() -> None:
        raise RuntimeError("secret-canary")

    app.add_api_route("/broken", broken)
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing.trace, "get_tracer", provider.get_tracer)

    await client.get("/broken?secret-canary", headers={"traceparent": "secret-canary"})
    await client.get("/secret-canary")
    await client.get("/healthz")

    broke, missed = exporter.get_finished_spans()
    assert (broke.name, missed.name) == ("GET /broken", "GET unmatched")
    assert broke.status.status_code is StatusCode.ERROR
    assert (broke.attributes or {})["error.type"] == "500"
    assert "secret-canary" not in broke.to_json() + missed.to_json()


async def test_the_documentation_lists_the_errors_of_every_operation(
    nobody: httpx.AsyncClient,
) -> None:
    document = (await nobody.get("/openapi.json")).json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if path in ("/healthz", "/readyz"):
                continue
            where = f"{method} {path}"
            assert {"400", "401", "422", "503"} <= set(operation["responses"]), where
            assert ("404" in operation["responses"]) or "{id}" not in path, where
            for status, response in operation["responses"].items():
                if status >= "400":
                    schema = response["content"]["application/json"]["schema"]
                    assert schema["$ref"].endswith("/Envelope"), f"{where} {status}"
    assert "HTTPValidationError" not in document["components"]["schemas"]


async def test_the_documentation_has_a_page(nobody: httpx.AsyncClient) -> None:
    assert (await nobody.get("/docs")).status_code == 200


async def test_stopping_closes_what_was_opened(services: Services) -> None:
    app = create_app(services)
    async with app.router.lifespan_context(app):
        assert not services.http.is_closed
    assert services.http.is_closed


async def test_requests_are_measured_by_route_template(
    client: httpx.AsyncClient, dataset: dict[str, Any], services: Services
) -> None:
    await client.get(f"/datasets/{dataset['id']}")
    await client.get("/datasets/ds_nope")
    text = generate_latest(services.instruments.registry).decode()
    line = 'luthier_http_requests_total{method="GET",route="/datasets/{id}",status="%d"} 1.0'
    assert line % 200 in text
    assert line % 404 in text
    assert dataset["id"] not in text


async def test_a_word_that_is_no_method_has_no_label_of_its_own(
    client: httpx.AsyncClient, services: Services
) -> None:
    await client.request("ANYTHING", "/datasets")
    text = generate_latest(services.instruments.registry).decode()
    assert 'luthier_http_requests_total{method="other"' in text
    assert "ANYTHING" not in text


async def test_the_metrics_of_all_tenants_are_not_on_the_port_of_clients(
    client: httpx.AsyncClient,
) -> None:
    assert (await client.get("/metrics")).status_code == 404


async def test_only_the_operators_pages_need_no_key(
    nobody: httpx.AsyncClient, key_of: Callable[[str], str]
) -> None:
    document = (await nobody.get("/openapi.json")).json()
    for path, operations in document["paths"].items():
        for method in operations:
            url = path.replace("{id}", "job_" + "0" * 24)
            status = (await nobody.request(method, url)).status_code
            assert (status == 401) == (path not in ("/healthz", "/readyz")), f"{method} {path}"
