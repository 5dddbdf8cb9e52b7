"""client.files of OpenAI's own SDK, against a server on loopback."""

import hashlib
from typing import Any

import httpx
import openai
import pytest

from jobs.model import Dataset
from jobs.tables import datasets
from tests.api.making import spec_for
from tests.v1.files.conftest import Filing, MakeFiling
from tests.v1.files.making import ANSWER, CHATS, USER, chat, jsonl

HOUR: Any = {"anchor": "created_at", "seconds": 3600}


def native(filing: Filing, client: openai.OpenAI) -> httpx.Client:
    """The native API with the same key."""
    headers = {"authorization": f"Bearer {client.api_key}"}
    return httpx.Client(base_url=filing.url, headers=headers, timeout=60)


def age(filing: Filing, file_id: str, by_s: float) -> None:
    """Make a file older than it is."""
    older = datasets.update().where(datasets.c.id == file_id)
    with filing.services.store.database.write() as connection:
        connection.execute(older.values(created_at=datasets.c.created_at - by_s))


def test_a_file_goes_through_every_method_of_the_client(anywhere: Filing) -> None:
    client = anywhere.client()
    made = client.files.create(file=("chats.jsonl", CHATS), purpose="fine-tune")
    assert (made.object, made.bytes, made.filename) == ("file", len(CHATS), "chats.jsonl")
    assert (made.purpose, made.status, made.expires_at) == ("fine-tune", "processed", None)

    assert client.files.wait_for_processing(made.id, poll_interval=0.01) == made
    assert client.files.retrieve(made.id) == made
    assert [file.id for file in client.files.list()] == [made.id]
    assert client.files.content(made.id).read() == CHATS
    gone = client.files.delete(made.id)

    assert (gone.id, gone.object, gone.deleted) == (made.id, "file", True)
    assert list(client.files.list()) == []
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)
    assert anywhere.stored() == []


@pytest.mark.anyio
async def test_the_asynchronous_client_does_the_same(async_client: openai.AsyncOpenAI) -> None:
    files = async_client.files
    made = await files.create(file=("chats.jsonl", CHATS), purpose="fine-tune", expires_after=HOUR)
    assert made.expires_at == made.created_at + 3600
    assert await files.wait_for_processing(made.id, poll_interval=0.01) == made
    assert [file.id async for file in files.list()] == [made.id]
    assert (await files.content(made.id)).content == CHATS
    assert (await files.delete(made.id)).deleted


def test_a_file_is_a_dataset_and_a_dataset_is_a_file(filing: Filing, client: openai.OpenAI) -> None:
    theirs = client.files.create(file=("chats.jsonl", CHATS), purpose="fine-tune")
    with native(filing, client) as ours:
        dataset = ours.get(f"/datasets/{theirs.id}").json()
        assert (dataset["row_type"], dataset["rows"]) == ("conversation", 12)
        assert dataset["sha256"] == hashlib.sha256(CHATS).hexdigest()
        made = ours.post("/datasets?name=pairs.csv", content=b"prompt,completion\na,b\n").json()
        assert client.files.retrieve(made["id"]).filename == "pairs.csv"
        client.files.delete(made["id"])
        assert ours.get(f"/datasets/{made['id']}").status_code == 404


def test_lists_are_paged_both_ways_and_by_purpose(client: openai.OpenAI) -> None:
    made = [
        client.files.create(file=(f"{n}.jsonl", CHATS), purpose="fine-tune").id for n in range(5)
    ]
    assert [file.id for file in client.files.list(limit=2)] == made[::-1]
    assert [file.id for file in client.files.list(limit=2, order="asc")] == made
    page = client.files.list(after=made[1], order="asc", limit=2)
    assert ([file.id for file in page.data], page.has_more) == (made[2:4], True)
    assert len(list(client.files.list(purpose="fine-tune"))) == 5
    assert list(client.files.list(purpose="batch")) == []


def test_fields_may_come_behind_the_file_as_other_clients_send_them(
    filing: Filing, client: openai.OpenAI
) -> None:
    head = '--x\r\nContent-Disposition: form-data; name="{}"'
    parts = [
        head.format("file") + '; filename="a.jsonl"\r\n\r\n' + CHATS.decode(),
        head.format("purpose") + "\r\n\r\nfine-tune",
        head.format("expires_after[seconds]") + "\r\n\r\n7200",
        head.format("expires_after[anchor]") + "\r\n\r\ncreated_at",
    ]
    with native(filing, client) as raw:
        answer = raw.post(
            "/v1/files",
            content="\r\n".join([*parts, "--x--\r\n"]).encode(),
            headers={"content-type": "multipart/form-data; boundary=x"},
        ).json()
    assert (answer["filename"], answer["expires_at"]) == ("a.jsonl", answer["created_at"] + 7200)


def test_bytes_without_a_name_are_jsonl(client: openai.OpenAI) -> None:
    assert client.files.create(file=CHATS, purpose="fine-tune").filename == "upload"


