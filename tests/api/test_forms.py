"""Uploads as forms: read as a stream, whatever the pieces, with the file last."""

import random
from typing import Any

import httpx
import pytest

from api.errors import ApiError, BodyUnreadable, Invalid
from api.forms import Form

pytestmark = pytest.mark.anyio

KIND = "multipart/form-data; boundary=line"
ROW = b'{"prompt": "q", "completion": "a"}\n'


def part(name: str, data: bytes, file_name: str | None = None) -> bytes:
    named = f'; filename="{file_name}"' if file_name is not None else ""
    head = f'--line\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'
    return head.encode() + data + b"\r\n"


END = b"--line--\r\n"


class Taken:
    """Remembers what a form gave."""

    def __init__(self) -> None:
        self.fields: dict[str, str] = {}
        self.file: bytes | None = None
        self.name: str | None = None

    def set(self, field: str, value: str) -> None:
        self.fields[field] = value

    def begin(self, content_type: str, file_name: str | None) -> None:
        self.file, self.name = b"", file_name

    def write(self, data: bytes) -> None:
        assert self.file is not None
        self.file += data


def read(body: bytes, sizes: Any = None, kind: str = KIND) -> Taken:
    taken = Taken()
    form = Form(kind, frozenset({"name", "row_type"}), taken)
    while body:
        size = sizes() if sizes else len(body)
        form.feed(body[:size])
        body = body[size:]
    form.close()
    return taken


def test_fields_come_whole_and_the_file_to_the_byte_however_it_is_cut() -> None:
    data = bytes(range(256)) * 20 + b"\r\n--lin\r\n--\r\r\n--lin"
    body = part("name", "größe".encode()) + part("file", data, "a.jsonl") + END
    for seed in range(200):
        dice = random.Random(seed)
        taken = read(body, lambda dice=dice: dice.randrange(1, 64))
        assert taken.fields == {"name": "größe"}
        assert (taken.file, taken.name) == (data, "a.jsonl")


@pytest.mark.parametrize(
    ("body", "kind", "error"),
    [
        (b"", KIND, BodyUnreadable),
        (END, KIND, Invalid),
        (part("file", b"x", "a"), KIND, BodyUnreadable),
        (part("file", b"x", "a") + b"--lin", KIND, BodyUnreadable),
        (part("name", b"x") + END, KIND, Invalid),
        (part("file", b"x", "a") + part("name", b"x") + END, KIND, Invalid),
        (part("file", b"x", "a") + part("file", b"x", "b") + END, KIND, Invalid),
        (part("tenant_id", b"x") + END, KIND, Invalid),
        (part("", b"x") + END, KIND, Invalid),
        (part("name", b"x" * 5000) + END, KIND, Invalid),
        (part("name", b"\xff") + END, KIND, BodyUnreadable),
        (b"--line\r\nbroken header\r\n\r\n", KIND, BodyUnreadable),
        (b"--line\r\n" + b"X" * 100_000 + b": y\r\n", KIND, BodyUnreadable),
        (b"no form", KIND, BodyUnreadable),
        (b"", "multipart/form-data", BodyUnreadable),
        (b"", "multipart/form-data; boundary=" + "b" * 1000, BodyUnreadable),
    ],
)
def test_what_is_no_such_form_is_refused(body: bytes, kind: str, error: type[ApiError]) -> None:
    with pytest.raises(error):
        read(body, kind=kind)


async def test_a_form_uploads_what_a_raw_body_does(client: httpx.AsyncClient) -> None:
    answer = await client.post(
        "/datasets",
        data={"name": "mine", "row_type": "conversation"},
        files={"file": ("rows.jsonl", ROW * 3, "application/octet-stream")},
    )
    assert answer.status_code == 201, answer.text
    found = answer.json()
    assert (found["name"], found["format"], found["rows"]) == ("mine", "jsonl", 3)
    raw = await client.post("/datasets?format=jsonl", content=ROW * 3)
    assert raw.json()["sha256"] == found["sha256"]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("../../etc/rows.jsonl", "rows.jsonl"),
        ("C:\\data\\rows.jsonl", "rows.jsonl"),
        ("ro\u202ews.jsonl", "rows.jsonl"),
        ("日本.jsonl", "日本.jsonl"),
        ("a" * 400 + ".jsonl", "a" * 256),
    ],
)
async def test_a_file_name_is_shown_without_its_path(
    client: httpx.AsyncClient, sent: str, kept: str
) -> None:
    answer = await client.post("/datasets", files={"file": (sent, ROW)})
    assert (answer.status_code, answer.json()["name"]) == (201, kept)


async def test_a_bad_option_in_a_form_is_refused_at_its_field(client: httpx.AsyncClient) -> None:
    answer = await client.post(
        "/datasets", data={"row_type": "poem"}, files={"file": ("a.jsonl", ROW)}
    )
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "row_type")
