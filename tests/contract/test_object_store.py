"""What every object store promises, run over each of them."""

import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from storage import s3_calls
from storage.local import LocalStore
from storage.measured import MeasuredStore
from storage.memory import MemoryStore
from storage.objects import ObjectExists, ObjectNotFound, ObjectStore, StorageError
from storage.s3 import S3Store, connect
from storage.s3_calls import S3Calls
from tests.servers import S3Server, client_of, fresh_bucket
from tests.storage.faulty_proxy import FaultyProxy, Weather, faulty_proxy

MIB = 1 << 20


@pytest.fixture(scope="module")
def bucket(s3_server: S3Server) -> Iterator[S3Server]:
    with fresh_bucket(s3_server) as server:
        yield server


def s3_store(server: S3Server) -> ObjectStore:
    """A store under a fresh prefix of the bucket, on connections that all tests share."""
    client, prefix = client_of(server), f"p{secrets.token_hex(8)}/"
    calls = S3Calls(client, server.bucket, prefix, tries=5)
    return S3Store(calls, ping_calls=calls)


@pytest.fixture(scope="module")
def storm(bucket: S3Server) -> Iterator[FaultyProxy]:
    with faulty_proxy(bucket.endpoint_url, Weather(1), stall_s=0.8) as proxy:
        yield proxy


def stormy_store(server: S3Server, storm: FaultyProxy) -> ObjectStore:
    """The same bucket where nearly half of the requests fail, stall or are cut."""
    return connect(
        server.bucket,
        f"p{secrets.token_hex(8)}/",
        endpoint_url=storm.url,
        access_key=server.access_key,
        secret_key=server.secret_key,
        read_timeout_s=0.6,
    )


KINDS = ["memory", "local", "s3"]


