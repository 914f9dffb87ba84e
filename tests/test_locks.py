from __future__ import annotations

import threading

from filelock import FileLock

from harness.data import locks
from harness.data.locks import locked


def test_who_waits_for_a_lock_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_PATIENCE", 0.01)
    held, waited = FileLock(tmp_path / "lock"), []
    held.acquire()

    def on_wait():
        waited.append(held.is_locked)
        if len(waited) == 3:
            held.release()

    with locked(tmp_path / "lock", on_wait):
        assert waited == [True] * 3


def test_a_lock_is_given_back_after_an_error(tmp_path):
    for _ in range(2):
        try:
            with locked(tmp_path / "lock", threading.Event().set):
                raise ValueError
        except ValueError:
            pass
