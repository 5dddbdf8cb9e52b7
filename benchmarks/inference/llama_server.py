"""llama.cpp's server, as `make env-llama` builds it for this machine's processor."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.inference.contenders import Http, free_port, started
from benchmarks.inference.world import ADAPTERS, World
from jobs.settings import REPO

LLAMA_SERVER = REPO / ".llama" / "llama-server"
_ROOM = 256  # tokens of a request, its prompt among them


@contextmanager
def llama_server(world: World, dtype: str, threads: int) -> Iterator[Http]:
    """Without adapters: a slot for each request, and of its samplers the one that takes the best.

    It keeps no prompts from one round to the next: the others do not keep such short ones either.
    """
    port, base = free_port(), world.root / f"base-{dtype}.gguf"
    convert = [sys.executable, "-m", "benchmarks.inference.gguf_base"]
    subprocess.run([*convert, str(world.base), str(base), dtype], check=True)
    command = [
        str(LLAMA_SERVER), "--model", str(base), "--host", "127.0.0.1", "--port", str(port),
        "--threads", str(threads), "--parallel", str(ADAPTERS), "--ctx-size", str(ADAPTERS * _ROOM),
        "--no-cache-prompt", "--cache-ram", "0", "--samplers", "top_k", "--top-k", "1",
        "--no-webui", "--offline",
    ]  # fmt: skip
    with started(command, port, quiet=True) as server:
        yield server
