"""Log events of a role: one JSON object a line, or a line for eyes. Both carry the same fields."""

import json
import logging
import sys
import traceback
from collections.abc import Iterator, Mapping, MutableMapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.text import Text

# Their news is ours already, or nobody's.
_TALKATIVE = (
    *("alembic", "asyncio", "boto3", "botocore", "dramatiq", "filelock"),
    *("httpcore", "httpx", "opentelemetry", "urllib3", "uvicorn"),
)
_STYLE = {"debug": "dim", "info": "", "warning": "yellow", "error": "red", "critical": "bold red"}
_FRAME = ("event", "level", "timestamp", "role", "logger", "exception", "exc_info", "color_message")


def configure_logging(log_format: Literal["console", "json"], role: str) -> None:
    """Send structlog's and the standard library's events to stderr, in one format."""
    import structlog

    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _without_texts,
        _with(role),
    ]
    last: Any = structlog.processors.JSONRenderer() if log_format == "json" else _line
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, last],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("uvicorn.error").addFilter(_no_ordinary_cut)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def _without_texts(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """An exception as where it came from and what it is. Its text may quote a client's rows."""
    given = event.pop("exc_info", None)
    if given is True:
        given = sys.exc_info()
    error = given[1] if isinstance(given, tuple) else given
    if isinstance(error, BaseException):
        event["exception"] = "\n\nDuring that, or because of it:\n".join(_links(error))
    return event


def _links(error: BaseException) -> Iterator[str]:
    """The exception and its causes, the first of them first."""
    if (before := error.__cause__ or error.__context__) is not None:
        yield from _links(before)
    kind = type(error)
    name = kind.__qualname__
    if kind.__module__ != "builtins":
        name = f"{kind.__module__}.{name}"
    told = f": {error.strerror}" if isinstance(error, OSError) and error.strerror else ""
    frames = "".join(traceback.format_tb(error.__traceback__))
    yield f"Traceback (most recent call last):\n{frames}{name}{told}"


def _no_ordinary_cut(record: logging.LogRecord) -> bool:
    """Event streams are cut when a server stops: no news, and no fault, for who pressed Ctrl-C."""
    cut = record.exc_info and record.exc_info[0] and record.exc_info[0].__name__ == "CancelledError"
    return not cut and "timeout graceful shutdown exceeded" not in str(record.msg)


def _with(role: str) -> Any:
    def add(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return {**event, "role": role}

    return add


def _line(_: Any, __: str, event: Mapping[str, Any]) -> str:
    from rich.control import strip_control_codes

    from cli.look import err

    if err.is_terminal:
        with err.capture() as captured:
            err.print(line_of(event), soft_wrap=True, end="")
        line = captured.get()
    else:  # the same without its colours, in a fraction of the time
        line = strip_control_codes("".join(text for text, _ in _pieces(event)))
    trace = event.get("exception")
    return line + (f"\n{trace}" if trace else "")


def line_of(event: Mapping[str, Any]) -> "Text":
    """An event as `10:40:36  worker     job.claimed job_id=... attempt=2`."""
    from rich.text import Text

    return Text.assemble(*_pieces(event))


def _pieces(event: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The parts of a line, each with its style."""
    yield _clock(event.get("timestamp")) + "  ", "dim"
    yield f"{event.get('role', '')!s:<9}  ", "cyan"
    yield str(event.get("event", "")), _STYLE.get(str(event.get("level")), "")
    for name, value in event.items():
        if name not in _FRAME:
            yield f" {name}=", "dim"
            yield _short(value), ""


def parse(line: str) -> dict[str, Any] | None:
    """The event on a line of JSON, or None where the line is something else."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None


def _clock(timestamp: Any) -> str:
    try:
        moment = datetime.fromisoformat(str(timestamp))
    except ValueError:
        moment = datetime.now()
    return moment.astimezone().strftime("%H:%M:%S")


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)
