"""What the S3 store promises beyond the contract, against a real S3 server."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from botocore.exceptions import EndpointConnectionError

from storage import s3_calls
from storage.objects import (
    ObjectExists,
    ObjectNotFound,
    ObjectStore,
    StorageError,
    StorageUnavailable,
)
from storage.opening import open_store
from storage.s3 import connect
from tests import clock
from tests.record import Record
from tests.servers import S3Server, client_of, fresh_bucket
from tests.storage.faulty_proxy import Fault, FaultyProxy, faulty_proxy

MIB = 1 << 20


def open_s3(server: S3Server, prefix: str = "", **changes: str) -> ObjectStore:
    options = {
        "endpoint_url": server.endpoint_url,
        "access_key": server.access_key,
        "secret_key": server.secret_key,
    }
    return open_store(f"s3://{server.bucket}{prefix}", **{**options, **changes})


@pytest.fixture(scope="module")
def bucket(s3_server: S3Server) -> Iterator[S3Server]:
    with fresh_bucket(s3_server) as server:
        yield server


@pytest.fixture(scope="module")
def store(bucket: S3Server) -> ObjectStore:
    return open_s3(bucket)


@pytest.fixture(scope="module")
def proxy(bucket: S3Server) -> Iterator[FaultyProxy]:
    with faulty_proxy(bucket.endpoint_url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def far_store(bucket: S3Server, proxy: FaultyProxy) -> ObjectStore:
    """The same bucket through the proxy."""
    return open_s3(bucket, endpoint_url=proxy.url)


@pytest.fixture(autouse=True)
def _quick_and_clean(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(s3_calls, "_FIRST_DELAY_S", 0.01)
    yield
    proxy.plan.clear()
    proxy.seen.clear()


def unfinished_uploads(server: S3Server) -> int:
    found = client_of(server).list_multipart_uploads(Bucket=server.bucket)
    return len(found.get("Uploads", []))


def test_a_prefix_keeps_two_stores_of_one_bucket_apart(bucket: S3Server) -> None:
    one, two = open_s3(bucket, "/one"), open_s3(bucket, "/deep/er/")
    one.put("a", b"1")
    two.put("a", b"2")
    assert (one.get("a"), two.get("a")) == (b"1", b"2")
    assert [info.key for info in two.list("")] == ["a"]
    assert open_s3(bucket).get("deep/er/a") == b"2"
    two.delete_prefix("a/")
    assert two.get("a") == b"2"


def test_a_wrong_secret_is_an_error_that_says_so(bucket: S3Server) -> None:
    for changes in ({"secret_key": "wrong"}, {"access_key": "AKunknown"}):
        store = open_s3(bucket, **changes)
        with pytest.raises(StorageError, match="check the access key, the secret") as caught:
            store.put("a", b"x")
        assert not isinstance(caught.value, StorageUnavailable)
        assert "wrong" not in str(caught.value)
        with pytest.raises(StorageError, match="denied"):
            store.ping()


def test_a_missing_bucket_is_an_error_that_names_it(bucket: S3Server) -> None:
    store = open_s3(bucket._replace(bucket="no-such-bucket"))
    with pytest.raises(StorageError, match="bucket 'no-such-bucket' does not exist"):
        store.get("a")
    with pytest.raises(StorageError, match="bucket 'no-such-bucket' does not exist"):
        list(store.list(""))
    with pytest.raises(StorageError):
        store.ping()


def test_a_presigned_url_downloads_without_credentials(store: ObjectStore) -> None:
    store.put("dl/a", b"payload")
    url = store.presigned_url("dl/a", expires_s=60, filename='my "adapter" ü\r\nX-Evil: 1.tar')
    assert url is not None
    answer = httpx.get(url, timeout=60)
    assert (answer.status_code, answer.content) == (200, b"payload")
    disposition = answer.headers["content-disposition"]
    assert disposition.startswith("attachment; filename*=UTF-8''my%20%22adapter%22%20")
    assert "x-evil" not in answer.headers


def test_a_presigned_url_opens_nothing_else(store: ObjectStore) -> None:
    store.put("dl/a", b"payload")
    store.put("dl/b", b"secret")
    url = store.presigned_url("dl/a", expires_s=60, filename="a")
    assert url is not None
    assert httpx.get(url.replace("dl/a", "dl/b")).status_code == 403
    assert httpx.get(url.partition("?")[0]).status_code == 403
    assert httpx.put(url, content=b"x").status_code == 403
    assert httpx.get(url.replace("Expires=60", "Expires=6000")).status_code == 403
    assert store.get("dl/a") == b"payload"


def test_a_presigned_url_expires(store: ObjectStore) -> None:
    store.put("dl/a", b"payload")
    url = store.presigned_url("dl/a", expires_s=3, filename="a")
    assert url is not None
    with httpx.Client(timeout=60) as client:
        assert client.get(url).status_code == 200
        time.sleep(3.1)
        assert client.get(url).status_code == 403


def test_an_aborted_multipart_upload_leaves_nothing_to_pay_for(
    bucket: S3Server, store: ObjectStore
) -> None:
    with store.writer("big") as writer:
        writer.write(bytes(17 * MIB))
        assert unfinished_uploads(bucket) == 1
    assert unfinished_uploads(bucket) == 0
    with pytest.raises(ObjectNotFound):
        store.head("big")


def test_a_failing_multipart_upload_is_aborted(
    bucket: S3Server, proxy: FaultyProxy, far_store: ObjectStore, tmp_path: Path
) -> None:
    (tmp_path / "big").write_bytes(bytes(17 * MIB))
    proxy.plan = ["none", "none", *["lost request"] * 5]  # create, part 1, then part 2 for good
    with pytest.raises(StorageUnavailable):
        far_store.put_file("big", tmp_path / "big")
    assert unfinished_uploads(bucket) == 0


def test_a_file_too_long_for_parts_of_8_mib_gets_longer_ones(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.s3.MAX_PARTS", 2)
    monkeypatch.setattr("storage.s3_writer.MAX_PARTS", 2)
    (tmp_path / "big").write_bytes(bytes(17 * MIB))
    store.put_file("long", tmp_path / "big")
    assert store.head("long").size_bytes == 17 * MIB
    with store.writer("longer") as writer, pytest.raises(StorageError, match="larger than"):
        writer.write(bytes(25 * MIB))


@pytest.mark.parametrize("fault", ["unavailable", "lost request", "lost answer"])
def test_every_call_survives_a_passing_fault(
    proxy: FaultyProxy, far_store: ObjectStore, fault: Fault, tmp_path: Path
) -> None:
    (tmp_path / "in").write_bytes(b"file")
    calls = [
        lambda: far_store.put("f/a", b"x"),
        lambda: far_store.put_file("f/b", tmp_path / "in"),
        lambda: far_store.get("f/a") == b"x" or pytest.fail("other bytes"),
        lambda: far_store.head("f/a"),
        lambda: [info.key for info in far_store.list("f/")] == ["f/a", "f/b"] or pytest.fail("?"),
        lambda: far_store.get_file("f/b", tmp_path / "out"),
        lambda: far_store.delete("f/a"),
        lambda: far_store.delete_prefix("f/"),
    ]
    for call in calls:
        proxy.plan = [fault, fault]
        call()
        assert proxy.plan == []


def test_a_conditional_put_whose_answer_was_lost_is_known_as_our_own(
    proxy: FaultyProxy, far_store: ObjectStore, store: ObjectStore
) -> None:
    proxy.plan = ["lost answer"]
    far_store.put("cond/a", b"mine", if_absent=True)
    with pytest.raises(ObjectExists):
        far_store.put("cond/a", b"mine", if_absent=True)
    store.delete("cond/a")


def test_a_multipart_completion_whose_answer_was_lost_is_known_as_our_own(
    bucket: S3Server, proxy: FaultyProxy, far_store: ObjectStore
) -> None:
    with far_store.writer("multi/a") as writer:
        writer.write(bytes(9 * MIB))
        proxy.plan = ["none", "lost answer"]  # the last part, then the completion
        writer.commit()
    assert proxy.plan == []
    assert far_store.head("multi/a").size_bytes == 9 * MIB
    assert unfinished_uploads(bucket) == 0


def test_a_broken_download_goes_on_where_it_broke(
    proxy: FaultyProxy, far_store: ObjectStore, store: ObjectStore, tmp_path: Path
) -> None:
    data = bytes(range(256)) * 8192
    store.put("broken/a", data)
    proxy.plan = ["none", "cut body", "unavailable", "cut body", "none"]
    far_store.get_file("broken/a", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == data
    assert proxy.plan == []


def test_a_download_that_was_replaced_on_the_way_is_not_mixed(
    proxy: FaultyProxy, far_store: ObjectStore, store: ObjectStore
) -> None:
    store.put("mixed/a", b"1" * MIB)
    proxy.plan = ["none", "cut body"]
    chunks = far_store.stream("mixed/a", chunk_bytes=1000)
    assert next(chunks) == b"1" * 1000
    store.put("mixed/a", b"2" * MIB)
    with pytest.raises(StorageUnavailable, match="replaced while it was read"):
        b"".join(chunks)


def test_a_bit_that_flips_on_the_way_is_noticed(
    proxy: FaultyProxy, far_store: ObjectStore, store: ObjectStore, tmp_path: Path
) -> None:
    store.put("flip/a", bytes(100_000))
    proxy.plan = ["none", "flipped bit"]
    with pytest.raises(StorageUnavailable, match="FlexibleChecksumError"):
        far_store.get_file("flip/a", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_client_error_is_not_tried_again(
    proxy: FaultyProxy, far_store: ObjectStore, record: Record
) -> None:
    with pytest.raises(ObjectNotFound):
        far_store.head("no/such")
    record("R7", "tries of a request that is answered 404", len(proxy.seen), exactly=1)


def test_five_tries_are_made_and_no_more(
    proxy: FaultyProxy, far_store: ObjectStore, record: Record
) -> None:
    proxy.plan = ["unavailable"] * 100
    started = clock.now()
    with pytest.raises(StorageUnavailable, match="503"):
        far_store.get("a")
    record("R7", "tries of a request that fails each time", len(proxy.seen), at_most=5)
    assert len(proxy.seen) == 5
    assert clock.now() - started < 10


def test_the_time_before_another_try_is_drawn_from_all_of_an_interval_that_doubles(
    monkeypatch: pytest.MonkeyPatch, record: Record
) -> None:
    """Full jitter: clients that failed together do not come back together."""
    slept: list[float] = []
    monkeypatch.setattr(s3_calls.time, "sleep", slept.append)
    monkeypatch.setattr(s3_calls, "_FIRST_DELAY_S", 0.2)
    calls = s3_calls.S3Calls(None, "bucket", "", tries=5)
    fault = EndpointConnectionError(endpoint_url="http://s3.test")
    for failures, longest in ((1, 0.4), (2, 0.8), (3, 1.6), (4, 3.2)):
        slept.clear()
        assert all(calls.wait_after(fault, failures) for _ in range(300))
        assert max(slept) <= longest
        record("R7", "shortest wait over the longest", min(slept) / max(slept), at_most=0.1)
        assert 0.4 < sum(slept) / 300 / longest < 0.6


def test_a_store_that_is_down_is_told_soon(bucket: S3Server, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"x")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        store = open_s3(bucket, endpoint_url=f"http://127.0.0.1:{closed.getsockname()[1]}")
        started = clock.now()
        with pytest.raises(StorageUnavailable):
            store.ping()
        assert clock.now() - started < 5
        with pytest.raises(StorageUnavailable, match="EndpointConnectionError"):
            store.put_file("a", tmp_path / "in")
        assert clock.now() - started < 20


def test_a_store_that_never_answers_is_given_up_in_bounded_time(
    bucket: S3Server, monkeypatch: pytest.MonkeyPatch, record: Record
) -> None:
    monkeypatch.setattr(s3_calls, "_DEADLINE_S", 2.5)  # a minute, in production
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        store = connect(
            bucket.bucket,
            "",
            endpoint_url=f"http://127.0.0.1:{silent.getsockname()[1]}",
            access_key=bucket.access_key,
            secret_key=bucket.secret_key,
            read_timeout_s=1,
        )
        started = clock.now()
        with pytest.raises(StorageUnavailable):
            store.ping()
        assert clock.now() - started < 4
        asked = clock.now()
        with pytest.raises(StorageUnavailable, match="ReadTimeoutError"):
            store.get("a")
        took = clock.now() - asked
        record("R7", "a silent store is given up, limit scaled to 2.5 s", took, "s", at_most=5.0)


def test_errors_carry_no_secrets(bucket: S3Server) -> None:
    store = open_s3(bucket, secret_key="hunter2hunter2")
    with pytest.raises(StorageError) as caught:
        store.get("a")
    assert "hunter2" not in f"{caught.value} {caught.value.__cause__!r}"
    assert urlsplit(bucket.endpoint_url).netloc not in str(caught.value)
