"""The child process of `ProcessExecutor`: builds an engine and runs the jobs it is sent."""

from __future__ import annotations

import os
import time
from multiprocessing.connection import Client, Connection

from harness.errors import HarnessError
from harness.records import EpochRecord
from harness.search.executors import ADDRESS, KEY, portable

_TICK = 2.0
"""Seconds between signs of life."""


def main() -> None:
    """Serve one parent until it closes the connection."""
    key = bytes.fromhex(os.environ.pop(KEY))
    connection: Connection = Client(os.environ.pop(ADDRESS), authkey=key)
    # Seconds of imports, done while the parent prepares the study.
    from harness.engine.trial import Engine
    from harness.registry import load_registry

    engine = None
    last = time.monotonic()

    def on_step() -> None:
        nonlocal last
        if time.monotonic() - last > _TICK:
            last = time.monotonic()
            connection.send(("alive", None))

    def on_epoch(record: EpochRecord) -> bool:
        connection.send(("epoch", record))
        verdict: bool = connection.recv()
        return verdict

    try:
        while True:
            connection.send(("ready", None))
            settings, job = connection.recv()
            if engine is None:
                try:
                    engine = Engine(
                        load_registry(settings.plugins),
                        settings.manifest,
                        device=settings.device,
                        threads=settings.threads,
                        home=settings.home,
                    )
                except HarnessError as error:
                    connection.send(("refused", portable(error)))
                    continue
            connection.send(("done", engine.run(job, on_step=on_step, on_epoch=on_epoch)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        # The parent is gone; nobody is left to report to.
        return


if __name__ == "__main__":
    main()
