"""Signals that are heard at once, whatever the main thread is doing."""

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def heard(numbers: tuple[signal.Signals, ...], tell: Callable[[], None]) -> Iterator[None]:
    """Meanwhile `tell()` is called for each of these signals, in a thread of its own.

    A handler in Python would run in the main thread: not at all when the signal comes just before
    that thread waits in C, and without end when it needs a lock that the thread holds, as
    `Event.set` does. What the interpreter writes into a pipe is read in either case.
    """
    ear, mouth = socket.socketpair()
    mouth.setblocking(False)
    listener = threading.Thread(
        target=_listen, args=(ear, numbers, tell), daemon=True, name="signals"
    )
    fd_before = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
    before = {number: signal.signal(number, _nothing) for number in numbers}
    listener.start()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(fd_before)
        mouth.close()
        listener.join()
        ear.close()


@contextmanager
def asked_to_stop() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    with heard((signal.SIGTERM, signal.SIGINT), stop.set):
        yield stop


def _listen(ear: socket.socket, numbers: tuple[int, ...], tell: Callable[[], None]) -> None:
    while written := ear.recv(64):
        for number in written:
            if number in numbers:
                tell()


def _nothing(number: int, frame: FrameType | None) -> None:
    """The interpreter writes only signals that have a handler into the pipe."""
