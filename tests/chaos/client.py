"""The API of a house on a real server, and a client with a key, for tests that break things."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from api.app import create_app
from api.services import open_services
from tests import clock
from tests.api.serving import serve
from tests.chaos.house import ChaosHouse


class Client:
    def __init__(self, house: ChaosHouse, http: httpx.Client) -> None:
        self._house, self.http = house, http

    def post_job(self, dataset_id: str) -> httpx.Response:
        return self.http.post(
            "/jobs",
            json={
                "base_model": "tiny",
                "dataset": dataset_id,
                "method": {"type": "sft", "max_length": 256},
                "peft": {"type": "lora", "r": 4},
                "checkpoint_every": 5,
            },
        )

    def timed(self, method: str, path: str, **request: Any) -> tuple[httpx.Response, float]:
        asked = clock.now()
        answer = self.http.request(method, path, **request)
        return answer, clock.now() - asked

    def ready(self) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get("/readyz").json()
        return found


@contextmanager
def api_of(house: ChaosHouse) -> Iterator[Client]:
    key, _ = house.store.tenants.issue_key(house.tenant_id, "chaos")
    with (
        serve(create_app(open_services(house.settings))) as port,
        httpx.Client(
            base_url=f"http://127.0.0.1:{port}",
            headers={"authorization": f"Bearer {key}"},
            timeout=30,
        ) as http,
    ):
        yield Client(house, http)
