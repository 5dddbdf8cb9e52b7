"""Luthier's inference server for a benchmark, in a process of its own."""

import logging
import sys
from pathlib import Path

from jobs.settings import SPINS, quiet_threads


def main() -> None:
    root, dtype, device, threads, port, *more = sys.argv[1:]
    quiet_threads(int(threads), spins=SPINS)
    import structlog
    import uvicorn

    from benchmarks.inference.world import World
    from benchmarks.llama import NAME
    from engine.infer.server import create_app

    level = structlog.make_filtering_bound_logger(logging.ERROR)
    structlog.configure(wrapper_class=level)
    options = {name: int(value) for name, value in (each.split("=") for each in more)}
    world = World(Path(root))
    app = create_app(
        base_name=NAME,
        base_path=world.base,
        fetch=world.fetch,
        threads=int(threads),
        dtype=dtype,
        device=device,
        **options,  # type: ignore[arg-type]  # numbers, by the names of its settings
    )
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="error", access_log=False)


if __name__ == "__main__":
    main()
