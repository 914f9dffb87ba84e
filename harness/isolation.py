"""Call code of a plugin so that it can harm nothing but itself."""

from __future__ import annotations

import random
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from harness.errors import HarnessError
from harness.text import safe_text

_LONGEST = 300
_NOTE = "raised by "
# Frames of these packages are how a plugin was called, not where it failed.
_OURS = frozenset({"harness", "pluggy", "importlib", "contextlib"})


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Restore Python's, NumPy's and torch's generators: a plugin must not shift anyone's random numbers."""
    python = random.getstate()
    # While another thread imports one of these it is in sys.modules without its parts.
    numpy = getattr(sys.modules.get("numpy"), "random", None)
    torch = sys.modules.get("torch")
    torch = torch if hasattr(torch, "get_rng_state") and hasattr(torch, "cuda") else None
    numpy_state = numpy.get_state() if numpy else None
    torch_state = torch.get_rng_state() if torch else None
    cuda_states = torch.cuda.get_rng_state_all() if torch and torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(python)
        if numpy:
            numpy.set_state(numpy_state)
        if torch:
            torch.set_rng_state(torch_state)
        if torch and cuda_states is not None:
            torch.cuda.set_rng_state_all(cuda_states)


def seed_all(seed: int) -> None:
    """Seed torch's, NumPy's and Python's global generators; a plugin may draw from any of them."""
    import numpy as np
    import torch

    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@contextmanager
def registering() -> Iterator[None]:
    """Keep the random state, and keep what a plugin prints while it loads out of our standard output."""
    with kept_random_state(), redirect_stdout(sys.stderr):
        yield


@contextmanager
def naming(kind: str, name: str) -> Iterator[None]:
    """Note on an error which component raised it; it stays the error that it is."""
    try:
        yield
    except Exception as error:
        error.add_note(f"{_NOTE}{kind} {name!r}")
        raise


def component_of(error: Exception) -> str:
    """Return the component that is noted on an error, as `loss 'focal'`; empty where none is."""
    notes = getattr(error, "__notes__", ())
    return next((note.removeprefix(_NOTE) for note in notes if note.startswith(_NOTE)), "")


def describe_error(error: BaseException) -> str:
    """Return one line: the error, its message, and the first place outside the host it passed."""
    try:
        message = safe_text(" ".join(str(error).split()))
    except Exception:
        message = ""
    if len(message) > _LONGEST:
        message = message[: _LONGEST - 3] + "..."
    name = "" if isinstance(error, HarnessError) else type(error).__name__
    text = ": ".join(part for part in (name, message) if part)
    place = _place(error)
    return f"{text} ({place})" if place and place not in text else text


def _place(error: BaseException) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return safe_text(f"{Path(error.filename).name}, line {error.lineno}")
    for frame, line in traceback.walk_tb(error.__traceback__):
        if str(frame.f_globals.get("__name__")).partition(".")[0] not in _OURS:
            return safe_text(f"{Path(frame.f_code.co_filename).name}, line {line}")
    return ""
