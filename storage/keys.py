"""The only builder of object keys: every key of a tenant lies under that tenant's prefix.

tenants/{tenant}/datasets/{dataset}/source
tenants/{tenant}/jobs/{job}/attempts/{attempt}/checkpoints/{step}/{file}
tenants/{tenant}/adapters/{adapter}/{file}
tenants/{tenant}/uploads/{upload}/{part}
index/adapters/{adapter}.json
"""

import re
from typing import Literal, NamedTuple

TENANTS = "tenants/"
POINTERS = "index/adapters/"

_KEY_MAX = 900  # S3 allows 1024 bytes; a store's own prefix needs room too
_SEGMENT = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}"
_KEY = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*")
_PREFIX = re.compile(rf"(?:{_SEGMENT}/)*(?:{_SEGMENT})?")
_FILE_NAME = re.compile(_SEGMENT)
_OWNED = re.compile(
    r"tenants/(?P<tenant>tn_[0-9a-f]{24})/(?:"
    r"datasets/(?P<dataset>ds_[0-9a-f]{24})/|"
    r"adapters/(?P<adapter>ad_[0-9a-f]{24})/|"
    r"uploads/(?P<upload>up_[0-9a-f]{24})/|"
    r"jobs/(?P<job>job_[0-9a-f]{24})/attempts/(?P<attempt>\d{6})/checkpoints/(?P<step>\d{10})/)"
)
_POINTER = re.compile(r"index/adapters/(?P<adapter>ad_[0-9a-f]{24})\.json")


class Owned(NamedTuple):
    """What the objects under a prefix belong to; `id` of a checkpoint is its job's."""

    kind: Literal["dataset", "adapter", "upload", "checkpoint", "pointer"]
    tenant_id: str
    id: str
    prefix: str
    attempt: int = 0
    step: int = 0


def owned(key: str) -> Owned | None:
    """Whose a tenant's object is; None for a key that none of the builders below makes."""
    found = _OWNED.match(key)
    if found is None:
        return None
    tenant_id, prefix = found["tenant"], found[0]
    if found["dataset"]:
        return Owned("dataset", tenant_id, found["dataset"], prefix)
    if found["adapter"]:
        return Owned("adapter", tenant_id, found["adapter"], prefix)
    if found["upload"]:
        return Owned("upload", tenant_id, found["upload"], prefix)
    attempt, step = int(found["attempt"]), int(found["step"])
    return Owned("checkpoint", tenant_id, found["job"], prefix, attempt, step)


def pointed(key: str) -> Owned | None:
    """The adapter that a pointer is of."""
    found = _POINTER.fullmatch(key)
    return Owned("pointer", "", found["adapter"], key) if found else None


def dataset_prefix(tenant_id: str, dataset_id: str) -> str:
    """Everything of one dataset."""
    return f"{_tenant(tenant_id)}datasets/{_id('ds', dataset_id)}/"


def dataset_source(tenant_id: str, dataset_id: str) -> str:
    """The bytes of a dataset as they were uploaded."""
    return dataset_prefix(tenant_id, dataset_id) + "source"


def upload_prefix(tenant_id: str, upload_id: str) -> str:
    """All parts of one upload."""
    return f"{_tenant(tenant_id)}uploads/{_id('up', upload_id)}/"


def upload_part(tenant_id: str, upload_id: str, part_id: str) -> str:
    """One part of a file that comes in parts."""
    return upload_prefix(tenant_id, upload_id) + _id("pt", part_id)


def job_prefix(tenant_id: str, job_id: str) -> str:
    """Everything private of one job: the checkpoints of all its attempts."""
    return f"{_tenant(tenant_id)}jobs/{_id('job', job_id)}/"


def checkpoint_prefix(tenant_id: str, job_id: str, attempt: int, step: int) -> str:
    """One checkpoint; numbers are padded so that keys sort by attempt, then by step."""
    if not 0 < attempt < 10**6 or not 0 <= step < 10**10:
        raise ValueError(f"attempt {attempt}, step {step}: not the numbers of a checkpoint")
    return f"{job_prefix(tenant_id, job_id)}attempts/{attempt:06d}/checkpoints/{step:010d}/"


def checkpoint_file(tenant_id: str, job_id: str, attempt: int, step: int, name: str) -> str:
    """One file of a checkpoint."""
    return checkpoint_prefix(tenant_id, job_id, attempt, step) + check_file_name(name)


def adapter_prefix(tenant_id: str, adapter_id: str) -> str:
    """Everything of one adapter but its pointer."""
    return f"{_tenant(tenant_id)}adapters/{_id('ad', adapter_id)}/"


def adapter_file(tenant_id: str, adapter_id: str, name: str) -> str:
    """One file of an adapter."""
    return adapter_prefix(tenant_id, adapter_id) + check_file_name(name)


def adapter_pointer(adapter_id: str) -> str:
    """The object that says whose an adapter is; the inference server knows adapter ids only."""
    return f"index/adapters/{_id('ad', adapter_id)}.json"


def check_file_name(name: str) -> str:
    """The name of one file in a flat folder: no separators, no leading dot; ValueError."""
    if not _FILE_NAME.fullmatch(name) or ".." in name:
        raise ValueError(f"{name!r} cannot name a file; use letters, digits, '.', '_' and '-'")
    return name


def check_key(key: str) -> str:
    """A well-formed key: what every store accepts and none can misread; ValueError."""
    if len(key) > _KEY_MAX or not _KEY.fullmatch(key) or ".." in key:
        raise ValueError(f"{key[:200]!r} is not an object key; build keys with storage.keys")
    return key


def check_prefix(prefix: str, *, whole: bool = False) -> str:
    """A well-formed beginning of keys; `whole` asks for a last slash, so no sibling matches."""
    if len(prefix) > _KEY_MAX or not _PREFIX.fullmatch(prefix) or ".." in prefix:
        raise ValueError(f"{prefix[:200]!r} is not a key prefix; build keys with storage.keys")
    if whole and not prefix.endswith("/"):
        raise ValueError(f"prefix {prefix!r} must end in '/': it would match its siblings too")
    return prefix


def _tenant(tenant_id: str) -> str:
    return f"tenants/{_id('tn', tenant_id)}/"


def _id(prefix: str, value: str) -> str:
    if not re.fullmatch(rf"{prefix}_[0-9a-f]{{24}}", value):
        raise ValueError(f"{value[:80]!r} is not an id: expected {prefix}_ and 24 hex digits")
    return value
