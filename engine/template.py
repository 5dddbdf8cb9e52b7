"""A chat template: someone else's Jinja code, run in the sandbox and dialect of transformers."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from engine.errors import EngineError
from engine.rows import Message


class RenderError(EngineError):
    """A model folder or a conversation that cannot be turned into tokens."""


class TemplateUnsupported(RenderError):
    """A chat template under which the assistant's own tokens cannot be told from the others."""


class GenerationTag(Extension):
    """`{% generation %}` marks the assistant's text for transformers; it writes nothing itself."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it as a plain set)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class PlainDict:
    """`dict` without the attributes of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class PlainNamespace(Namespace):
    """`namespace` that keeps no underscored names."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *given = args
        values = dict(*given, **kwargs)
        for name in values:
            refuse_underscored(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        refuse_underscored(name)
        super().__setitem__(name, value)


def refuse_underscored(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}")


def raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own filter escapes HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def environment() -> ImmutableSandboxedEnvironment:
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
    )
    env.filters["tojson"] = to_json
    env.globals.update(raise_exception=raise_exception, dict=PlainDict(), namespace=PlainNamespace)
    return env


class ChatTemplate:
    """Renders messages to text, as `apply_chat_template(..., tokenize=False)` does."""

    def __init__(self, source: str, variables: Mapping[str, str]) -> None:
        """`variables` are the special tokens by name (`bos_token`, ...); raises RenderError."""
        self._variables = dict(variables)
        try:
            self._compiled = environment().from_string(source)
        except jinja2.TemplateError as error:
            raise RenderError(f"the chat template is not valid Jinja: {error}") from None

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool,
        now: datetime,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """`now` is what the template takes for the present; raises RenderError.

        tools: definitions as OpenAI has them: {"type": "function", "function": {"name", ...}}.
        """
        try:
            return self._compiled.render(
                messages=[message.shown() for message in messages],
                tools=[dict(tool) for tool in tools] if tools else None,  # many ask `is not none`
                documents=None,
                add_generation_prompt=add_generation_prompt,
                strftime_now=now.strftime,
                **self._variables,
            )
        except Exception as error:  # a template is foreign code: it may raise anything
            roles = ", ".join(message.role for message in messages[:8]) or "none"
            why = str(error).rstrip(".")
            raise RenderError(
                "the base model's chat template refuses this conversation "
                f"(roles: {roles}): {why}; change the roles or their order, or choose another base"
            ) from None
