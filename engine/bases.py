"""The operator's allow-list of base models: names that clients may use, and where the files are."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.errors import EngineError

# What rendering and validation need of a base; no weights.
SMALL_FILES = ("*.json", "*.jinja", "*.model", "tokenizer*")
SAMPLE_BYTES = 1 << 16
SAMPLES = 64


class BaseNotAllowed(EngineError):
    """The name is not on the operator's list."""


class BaseUnusable(EngineError):
    """The name is on the list, but what it points to cannot be used."""


@dataclass(frozen=True)
class BaseModel:
    """A base on this machine. `revision` changes whenever its files do."""

    name: str
    path: Path
    revision: str


class BaseCatalogue:
    """Names to bases. `allowed` maps a name to a local folder or a Hugging Face `id[@revision]`."""

    def __init__(self, allowed: Mapping[str, str]) -> None:
        self._allowed = dict(allowed)
        self._found: dict[tuple[str, bool], BaseModel] = {}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._allowed)

    def find(self, name: str, *, weights: bool = False) -> BaseModel:
        """The base by this name, downloaded where it is not on this machine yet.

        Without `weights` only the small files of a Hugging Face model are fetched. Raises
        BaseNotAllowed and BaseUnusable.
        """
        if name not in self._allowed:
            known = ", ".join(sorted(self._allowed)) or "none"
            raise BaseNotAllowed(f"Base model {name!r} is not on this server's list: {known}.")
        if (name, weights) not in self._found:
            self._found[name, weights] = self._resolve(name, weights)
        return self._found[name, weights]

    def _resolve(self, name: str, weights: bool) -> BaseModel:
        source = self._allowed[name]
        folder = Path(source).expanduser()
        if folder.is_dir():
            _check(name, folder)
            return BaseModel(name, folder.resolve(), folder_revision(folder))
        if folder.is_absolute() or source.startswith("."):
            raise BaseUnusable(f"Base model {name!r}: its folder is missing; ask the operator.")
        path = _snapshot(name, source, weights)
        _check(name, path)
        return BaseModel(name, path, path.name)  # a snapshot's folder is named by its commit


def _snapshot(name: str, source: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repo_id, _, revision = source.partition("@")
    patterns = [*SMALL_FILES, "*.safetensors"] if weights else [*SMALL_FILES]
    try:
        return Path(snapshot_download(repo_id, revision=revision or None, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise BaseUnusable(
            f"Base model {name!r} ({source}) could not be fetched: {type(error).__name__}."
        ) from error


def _check(name: str, folder: Path) -> None:
    for needed in ("config.json", "tokenizer.json"):
        if not (folder / needed).is_file():
            raise BaseUnusable(f"Base model {name!r} has no {needed}; ask the operator.")
    try:
        config = json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise BaseUnusable(f"Base model {name!r}: config.json is not JSON.") from error
    if "auto_map" in config:
        raise BaseUnusable(
            f"Base model {name!r} needs code of its own (auto_map); Luthier runs no model code."
        )


def folder_revision(folder: Path) -> str:
    """A hash that identifies a local model without reading gigabytes.

    Small files count whole; of a weights file its size and 64 samples of 64 KiB, evenly spaced.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".jinja", ".safetensors") and path.is_file():
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            _sample(path, digest)
    return f"sha256-{digest.hexdigest()[:40]}"


def _sample(path: Path, digest: "hashlib._Hash") -> None:
    size = path.stat().st_size
    stride = max(SAMPLE_BYTES, size // SAMPLES)
    with path.open("rb") as file:
        for start in range(0, size, stride):
            file.seek(start)
            digest.update(file.read(SAMPLE_BYTES))


def context_length(folder: Path) -> int | None:
    """The longest sequence the base was made for, in tokens, or None where it does not say."""
    config = json.loads((folder / "config.json").read_text())
    value = config.get("max_position_embeddings") or config.get("n_positions")
    return int(value) if value else None
