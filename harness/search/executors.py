"""Where trials run: in this process, or in a child that may crash without taking the study along."""

from __future__ import annotations

import os
import queue
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any, Protocol

from harness.engine.job import EngineSettings, TrialJob, TrialOutcome
from harness.errors import HarnessError
from harness.records import EpochRecord
from harness.registry import Registry

ADDRESS, KEY = "HARNESS_WORKER_ADDRESS", "HARNESS_WORKER_KEY"


class StopRequested(BaseException):
    """The study was asked to stop while a trial ran."""


class Executor(Protocol):
    """Runs one trial at a time."""

    def run(
        self, job: TrialJob, on_epoch: Callable[[EpochRecord], bool], stop: threading.Event
    ) -> TrialOutcome:
        """Run a training and return what came out of it.

        Raises:
            StopRequested: `stop` was set.
        """

    def close(self) -> None:
        """Free what the executor holds, at once."""


class InlineExecutor:
    """Runs trials in the calling process: for debugging, and where starting processes is not wanted."""

    def __init__(self, settings: EngineSettings, registry: Registry) -> None:
        from harness.engine.trial import Engine

        self._engine = Engine(
            registry, settings.manifest, device=settings.device, threads=settings.threads, home=settings.home
        )

    def run(
        self, job: TrialJob, on_epoch: Callable[[EpochRecord], bool], stop: threading.Event
    ) -> TrialOutcome:
        """Run a trial here."""

        def check() -> None:
            if stop.is_set():
                raise StopRequested

        return self._engine.run(job, on_step=check, on_epoch=on_epoch)

    def close(self) -> None:
        """Hold nothing."""


class ProcessExecutor:
    """Runs trials in one long-lived child process, replaced when it dies or hangs.

    The child starts at once, so that it imports torch while the parent opens the study's database.

    Args:
        settings: What the child's engine is built from.
        log: File for the child's output.
        stall: Seconds without a sign of life after which the child counts as hung.
    """

    def __init__(self, settings: EngineSettings, *, log: Path, stall: int) -> None:
        self._settings = settings
        self._log = log
        self._stall = stall
        self._process: subprocess.Popen[bytes] | None = None
        self._inbox: queue.Queue[tuple[str, Any]] = queue.Queue()
        self._connection: Connection | None = None
        self._start()

    def run(
        self, job: TrialJob, on_epoch: Callable[[EpochRecord], bool], stop: threading.Event
    ) -> TrialOutcome:
        """Run a trial in the child; a dead or hung child is this trial's outcome."""
        if self._process is None:
            self._start()
        sent = False
        heard = time.monotonic()
        while True:
            if stop.is_set():
                self.close()
                raise StopRequested
            try:
                what, value = self._inbox.get(timeout=0.2)
            except queue.Empty:
                what, value = "", None
            if what:
                heard = time.monotonic()
            if what == "ready" and not sent:
                assert self._connection is not None
                self._connection.send((self._settings, job))
                sent = True
            elif what == "epoch":
                assert self._connection is not None
                self._connection.send(on_epoch(value))
            elif what == "done":
                # The child says it is ready for the next before anybody asks: keep that for the next run.
                outcome: TrialOutcome = value
                return outcome
            elif what == "refused":
                raise value
            elif what == "gone" or (self._process is not None and self._process.poll() is not None):
                code = self._process.wait() if self._process else 0
                self.close()
                return self._failed(f"crash: the worker process ended with {_exit_name(code)}")
            elif time.monotonic() - heard > self._stall:
                self.close()
                return self._failed(f"hang: no training step for {self._stall} s")

    def close(self) -> None:
        """Kill the child and forget it."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
        self._listener.close()
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        # Late messages of the old child go into the old queue, which nobody reads any more.
        self._inbox = queue.Queue()

    def _failed(self, reason: str) -> TrialOutcome:
        tail = self._log.read_text(errors="replace")[-4000:] if self._log.exists() else ""
        return TrialOutcome(state="failed", reason=reason, detail=tail)

    def _start(self) -> None:
        key = secrets.token_bytes(16)
        folder = tempfile.mkdtemp(prefix="harness-") if os.name == "posix" else None
        listener = Listener(address=f"{folder}/worker" if folder else None, authkey=key)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        # The child sees the modules this process sees, whatever the current folder holds.
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "harness.search.worker"],
                env={**os.environ, ADDRESS: str(listener.address), KEY: key.hex(), "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A Ctrl-C in the terminal is the parent's to handle.
                start_new_session=True,
            )
        self._listener = listener
        threading.Thread(
            target=self._listen, args=(listener, self._inbox, folder), name="worker-inbox", daemon=True
        ).start()

    def _listen(self, listener: Listener, inbox: queue.Queue[tuple[str, Any]], folder: str | None) -> None:
        """Move messages of one child into its inbox until it is gone."""
        try:
            with listener:
                connection = listener.accept()
            # A child that was given up while it started has another inbox than today's.
            if self._inbox is inbox:
                self._connection = connection
            while True:
                inbox.put(connection.recv())
        except (OSError, EOFError, AuthenticationError):
            inbox.put(("gone", None))
        finally:
            if folder:
                shutil.rmtree(folder, ignore_errors=True)


def _exit_name(code: int) -> str:
    if code < 0:
        try:
            return f"signal {signal.Signals(-code).name}"
        except ValueError:
            return f"signal {-code}"
    return f"exit code {code}"


def portable(error: HarnessError) -> HarnessError:
    """Return an error in a form that survives the way to the parent."""
    plain = HarnessError(error.what, where=error.where, why=error.why, fixes=error.fixes)
    plain.exit_code = error.exit_code
    return plain
