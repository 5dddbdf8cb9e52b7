"""client.uploads of OpenAI's own SDK: a file in parts, all of it or nothing."""

import gc
import hashlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from jobs.tables import upload_parts, uploads
from tests.record import Record
from tests.v1.files.conftest import Filing, MakeFiling
from tests.v1.files.making import CHATS, jsonl

MIB = 1 << 20
MD5 = hashlib.md5(CHATS, usedforsecurity=False).hexdigest()
HOUR: Any = {"anchor": "created_at", "seconds": 3600}


def begin(client: openai.OpenAI, size_bytes: int = len(CHATS), **more: Any) -> str:
    return client.uploads.create(
        bytes=size_bytes,
        filename="chats.jsonl",
        mime_type="application/jsonl",
        purpose="fine-tune",
        **more,
    ).id


def add(client: openai.OpenAI, upload_id: str, data: bytes) -> str:
    return client.uploads.parts.create(upload_id, data=data).id


def age(filing: Filing, upload_id: str, by_s: float) -> None:
    older = uploads.update().where(uploads.c.id == upload_id)
    with filing.services.store.database.write() as connection:
        connection.execute(older.values(created_at=uploads.c.created_at - by_s))


def test_parts_in_any_order_are_a_file_in_the_order_that_is_named(anywhere: Filing) -> None:
    client = anywhere.client()
    upload = client.uploads.create(
        bytes=len(CHATS),
        filename="chats.jsonl",
        mime_type="text/jsonl",
        purpose="fine-tune",
        expires_after=HOUR,
    )
    assert (upload.status, upload.bytes, upload.file) == ("pending", len(CHATS), None)
    assert upload.expires_at == upload.created_at + 3600
    last = client.uploads.parts.create(upload.id, data=CHATS[700:])
    first = client.uploads.parts.create(upload.id, data=CHATS[:700])
    assert (first.object, first.upload_id) == ("upload.part", upload.id)
    assert list(client.files.list()) == []

    done = client.uploads.complete(upload.id, part_ids=[first.id, last.id], md5=MD5)

    assert (done.id, done.status) == (upload.id, "completed")
    assert done.file is not None
    assert done.file.expires_at == done.file.created_at + 3600
    assert client.files.retrieve(done.file.id) == done.file
    assert client.files.content(done.file.id).read() == CHATS
    assert [key for key in anywhere.stored() if "/uploads/" in key] == []
    again = client.uploads.complete(upload.id, part_ids=[first.id, last.id], md5=MD5)
    assert again == done, "a call whose answer was lost is repeated"
    with pytest.raises(openai.ConflictError) as refused:
        client.uploads.complete(upload.id, part_ids=[last.id])
    assert refused.value.response.headers["x-should-retry"] == "false"


