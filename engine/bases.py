"""The operator's allow-list of base models: names that clients may use, and where the files are."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.errors import EngineError

# What rendering and validation need of a base; no weights.
SMALL_FILES = ("*.json", "*.jinja", "*.model", "tokenizer*")
SAMPLE_BYTES = 1 << 16
SAMPLES = 64
# A Hugging Face id, pinned to a commit: a branch or a tag may become another model over night.
PINNED = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*@[0-9a-f]{40}", re.ASCII)


class BaseNotAllowed(EngineError):
    """The name is not on the operator's list."""


class BaseUnusable(EngineError):
    """The name is on the list, but what it points to cannot be used."""

    code = "base_model_unusable"


class BaseNeedsCode(BaseUnusable):
    """It has Python code of its own, which is never run."""

    code = "model_needs_code"


@dataclass(frozen=True)
class BaseModel:
    """A base on this machine. `revision` changes whenever its files do."""

    name: str
    path: Path
    revision: str


class BaseCatalogue:
    """Names to bases. `allowed` maps a name to a local folder or a Hugging Face `id@commit`."""

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
        if is_local(source):
            raise BaseUnusable(f"Base model {name!r}: its folder is missing; ask the operator.")
        if not is_pinned(source):
            raise BaseUnusable(
                f"Base model {name!r} is not pinned to a commit; ask the operator to write it as "
                "org/name@ and the commit's 40 hex digits."
            )
        path = _snapshot(name, source, weights)
        _check(name, path)
        return BaseModel(name, path, path.name)  # a snapshot's folder is named by its commit


def is_local(source: str) -> bool:
    """Whether an entry of the allow-list means a folder of this machine."""
    folder = Path(source).expanduser()
    return folder.is_dir() or folder.is_absolute() or source.startswith(".")


def is_pinned(source: str) -> bool:
    """Whether it means one commit of a Hugging Face model."""
    return PINNED.fullmatch(source) is not None and ".." not in source


def _snapshot(name: str, source: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repo_id, _, commit = source.partition("@")
    patterns = [*SMALL_FILES, "*.safetensors"] if weights else [*SMALL_FILES]
    try:
        return Path(snapshot_download(repo_id, revision=commit, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise BaseUnusable(
            f"Base model {name!r} ({source}) could not be fetched: {type(error).__name__}."
        ) from error


def _check(name: str, folder: Path) -> None:
    for needed in ("config.json", "tokenizer.json"):
        if not (folder / needed).is_file():
            raise BaseUnusable(f"Base model {name!r} has no {needed}; ask the operator.")
    for file in ("config.json", "tokenizer_config.json"):
        if not (folder / file).is_file():
            continue
        try:
            config = json.loads((folder / file).read_text())
        except ValueError as error:
            raise BaseUnusable(f"Base model {name!r}: {file} is not JSON.") from error
        if "auto_map" in config:
            raise BaseNeedsCode(
                f"Base model {name!r} needs code of its own (auto_map in {file}); Luthier runs no "
                "model code."
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
