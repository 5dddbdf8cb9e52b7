"""An S3 object written in pieces: one put when it is small, else a multipart upload."""

import base64
import secrets
import zlib
from contextlib import suppress
from typing import Any, Self

from storage.objects import ObjectNotFound, StorageError
from storage.s3_calls import S3Calls, UploadGone

PART_BYTES = 8 << 20
MAX_PARTS = 10_000  # S3's own limit


class S3Writer:
    """Holds one part in memory. An upload that is neither committed nor aborted (the process was
    killed) costs storage until the bucket's lifecycle rule for incomplete uploads removes it.
    """

    def __init__(self, calls: S3Calls, key: str, part_bytes: int = PART_BYTES) -> None:
        self._calls, self._key, self._part_bytes = calls, key, part_bytes
        self._buffer = bytearray()
        self._parts: list[dict[str, Any]] = []
        self._upload_id: str | None = None
        self._token = secrets.token_hex(16)
        self._open = True

    def write(self, data: bytes) -> None:
        self._check_open()
        self._buffer += data
        while len(self._buffer) >= self._part_bytes:
            self._upload(bytes(self._buffer[: self._part_bytes]))
            del self._buffer[: self._part_bytes]

    def commit(self) -> None:
        self._check_open()
        if self._parts:
            if self._buffer:
                self._upload(bytes(self._buffer))
            self._complete()
        else:
            put(self._calls, self._key, bytes(self._buffer))
        self._close()

    def abort(self) -> None:
        upload_id, self._upload_id = self._upload_id, None
        self._close()
        if upload_id is not None:
            with suppress(StorageError):  # what brought us here matters more; see the class
                self._calls.on_key("abort_multipart_upload", self._key, UploadId=upload_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.abort()

    def _upload(self, data: bytes) -> None:
        if self._upload_id is None:
            self._upload_id = self._calls.on_key(
                "create_multipart_upload",
                self._key,
                ChecksumAlgorithm="CRC32",
                Metadata={"write": self._token},
            )["UploadId"]
        number = len(self._parts) + 1
        if number > MAX_PARTS:
            limit = MAX_PARTS * self._part_bytes
            raise StorageError(f"{self._key!r} is larger than {limit} bytes; use put_file")
        answer = self._calls.on_key(
            "upload_part",
            self._key,
            UploadId=self._upload_id,
            PartNumber=number,
            Body=data,
            ChecksumCRC32=crc32(data),
        )
        self._parts.append(
            {"PartNumber": number, "ETag": answer["ETag"], "ChecksumCRC32": crc32(data)}
        )

    def _complete(self) -> None:
        try:
            self._calls.on_key(
                "complete_multipart_upload",
                self._key,
                UploadId=self._upload_id,
                MultipartUpload={"Parts": self._parts},
            )
        except UploadGone:
            # An earlier try may have succeeded and its answer been lost on the way.
            if token_of(self._calls, self._key) != self._token:
                raise
        self._upload_id = None

    def _close(self) -> None:
        self._open = False
        self._buffer.clear()

    def _check_open(self) -> None:
        if not self._open:
            raise StorageError(f"the writer of {self._key!r} is closed; open another one")


def put(calls: S3Calls, key: str, data: bytes, **params: Any) -> None:
    """A whole object in one request."""
    calls.on_key("put_object", key, Body=data, ChecksumCRC32=crc32(data), **params)


def token_of(calls: S3Calls, key: str) -> str | None:
    """What its writer wrote into an object's metadata, to know its own work again."""
    try:
        metadata: dict[str, str] = calls.on_key("head_object", key)["Metadata"]
    except ObjectNotFound:
        return None
    return metadata.get("write")


def crc32(data: bytes) -> str:
    """The checksum S3 compares on arrival."""
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()
