"""The child process of `ProcessExecutor`: builds an engine and runs the jobs it is sent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

from harness.engine.job import ProbeJob
from harness.errors import HarnessError
from harness.records import EpochRecord
from harness.search.executors import portable
from harness.search.signals import STOPPING

_TICK = 2.0
"""Seconds between signs of life."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Options of glibc's `mallopt`."""
_KEPT = 2**30
_LEAST_KEPT = 2**25
"""As much as older versions of glibc accept."""


def main() -> None:
    """Serve one parent until it closes the connection."""
    # What a cluster tells a whole job is for the parent to answer: it ends this process when it has done so.
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    connection: Connection[Any, Any] = Connection(int(sys.argv[1]))
    keep_freed_memory(os.environ)
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


def keep_freed_memory(variables: Mapping[str, str]) -> int:
    """Let glibc keep freed memory for what is allocated next; return how many bytes, 0 for its own way.

    Its own way gives what a training step frees back to the kernel, which takes the next step's time to fill
    pages with zeros. Its thresholds are left where the variables set any, and so is another C library.
    """
    chosen = [name for name in variables if name.startswith("MALLOC_")]
    if chosen or "malloc" in variables.get("GLIBC_TUNABLES", ""):
        return 0
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, TypeError):
        return 0
    for size in (_KEPT, _LEAST_KEPT):
        # The one is no longer adapted once the other is set: both or none.
        if mallopt(_MMAP_THRESHOLD, size):
            mallopt(_TRIM_THRESHOLD, size)
            return size
    return 0


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
