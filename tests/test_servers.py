"""The tests' own servers: really there, each test apart, and gone with the process that asked."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import psycopg
import pytest
import redis
from sqlalchemy import create_engine, text

from tests.network import NetworkUsed
from tests.servers import S3Server, client_of

ROOT = Path(__file__).parents[1]


def test_each_database_is_fresh(postgres_database: Callable[[], str], postgres_url: str) -> None:
    urls = [postgres_database(), postgres_database(), postgres_url]
    assert len(set(urls)) == 3
    for url in urls:
        engine = create_engine(url)
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE t (x int)"))
            assert connection.execute(text("SELECT count(*) FROM t")).scalar() == 0
        engine.dispose()


def test_the_database_wants_a_password(postgres_url: str) -> None:
    location = postgres_url.partition("@")[2]
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(f"postgresql://postgres:wrong@{location}")


@pytest.mark.parametrize("_", range(2))
def test_redis_is_empty_at_first(redis_url: str, _: int) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.keys() == []
        client.set("left", "behind")


def test_each_bucket_is_fresh(s3: S3Server) -> None:
    client = client_of(s3)
    assert client.list_objects_v2(Bucket=s3.bucket)["KeyCount"] == 0
    client.put_object(Bucket=s3.bucket, Key="left", Body=b"behind")


def test_servers_do_not_run_as_root(postgres_server: str, redis_server: str) -> None:
    guards = [child for child in psutil.Process().children() if "guard.py" in str(child.cmdline())]
    servers = [child for guard in guards for child in guard.children()]
    assert len(servers) >= 2
    assert all(server.uids().effective != 0 for server in servers)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_server_and_no_file_outlives_its_owner(how: signal.Signals, tmp_path: Path) -> None:
    script = (
        "import signal, sys, tempfile, time; tempfile.tempdir = sys.argv[1]\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell may have it ignored
        "from tests.servers import valkey\n"
        "with valkey() as url:\n    print(url, flush=True)\n    time.sleep(600)"
    )
    tmp_path.chmod(0o711)
    for parent in (tmp_path.parent, tmp_path.parent.parent):
        parent.chmod(0o711)  # or a server that is not root could not walk to its data
    owner = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with owner:
        assert owner.stdout is not None
        url = owner.stdout.readline().strip()
        family = psutil.Process(owner.pid).children(recursive=True)
        assert len(family) == 2
        redis.Redis.from_url(url).close()
        owner.send_signal(how)
        owner.stdout.read()
    assert psutil.wait_procs(family, timeout=60)[1] == []
    deadline = time.monotonic() + 60
    while list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(tmp_path.iterdir()) == []


def test_tests_cannot_leave_this_machine() -> None:
    with pytest.raises(NetworkUsed, match=r"not to 'example\.org'"):
        socket.create_connection(("example.org", 80), timeout=1)
    with socket.socket() as outside, pytest.raises(NetworkUsed, match=r"192\.0\.2\.1"):
        outside.connect(("192.0.2.1", 80))