@pytest.mark.parametrize(
    ("asked", "param", "says"),
    [
        ({"purpose": "batch"}, "purpose", "must be 'fine-tune', not 'batch'"),
        ({"purpose": "fine-tune", "expires_after": HOUR | {"seconds": 3599}},
         "expires_after.seconds", "3600"),
        ({"purpose": "fine-tune", "expires_after": HOUR | {"seconds": 2_592_001}},
         "expires_after.seconds", "2592000"),
        ({"purpose": "fine-tune", "expires_after": HOUR | {"anchor": "now"}},
         "expires_after.anchor", "created_at"),
        ({"purpose": "fine-tune", "expires_after": {"seconds": 3600}},
         "expires_after.anchor", "needed"),
        ({"purpose": "fine-tune", "extra_body": {"owner": "me"}}, "owner", "no such field"),
    ],
)  # fmt: skip
def test_what_this_server_does_not_do_is_refused_and_nothing_is_kept(
    filing: Filing, client: openai.OpenAI, asked: dict[str, Any], param: str, says: str
) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.files.create(file=("chats.jsonl", CHATS), **asked)
    assert refused.value.param == param
    assert says in refused.value.message
    assert filing.stored() == []
    assert list(client.files.list()) == []


def test_a_form_without_a_purpose_or_a_file_is_refused(
    filing: Filing, client: openai.OpenAI
) -> None:
    with native(filing, client) as raw:
        without = raw.post("/v1/files", files={"file": ("a.jsonl", CHATS)})
        empty = raw.post("/v1/files", data={"purpose": "fine-tune"}, files={"x": b""})
        body = raw.post("/v1/files", content=CHATS)
    assert (without.status_code, without.json()["error"]["param"]) == (422, "purpose")
    assert (empty.status_code, empty.json()["error"]["param"]) == (422, "x")
    assert (body.status_code, body.json()["error"]["code"]) == (415, "media_type_unsupported")
    assert filing.stored() == []


def test_a_bad_file_is_refused_by_line_and_field(filing: Filing, client: openai.OpenAI) -> None:
    rows = [chat(), {"messages": [USER]}, {"messages": [USER, ANSWER | {"weight": 2}]}]
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.files.create(file=("chats.jsonl", jsonl(*rows)), purpose="fine-tune")
    assert refused.value.code == "dataset_invalid"
    problems: Any = refused.value.body
    found = [(problem["line"], problem["field"]) for problem in problems["problems"]]
    assert found == [(2, "messages"), (3, "messages[1].weight")]
    assert filing.stored() == []


def test_a_tenant_sees_no_file_of_another(filing: Filing, client: openai.OpenAI) -> None:
    made = client.files.create(file=("chats.jsonl", CHATS), purpose="fine-tune")
    stranger = filing.client("theirs")
    assert list(stranger.files.list()) == []
    for call in (stranger.files.retrieve, stranger.files.content, stranger.files.delete):
        with pytest.raises(openai.NotFoundError):
            call(made.id)
    with pytest.raises(openai.NotFoundError):
        stranger.files.list(after=made.id)
    assert client.files.content(made.id).read() == CHATS


def test_a_file_past_its_time_is_gone_and_its_bytes_go(anywhere: Filing) -> None:
    client = anywhere.client()
    expiring = client.files.create(
        file=("chats.jsonl", CHATS), purpose="fine-tune", expires_after=HOUR
    )
    kept = client.files.create(file=("chats.jsonl", CHATS), purpose="fine-tune")
    age(anywhere, expiring.id, 3590)
    assert anywhere.expire() == 0
    assert client.files.retrieve(expiring.id).id == expiring.id

    age(anywhere, expiring.id, 10)

    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            call(expiring.id)
    assert [file.id for file in client.files.list()] == [kept.id]
    with native(anywhere, client) as ours:
        assert ours.get(f"/datasets/{expiring.id}").status_code == 404
        assert ours.post("/jobs", json=spec_for({"id": expiring.id})).status_code == 404
    assert anywhere.expire() == 1
    assert [key for key in anywhere.stored() if expiring.id in key] == []
    assert client.files.content(kept.id).read() == CHATS


def test_a_file_that_a_job_needs_stays_until_the_job_has_ended(anywhere: Filing) -> None:
    client = anywhere.client()
    made = client.files.create(file=("chats.jsonl", CHATS), purpose="fine-tune", expires_after=HOUR)
    with native(anywhere, client) as ours:
        job = ours.post("/jobs", json=spec_for({"id": made.id})).json()
        age(anywhere, made.id, 4000)
        assert anywhere.expire() == 0
        assert client.files.content(made.id).read() == CHATS
        assert [file.id for file in client.files.list()] == [made.id]
        with pytest.raises(openai.ConflictError) as refused:
            client.files.delete(made.id)
        assert refused.value.response.headers["x-should-retry"] == "false"
        ours.post(f"/jobs/{job['id']}/cancel")
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)
    assert anywhere.expire() == 1
    assert anywhere.stored() == []


def test_a_file_past_its_time_counts_against_no_quota(make_filing: MakeFiling) -> None:
    filing = make_filing(max_stored_bytes=int(len(CHATS) * 1.5))
    client = filing.client()
    made = client.files.create(file=("chats.jsonl", CHATS), purpose="fine-tune", expires_after=HOUR)
    with pytest.raises(openai.RateLimitError) as full:
        client.files.create(file=("chats.jsonl", CHATS), purpose="fine-tune")
    assert full.value.code == "quota_exceeded"
    age(filing, made.id, 3601)
    client.files.create(file=("chats.jsonl", CHATS), purpose="fine-tune")


def test_the_time_of_a_file_counts_from_when_it_was_made() -> None:
    fields = {"id": "ds_1", "tenant_id": "tn_1", "name": "a", "format": "jsonl", "rows": 1}
    fields |= {"row_type": "prompt", "size_bytes": 1, "sha256": "", "duplicates": 0}
    dataset = Dataset.model_validate(
        fields | {"warnings": (), "created_at": 10.5, "expires_after_s": 3600}
    )
    assert dataset.expires_at == 3610.5
