"""Run one test server, and stop it when told to or when whoever started this is gone.

    python guard.py DATA STOP_SIGNAL USER COMMAND...

The end of standard input is the order to stop: it comes when the parent closes it and also when the
parent dies, be it by kill -9. Then the server gets its signal, its whole process group is killed,
and the folder DATA, which holds its files and its log, is deleted. USER is a number or empty.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

_STOP_S = 10


def main() -> None:
    data, stop, user, *command = sys.argv[1:]
    number = int(user) if user else None
    with (Path(data) / "log").open("wb") as log:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=data,
            env={"PATH": os.defpath, "HOME": data, "LC_ALL": "C", "TZ": "UTC"},
            start_new_session=True,
            user=number,
            group=number,
            extra_groups=None if number is None else (),
        )
    threading.Thread(
        target=_stop_on_order, args=(server, signal.Signals[stop]), daemon=True
    ).start()
    server.wait()
    (Path(data) / "ended").touch()  # by itself, perhaps: the parent looks at the log then
    _ordered.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    shutil.rmtree(data, ignore_errors=True)


_ordered = threading.Event()


def _stop_on_order(server: "subprocess.Popen[bytes]", stop: signal.Signals) -> None:
    sys.stdin.buffer.read()
    _ordered.set()
    server.send_signal(stop)
    try:
        server.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        server.kill()


if __name__ == "__main__":
    main()
