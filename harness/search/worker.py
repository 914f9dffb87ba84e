"""The child process of `ProcessExecutor`: builds an engine and runs the jobs it is sent."""

from __future__ import annotations

import os
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

from harness.engine.job import ProbeJob
from harness.errors import HarnessError
from harness.records import EpochRecord
from harness.search.executors import portable

_TICK = 2.0
"""Seconds between signs of life."""


def main() -> None:
    """Serve one parent until it closes the connection."""
    connection: Connection[Any, Any] = Connection(int(sys.argv[1]))
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    # Seconds of imports, done while the parent prepares the study.
    from harness.engine.trial import Engine
    from harness.registry import load_registry

    last = time.monotonic()

    def on_step() -> None:
        nonlocal last
        if time.monotonic() - last > _TICK:
            last = time.monotonic()
            connection.send(("alive", None))

    def on_epoch(number: int, record: EpochRecord) -> bool:
        connection.send(("epoch", (number, record)))
        verdict: bool = connection.recv()
        return verdict

    try:
        settings, log = connection.recv()
        _print_to(log)
        try:
            engine = Engine(load_registry(settings.plugins), settings)
        except HarnessError as error:
            connection.send(("refused", portable(error)))
            return
        connection.send(("alive", None))
        while True:
            request = connection.recv()
            try:
                answer = (
                    engine.probe(request, on_step=on_step)
                    if isinstance(request, ProbeJob)
                    else engine.run(request, on_step=on_step, on_epoch=on_epoch)
                )
                connection.send(("done", answer))
            except HarnessError as error:
                connection.send(("refused", portable(error)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        # The parent is gone; nobody is left to report to.
        return


def _print_to(log: str) -> None:
    """Let all that this process prints, and the libraries in it, go to the end of a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for own in (1, 2):
        os.dup2(file, own)
    os.close(file)


def _end_with_parent(parent: int) -> None:
    """End this process when its parent is gone, even from within a trial that hangs."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    main()
