"""One S3 request: bounded tries with full jitter, and the provider's errors as ours."""

import random
import time
from typing import Any

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
)
from botocore.exceptions import (
    ConnectionError as BotoConnectionError,
)
from botocore.parsers import ResponseParserError

from storage.objects import ObjectExists, ObjectNotFound, StorageError, StorageUnavailable

_DEADLINE_S = 60.0
_FIRST_DELAY_S = 0.2
# Client errors that mean "again, please": the only 4xx that are tried again, besides 429.
_AGAIN = {"RequestTimeout", "ConditionalRequestConflict", "SlowDown", "Throttling"}

REQUEST_ERRORS = (ClientError, BotoCoreError, ResponseParserError)


class UploadGone(StorageError):
    """A multipart upload is unknown: it was completed, aborted or expired."""


class S3Calls:
    """Requests to one bucket, for keys below a prefix of it.

    The client is Any: botocore makes its methods at run time.
    """

    def __init__(self, client: Any, bucket: str, prefix: str, *, tries: int) -> None:
        self.client, self.bucket, self.prefix, self.tries = client, bucket, prefix, tries

    def on_key(self, operation: str, key: str, **params: Any) -> dict[str, Any]:
        """A request on one object; its parsed answer."""
        return self.on_bucket(operation, key, Key=self.prefix + key, **params)

    def on_bucket(self, operation: str, about: str, **params: Any) -> dict[str, Any]:
        """A request on the bucket; `about` is what its errors name."""
        request = getattr(self.client, operation)
        started = time.monotonic()
        for failures in range(1, self.tries + 1):
            try:
                answer: dict[str, Any] = request(Bucket=self.bucket, **params)
            except REQUEST_ERRORS as error:
                elapsed_s = time.monotonic() - started
                if not self.wait_after(error, failures, elapsed_s):
                    raise translated(error, about, self.bucket) from error
            else:
                return answer
        raise AssertionError("the last try returns or raises")

    def wait_after(self, error: Exception, failures: int, elapsed_s: float = 0.0) -> bool:
        """Sleep before another try; False when there is none: no use, or no time left."""
        delay_s = random.uniform(0, _FIRST_DELAY_S * 2**failures)
        if not is_transient(error) or failures >= self.tries or elapsed_s + delay_s > _DEADLINE_S:
            return False
        time.sleep(delay_s)
        return True


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, ClientError):
        status, code = _status_and_code(error)
        return (status >= 500 and status != 501) or status == 429 or code in _AGAIN
    return isinstance(
        error,
        (
            BotoConnectionError,
            HTTPClientError,
            IncompleteReadError,
            ResponseParserError,
            FlexibleChecksumError,
        ),
    )


def translated(error: Exception, about: str, bucket: str) -> StorageError:
    """Our error for theirs. Codes only: a provider's message may quote what was sent."""
    if is_transient(error):
        what = _status_and_code(error) if isinstance(error, ClientError) else type(error).__name__
        return StorageUnavailable(f"S3 did not serve {about!r} ({what}); try again later")
    if not isinstance(error, ClientError):
        return StorageError(f"S3 request for {about!r} could not be made: {error}")
    status, code = _status_and_code(error)
    if code == "NoSuchUpload":
        return UploadGone(f"the multipart upload of {about!r} is gone")
    if code == "NoSuchBucket":
        return StorageError(f"bucket {bucket!r} does not exist; create it or correct its name")
    if status == 404:
        return ObjectNotFound(about)
    if status == 412:
        return ObjectExists(about)
    if status in (401, 403):
        text = "check the access key, the secret, the bucket policy and this machine's clock"
        return StorageError(f"S3 denied access to {about!r} ({code}); {text}")
    return StorageError(f"S3 refused {about!r} ({status} {code})")


def _status_and_code(error: ClientError) -> tuple[int, str]:
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status, error.response.get("Error", {}).get("Code", "")
