"""multipart/form-data read as a stream: small fields whole, the one file in pieces."""

from collections.abc import Sequence
from typing import Any, Protocol

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from api.errors import BodyUnreadable, Invalid

FORM = "multipart/form-data"
FIELD_BYTES = 4096
FILE = "file"


def form_schema(properties: dict[str, Any], required: Sequence[str]) -> dict[str, Any]:
    """Of a form's fields, as content of a documented request; it has no others."""
    schema = {
        "type": "object",
        "required": list(required),
        "additionalProperties": False,
        "properties": properties,
    }
    return {FORM: {"schema": schema}}


def is_form(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() == FORM


class Taker(Protocol):
    """Who gets what a form holds."""

    def set(self, field: str, value: str) -> None: ...

    def begin(self, content_type: str, file_name: str | None) -> None: ...

    def write(self, data: bytes) -> None: ...


class Form:
    """Feeds a form to its taker. With `file_last`, the fields must come before what they describe.

    `file` is the name of the field that the file is in.
    """

    def __init__(
        self,
        content_type: str,
        fields: frozenset[str],
        taker: Taker,
        *,
        file: str = FILE,
        file_last: bool = True,
    ) -> None:
        self._fields, self._taker = fields, taker
        self._file, self._file_last = file, file_last
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        if not boundary:
            raise BodyUnreadable("The form's Content-Type has no boundary; use a client's forms.")
        self._headers: dict[str, str] = {}
        self._header, self._value = b"", b""
        self._name = ""
        self._text: bytearray | None = None
        self._began = self._ended = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._part_begin,
                    "on_header_field": self._header_field,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._headers_finished,
                    "on_part_data": self._part_data,
                    "on_part_end": self._part_end,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise _unreadable(error) from None

    def feed(self, data: bytes) -> None:
        """The next bytes of the body. Raises BodyUnreadable, Invalid, and what the taker does."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise _unreadable(error) from None

    def close(self) -> None:
        """Raises unless the form was whole and had its file."""
        if not self._ended:
            raise BodyUnreadable("The form's last boundary is missing; send the whole form.")
        if not self._began:
            said = f"The form has no file; put it in the field `{self._file}`."
            raise Invalid(said, param=self._file)

    def _part_begin(self) -> None:
        self._headers, self._text = {}, None

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._header.decode("latin-1").lower()] = self._value.decode("latin-1")
        self._header = self._value = b""

    def _headers_finished(self) -> None:
        options = parse_options_header(self._headers.get("content-disposition"))[1]
        self._name = _text(options.get(b"name", b""), "name of a field")
        if self._began and (self._file_last or self._name == self._file):
            said = f"Send the other fields before `{self._file}`, which must be last, and once."
            raise Invalid(said, param=self._file)
        if self._name == self._file:
            file_name = options.get(b"filename")
            self._began = True
            self._taker.begin(
                self._headers.get("content-type", ""),
                None if file_name is None else file_name.decode(errors="replace"),
            )
        elif self._name in self._fields:
            self._text = bytearray()
        else:
            raise Invalid(
                f"There is no such field: {self._name[:64]!r}; remove it.", param=self._name[:64]
            )

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._text is None:
            self._taker.write(data[start:end])
            return
        self._text += data[start:end]
        if len(self._text) > FIELD_BYTES:
            raise Invalid(f"{self._name} is above {FIELD_BYTES} bytes.", param=self._name)

    def _part_end(self) -> None:
        if self._text is not None:
            self._taker.set(self._name, _text(bytes(self._text), self._name))

    def _end(self) -> None:
        self._ended = True


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise BodyUnreadable(f"The {what} is not UTF-8; send it as UTF-8.") from None


def _unreadable(error: FormParserError) -> BodyUnreadable:
    return BodyUnreadable(f"The body is not multipart/form-data ({error}); use a client's forms.")
