"""RowParser: one line, or one record of a table, to a Row; or to the faults in it."""

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails, from_json

from engine.rows.model import (
    MAX_LINE_BYTES,
    MAX_MARGIN,
    MAX_MESSAGES,
    MAX_PROBLEMS_SHOWN,
    RowType,
)
from engine.rows.rules import NATIVE, Rules
from engine.rows.spellings import SPELLINGS, Spelling, accepted, always
from engine.rows.written import Fault, Written, count_messages, texts

# An escaped NUL, or an ASCII letter escaped for no reason: it may hide a key that is there twice.
ODD_ESCAPE = re.compile(rb"\\u00(?:00|[67])")
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
MAX_NAME_CHARS = 64
NOT_A_MARGIN = {
    "float_type",
    "float_parsing",
    "finite_number",
    "greater_than_equal",
    "less_than_equal",
}
TOO_LONG = f"is longer than {MAX_LINE_BYTES:,} bytes; split the row or shorten its texts"


class RowInvalid(Exception):
    """One record that is no row, with all that is wrong with it. Never leaves this package."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__(faults)
        self.faults = faults[:MAX_PROBLEMS_SHOWN]


class Unreadable(RowInvalid):
    """What makes the rest of a dataset unreadable too."""

    def __init__(self, line: int, faults: list[Fault]) -> None:
        super().__init__(faults)
        self.line = line


class RowParser:
    """Parses records of one row type; without one, the first good record decides it."""

    def __init__(self, row_type: RowType | None = None, rules: Rules = NATIVE) -> None:
        self.row_type, self._rules = row_type, rules
        self._latest: Spelling | None = None

    def parse(self, record: bytes | Mapping[str, Any] | RowInvalid) -> Written:
        """A good row as it is spelt; `.row()` makes it a Row. Raises RowInvalid.

        Takes a line of JSONL, a record of a table, or what its reader found wrong with that.
        """
        if isinstance(record, bytes):
            return self._line(record)
        if isinstance(record, RowInvalid):
            raise record
        return self._mapping(record)

    def check_columns(self, names: Collection[str]) -> None:
        """Raises RowInvalid unless a table of these columns holds rows."""
        self._choose(dict.fromkeys(names))

    def _line(self, line: bytes) -> Written:
        """Rows tend to be spelt as the row before, so that is tried first."""
        if self._latest is not None and not self._latest.model.any_keys:
            try:
                written: Written = self._latest.model.__pydantic_validator__.validate_json(line)
            except ValidationError:
                pass
            else:
                if is_plain(line, written, self._latest.keys) and not self._faults(written):
                    return written
        return self._line_with_care(line)

    def _line_with_care(self, line: bytes) -> Written:
        names = object_of(line)
        spelling = self._choose(names)
        try:
            written = spelling.model.model_validate_json(line)
        except ValidationError as error:
            raise RowInvalid(faults_of(error, spelling)) from None
        return self._accept(spelling, written)

    def _mapping(self, record: Mapping[str, Any]) -> Written:
        spelling = self._choose(record)
        try:
            written = spelling.model.model_validate(record, strict=False)
        except ValidationError as error:
            raise RowInvalid(faults_of(error, spelling)) from None
        return self._accept(spelling, written)

    def _accept(self, spelling: Spelling, written: Written) -> Written:
        said = list(texts(written))
        faults = self._faults(written)
        faults += [Fault(name, "has a NUL character; remove it") for name, t in said if "\0" in t]
        if count_messages(written) > MAX_MESSAGES:
            faults.append(Fault(None, f"has more than {MAX_MESSAGES} messages; split the row"))
        if sum(len(text) for _, text in said) > MAX_LINE_BYTES:
            faults.append(Fault(None, TOO_LONG))
        if faults:
            raise RowInvalid(faults)
        self.row_type, self._latest = spelling.row_type, spelling
        return written

    def _faults(self, written: Written) -> list[Fault]:
        return written.faults() or self._rules.faults(written)

    def _choose(self, record: Mapping[str, Any]) -> Spelling:
        """The spelling that fits these field names; raises RowInvalid when none does."""
        if self._latest is not None and self._latest.fits(record):
            return self._latest
        fitting = [s for s in SPELLINGS if s.fits(record)]
        meant = self.row_type or self._rules.meant(record)
        if wanted := next((s for s in fitting if s.row_type == meant), None):
            return wanted
        found = next((s for s in fitting if s.decides(record)), None)
        if found and self.row_type is None:
            return found
        if found:
            said = f"is a {found.row_type} row in a dataset of {self.row_type} rows"
            raise RowInvalid([Fault(None, f"{said}; {accepted(self.row_type)}")])
        raise RowInvalid(self._misfits(record))

    def _misfits(self, record: Mapping[str, Any]) -> list[Fault]:
        """Names what is unknown and what is missing, against the nearest spelling."""
        fixed = [s for s in SPELLINGS if s.decides is always]
        ours = [s for s in fixed if self.row_type in (None, s.row_type)]
        nearest = max(ours, key=lambda s: (len(s.required & record.keys()), -len(s.required)))
        ways = accepted(self.row_type)
        if not nearest.listed:
            ways = f"a {nearest.row_type} row is {nearest}"
        unknown = [name for name in record if name not in nearest.allowed]
        faults = [Fault(shorten(n), f"is an unknown field; {ways}") for n in unknown]
        missing = [n for n in nearest.model.model_fields if n in nearest.required - record.keys()]
        if len(missing) < len(nearest.required):
            faults += [Fault(name, f"is missing; {ways}") for name in missing]
        return faults or [Fault(None, f"has no fields; {ways}")]


def is_plain(line: bytes, written: Written, keys: tuple[bytes, ...]) -> bool:
    """False if a key might be there twice or a text hold a NUL: then the line is read with care.

    JSON parsers keep the last of two equal keys. A key is spelt `"key"` unless letters of it are
    escaped, and a text can look like that too, so a surplus only means that it is worth a look.
    """
    if b"\\u00" in line and ODD_ESCAPE.search(line):
        return False
    if getattr(written, "item", None) is not None:  # objects of any keys
        return False
    for key in keys:
        if line.count(key) > 1:
            return False
    messages = count_messages(written)
    return messages == 0 or (
        messages <= MAX_MESSAGES
        and line.count(b'"role"') == messages
        and line.count(b'"content"') == messages
    )


def json_of(text: bytes) -> Any:
    """The JSON value of a text; raises RowInvalid with what is wrong with it."""
    try:
        value = from_json(text)
    except ValueError as error:
        raise RowInvalid([Fault(None, why_not_json(text, str(error)))]) from None
    if twice := repeated_keys(text):
        raise RowInvalid([Fault(shorten(key), "is there twice in one object") for key in twice])
    return value


def object_of(line: bytes) -> dict[str, Any]:
    value = json_of(line)
    if not isinstance(value, dict):
        kind = {list: "an array", str: "a string", type(None): "null"}.get(type(value), "a value")
        raise RowInvalid([Fault(None, f"is {kind}, not an object; write one JSON object a line")])
    return value


def why_not_json(line: bytes, error: str) -> str:
    try:
        line.decode()
    except UnicodeDecodeError as bad:
        return f"is not UTF-8 (byte {bad.start + 1} of the line); save the file as UTF-8"
    if b"\0" in line:
        return "has NUL bytes; is the file UTF-16? Save it as UTF-8"
    if "recursion limit" in error:
        return "is nested too deeply for a row"
    if SURROGATE.search(line) and ("surrogate" in error or "escape" in error):
        return "has half of a surrogate pair (such as \\ud800); write the whole character"
    if line.strip() == b"[":
        return "opens a JSON array; write one JSON object a line, without brackets around them"
    hint = "; an object must stand on one line" if "EOF" in error else ""
    return f"is not JSON: {error.replace(' at line 1 column ', ' at character ')}{hint}"


def repeated_keys(line: bytes) -> list[str]:
    found: dict[str, None] = {}

    def look(pairs: list[tuple[str, Any]]) -> None:
        found.update(dict.fromkeys(key for key, n in Counter(k for k, _ in pairs).items() if n > 1))

    json.loads(line, object_pairs_hook=look, parse_int=len, parse_float=len, parse_constant=len)
    return list(found)


def faults_of(error: ValidationError, spelling: Spelling) -> list[Fault]:
    """pydantic's errors in our words; of the two errors of `str | messages` the one that helps."""
    details = error.errors(include_url=False)[: 4 * MAX_PROBLEMS_SHOWN]
    return [
        Fault(path_of(detail), wording(detail, spelling))
        for detail in details
        if not is_echo(detail)
    ]


