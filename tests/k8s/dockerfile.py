"""The Dockerfile as data, and a stage of it carried out in a folder, without containers."""

import json
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.workers import REPO

DOCKERFILE = REPO / "Dockerfile"


@dataclass
class Stage:
    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def last(self, instruction: str) -> str:
        found = [rest for word, rest in self.instructions if word == instruction]
        return found[-1] if found else ""


def stages() -> dict[str, Stage]:
    """By name. The values of `ARG`s before the first stage are put in the place of their names."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.M).replace("\\\n", " ")
    given: dict[str, str] = {}
    found: dict[str, Stage] = {}
    for line in filter(str.strip, text.splitlines()):
        word, _, rest = line.strip().partition(" ")
        rest = " ".join(rest.split())
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            base = re.sub(r"\$\{(\w+)\}", lambda match: given[match[1]], base)
            found[name] = stage = Stage(name, base)
        elif not found:
            name, _, value = rest.partition("=")
            given[name] = value
        else:
            stage.instructions.append((word, rest))
    return found


def lineage(name: str) -> list[Stage]:
    """A stage and those it is made from, the first one first."""
    known, found = stages(), [stages()[name]]
    while found[0].base in known:
        found.insert(0, known[found[0].base])
    return found


def effective(name: str, instruction: str) -> str:
    """What holds in the image of a stage: the last such instruction of its lineage."""
    return next(
        (stage.last(instruction) for stage in reversed(lineage(name)) if stage.last(instruction)),
        "",
    )


def variables(name: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for stage in lineage(name):
        for word, rest in stage.instructions:
            if word == "ENV":
                found |= dict(pair.split("=", 1) for pair in shlex.split(rest))
    return found


def command(name: str, instruction: str) -> list[str]:
    """The exec form of ENTRYPOINT or CMD."""
    parts: Any = json.loads(effective(name, instruction))
    return [str(part) for part in parts]


class Builder:
    """Carries stages out with `root` in the place of `/`; each is done once."""

    def __init__(self, root: Path, environment: dict[str, str]) -> None:
        self.root, self._environment, self._done = root, environment, set[str]()

    def place(self, text: str) -> str:
        """A text with our absolute paths moved into `root`."""
        return re.sub(r"(?<![\w.])/(?=(?:opt|src|dist)\b)", f"{self.root}/", text)

    def build(self, name: str) -> None:
        for stage in lineage(name):
            if stage.name not in self._done:
                self._done.add(stage.name)
                for word, rest in stage.instructions:
                    self._carry_out(name, word, rest)

    def _carry_out(self, name: str, word: str, rest: str) -> None:
        work_dir = Path(self.place(effective(name, "WORKDIR")))
        if word == "RUN":
            self._run(name, rest, work_dir)
        elif word == "COPY" and rest.startswith("--from="):
            self.build(rest.partition("=")[2].split()[0])
        elif word == "COPY":
            *sources, target = [part for part in rest.split() if not part.startswith("--")]
            for source in sources:
                _copy(REPO / source, work_dir / target)
        elif word == "WORKDIR":
            work_dir.mkdir(parents=True, exist_ok=True)

    def _run(self, name: str, line: str, work_dir: Path) -> None:
        given = {key: self.place(value) for key, value in variables(name).items()}
        given.pop("PIP_NO_CACHE_DIR")  # images keep no cache, tests may use one
        done = subprocess.run(
            ["sh", "-ec", self.place(line)],
            cwd=work_dir,
            env=self._environment | given,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, target, ignore=ignored, dirs_exist_ok=True)
    else:
        shutil.copy2(source, target / source.name if target.is_dir() else target)
