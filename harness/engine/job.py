"""What an engine is asked to do and what it answers; travels between processes and imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.data.manifest import Item, Manifest
from harness.records import CostRecord, EpochRecord, Kind, Scores, State, TrialConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """What an engine is built from."""

    plugins: tuple[str, ...]
    """`-p` values."""
    manifest: Manifest
    """Without the test split."""
    device: str
    threads: int
    home: Path
    cache: int | None = None
    """Bytes of activations that may be stored; None: a share of the disk."""
    gpu_share: float = 0.9
    """Share of a GPU's memory that the process may take."""
    deterministic: bool = False
    compile: bool = False
    """These three as in `RunConfig`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialJob:
    """One training to do."""

    kind: Kind
    number: int
    config: TrialConfig
    weights: Path | None
    """The checkpoint to start from; None for scratch."""
    folder: Path
    """Where predictions and weights go."""
    sharing: float = 1.0
    """How many of the study's trainings, this one included, have this backbone and freeze depth."""
    depths: tuple[float, ...] = ()
    """Freeze depths that the study chooses from."""
    test: tuple[Item, ...] = ()
    """The test split, for a finalist alone: nobody else is given it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeJob:
    """A backbone whose features are to be probed."""

    config: TrialConfig
    """Of any trial of the backbone that trains the head only."""
    weights: Path | None
    sharing: float
    depths: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialOutcome:
    """What came out of a training."""

    state: State
    reason: str = ""
    detail: str = ""
    """A traceback, for the study's folder."""
    scores: Mapping[str, Scores] = field(default_factory=dict)
    curve: tuple[EpochRecord, ...] = ()
    cost: CostRecord | None = None
    predictions: Mapping[str, str] = field(default_factory=dict)
    model: str = ""
    """SHA-256 of the weights, where they are kept."""
    environment: Mapping[str, str] = field(default_factory=dict)


def report_as(
    number: int, on_epoch: Callable[[int, EpochRecord], bool]
) -> Callable[[int, EpochRecord], bool]:
    """Return what a training that runs alone reports to, under its position among others."""
    return lambda _, record: on_epoch(number, record)