def is_echo(detail: ErrorDetails) -> bool:
    """True for what only follows from another error: the other branch, a list without bad items."""
    loc, kind = detail["loc"], detail["type"]
    if kind == "too_short":
        return bool(detail["input"])
    if loc[-1] == "str":
        return isinstance(detail["input"], list | tuple)
    return kind == "tuple_type" and len(loc) > 1


def path_of(detail: ErrorDetails) -> str:
    """("prompt", "tuple[Message, ...]", 0, "role") is prompt[0].role."""
    path = ""
    for part in detail["loc"]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and part != "str":
            path += f".{part}" if path else part
    return shorten(path)


def wording(detail: ErrorDetails, spelling: Spelling) -> str:
    context = detail.get("ctx", {})
    if spelling.wording is not None and (said := spelling.wording(detail)):
        return said
    match detail["type"]:
        case "string_unicode":
            return "is not UTF-8"
        case "missing":
            return "is missing"
        case "extra_forbidden":
            return 'is an unknown field; a message is {"role", "content"}'
        case "string_type" if detail["loc"][-1] == "str":
            return "must be a string or a list of messages"
        case "string_type":
            return "must be a string"
        case "tuple_type":
            return "must be a list of messages"
        case "bool_type" | "bool_parsing":
            return "must be true or false"
        case kind if kind in NOT_A_MARGIN:
            return f"must be a number from 0 to {MAX_MARGIN:,.0f}, or left out"
        case "literal_error":
            return f"must be {context['expected']}"
        case "too_short":
            return "is empty; give at least one message"
        case "too_long":
            return f"has more than {MAX_MESSAGES} messages; split the row"
        case "model_type" | "dataclass_type":
            return 'must be a message: {"role", "content"}'
        case _:
            return f"{detail['msg']}; {accepted(spelling.row_type)}"


def shorten(name: str) -> str:
    return name if len(name) <= MAX_NAME_CHARS else name[: MAX_NAME_CHARS - 1] + "…"
