"""A service that is used: its metrics, its dashboard, its logs, its traces, and what is in none."""

import json
import math
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.observability.collector import Span
from tests.observability.service import CANARY, OBSERVABILITY, Watched
from tests.record import Record

DASHBOARD = json.loads((OBSERVABILITY / "dashboards" / "luthier.json").read_text())
# Panels that have nothing to show here, each with why.
EMPTY = {
    "GPU memory": "no GPU on this machine",
    "GPU busy": "no GPU on this machine",
}
VARIABLES = {"$__rate_interval": "5m", "$queue": ".*", "${datasource}": "prometheus"}
QUERIES = [
    (panel["title"], target["expr"])
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", ())
]


@pytest.mark.parametrize("role", ["api", "worker", "inference"])
def test_what_a_role_shows_is_clean_for_prometheus(
    service: Watched, promtool: Path, role: str
) -> None:
    text = service.scraped(role)
    checked = [promtool, "check", "metrics"]
    found = subprocess.run(checked, input=text, capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")
    ours = re.findall(r"^# TYPE (\S+) (\S+)", text, re.MULTILINE)
    assert ours
    for name, kind in ours:
        assert name.startswith(("luthier_", "process_", "python_")), name
        assert (kind != "counter") or name.endswith("_total"), name


def test_every_query_of_the_dashboard_has_something_to_show(service: Watched) -> None:
    shown, wrong = set(), []
    for title, promql in QUERIES:
        for name, value in VARIABLES.items():
            promql = promql.replace(name, value)
        values = [float(one["value"][1]) for one in service.query(promql)]
        if title in EMPTY:
            assert not values, f"{title} is not empty: {EMPTY[title]}?"
        elif not any(map(math.isfinite, values)):
            wrong.append((title, promql, values))
        shown.add(title)
    assert not wrong
    assert shown >= set(EMPTY)


def test_no_alert_fires_on_a_service_that_is_well(service: Watched) -> None:
    assert service.query('ALERTS{alertstate="firing"}') == []


def test_the_numbers_are_those_of_what_was_done(service: Watched) -> None:
    labels = 'status="succeeded", method="sft", tenant_class="gold", queue="default"'
    assert _value(service, f"luthier_jobs{{{labels}}}") == 2
    assert _value(service, 'luthier_attempts_ended_total{outcome="succeeded"}') == 2
    assert _value(service, 'luthier_publishes_total{outcome="ok"}') == 2
    steps = sum(job["progress"]["step"] for job in service.jobs)
    assert _value(service, "sum(luthier_training_step_seconds_count)") == steps
    tokens = [event["data"]["num_tokens"] for event in _last_steps(service)]
    assert _value(service, "luthier_training_tokens_total") == sum(tokens) > 0
    assert _value(service, "luthier_attempt_first_step_seconds_count") == 2
    assert _value(service, "luthier_attempts_running") == 0
    assert _value(service, "luthier_queue_jobs") == 0
    stored = _value(service, 'sum(luthier_storage_calls_total{result="ok", role="worker"})')
    assert stored > 10
    assert _value(service, 'luthier_http_requests_total{route="/jobs", status="201"}') == 2


def _last_steps(service: Watched) -> list[dict[str, Any]]:
    return [
        service.client.get(f"/jobs/{job['id']}/metrics").json()["data"][-1] for job in service.jobs
    ]


def _value(service: Watched, promql: str) -> float:
    (found,) = service.query(promql)
    return float(found["value"][1])


def test_one_request_id_goes_from_the_api_to_the_trainer_and_the_result(service: Watched) -> None:
    job_id = service.jobs[0]["id"]
    mine = [
        line
        for role in ("api", "worker")
        for line in service.lines(role)
        if line.get("request_id") == service.request_id
    ]
    events = {line["event"]: line for line in mine}
    assert events["http.request"]["route"] == "/jobs"
    for name in ("job.queued", "job.claimed", "trainer.started", "trainer.finished"):
        assert events[name]["job_id"] == job_id, name
    for name in ("job.claimed", "trainer.started", "trainer.finished", "job.succeeded"):
        assert (events[name]["job_id"], events[name]["attempt"]) == (job_id, 1), name
    assert events["job.succeeded"]["adapter_id"] == service.jobs[0]["adapter_id"]
    assert {line.get("job_id") for line in mine} <= {job_id, None}


def test_one_trace_goes_from_the_request_to_the_published_adapter(service: Watched) -> None:
    job_id = service.jobs[0]["id"]
    spans = service.collector.wait_for(
        lambda spans: sum(span.name == "attempt" for span in spans) == 2
    )
    attempt = next(
        span
        for span in spans
        if span.name == "attempt" and span.attributes["luthier.job_id"] == job_id
    )
    trace = [span for span in spans if span.trace_id == attempt.trace_id]
    by_name = {span.name: span for span in trace}
    posted = by_name["POST /jobs"]
    assert (posted.service, posted.parent_id) == ("luthier-api", "")
    assert posted.attributes["luthier.request_id"] == service.request_id
    assert posted.attributes["http.response.status_code"] == "201"
    assert posted.links == (service.client_trace,)
    assert posted.trace_id != service.client_trace
    assert (attempt.service, attempt.parent_id) == ("luthier-worker", posted.span_id)
    for name in ("prepare", "train", "checkpoint", "publish"):
        assert attempt in list(_above(by_name[name], trace)), name
    assert "first step" in by_name["train"].events
    assert not any(span.failed for span in trace)


def _above(span: Span, trace: list[Span]) -> Iterator[Span]:
    """What it is part of, nearest first."""
    for parent in trace:
        if parent.span_id == span.parent_id:
            yield parent
            yield from _above(parent, trace)


def test_a_generation_is_one_trace_through_both_servers(service: Watched) -> None:
    spans = service.collector.wait_for(
        lambda spans: any(span.service == "luthier-inference" for span in spans)
    )
    inner = next(span for span in spans if span.service == "luthier-inference")
    outer = next(span for span in spans if span.span_id == inner.parent_id)
    assert (outer.name, outer.service) == ("POST /generate", "luthier-api")
    assert inner.name == "inference /v1/completions"


def test_nothing_that_operators_read_has_a_clients_text_or_a_secret(
    service: Watched, record: Record
) -> None:
    service.collector.wait_for(lambda spans: any("unmatched" in span.name for span in spans))
    shown = {role: service.scraped(role) for role in service.targets}
    shown |= {path.name: path.read_text() for path in (service.data_dir / "logs").iterdir()}
    shown["what serve printed"] = service.said.read_text()
    shown["traces"] = b"".join(service.collector.bodies).decode("latin-1")
    shown["metrics.json"] = (service.data_dir / "metrics.json").read_text()
    assert all(shown.values()), "there is something to look through"
    assert "job.succeeded" in shown["worker.log"]
    hits = [
        f"{hidden} is in {place}: ...{content[max(0, at - 200) : at + 50]}"
        for hidden, text in {"the client's text": CANARY, **service.secrets}.items()
        for place, content in shown.items()
        if (at := content.lower().find(text.lower())) >= 0
    ]
    print("\n".join(hits))
    record("S9", "canaries in logs, metrics and traces", len(hits), exactly=0)