def test_the_client_cuts_a_file_into_parts_by_itself(client: openai.OpenAI, tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_bytes(CHATS)
    done = client.uploads.upload_file_chunked(
        file=path, mime_type="application/jsonl", purpose="fine-tune", part_size=100, md5=MD5
    )
    assert done.file is not None
    assert (done.file.filename, done.file.bytes) == ("chats.jsonl", len(CHATS))
    assert client.files.content(done.file.id).read() == CHATS


@pytest.mark.anyio
async def test_the_asynchronous_client_does_the_same(async_client: openai.AsyncOpenAI) -> None:
    done = await async_client.uploads.upload_file_chunked(
        file=CHATS,
        filename="chats.jsonl",
        bytes=len(CHATS),
        mime_type="application/jsonl",
        purpose="fine-tune",
        part_size=512,
    )
    assert done.file is not None
    assert (await async_client.files.content(done.file.id)).content == CHATS
    other = await async_client.uploads.create(
        bytes=9, filename="a.jsonl", mime_type="text/plain", purpose="fine-tune"
    )
    part = await async_client.uploads.parts.create(other.id, data=b"123")
    assert part.upload_id == other.id
    assert (await async_client.uploads.cancel(other.id)).status == "cancelled"


def test_a_cancelled_upload_takes_nothing_and_leaves_nothing(
    filing: Filing, client: openai.OpenAI
) -> None:
    upload_id = begin(client)
    part = add(client, upload_id, CHATS)
    assert len(filing.stored()) == 1
    assert client.uploads.cancel(upload_id).status == "cancelled"
    assert client.uploads.cancel(upload_id).status == "cancelled"
    assert filing.stored() == []
    with pytest.raises(openai.ConflictError, match="is cancelled"):
        add(client, upload_id, CHATS)
    with pytest.raises(openai.ConflictError, match="is cancelled"):
        client.uploads.complete(upload_id, part_ids=[part])
    assert filing.stored() == []


def test_an_upload_whose_hour_is_over_is_given_up_and_collected(anywhere: Filing) -> None:
    client = anywhere.client()
    upload_id, other = begin(client), begin(client)
    part = add(client, upload_id, CHATS)
    add(client, other, CHATS[:100])
    age(anywhere, upload_id, 3601)
    for call in (
        lambda: add(client, upload_id, b"x"),
        lambda: client.uploads.complete(upload_id, part_ids=[part]),
        lambda: client.uploads.cancel(upload_id),
    ):
        with pytest.raises(openai.ConflictError, match="expired"):
            call()
    assert anywhere.expire() == 1
    assert len(anywhere.stored()) == 1
    with anywhere.services.store.database.read() as connection:
        left = connection.scalars(upload_parts.select().with_only_columns(upload_parts.c.upload_id))
        assert list(left) == [other]
    with pytest.raises(openai.NotFoundError):
        client.uploads.cancel(upload_id)


def test_what_does_not_add_up_is_refused_and_the_upload_goes_on(
    filing: Filing, client: openai.OpenAI
) -> None:
    upload_id = begin(client)
    first, last = add(client, upload_id, CHATS[:300]), add(client, upload_id, CHATS[300:])
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"part_ids": [first]}, "300 bytes"),
        ({"part_ids": [first, first]}, "twice"),
        ({"part_ids": [first, "pt_" + "0" * 24]}, "has no part"),
        ({"part_ids": [first, "nonsense"]}, "has no part"),
        ({"part_ids": []}, "part_ids"),
        ({"part_ids": [first, last], "md5": "0" * 32}, MD5),
        ({"part_ids": [first, last], "md5": "short"}, "md5"),
        ({"part_ids": [last, first]}, "line 1"),
    ]
    for asked, says in wrong:
        with pytest.raises(openai.UnprocessableEntityError, match=says):
            client.uploads.complete(upload_id, **asked)
        assert list(client.files.list()) == []
    assert len(filing.stored()) == 2
    add(client, upload_id, CHATS)
    with pytest.raises(openai.ConflictError, match="was to have"):
        add(client, upload_id, b"x")
    assert len(filing.stored()) == 3
    done = client.uploads.complete(upload_id, part_ids=[first, last])
    assert done.file is not None


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"bytes": 0}, "bytes"),
        ({"bytes": 8_000_000_001}, "bytes"),
        ({"purpose": "vision"}, "purpose"),
        ({"purpose": "poetry"}, "purpose"),
        ({"filename": ""}, "filename"),
        ({"filename": "a\0b"}, "filename"),
        ({"expires_after": HOUR | {"seconds": 60}}, "expires_after.seconds"),
        ({"extra_body": {"owner": "me"}}, "owner"),
    ],
)
def test_an_upload_that_could_not_be_a_file_is_not_begun(
    client: openai.OpenAI, asked: dict[str, Any], param: str
) -> None:
    good: dict[str, Any] = {"bytes": 9, "filename": "a", "mime_type": "x", "purpose": "fine-tune"}
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.uploads.create(**(good | asked))
    assert refused.value.param == param


def test_the_servers_own_limit_is_told(make_filing: MakeFiling) -> None:
    client = make_filing(max_upload_bytes=1000).client()
    with pytest.raises(openai.UnprocessableEntityError, match="1,000"):
        begin(client, 1001)


def test_a_part_above_64_mib_is_refused_and_a_part_needs_its_field(
    filing: Filing, client: openai.OpenAI
) -> None:
    upload_id = begin(client, 70 * MIB)
    with pytest.raises(openai.APIStatusError) as refused:
        add(client, upload_id, b"x" * (64 * MIB + 1))
    assert (refused.value.status_code, refused.value.code) == (413, "body_too_large")
    with pytest.raises(openai.UnprocessableEntityError, match="empty"):
        add(client, upload_id, b"")
    headers = {"authorization": f"Bearer {client.api_key}"}
    url = f"{filing.url}/v1/uploads/{upload_id}/parts"
    file = httpx.post(url, headers=headers, files={"file": b"x"})
    both = httpx.post(url, headers=headers, files=[("data", b"x"), ("data", b"y")])
    raw = httpx.post(url, headers=headers, content=b"x")
    assert [answer.status_code for answer in (file, both, raw)] == [422, 422, 415]
    assert filing.stored() == []


def test_parts_whose_answers_were_lost_are_sent_again(
    filing: Filing, client: openai.OpenAI
) -> None:
    """As SDKs do by themselves after a timeout: the first sending is there, and nobody knows it."""
    upload_id = begin(client)
    for data in (CHATS[:300], CHATS[300:]):
        add(client, upload_id, data)
    known = [add(client, upload_id, data) for data in (CHATS[:300], CHATS[300:])]
    done = client.uploads.complete(upload_id, part_ids=known)
    assert done.file is not None
    assert client.files.content(done.file.id).read() == CHATS
    assert len(filing.stored()) == 1


def test_a_part_larger_than_its_upload_is_no_part(filing: Filing, client: openai.OpenAI) -> None:
    with pytest.raises(openai.ConflictError, match="this part alone has more"):
        add(client, begin(client, 1), b"y" * 3 * MIB)
    assert filing.stored() == []


