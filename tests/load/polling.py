"""Clients that poll, in a process of their own, so that they do not share a core's lock with what
they measure.

    python -m tests.load.polling PORT SECONDS INTERVAL_S < requests

Each line of standard input is a client: a path and its key. Latency counts from the moment at which
a client had meant to ask, so a server that is slow to answer cannot hide the questions it held up.
The report is JSON on standard output.
"""

import asyncio
import json
import random
import resource
import subprocess
import sys
import time
from typing import Any, NamedTuple

from jobs.settings import REPO

LONGEST_S = 30.0


class Report(NamedTuple):
    asked: int
    errors: int
    p50_ms: float
    p99_ms: float
    slowest_ms: float


def poll(port: int, clients: list[tuple[str, str]], *, seconds: float, every_s: float) -> Report:
    """Poll with all clients at once; one (path, key) each."""
    lines = "".join(f"{path} {key}\n" for path, key in clients)
    command = [sys.executable, "-m", "tests.load.polling", str(port), str(seconds), str(every_s)]
    done = subprocess.run(command, input=lines, text=True, stdout=subprocess.PIPE, cwd=REPO)
    assert done.returncode == 0
    return Report(**json.loads(done.stdout))


class Client:
    """One connection, kept, and opened again where the server closed it."""

    def __init__(self, port: int, path: str, key: str) -> None:
        self._port = port
        head = f"GET {path} HTTP/1.1\r\nHost: luthier.test\r\nAuthorization: Bearer {key}\r\n\r\n"
        self._request = head.encode()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self) -> int:
        """The status of an answer that came whole."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(self._request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
        return int(head[9:12])

    def drop(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def _client(client: Client, began: float, until: float, every_s: float, found: Any) -> None:
    due = began + random.uniform(0, every_s)
    while due < until:
        await asyncio.sleep(due - time.monotonic())
        try:
            async with asyncio.timeout(LONGEST_S):
                status = await client.ask()
        except (OSError, asyncio.IncompleteReadError, ValueError):
            status = 0
            client.drop()
        found.append((1000 * (time.monotonic() - due), status))
        due += every_s
    client.drop()


async def _run(port: int, seconds: float, every_s: float, lines: list[str]) -> Report:
    clients = [Client(port, *line.split()) for line in lines]
    began = time.monotonic()
    found: list[tuple[float, int]] = []
    until = began + seconds
    await asyncio.gather(*(_client(c, began, until, every_s, found) for c in clients))
    times = sorted(took for took, _ in found)
    return Report(
        asked=len(found),
        errors=sum(not 200 <= status < 300 for _, status in found),
        p50_ms=times[len(times) // 2],
        p99_ms=times[len(times) * 99 // 100],
        slowest_ms=times[-1],
    )


def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    port, seconds, every_s = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    report = asyncio.run(_run(port, seconds, every_s, sys.stdin.read().splitlines()))
    print(json.dumps(report._asdict()))


if __name__ == "__main__":
    main()
