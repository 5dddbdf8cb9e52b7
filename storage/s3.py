"""The object store in a bucket of any S3, through boto3."""

import secrets
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import boto3
from botocore.config import Config

from storage.files import read_chunks, write_whole
from storage.keys import check_key, check_prefix
from storage.objects import ObjectExists, ObjectInfo, ObjectWriter, StorageError, StorageUnavailable
from storage.s3_calls import REQUEST_ERRORS, S3Calls, translated
from storage.s3_writer import MAX_PARTS, PART_BYTES, S3Writer, put, token_of

_TRIES = 5


class S3Store:
    """Objects in a bucket, below a prefix. Safe between threads and processes."""

    def __init__(self, calls: S3Calls, ping_calls: S3Calls) -> None:
        self._calls, self._ping_calls = calls, ping_calls

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        check_key(key)
        if not if_absent:
            put(self._calls, key, data)
            return
        token = secrets.token_hex(16)
        try:
            put(self._calls, key, data, IfNoneMatch="*", Metadata={"write": token})
        except ObjectExists:
            # Ours, if an earlier try succeeded and its answer was lost on the way.
            if token_of(self._calls, key) != token:
                raise

    def put_file(self, key: str, path: Path) -> None:
        size_bytes = path.stat().st_size
        part_bytes = max(PART_BYTES, -(-size_bytes // MAX_PARTS))
        with S3Writer(self._calls, check_key(key), part_bytes) as writer:
            for chunk in read_chunks(path):
                writer.write(chunk)
            writer.commit()

    def writer(self, key: str) -> ObjectWriter:
        return S3Writer(self._calls, check_key(key))

    def get(self, key: str) -> bytes:
        return b"".join(self._chunks(check_key(key), PART_BYTES, etag=None))

    def stream(self, key: str, *, chunk_bytes: int = 1 << 20) -> Iterator[bytes]:
        etag = self._calls.on_key("head_object", check_key(key))["ETag"]
        return self._chunks(key, chunk_bytes, etag)

    def get_file(self, key: str, path: Path) -> str:
        return write_whole(path, self.stream(key))

    def head(self, key: str) -> ObjectInfo:
        answer = self._calls.on_key("head_object", check_key(key))
        return ObjectInfo(key, answer["ContentLength"], answer["LastModified"].timestamp())

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return self._pages(check_prefix(prefix))

    def delete(self, key: str) -> None:
        self._calls.on_key("delete_object", check_key(key))

    def delete_prefix(self, prefix: str) -> int:
        keys = [info.key for info in self.list(check_prefix(prefix, whole=True))]
        for at in range(0, len(keys), 1000):
            self._delete_batch(prefix, keys[at : at + 1000])
        return len(keys)

    def presigned_url(self, key: str, *, expires_s: int, filename: str) -> str | None:
        disposition = f"attachment; filename*=UTF-8''{quote(filename, safe='')}"
        url: str = self._calls.client.generate_presigned_url(
            "get_object",
            Params={
                "Bucket": self._calls.bucket,
                "Key": self._calls.prefix + check_key(key),
                "ResponseContentDisposition": disposition,
            },
            ExpiresIn=expires_s,
        )
        return url

    def ping(self) -> None:
        self._ping_calls.on_bucket("head_bucket", "the bucket")

    def _chunks(self, key: str, chunk_bytes: int, etag: str | None) -> Iterator[bytes]:
        """An object's bytes; a connection that breaks is taken up again where it broke."""
        offset, failures = 0, 0
        while True:
            answer = self._open(key, offset, etag)
            etag, end = answer["ETag"], offset + answer["ContentLength"]
            try:
                with closing(answer["Body"]) as body:
                    while chunk := body.read(chunk_bytes):
                        offset, failures = offset + len(chunk), 0
                        yield chunk
            except REQUEST_ERRORS as error:
                failures += 1
                if offset >= end or not self._calls.wait_after(error, failures):
                    raise translated(error, key, self._calls.bucket) from error
            else:
                return

    def _open(self, key: str, offset: int, etag: str | None) -> dict[str, Any]:
        same = {} if etag is None else {"IfMatch": etag}
        part = {} if offset == 0 else {"Range": f"bytes={offset}-"}
        try:
            return self._calls.on_key("get_object", key, **same, **part)
        except ObjectExists as error:  # the If-Match failed
            text = f"{key!r} was replaced while it was read; read it again"
            raise StorageUnavailable(text) from error

    def _pages(self, prefix: str) -> Iterator[ObjectInfo]:
        start = len(self._calls.prefix)
        more: dict[str, str] = {}
        while True:
            page = self._calls.on_bucket(
                "list_objects_v2", prefix, Prefix=self._calls.prefix + prefix, **more
            )
            for found in page.get("Contents", ()):
                modified_at = found["LastModified"].timestamp()
                yield ObjectInfo(found["Key"][start:], found["Size"], modified_at)
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def _delete_batch(self, prefix: str, keys: Sequence[str]) -> None:
        doomed = [{"Key": self._calls.prefix + key} for key in keys]
        answer = self._calls.on_bucket(
            "delete_objects", prefix, Delete={"Objects": doomed, "Quiet": True}
        )
        if errors := answer.get("Errors"):
            code = errors[0].get("Code")
            raise StorageError(f"S3 kept {len(errors)} objects under {prefix!r} ({code})")


def connect(
    bucket: str,
    prefix: str,
    *,
    endpoint_url: str | None = None,
    region: str | None = None,
    access_key: str | None = None,
    secret_key: str | None = None,
    read_timeout_s: float = 10,
) -> S3Store:
    """A store on a bucket. Without keys, boto3's own search for credentials decides."""
    session = boto3.session.Session(
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        region_name=region or "us-east-1",
    )

    def client(connect_s: float, read_s: float) -> Any:
        config = Config(
            connect_timeout=connect_s,
            read_timeout=read_s,
            retries={"total_max_attempts": 1},  # S3Calls tries again, with a bound in time
            signature_version="s3v4",
            s3={"addressing_style": "path" if endpoint_url else "auto"},
            max_pool_connections=32,
            tcp_keepalive=True,
        )
        return session.client("s3", endpoint_url=endpoint_url, config=config)

    calls = S3Calls(client(3, read_timeout_s), bucket, prefix, tries=_TRIES)
    return S3Store(calls, S3Calls(client(1, 2), bucket, prefix, tries=1))
