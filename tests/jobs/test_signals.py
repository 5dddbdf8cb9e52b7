"""No signal is lost, and none stops the thread that it interrupts."""

import signal
import threading
import time

import pytest

from jobs.signals import asked_to_stop, heard


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_heard_though_the_main_thread_waits_in_c(number: signal.Signals) -> None:
    with asked_to_stop() as stop:
        sender = threading.Timer(
            0.1, lambda: signal.pthread_kill(threading.get_ident(), number)
        )  # to its own thread: nothing interrupts the wait of the main one
        sender.start()
        began = time.monotonic()
        assert stop.wait(30)
        assert time.monotonic() - began < 20
        sender.join()


def test_a_signal_is_heard_though_the_main_thread_holds_what_it_needs() -> None:
    told, needed = threading.Event(), threading.Lock()

    def tell() -> None:
        with needed:
            told.set()

    with heard((signal.SIGUSR1,), tell):
        with needed:
            signal.raise_signal(signal.SIGUSR1)
            assert not told.wait(0.1)
        assert told.wait(30)


def test_what_was_there_before_is_there_again() -> None:
    fd, handler = signal.set_wakeup_fd(-1), signal.getsignal(signal.SIGTERM)
    signal.set_wakeup_fd(fd)
    with asked_to_stop() as stop:
        assert signal.getsignal(signal.SIGTERM) != handler
    assert signal.getsignal(signal.SIGTERM) == handler
    assert signal.set_wakeup_fd(fd) == fd
    assert not stop.is_set()