def test_a_part_that_is_cut_leaves_nothing(filing: Filing, client: openai.OpenAI) -> None:
    upload_id = begin(client, 10 * MIB)

    def cut() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="data"; filename="p"\r\n\r\n'
        yield b"y" * 3 * MIB
        raise ConnectionResetError

    headers = {
        "authorization": f"Bearer {client.api_key}",
        "content-type": "multipart/form-data; boundary=x",
    }
    with pytest.raises(ConnectionResetError):
        httpx.post(f"{filing.url}/v1/uploads/{upload_id}/parts", headers=headers, content=cut())
    assert client.uploads.cancel(upload_id).status == "cancelled"
    assert filing.stored() == []


def test_bytes_under_way_count_and_those_of_the_file_only_once(make_filing: MakeFiling) -> None:
    filing = make_filing(max_stored_bytes=int(len(CHATS) * 1.5))
    client = filing.client()
    upload_id = begin(client)
    with pytest.raises(openai.RateLimitError) as full:
        begin(client)
    assert full.value.code == "quota_exceeded"
    with pytest.raises(openai.RateLimitError):
        client.files.create(file=("chats.jsonl", CHATS), purpose="fine-tune")
    done = client.uploads.complete(upload_id, part_ids=[add(client, upload_id, CHATS)])
    assert done.file is not None
    with pytest.raises(openai.RateLimitError):
        begin(client)
    client.files.delete(done.file.id)
    client.uploads.cancel(begin(client))
    age(filing, begin(client), 3601)
    begin(client)


def test_calls_that_complete_at_once_are_all_answered_with_one_file(anywhere: Filing) -> None:
    client = anywhere.client()
    upload_id = begin(client)
    part = add(client, upload_id, CHATS)

    def complete(_: int) -> str:
        done = client.uploads.complete(upload_id, part_ids=[part])
        assert done.file is not None
        return done.file.id

    with ThreadPoolExecutor(8) as pool:
        (made,) = set(pool.map(complete, range(8)))

    assert [file.id for file in client.files.list()] == [made]
    (key,) = anywhere.stored()
    assert made in key


def test_a_tenant_can_do_nothing_with_an_upload_of_another(
    filing: Filing, client: openai.OpenAI
) -> None:
    upload_id = begin(client)
    part = add(client, upload_id, CHATS)
    stranger = filing.client("theirs")
    with pytest.raises(openai.NotFoundError):
        add(stranger, upload_id, CHATS)
    with pytest.raises(openai.NotFoundError):
        stranger.uploads.complete(upload_id, part_ids=[part])
    with pytest.raises(openai.NotFoundError):
        stranger.uploads.cancel(upload_id)
    mine = begin(stranger)
    with pytest.raises(openai.UnprocessableEntityError, match="has no part"):
        stranger.uploads.complete(mine, part_ids=[part])


@contextmanager
def watched() -> Iterator[list[int]]:
    """The most memory this process had meanwhile, in bytes, looked at all the time."""
    process, closing = psutil.Process(), threading.Event()
    peak = [process.memory_info().rss]

    def watch() -> None:
        while not closing.wait(0.005):
            peak[0] = max(peak[0], process.memory_info().rss)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield peak
    finally:
        closing.set()
        watching.join()


def send(filing: Filing, client: openai.OpenAI, upload_id: str, piece: bytes, times: int) -> str:
    """A part that the client holds a piece of at a time, so that memory is the server's."""
    head = b'--x\r\nContent-Disposition: form-data; name="data"; filename="p"\r\n\r\n'
    headers = {"authorization": f"Bearer {client.api_key}"}
    answer = httpx.post(
        f"{filing.url}/v1/uploads/{upload_id}/parts",
        headers=headers | {"content-type": "multipart/form-data; boundary=x"},
        content=chain([head], repeat(piece, times), [b"\r\n--x--\r\n"]),
        timeout=60,
    )
    part_id: str = answer.raise_for_status().json()["id"]
    return part_id


def test_256_mib_in_parts_stay_out_of_memory(filing: Filing, record: Record) -> None:
    client = filing.client()
    line = json.dumps({"prompt": "q" * 1000, "completion": "a" * 1000}).encode() + b"\n"
    piece = line * (MIB // len(line))
    small = begin(client, len(piece))
    part_id = send(filing, client, small, piece, 1)
    client.uploads.complete(small, part_ids=[part_id])  # what is loaded once is loaded
    upload_id = begin(client, 256 * len(piece))
    gc.collect()
    before = psutil.Process().memory_info().rss

    with watched() as peak:
        part_ids = [send(filing, client, upload_id, piece, 32) for _ in range(8)]
        done = client.uploads.complete(upload_id, part_ids=part_ids)

    assert done.file is not None
    assert done.file.bytes == 256 * len(piece)
    grown = (peak[0] - before) / MIB
    record("R21", "memory grown in an upload of 256 MiB in 8 parts", grown, "MiB", at_most=64)


def test_a_file_of_parts_keeps_to_the_same_rules(client: openai.OpenAI) -> None:
    few = jsonl(*({"prompt": "a", "completion": str(n)} for n in range(9)))
    upload_id = begin(client, len(few))
    with pytest.raises(openai.UnprocessableEntityError, match="last of 9 examples"):
        client.uploads.complete(upload_id, part_ids=[add(client, upload_id, few)])