@pytest.fixture(params=[*KINDS, "s3-storm", "measured"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    return make_store(request, tmp_path)


@pytest.fixture(params=KINDS)
def calm_store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """For a thousand calls, of which a hundred would time out in a storm, and for racers at one
    key, who share the luck that the storm grants to each object.
    """
    return make_store(request, tmp_path)


def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    makers: dict[str, Callable[[], ObjectStore]] = {
        "memory": MemoryStore,
        "local": lambda: LocalStore(tmp_path / "store"),
        "s3": lambda: s3_store(request.getfixturevalue("bucket")),
        "s3-storm": lambda: stormy_store(
            request.getfixturevalue("bucket"), request.getfixturevalue("storm")
        ),
        "measured": lambda: MeasuredStore(MemoryStore(), CollectorRegistry()),
    }
    if request.param == "s3-storm":
        request.getfixturevalue("monkeypatch").setattr(s3_calls, "_FIRST_DELAY_S", 0.01)
    return makers[request.param]()


def pattern(size_bytes: int) -> bytes:
    """Bytes without a period of a power of two, so that swapped parts are seen."""
    block = bytes(range(251))
    return (block * (size_bytes // len(block) + 1))[:size_bytes]


def keys(store: ObjectStore, prefix: str) -> list[str]:
    return [info.key for info in store.list(prefix)]


def test_an_object_comes_back_as_it_was_put(store: ObjectStore) -> None:
    store.put("a/b", b"hello")
    assert store.get("a/b") == b"hello"


def test_an_empty_object_is_an_object(store: ObjectStore, tmp_path: Path) -> None:
    store.put("empty", b"")
    assert store.get("empty") == b""
    assert list(store.stream("empty")) == []
    assert store.head("empty").size_bytes == 0
    assert store.get_file("empty", tmp_path / "out") == hashlib.sha256(b"").hexdigest()


def test_a_second_put_replaces_the_first(store: ObjectStore) -> None:
    store.put("a", b"one")
    store.put("a", b"two")
    assert store.get("a") == b"two"


def test_a_missing_object_is_not_found_by_any_reader(store: ObjectStore, tmp_path: Path) -> None:
    readers: list[Callable[[], object]] = [
        lambda: store.get("gone"),
        lambda: store.head("gone"),
        lambda: store.stream("gone"),
        lambda: store.get_file("gone", tmp_path / "out"),
    ]
    for read in readers:
        with pytest.raises(ObjectNotFound, match="'gone'"):
            read()
    assert list(tmp_path.glob("*out*")) == []


def test_a_folder_of_keys_is_not_an_object(store: ObjectStore) -> None:
    store.put("a/b/c", b"x")
    for key in ("a", "a/b"):
        with pytest.raises(ObjectNotFound):
            store.get(key)
        with pytest.raises(ObjectNotFound):
            store.head(key)
        store.delete(key)
    assert store.get("a/b/c") == b"x"


def test_a_conditional_put_never_replaces(store: ObjectStore) -> None:
    store.put("a", b"one", if_absent=True)
    with pytest.raises(ObjectExists, match="'a'"):
        store.put("a", b"two", if_absent=True)
    assert store.get("a") == b"one"


def test_a_conditional_put_works_again_after_a_delete(store: ObjectStore) -> None:
    store.put("a", b"one", if_absent=True)
    store.delete("a")
    store.put("a", b"two", if_absent=True)
    assert store.get("a") == b"two"


@pytest.mark.parametrize("same", [False, True], ids=["different-bytes", "same-bytes"])
def test_one_of_sixteen_racing_conditional_puts_wins(calm_store: ObjectStore, same: bool) -> None:
    store = calm_store
    barrier = threading.Barrier(16)

    def race(number: int) -> bytes | None:
        data = b"same" if same else b"%d" % number
        barrier.wait()
        try:
            store.put("race/it", data, if_absent=True)
        except ObjectExists:
            return None
        return data

    with ThreadPoolExecutor(16) as pool:
        won = [data for data in pool.map(race, range(16)) if data is not None]
    assert won == [store.get("race/it")]


def test_a_stream_has_chunks_of_the_asked_size(calm_store: ObjectStore) -> None:
    data = pattern(250_000)
    calm_store.put("a", data)
    chunks = list(calm_store.stream("a", chunk_bytes=100_000))  # smaller where one was cut
    assert b"".join(chunks) == data
    assert [len(chunk) for chunk in chunks] == [100_000, 100_000, 50_000]


def test_head_tells_size_and_age(store: ObjectStore) -> None:
    before = time.time()
    store.put("a", b"12345")
    info = store.head("a")
    assert (info.key, info.size_bytes) == ("a", 5)
    assert before - 2 <= info.modified_at <= time.time() + 2
    assert [(i.key, i.size_bytes) for i in store.list("a")] == [("a", 5)]


@pytest.mark.parametrize("size_bytes", [0, 1, 8 * MIB, 17 * MIB + 3])
def test_a_writer_shows_nothing_before_its_commit_and_all_after(
    store: ObjectStore, size_bytes: int
) -> None:
    data = pattern(size_bytes)
    with store.writer("w/a") as writer:
        for at in range(0, size_bytes, 3 * MIB + 1):
            writer.write(data[at : at + 3 * MIB + 1])
        assert keys(store, "") == []
        writer.commit()
    assert store.get("w/a") == data
    assert keys(store, "") == ["w/a"]


def test_a_writer_takes_a_piece_larger_than_a_part(store: ObjectStore) -> None:
    data = pattern(20 * MIB)
    with store.writer("a") as writer:
        writer.write(b"head")
        writer.write(data)
        writer.commit()
    assert store.get("a") == b"head" + data


@pytest.mark.parametrize("size_bytes", [10, 17 * MIB])
def test_an_aborted_writer_leaves_nothing_and_the_old_object(
    store: ObjectStore, size_bytes: int
) -> None:
    store.put("a", b"old")

    def interrupted() -> None:
        with store.writer("a") as writer:
            writer.write(pattern(size_bytes))
            raise KeyError("cut")

    with pytest.raises(KeyError):
        interrupted()
    with store.writer("b") as writer:
        writer.write(pattern(size_bytes))
        writer.abort()
        writer.abort()
    assert store.get("a") == b"old"
    assert keys(store, "") == ["a"]


def test_a_closed_writer_refuses_more(store: ObjectStore) -> None:
    writer = store.writer("a")
    writer.write(b"x")
    writer.commit()
    writer.abort()
    for use in (writer.commit, lambda: writer.write(b"y")):
        with pytest.raises(StorageError, match="closed"):
            use()
    assert store.get("a") == b"x"


@pytest.mark.parametrize("size_bytes", [0, 1000, 17 * MIB + 5])
def test_a_file_goes_in_and_comes_back_with_its_hash(
    store: ObjectStore, tmp_path: Path, size_bytes: int
) -> None:
    data = pattern(size_bytes)
    (tmp_path / "in").write_bytes(data)
    (tmp_path / "out").write_bytes(b"older")
    store.put_file("files/a", tmp_path / "in")
    digest = store.get_file("files/a", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == data
    assert digest == hashlib.sha256(data).hexdigest()
    assert store.head("files/a").size_bytes == size_bytes


def test_a_list_is_sorted_by_key_and_takes_any_prefix(store: ObjectStore) -> None:
    names = [
        "b",
        "a/z",
        "ac.txt",
        "a/b/c",
        "ab/c",
        "a/b/d.e",
        "a/bc",
        "A",
        "a0",
        "aB/c_d",
        "aB/c-d",
    ]
    for name in names:
        store.put(name, b"x")
    assert keys(store, "") == sorted(names)
    assert keys(store, "a/") == ["a/b/c", "a/b/d.e", "a/bc", "a/z"]
    assert keys(store, "a/b") == ["a/b/c", "a/b/d.e", "a/bc"]
    assert keys(store, "a") == sorted(n for n in names if n.startswith("a"))
    assert keys(store, "nothing/") == []


def test_a_list_goes_past_a_thousand_keys(calm_store: ObjectStore) -> None:
    store = calm_store
    names = [f"many/{number:04d}" for number in range(1105)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: store.put(name, b"x"), names))
    store.put("maybe", b"x")
    assert keys(store, "many/") == names
    assert store.delete_prefix("many/") == 1105
    assert keys(store, "") == ["maybe"]


def test_delete_is_idempotent(store: ObjectStore) -> None:
    store.put("a/b", b"x")
    store.delete("a/b")
    store.delete("a/b")
    store.delete("never/there")
    assert keys(store, "") == []


def test_delete_prefix_spares_the_siblings(store: ObjectStore) -> None:
    for key in ("t/ad_1/x", "t/ad_1/y/z", "t/ad_10/x", "t/ad"):
        store.put(key, b"x")
    assert store.delete_prefix("t/ad_1/") == 2
    assert store.delete_prefix("t/ad_1/") == 0
    assert keys(store, "") == ["t/ad", "t/ad_10/x"]


@pytest.mark.parametrize("prefix", ["", "t/ad_1", "../", "/"])
def test_delete_prefix_refuses_what_could_match_too_much(store: ObjectStore, prefix: str) -> None:
    with pytest.raises(ValueError, match="prefix"):
        store.delete_prefix(prefix)


@pytest.mark.parametrize("key", ["", "/", "/a", "a/", "a//b", "../a", "a/../b", ".", "a/.b", "ä",
                                 "a\n", "a\0", "a b", "a\\b", "x" * 1000])  # fmt: skip
def test_a_malformed_key_is_refused_by_every_call(
    store: ObjectStore, tmp_path: Path, key: str
) -> None:
    (tmp_path / "in").write_bytes(b"x")
    calls: list[Callable[[], object]] = [
        lambda: store.put(key, b"x"),
        lambda: store.put_file(key, tmp_path / "in"),
        lambda: store.writer(key),
        lambda: store.get(key),
        lambda: store.stream(key),
        lambda: store.get_file(key, tmp_path / "out"),
        lambda: store.head(key),
        lambda: store.delete(key),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="key"):
            call()
    assert keys(store, "") == []


def test_a_store_that_is_there_answers_a_ping(calm_store: ObjectStore) -> None:
    calm_store.ping()  # one that fails half of the time may say so: a ping is soon over


def test_writes_and_deletes_of_neighbours_do_not_disturb_each_other(
    calm_store: ObjectStore,
) -> None:
    store = calm_store

    def churn(number: int) -> None:
        for round_number in range(20):
            store.put(f"deep/er/{number}", b"%d" % round_number)
            assert store.get(f"deep/er/{number}") == b"%d" % round_number
            store.delete(f"deep/er/{number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(churn, range(8)))
    assert keys(store, "") == []
