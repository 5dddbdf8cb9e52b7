"""`luthier api` in a process of its own, with tenants that have a dataset and a job each."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from cli.family import listen, port_of
from jobs.settings import REPO, as_environment
from tests.api.serving import wait_until
from tests.chaos.trainer import Script, row_of
from tests.workers import House

MIB = 1 << 20


class Api:
    def __init__(self, house: House, port: int, process: psutil.Process) -> None:
        self.house, self.port, self._process = house, port, process
        self.url = f"http://127.0.0.1:{port}"

    @property
    def rss_mib(self) -> float:
        return float(self._process.memory_info().rss) / MIB

    def key(self) -> str:
        return self.house.store.tenants.issue_key(self.house.tenant_id, "load")[0]

    def pollers(self, clients: int, *, a_tenant: int = 10) -> list[tuple[str, str]]:
        """A path and a key for each client; `a_tenant` of them share a tenant and its job."""
        found: list[tuple[str, str]] = []
        for number in range(0, clients, a_tenant):
            self.house.tenant_id = self.house.store.tenants.create(f"load-{number}").id
            job_id = self.house.submit(self.house.add_dataset([row_of(Script())]))
            found += [(f"/jobs/{job_id}", self.key())] * min(a_tenant, clients - number)
        return found


@contextmanager
def running_api(data_dir: Path, base: Path, **settings: Any) -> Iterator[Api]:
    probe = listen("127.0.0.1", 0, "--port")
    port = port_of(probe)
    probe.close()
    house = House(data_dir, base, **settings)
    command = [sys.executable, "-m", "cli.main", "api", "--port", str(port)]
    process = subprocess.Popen(
        command, cwd=REPO, env=as_environment(house.settings), stdin=subprocess.DEVNULL
    )
    try:
        api = Api(house, port, psutil.Process(process.pid))
        wait_until(lambda: _answers(api.url), timeout_s=90)
        yield api
    finally:
        process.terminate()
        process.wait(90)
        house.close()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
