"""The whole service on one machine: api, worker and inference as children that are looked after.

Where vLLM generates, there is no inference: it is started, and looked after, by its operator.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Self

from cli.failure import CommandFailed
from cli.family import listen, port_of
from cli.home import Occupation, prepare
from cli.logfile import LogFile
from cli.metrics import listen_for_metrics, write_targets
from cli.process import QUICK_DEATHS, Process, Role, how

if TYPE_CHECKING:
    import httpx

    from jobs.settings import Settings

TURN_S = 0.1
STOP_S = 10.0
START_S = 300.0  # a large base model takes its time to load

OnLine = Callable[[str, str], None]  # a role's name, a line of its log
OnTrouble = Callable[[str, str], None]  # a role's name, what happened to it


class Ready(NamedTuple):
    role: str
    after_s: float


class Service:
    """Start with `with`, follow `starting()` to its end, then `tend()` until it should stop.

    `hurry` may be set at any time: what then still runs while stopping is killed at once.
    """

    def __init__(
        self,
        settings: "Settings",
        *,
        base_model: str | None = None,
        on_line: OnLine = lambda role, line: None,
        on_trouble: OnTrouble = lambda role, what: None,
    ) -> None:
        self._given, self._base_model = settings, base_model
        self._on_line, self._on_trouble = on_line, on_trouble
        self._processes: dict[str, Process] = {}
        self._logs: dict[str, LogFile] = {}
        self.hurry = threading.Event()

    def __enter__(self) -> Self:
        self._occupation = Occupation(self._given.data_dir)
        try:
            self._open_sockets()
            prepare(self.settings)
            self._started_at = time.monotonic()
            for role in self._roles():
                self._logs[role.name] = LogFile(role.log)
                self._processes[role.name] = Process(role)
                self._processes[role.name].start()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _open_sockets(self) -> None:
        given = self._given
        self._metrics: dict[str, socket.socket] = {}
        self._sockets = {"api": listen(given.host, given.port, "--port")}
        port = port_of(self._sockets["api"])
        self.url = _url(given.host, port)
        changed: dict[str, object] = {"port": port, "log_format": "json"}
        if given.generator == "luthier":
            changed |= self._open_inference()
        self.settings = given.model_copy(update=changed)
        self.inference_url = self.settings.inference
        for role in (*self._sockets, "worker"):
            self._metrics[role] = listen_for_metrics(given)
        write_targets(given.data_dir, self._metrics)

    def _open_inference(self) -> dict[str, object]:
        given = self._given
        try:
            bound = listen(given.inference_host, given.inference_port, "--inference-port")
        except CommandFailed:
            self._sockets["api"].close()
            raise
        self._sockets["inference"] = bound
        port = port_of(bound)
        return {"inference_port": port, "inference_url": _url(given.inference_host, port)}

    def _roles(self) -> list[Role]:
        from jobs.settings import as_environment

        logs = self.settings.data_dir / "logs"
        logs.mkdir(exist_ok=True)
        environment = as_environment(self.settings)
        lock = self._occupation.fd

        def role(name: str, *arguments: str, stop_s: float = STOP_S) -> Role:
            scraped = self._metrics[name].fileno()
            fds: tuple[int, ...] = (lock, scraped)
            arguments = (*arguments, f"--metrics-fd={scraped}")
            if name in self._sockets:
                fd = self._sockets[name].fileno()
                arguments, fds = (*arguments, f"--fd={fd}"), (*fds, fd)
            return Role(name, arguments, environment, logs / f"{name}.log", fds, stop_s)

        base = [f"--base-model={self._base_model}"] if self._base_model else []
        inference = [role("inference", *base)] if "inference" in self._sockets else []
        return [role("api"), *inference, role("worker", stop_s=self.settings.drain_s + STOP_S)]

    def starting(self) -> Iterator[Ready | None]:
        """Each role when it answers, and None at every turn between. Raises CommandFailed."""
        import httpx

        waiting = dict.fromkeys(self._processes)
        deadline = self._started_at + START_S
        with httpx.Client(timeout=1.0, trust_env=False) as client:
            while waiting:
                for name in list(waiting):
                    if self._answers(client, name):
                        del waiting[name]
                        yield Ready(name, time.monotonic() - self._started_at)
                self._refuse_early_death()
                if time.monotonic() > deadline:
                    raise CommandFailed(
                        f"{', '.join(waiting)}: no answer within {START_S:.0f} s.",
                        details=self._last_words(next(iter(waiting))),
                    )
                yield None
                time.sleep(TURN_S)
            self._require_ready(client)
        self._occupation.announce(self.url)

    def _answers(self, client: "httpx.Client", name: str) -> bool:
        import httpx

        if name == "worker":
            return any('"worker.started"' in line for line in self._forward(name))
        probe = f"{self.url}/healthz" if name == "api" else f"{self.inference_url}/health"
        try:
            return client.get(probe).status_code == 200
        except httpx.TransportError:
            return False

    def _require_ready(self, client: "httpx.Client") -> None:
        """The API's own word on the parts it needs, once every role answers."""
        answer = client.get(f"{self.url}/readyz", timeout=10.0)
        if answer.status_code != 200:
            parts = ", ".join(f"{name} {state}" for name, state in answer.json().items())
            raise CommandFailed(f"The API is not ready: {parts}.")

    def _refuse_early_death(self) -> None:
        for name, process in self._processes.items():
            code = process.ended()
            if code is not None:
                raise CommandFailed(
                    f"{name} {how(code)} while starting. Its log: {process.role.log}",
                    details=self._last_words(name),
                )

    def tend(self, stop: threading.Event) -> None:
        """Pass the logs on and start again what ends by itself, until `stop`.

        Raises CommandFailed when a role ends again and again.
        """
        while not stop.wait(TURN_S):
            for name, process in self._processes.items():
                self._forward(name)
                self._logs[name].rotate()
                if (code := process.ended()) is not None:
                    self._bury(name, process, code)
                elif process.restart_if_due():
                    self._on_trouble(name, "started again")

    def _bury(self, name: str, process: Process, code: int) -> None:
        self._forward(name)
        if process.hopeless:
            raise CommandFailed(
                f"{name} {how(code)}, {QUICK_DEATHS} times in a row; giving up. "
                f"Its log: {process.role.log}",
                details=self._last_words(name),
            )
        self._on_trouble(name, how(code))

    def _forward(self, name: str) -> list[str]:
        lines = self._logs[name].new_lines()
        for line in lines:
            self._on_line(name, line)
        return lines

    def _last_words(self, name: str) -> tuple[str, ...]:
        return tuple(self._logs[name].last_words())

    def stop(self) -> None:
        """End every role: asked first, killed when its time is up or `hurry` is set."""
        for process in self._processes.values():
            process.ask_to_stop()
        asked_at = time.monotonic()
        try:
            for name, process in self._processes.items():
                self._await_end(name, process, asked_at + process.role.stop_s)
        finally:
            self._leave()

    def _await_end(self, name: str, process: Process, deadline: float) -> None:
        while process.alive() and not self.hurry.is_set():
            if time.monotonic() > deadline:
                self._on_trouble(name, "did not stop in time and was killed")
                break
            self._forward(name)
            time.sleep(0.02)
        process.finish()
        self._forward(name)

    def _leave(self) -> None:
        for process in self._processes.values():
            process.finish()
        for sockets in (getattr(self, "_sockets", {}), getattr(self, "_metrics", {})):
            for bound in sockets.values():
                bound.close()
        self._occupation.release()


def _url(host: str, port: int) -> str:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"
