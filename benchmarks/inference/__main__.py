"""How fast many adapters are served, against those who also can: `make bench-infer`.

The same work for everyone, in turns on the same cores: a figure is the median, over the rounds, of
a ratio of two neighbours. Writes docs/benchmarks.md, .json and .svg.
"""

import argparse
import json
import platform
import tempfile
from dataclasses import asdict
from pathlib import Path

from benchmarks.inference.figures import Figure, chart, line_of
from jobs.settings import REPO, SPINS, cores, quiet_threads

DOCS = REPO / "docs"
PARTS = ("engines", "swap", "servers")
CPU = Path("/proc/cpuinfo")
HEAD = """# Serving many adapters, measured

Made by `make bench-infer` on: {machine}. 32 requests at once, prompts of 16 tokens and 64 new ones,
each for another LoRA adapter (rank 8, all linear layers) of a Llama of 135M parameters with random
weights. A ratio is Luthier's throughput with 32 adapters over the other's for the same work, the
median of up to {rounds} rounds in which both take turns; above 1, Luthier is faster.

![the ratios as bars](benchmarks.svg)

| against | base in | figure | bar | held | |
|---|---|---|---|---|---|
"""


def main() -> None:
    arguments = read_arguments()
    quiet_threads(arguments.threads, spins=SPINS)
    from benchmarks.inference.measures import MEASURES  # torch reads its threads from here on
    from benchmarks.inference.world import make

    figures: list[Figure] = []
    given = (arguments.device, arguments.threads, arguments.rounds)
    with tempfile.TemporaryDirectory() as folder:
        world = make(Path(folder))
        for dtype in arguments.dtypes:
            for part in arguments.parts:
                for figure in MEASURES[part](world, dtype, *given):
                    figures.append(figure)
                    print(line_of(figure), flush=True)
                    if not arguments.dry:
                        write(figures, arguments)  # each time: it is a long run
    missed = [f"{figure.what} ({figure.dtype})" for figure in figures if figure.holds is False]
    if missed:
        raise SystemExit("below the bar: " + "; ".join(missed))


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtypes", nargs="+", default=quick_dtypes())
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--dry", action="store_true", help="write no files")
    return parser.parse_args()


def quick_dtypes() -> list[str]:
    """bfloat16 first, where the processor computes in it."""
    flags = CPU.read_text() if CPU.exists() else ""
    return ["bfloat16"] * ("_bf16" in flags) + ["float32"]


def write(figures: list[Figure], arguments: argparse.Namespace) -> None:
    machine = f"{arguments.device}, {arguments.threads} threads, {processor()}"
    told = {"machine": machine, "figures": [asdict(figure) for figure in figures]}
    (DOCS / "benchmarks.json").write_text(json.dumps(told, indent=1) + "\n")
    head = HEAD.format(machine=machine, rounds=arguments.rounds)
    (DOCS / "benchmarks.md").write_text(head + "".join(line_of(each) + "\n" for each in figures))
    (DOCS / "benchmarks.svg").write_text(chart([each for each in figures if each.unit == "x"]))


def processor() -> str:
    lines = CPU.read_text().splitlines() if CPU.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
