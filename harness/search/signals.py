"""Signals that stop a study: at once while it prepares, at the next look while it trains."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from harness.errors import Interrupted

# Exit codes by signal. SIGUSR1 is how a cluster announces that time is up.
_CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 75}
STOPPING = tuple(getattr(signal, name) for name in _CODES if hasattr(signal, name))
"""Signals that stop a study, of those that this system has."""


class StopSignal:
    """Whether a signal asked to stop. Handlers belong to the main thread; elsewhere nothing ever asks."""

    def __init__(self) -> None:
        self.code = 0
        """Exit code of the first signal; 0 before it."""
        self._is_polled = False

    def check(self) -> None:
        """Raise `Interrupted` if a signal has come."""
        if self.code:
            raise Interrupted(self.code)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals; the handlers from before come back at the end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._handle) for number in STOPPING}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def polled(self) -> Iterator[None]:
        """Only note the first signal: whoever is inside looks at `check`. A second one interrupts at once."""
        self._is_polled = True
        try:
            yield
        finally:
            self._is_polled = False

    def _handle(self, number: int, frame: object) -> None:
        is_first = not self.code
        self.code = self.code or _CODES[signal.Signals(number).name]
        if not (is_first and self._is_polled):
            raise Interrupted(self.code)
