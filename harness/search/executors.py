"""Where trials run: in this process, or in a child that may crash without taking the study along."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from harness import paths
from harness.config import RunConfig
from harness.data.manifest import Manifest
from harness.engine.job import EngineSettings, ProbeJob, TrialJob, TrialOutcome, report_as
from harness.errors import HarnessError
from harness.records import EpochRecord, ProbeRecord
from harness.registry import Registry
from harness.search.child import Child, PipeError, start_child
from harness.search.folder import unwritable
from harness.search.signals import StopSignal

_POLL = 0.2
"""Seconds between looks at whether the study was asked to stop."""
_STARTUP = 300
"""Seconds that a child has to import torch and build its engine, whatever `stall` says."""


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

    Args:
        settings: What the child's engine is built from.
        log: File for the child's output.
        stall: Seconds without a sign of life after which the child counts as hung.
        child: The first one; this closes it.

    Raises:
        StorageError: The log cannot be written.
    """

    def __init__(self, settings: EngineSettings, *, log: Path, stall: int, child: Child) -> None:
        self._settings = settings
        self._log = log
        self._stall = stall
        self._child: Child | None = child
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            log.touch()
        except OSError as error:
            child.close()
            raise unwritable(log.parent, error) from error

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
            HarnessError: The machine failed, or the child could not start.
        """
        if self._child is not None and self._child.is_up and self._child.has_ended:
            # Between two trials: neither is to blame.
            self.close()
        if self._child is None:
            self._child = Child()
        child = self._child
        heard = time.monotonic()
        try:
            if not child.is_configured:
                # Once for all trials: the manifest of an array data set holds its pixels.
                child.configure(self._settings, self._log)
            child.send(request)
            while True:
                if stop.code:
                    self.close()
                    stop.check()
                message = child.receive(_POLL)
                if message is None:
                    # A child that still imports torch is slow, not hung.
                    patience = self._stall if child.is_up else max(self._stall, _STARTUP)
                    if time.monotonic() - heard > patience:
                        self.close()
                        raise _GoneError(f"hang: no training step for {self._stall} s")
                    continue
                heard = time.monotonic()
                what, value = message
                if what == "epoch":
                    child.send(on_epoch(*value))
                elif what == "done":
                    return value
                elif what == "refused":
                    raise value
        except PipeError:
            code = child.wait()
            self.close()
            # A signal to all processes of a job may have reached the child first.
            stop.check()
            if not child.is_up:
                lines = self._tail().strip().splitlines()
                raise HarnessError(
                    "the process that trials run in cannot start",
                    where=str(self._log),
                    why=f"it ended with {_exit_name(code)}" + (f": {lines[-1]}" if lines else ""),
                    fixes=[
                        "run harness doctor",
                        "repair what the file says, then run the same command again",
                    ],
                ) from None
            raise _GoneError(f"crash: the worker process ended with {_exit_name(code)}") from None

    def close(self) -> None:
        """Kill the child and forget it."""
        child, self._child = self._child, None
        if child is not None:
            child.close()
            # Not worth an error, least of all on a full disk.
            with contextlib.suppress(OSError), self._log.open("a", encoding="utf-8") as log:
                log.write(child.early_output)

    def _tail(self) -> str:
        """Return the end of what the child printed."""
        return self._log.read_text(errors="replace")[-4000:] if self._log.exists() else ""


def build_executor(
    run: RunConfig, registry: Registry, manifest: Manifest, *, log: Path, child: Child | None = None
) -> Executor:
    """Return what runs the trainings of a study; it is never given the test split, only some of its jobs are.

    Args:
        run: Device, threads, and whether trainings run in a process of their own.
        registry: The plugins; a process loads the same.
        manifest: The data set.
        log: File for the output of a process.
        child: The process, where it has been started; this closes it.

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
    child = child or start_child(run)
    if child is None:
        return InlineExecutor(settings, registry)
    return ProcessExecutor(settings, log=log, stall=run.stall, child=child)


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
