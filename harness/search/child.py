"""The process that trials run in, as its parent sees it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from harness.config import RunConfig
from harness.engine.job import EngineSettings

_SPINS = "1000"
"""Turns that an idle OpenMP thread spins before it sleeps. libgomp's own number keeps a core busy for
milliseconds; beside other work a thread has then used up its share when the next of a step's hundreds of
parallel loops wants it, and a step takes fifty times as long. On an idle machine a step of a small network
takes up to a tenth longer with so few."""


class PipeError(Exception):
    """The process has closed its end of the connection."""


class Child:
    """A process that imports what trials need, then waits for the settings of a study, and for its jobs."""

    def __init__(self) -> None:
        ours, theirs = Pipe()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as the process lives
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "harness.search.worker", str(theirs.fileno())],
                env=_environment(),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                # A Ctrl-C in the terminal is the parent's to handle.
                start_new_session=True,
            )
        self._connection: Connection[Any, Any] = ours
        self.is_configured = False
        self.is_up = False
        """Whether anything was heard of it."""
        self.early_output = ""
        """Once it has ended: what it printed before it was told where its log is."""

    def configure(self, settings: EngineSettings, log: Path) -> None:
        """Send what its engine is built from, and where its output goes.

        Raises:
            PipeError: The process has ended.
        """
        self.send((settings, str(log)))
        self.is_configured = True

    def send(self, value: object) -> None:
        """Send a message.

        Raises:
            PipeError: The process has ended.
        """
        try:
            self._connection.send(value)
        except OSError as error:
            raise PipeError from error

    def receive(self, seconds: float) -> tuple[str, Any] | None:
        """Return a message, or None when there was none for some seconds.

        Raises:
            PipeError: The process has ended.
        """
        try:
            if not self._connection.poll(seconds):
                return None
            message: tuple[str, Any] = self._connection.recv()
        except (EOFError, OSError) as error:
            raise PipeError from error
        self.is_up = True
        return message

    @property
    def has_ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.poll() is not None

    def wait(self) -> int:
        """Wait for the end of the process and return its exit code, negative for a signal."""
        return self._process.wait()

    def close(self) -> None:
        """Kill the process; a second time is none too many."""
        self._process.kill()
        self._process.wait()
        self._connection.close()
        if not self._output.closed:
            self._output.seek(0)
            self.early_output = self._output.read().decode(errors="replace")
            self._output.close()


def start_child(run: RunConfig) -> Child | None:
    """Start the process of a study ahead of it, so that it imports torch meanwhile; None if there is none.

    The pipe to a child is a file descriptor that it inherits, which Windows does not have.
    """
    return Child() if run.executor == "process" and os.name == "posix" else None


def waiting(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that say how idle threads wait, unless the user has said so."""
    chosen = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & environment.keys()
    return {} if chosen else {"GOMP_SPINCOUNT": _SPINS}


def _environment() -> dict[str, str]:
    """Return the variables of a child."""
    # It sees the modules that this process sees, whatever the current folder holds.
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    return {**os.environ, **waiting(os.environ), "PYTHONPATH": path}
