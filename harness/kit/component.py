"""What the checks of every kind share, and what a component of any kind says of itself."""

from __future__ import annotations

import dataclasses

from harness.specs import Spec


def require(condition: object, message: str) -> None:
    """Raise AssertionError unless a condition holds; unlike `assert` also under `python -O`."""
    if not condition:
        raise AssertionError(message)


def is_described(spec: Spec) -> None:
    """Check what every component says of itself."""
    require(spec.name.isprintable() and not spec.name[-1:].isspace(), "its name has signs that do not print")
    require(spec.summary.strip(), "its summary is empty")
    require(spec.summary.isprintable(), "its summary is more than one line of plain text")
    require(callable(getattr(spec, "build", None)), "its build cannot be called")
    try:
        spec.name = spec.name  # type: ignore[misc]
    except dataclasses.FrozenInstanceError:
        return
    require(False, "it can be changed: specs are frozen")
