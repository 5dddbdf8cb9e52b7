"""What a role gets from the `luthier serve` that started it: its socket, and a pipe as stdin.

The pipe's other end is held by the parent alone, so it closes however the parent ends; a role whose
parent is gone stops, and takes its own children with it.
"""

import os
import signal
import socket
import threading
import time

from cli.failure import CommandFailed

ORPHAN_GRACE_S = 4.0  # from the parent's death to the end of everything it started
_BACKLOG = 2048


def end_with_parent() -> None:
    """Stop this process group soon after stdin closes."""
    threading.Thread(target=_watch, daemon=True, name="family").start()


def _watch() -> None:
    while os.read(0, 64):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ORPHAN_GRACE_S)
    os.killpg(0, signal.SIGKILL)


def listen(host: str, port: int, flag: str) -> socket.socket:
    """A listening socket; port 0 picks a free one. `flag` is what chooses another port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(_BACKLOG)
    except OSError as error:
        bound.close()
        raise CommandFailed(
            f"Cannot listen on {host}:{port}: {_reason(error)}. "
            f"Stop what uses it, or choose another with {flag} (0 picks a free one)."
        ) from error
    return bound


def adopt(fd: int) -> socket.socket:
    """The listening socket that the parent passed."""
    return socket.socket(fileno=fd)


def port_of(bound: socket.socket) -> int:
    return int(bound.getsockname()[1])


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
