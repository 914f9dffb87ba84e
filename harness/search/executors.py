"""Where trials run: in this process, or in a child that may crash without taking the study along."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from harness import paths
from harness.config import RunConfig
from harness.data.manifest import Manifest
from harness.engine.job import EngineSettings, ProbeJob, TrialJob, TrialOutcome, report_as
from harness.errors import HarnessError
from harness.records import EpochRecord, ProbeRecord
from harness.registry import Registry
from harness.search.folder import unwritable
from harness.search.signals import StopSignal

_POLL = 0.2
"""Seconds between looks at whether the study was asked to stop."""
_STARTUP = 300
"""Seconds that a child has to import torch and build its engine, whatever `stall` says."""


class _PipeError(Exception):
    """The worker process has closed its end of the connection."""


class _GoneError(Exception):
    """The worker process does not answer any more; says why."""


class Executor(Protocol):
    """Runs trials, one group at a time."""

    def run(
        self, jobs: Sequence[TrialJob], on_epoch: Callable[[int, EpochRecord], bool], stop: StopSignal
    ) -> list[TrialOutcome]:
        """Run trainings as `Engine.run` does and return what came out of each.

        Raises:
            Interrupted: A signal came.
            HarnessError: The machine failed, not a trial: a full disk, a changed image.
        """

    def probe(self, job: ProbeJob, stop: StopSignal) -> ProbeRecord:
        """Probe a backbone's features; raises as `run` does."""

    def close(self) -> None:
        """Free what the executor holds, at once."""


class InlineExecutor:
    """Runs trials in the calling process: for debugging, and where starting processes is not wanted."""

    def __init__(self, settings: EngineSettings, registry: Registry) -> None:
        from harness.engine.trial import Engine

        self._engine = Engine(registry, settings)

    def run(
        self, jobs: Sequence[TrialJob], on_epoch: Callable[[int, EpochRecord], bool], stop: StopSignal
    ) -> list[TrialOutcome]:
        """Run trials here."""
        return self._engine.run(jobs, on_step=stop.check, on_epoch=on_epoch)

    def probe(self, job: ProbeJob, stop: StopSignal) -> ProbeRecord:
        """Probe features here."""
        return self._engine.probe(job, on_step=stop.check)

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
        self._connection: Connection[Any, Any] | None = None
        self._is_up = self._is_configured = False
        self._start()

    def run(
        self, jobs: Sequence[TrialJob], on_epoch: Callable[[int, EpochRecord], bool], stop: StopSignal
    ) -> list[TrialOutcome]:
        """Run trials in the child; a child that dies or hangs over one is that trial's outcome."""
        try:
            outcomes: list[TrialOutcome] = self._ask(list(jobs), on_epoch, stop)
            return outcomes
        except _GoneError as error:
            if len(jobs) == 1:
                return [TrialOutcome(state="failed", reason=str(error), detail=self._tail())]
        # Whose fault it was comes out when each runs alone.
        return [self.run([job], report_as(number, on_epoch), stop)[0] for number, job in enumerate(jobs)]

    def probe(self, job: ProbeJob, stop: StopSignal) -> ProbeRecord:
        """Probe features in the child."""
        try:
            record: ProbeRecord = self._ask(job, lambda *_: False, stop)
            return record
        except _GoneError as error:
            return ProbeRecord.failed(job.config.backbone, str(error))

    def _ask(
        self,
        request: list[TrialJob] | ProbeJob,
        on_epoch: Callable[[int, EpochRecord], bool],
        stop: StopSignal,
    ) -> Any:
        """Return the child's answer.

        Raises:
            _GoneError: It died, or was killed because it hung.
            Interrupted: A signal came.
            HarnessError: The machine failed.
        """
        if self._process is None:
            self._start()
        heard = time.monotonic()
        try:
            if not self._is_configured:
                # Once for all trials: the manifest of an array data set holds its pixels.
                self._send(self._settings)
                self._is_configured = True
            self._send(request)
            while True:
                if stop.code:
                    self.close()
                    stop.check()
                message = self._receive()
                if message is None:
                    # A child that still imports torch is slow, not hung.
                    patience = self._stall if self._is_up else max(self._stall, _STARTUP)
                    if time.monotonic() - heard > patience:
                        self.close()
                        raise _GoneError(f"hang: no training step for {self._stall} s")
                    continue
                heard = time.monotonic()
                self._is_up = True
                what, value = message
                if what == "epoch":
                    self._send(on_epoch(*value))
                elif what == "done":
                    return value
                elif what == "refused":
                    raise value
        except _PipeError:
            code = self._process.wait() if self._process else 0
            self.close()
            raise _GoneError(f"crash: the worker process ended with {_exit_name(code)}") from None

    def _send(self, value: object) -> None:
        assert self._connection is not None
        try:
            self._connection.send(value)
        except OSError as error:
            raise _PipeError from error

    def _receive(self) -> tuple[str, Any] | None:
        """Return a message, or None when there was none for a moment."""
        assert self._connection is not None
        try:
            if not self._connection.poll(_POLL):
                return None
            message: tuple[str, Any] = self._connection.recv()
        except (EOFError, OSError) as error:
            raise _PipeError from error
        return message

    def close(self) -> None:
        """Kill the child and forget it."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _tail(self) -> str:
        """Return the end of what the child printed."""
        return self._log.read_text(errors="replace")[-4000:] if self._log.exists() else ""

    def _start(self) -> None:
        ours, theirs = Pipe()
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            log = self._log.open("ab")
        except OSError as error:
            ours.close()
            theirs.close()
            raise unwritable(self._log.parent, error) from error
        # The child sees the modules this process sees, whatever the current folder holds.
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        with log, theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "harness.search.worker", str(theirs.fileno())],
                env={**os.environ, "PYTHONPATH": path},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A Ctrl-C in the terminal is the parent's to handle.
                start_new_session=True,
            )
        self._connection = ours
        self._is_up = self._is_configured = False


def build_executor(run: RunConfig, registry: Registry, manifest: Manifest, *, log: Path) -> Executor:
    """Return what runs the trainings of a study; it is never given the test split, only some of its jobs are.

    Args:
        run: Device, threads, and whether trainings run in a process of their own.
        registry: The plugins; a process loads the same.
        manifest: The data set.
        log: File for the output of a process.

    Raises:
        UsageError: The device is not there.
    """
    settings = EngineSettings(
        plugins=registry.arguments,
        manifest=manifest.without("test"),
        device=run.device,
        threads=run.threads,
        home=paths.home(),
        cache=None if run.cache_gb is None else int(run.cache_gb * 1e9),
        gpu_share=run.gpu_share,
        deterministic=run.deterministic,
        compile=run.compile,
    )
    # The pipe to a worker is a file descriptor it inherits, which Windows does not have.
    if run.executor == "inline" or os.name != "posix":
        return InlineExecutor(settings, registry)
    return ProcessExecutor(settings, log=log, stall=run.stall)


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
