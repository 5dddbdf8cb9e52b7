"""The manifest: what an adapter is, where it comes from, and the hash of each of its files.

It is stored sealed, that is, its last member is the sha256 of all bytes before it, so that rot in
the manifest itself is found too.
"""

import hashlib
import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue

MANIFEST_NAME = "manifest.json"
_SEAL = re.compile(rb',\s*"sha256": "([0-9a-f]{64})"\s*\}\s*')

# What the files are: LoRA's matrices, virtual tokens in front, a whole model, or a reward model: a
# LoRA or a whole model with a scalar head that scores.
AdapterKind = Literal["lora", "prompt_tuning", "prefix_tuning", "full", "reward"]
Sha256 = Field(pattern=r"^[0-9a-f]{64}$")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(_Frozen):
    """One file of an adapter."""

    name: str
    size_bytes: int = Field(ge=0)
    sha256: str = Sha256


class Probe(_Frozen):
    """What the trainer saw: logprobs[i] is log p(token_ids[prompt_tokens + i] | those before)."""

    token_ids: tuple[int, ...]
    prompt_tokens: int = Field(ge=1)
    logprobs: tuple[FiniteFloat, ...]
    base_logprobs: tuple[FiniteFloat, ...]


class ScoreProbe(_Frozen):
    """The score that a reward model's trainer saw for a prompt and an answer."""

    token_ids: tuple[int, ...]
    score: FiniteFloat


class DatasetRef(_Frozen):
    """A dataset the adapter learned from, by id and content."""

    id: str
    sha256: str = Sha256


class Parent(_Frozen):
    """An adapter that another was merged from, and its weight there."""

    adapter_id: str
    weight: FiniteFloat


class Lineage(_Frozen):
    """Where an adapter comes from. With a checkpoint and a step: not from the end of its job.

    A merged one has `parents`, and the datasets of them all.
    """

    job_id: str | None = None
    attempt: int | None = None
    checkpoint_id: str | None = None
    step: int | None = None
    datasets: tuple[DatasetRef, ...] = ()
    parent_adapter_id: str | None = None
    parents: tuple[Parent, ...] = ()
    imported: bool = False


class Manifest(_Frozen):
    """What it takes to serve an adapter and to say how it was made. Publishing fills `files`."""

    format: Literal[1] = 1
    adapter_id: str = Field(pattern=r"^ad_[0-9a-f]{24}$")
    kind: AdapterKind
    base_model: str
    base_revision: str
    tokenizer_sha256: str
    contract: dict[str, JsonValue]
    lineage: Lineage
    method: dict[str, JsonValue] | None = None
    peft: dict[str, JsonValue]
    metrics: dict[str, JsonValue] = Field(default_factory=dict)
    probes: tuple[Probe, ...] = ()
    scores: tuple[ScoreProbe, ...] = ()
    files: tuple[FileEntry, ...] = ()
    created_at: float

    @property
    def size_bytes(self) -> int:
        """All files together."""
        return sum(entry.size_bytes for entry in self.files)


def encode(model: BaseModel) -> bytes:
    """A model as sealed JSON."""
    body = model.model_dump_json(indent=2).encode().removesuffix(b"\n}")
    seal = hashlib.sha256(body).hexdigest()
    return body + f',\n  "sha256": "{seal}"\n}}\n'.encode()


def unseal(data: bytes) -> bytes:
    """The JSON that was sealed; ValueError when a byte of it changed."""
    start = data.rfind(b",")
    seal = _SEAL.fullmatch(data, max(start, 0))
    if seal is None or hashlib.sha256(data[:start]).hexdigest().encode() != seal.group(1):
        raise ValueError("does not match its own sha256")
    return data[:start] + b"}"


def decode(data: bytes) -> Manifest:
    """A sealed manifest; ValueError when it is damaged or not one."""
    return Manifest.model_validate_json(unseal(data))
