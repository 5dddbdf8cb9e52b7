"""What `fetch` hands over: a folder with an adapter, and the part of its manifest serving needs."""

import hashlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError
from safetensors import SafetensorError

from engine.infer.errors import AdapterRefused
from engine.infer.weights_file import read_index
from engine.spec import AdapterKind


class Probe(BaseModel):
    """Log-probs the trainer saw: logprobs[i] is of token_ids[prompt_tokens + i]."""

    model_config = ConfigDict(frozen=True)

    token_ids: tuple[int, ...]
    prompt_tokens: int = Field(ge=1)
    logprobs: tuple[FiniteFloat, ...]


class ScoreProbe(BaseModel):
    """The score that a reward model's trainer saw for a prompt and an answer."""

    model_config = ConfigDict(frozen=True)

    token_ids: tuple[int, ...]
    score: FiniteFloat


class Contract(BaseModel):
    """Of the render contract, what ends a generation (None: as the base does), and what pads."""

    model_config = ConfigDict(frozen=True)

    stop_token_ids: tuple[int, ...] | None = None
    pad_token_id: int | None = None


class ServingManifest(BaseModel):
    """The fields of manifest.json that serving reads; the rest is not its business."""

    model_config = ConfigDict(frozen=True)

    kind: AdapterKind
    contract: Contract = Contract()
    probes: tuple[Probe, ...] = ()
    scores: tuple[ScoreProbe, ...] = ()


def read_manifest(folder: Path) -> ServingManifest:
    """The manifest of a fetched adapter. Raises AdapterRefused."""
    try:
        return ServingManifest.model_validate_json((folder / "manifest.json").read_bytes())
    except (OSError, ValidationError) as error:
        raise AdapterRefused(
            "adapter_invalid", "The adapter's manifest.json cannot be read; publish it again."
        ) from error


def manifest_digest(folder: Path) -> str:
    """The sha256 of the manifest. Raises AdapterRefused."""
    try:
        return hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    except OSError as error:
        raise AdapterRefused(
            "adapter_invalid", "The adapter's manifest.json cannot be read; publish it again."
        ) from error


def model_bytes(folder: Path, bytes_per_weight: int) -> int:
    """The memory that the safetensors of a model folder take once loaded. Raises AdapterRefused."""
    weights = 0
    try:
        for path in folder.glob("*.safetensors"):
            weights += read_index(path).numbers
    except (OSError, SafetensorError) as error:
        raise AdapterRefused("adapter_invalid", f"Its weights cannot be read: {error}") from error
    return weights * bytes_per_weight
