"""The HTTP client behind the commands: where the service is, the key, and errors as one line."""

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import IO, Any, Self

import httpx

from cli.configuration import read_settings
from cli.failure import CommandFailed
from cli.home import key_path, served_at

_TIMEOUT = httpx.Timeout(60.0, connect=5.0)
_THINKING = httpx.Timeout(None, connect=5.0)  # for answers that take as long as they take
_JSON = {"content-type": "application/json"}
_CHUNK_BYTES = 1 << 18
_RECONNECTS = 20
_PROBLEMS = 8


def connect(url: str | None, key: str | None) -> "Client":
    """A client for the service on this machine, or for the one that was named."""
    settings = read_settings()
    if url is None:
        url = served_at(settings.data_dir) or f"http://{settings.host}:{settings.port}"
    if key is None:
        path = key_path(settings.data_dir)
        if not path.is_file():
            raise CommandFailed(
                f"No API key: {path} is not there. Start `luthier serve` here, or give a key "
                "with --key or LUTHIER_API_KEY."
            )
        key = path.read_text().strip()
    return Client(url, key)


class Client:
    """JSON in and out. Whatever goes wrong is a CommandFailed with the service's own words."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=self.url,
            headers={"authorization": f"Bearer {key}"},
            timeout=_TIMEOUT,
            transport=httpx.HTTPTransport(retries=2),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def get(self, path: str, **params: Any) -> Any:
        return self._json("GET", path, params=_given(params))

    def post(self, path: str, body: Any = None, *, headers: Mapping[str, str] = {}) -> Any:
        request: dict[str, Any] = {"headers": headers, "timeout": _THINKING}
        if body is not None:
            request |= {"content": _written(body), "headers": {**_JSON, **headers}}
        return self._json("POST", path, **request)

    def delete(self, path: str, **params: Any) -> Any:
        return self._json("DELETE", path, params=_given(params))

    def upload(
        self, path: str, file: IO[bytes], size_bytes: int, content_type: str, **params: Any
    ) -> Any:
        """Send a file of any size as the body."""
        headers = {"content-type": content_type, "content-length": str(size_bytes)}
        return self._json(
            "POST",
            path,
            params=_given(params),
            content=_chunks(file),
            headers=headers,
            timeout=_THINKING,
        )

    def download(self, path: str) -> Iterator[bytes]:
        with self._translated(), self._http.stream("GET", path) as answer:
            _check(answer)
            yield from answer.iter_bytes()

    def first_model(self) -> str:
        """The base that is meant where none is named."""
        models = self.get("/models")["data"]
        if not models:
            raise CommandFailed("The service allows no base model; its operator must name one.")
        return str(models[0]["id"])

    def pages(self, path: str, *, limit: int, **params: Any) -> list[Any]:
        """The newest `limit` objects of a list."""
        found: list[Any] = []
        after = None
        while len(found) < limit:
            size = min(100, limit - len(found))
            page = self.get(path, after=after, limit=size, **params)
            found += page["data"]
            if not page["has_more"] or not page["data"]:
                break
            after = page["data"][-1]["id"]
        return found

    def events(self, job_id: str) -> Iterator[dict[str, Any]]:
        """A job's events as they happen, to the last; a cut stream is taken up where it broke."""
        last, failures = 0, 0
        while True:
            try:
                for event in self._stream(f"/jobs/{job_id}/events", {"last-event-id": str(last)}):
                    last, failures = event["seq"], 0
                    yield event
                return
            except httpx.TransportError as error:
                failures += 1
                if failures > _RECONNECTS:
                    raise self._unreachable(error) from error
                time.sleep(min(2.0, 0.2 * failures))

    def _stream(self, path: str, headers: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        wanted = {"accept": "text/event-stream", **headers}
        timeout = httpx.Timeout(60.0, connect=5.0)  # the service says something every 15 s
        with self._http.stream("GET", path, headers=wanted, timeout=timeout) as answer:
            _check(answer)
            yield from _data_of(answer)

    def generate(self, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The chunks of a streamed answer."""
        content = _written(body)
        with (
            self._translated(),
            self._http.stream(
                "POST", "/generate", content=content, headers=_JSON, timeout=_THINKING
            ) as answer,
        ):
            _check(answer)
            for chunk in _data_of(answer):
                if "error" in chunk:
                    raise CommandFailed(chunk["error"]["message"])
                yield chunk

    def _json(self, method: str, path: str, **request: Any) -> Any:
        with self._translated():
            answer = self._http.request(method, path, **request)
            _check(answer)
            return answer.json()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: httpx.TransportError) -> CommandFailed:
        reason = str(error).rpartition("] ")[2].lower() or type(error).__name__
        return CommandFailed(
            f"No answer from {self.url} ({reason}). Start a service with `luthier serve`, "
            "or say where it is with --url."
        )


def _written(body: Any) -> bytes:
    """The body as JSON. Raises CommandFailed for what JSON has no word for."""
    if field := next(_not_finite(body, ""), ""):
        raise CommandFailed(f"{field} is nan or infinite; give a number.")
    try:
        return json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        text = f"The text to send is not UTF-8 ({error.reason}); write it in UTF-8."
        raise CommandFailed(text) from error


def _not_finite(value: Any, field: str) -> Iterator[str]:
    """The fields whose numbers are none."""
    if isinstance(value, float) and not math.isfinite(value):
        yield field
    parts = value.items() if isinstance(value, Mapping) else ()
    for name, part in enumerate(value) if isinstance(value, list | tuple) else parts:
        yield from _not_finite(part, f"{field}.{name}" if field else str(name))


def _check(answer: httpx.Response) -> None:
    if answer.status_code < 400:
        return
    answer.read()
    try:
        error = answer.json()["error"]
        message, problems = error["message"], error.get("problems") or []
    except (ValueError, KeyError, TypeError):
        raise CommandFailed(
            f"{answer.request.url} answered with status {answer.status_code}, and not as Luthier "
            "does; check --url."
        ) from None
    if answer.status_code == 401 and _is_cut(answer.request):
        message += " The key that was sent is likely cut or mistyped: its checksum does not fit."
    details = [_problem(problem) for problem in problems[:_PROBLEMS]]
    total = error.get("total_problems") or len(problems)
    if total > len(details) > 0:
        details.append(f"... and {total - len(details)} more")
    told = bool(problems) and problems[0]["message"] in message
    if told and len(problems) == 1:
        raise CommandFailed(message)
    # The service's own line is the first problem again; the list below says it.
    raise CommandFailed(f"{total} problems:" if told else message, details=tuple(details))


def _is_cut(request: httpx.Request) -> bool:
    from jobs.keys import is_whole

    return not is_whole(request.headers.get("authorization", "").removeprefix("Bearer "))


def _problem(problem: Mapping[str, Any]) -> str:
    line, field = problem.get("line"), problem.get("field")
    where = ", ".join(part for part in (f"line {line}" if line else "", str(field or "")) if part)
    return f"{where}: {problem['message']}" if where else str(problem["message"])


def _data_of(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    """The JSON of each server-sent event; ours are one `data:` line each."""
    for line in answer.iter_lines():
        if line.startswith("data:"):
            data = line[5:].strip()
            if data == "[DONE]":
                return
            yield json.loads(data)


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK_BYTES):
        yield chunk


def _given(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}
