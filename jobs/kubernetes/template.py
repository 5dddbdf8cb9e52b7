"""The operator's pod template, and what Luthier adds to it. They may not contradict each other."""

from pathlib import Path
from typing import Any

import yaml

from jobs.errors import JobsError

CONTAINER = "trainer"


class TemplateInvalid(JobsError):
    pass


def read_template(path: Path) -> dict[str, Any]:
    """A PodTemplateSpec with a container named `trainer` that has an image.

    Raises TemplateInvalid, saying what to change.
    """
    try:
        found = yaml.safe_load(path.read_text())
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise TemplateInvalid(f"The pod template {path} does not read: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("spec"), dict):
        raise TemplateInvalid(
            f"The pod template {path} has no `spec`; write a PodTemplateSpec: metadata and spec."
        )
    if unknown := set(found) - {"metadata", "spec"}:
        named = ", ".join(sorted(map(str, unknown)))
        raise TemplateInvalid(
            f"The pod template {path} has {named}; a PodTemplateSpec has `metadata` and `spec`."
        )
    containers = found["spec"].get("containers") or []
    trainers = [one for one in containers if isinstance(one, dict) and one.get("name") == CONTAINER]
    if len(trainers) != 1 or not trainers[0].get("image"):
        raise TemplateInvalid(
            f"The pod template {path} needs one container named {CONTAINER!r} with an image."
        )
    return found


def merged(theirs: Any, ours: Any, path: str = "") -> Any:
    """Both together: objects by field, lists of named things by name.

    Raises TemplateInvalid where they say different things of one field.
    """
    if isinstance(theirs, dict) and isinstance(ours, dict):
        both = {
            key: merged(theirs[key], value, f"{path}.{key}") if key in theirs else value
            for key, value in ours.items()
        }
        return theirs | both
    if _named(theirs) and _named(ours):
        mine = {one["name"]: one for one in ours}
        known = [
            merged(one, mine.pop(one["name"]), f"{path}[{one['name']}]")
            if one["name"] in mine
            else one
            for one in theirs
        ]
        return [*known, *mine.values()]
    if theirs != ours:
        raise TemplateInvalid(
            f"The pod template sets {path.lstrip('.')} to {theirs!r}, which Luthier sets to "
            f"{ours!r}; leave it out."
        )
    return ours


def _named(things: Any) -> bool:
    return isinstance(things, list) and all(isinstance(o, dict) and "name" in o for o in things)
