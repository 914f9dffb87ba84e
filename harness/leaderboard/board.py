"""What a leaderboard is: rows that may be compared, the floor under them, and what they leave out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from harness.leaderboard.entry import Tier
from harness.records import Metric
from harness.text import counted

if TYPE_CHECKING:
    import pandas as pd

By: TypeAlias = Literal["run", "backbone"]
Cell: TypeAlias = str | int | float | None

LABELS: Mapping[str, str] = {"f1": "macro-F1", "accuracy": "accuracy"}
STATES = ("complete", "pruned", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One run: a configuration of a study, averaged over the seeds it was trained with."""

    rank: int
    """Counts from 1; rows that cannot be told apart share it and the next ones are left out."""
    source: str
    """Digest of the bundle that it came in; empty for a study of one's own."""
    tier: Tier
    """The lowest of its trainings."""
    study: str
    number: int
    """The first trial with this configuration."""
    backbone: str
    freeze_depth: float
    lr: float
    optimizer: str
    augmentation: str
    loss: str
    f1: float
    """Macro-F1 in [0, 1], mean over seeds."""
    f1_interval: tuple[float, float]
    """Mean bounds of the seeds' 95 % intervals."""
    f1_spread: float | None
    """Sample standard deviation over the seeds that are complete; None for one."""
    accuracy: float
    accuracy_interval: tuple[float, float]
    accuracy_spread: float | None
    val: float | None
    """Of the ranked metric, mean on val of these same trainings; None where they have none."""
    gap: float | None
    """`val` less the ranked score on test; None on a val board."""
    seeds: int
    """Trainings that are complete."""
    failed: int
    """Final trainings that failed; each counts with the score of the floor."""
    has_answers: bool
    """Whether it was compared image by image; without predictions its confusion matrices were."""
    params: int | None
    trainable: int | None
    seconds: float | None
    """Wall time of one training, mean over seeds."""
    device: str
    plugin: str
    """Distribution of the backbone, then those of other components that are not built in."""
    licence: str
    """Of the weights; `none` for scratch."""
    init: Literal["pretrained", "scratch"]
    weight_decay: float
    schedule: str
    head_init: str
    epochs: int
    batch_size: int
    image_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """What predicting the majority class of the training split scores: the least a row has to beat."""

    label: str
    """That class."""
    f1: float
    accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaderboard:
    """Rows that may be compared, best first."""

    dataset: str
    split: Literal["val", "test"]
    metric: Metric
    by: By
    protocol: str
    """Digest of the protocol that all rows share."""
    init: Literal["pretrained", "scratch"]
    rows: tuple[Row, ...]
    floor: Floor | None
    """None where the records hold no class counts."""
    counts: Mapping[str, int]
    """Images by split."""
    classes: tuple[str, ...]
    supported: int
    """Classes with images in the ranked split: those a macro average is over."""
    outcomes: Mapping[str, int]
    """Trials of the search by state."""
    finals: Mapping[str, int]
    """Final trainings by state."""
    other: int
    """Further protocols of this data set among the records; their rows are in other tables."""
    differences: tuple[str, ...]
    """In what those protocols differ from this one."""
    unranked: tuple[str, ...]
    """Studies with complete trials of this protocol, but no score on this split."""

    @property
    def unpaired(self) -> int:
        """Return how many rows have no predictions, or none that give their scores."""
        return sum(row.seeds > 0 and not row.has_answers for row in self.rows)

    def table(self) -> list[dict[str, Cell]]:
        """Return one mapping per row with every column, those of the board first, as `COLUMNS` names them."""
        board = {name: getattr(self, name) for name in _BOARD}
        return [{**board, **_flat(row)} for row in self.rows]

    def frame(self) -> pd.DataFrame:
        """Return every column in full precision as a data frame."""
        import pandas as pd

        return pd.DataFrame(self.table(), columns=list(COLUMNS))

    def caption(self) -> str:
        """Say in one line what was scored, on what, and what is not in the table.

        Names in it are as recorded: pass it through `harness.text.safe_text` before a terminal sees it.
        """
        classes = f"{len(self.classes)} classes"
        if self.supported < len(self.classes):
            classes += f", {self.supported} with images"
        parts = [
            f"{self.dataset} · {LABELS[self.metric]} on {self.split} "
            f"({self.counts.get(self.split, 0)} images, {classes})"
        ]
        parts += ["scratch: no pretrained weights"] if self.init == "scratch" else []
        parts += ["best run of each backbone, chosen on val"] if self.by == "backbone" else []
        sizes = [f"{name} {self.counts[name]}" for name in ("train", "val", "test") if name in self.counts]
        parts.append(", ".join(sizes))
        parts += [_count(self.outcomes, "trial")] if self.outcomes else []
        if set(self.finals) - {"complete"}:
            parts.append(_count(self.finals, "final training"))
        if any(row.failed for row in self.rows):
            parts.append("! failed trainings count as the floor")
        if self.unpaired:
            parts.append(f"{counted(self.unpaired, 'row')} without predictions, compared unpaired")
        parts += [f"no {self.split} scores: {', '.join(self.unranked)}"] if self.unranked else []
        parts.append(f"protocol {self.protocol[:8]}")
        if self.other:
            why = f" (differs in {', '.join(self.differences)})" if self.differences else ""
            parts.append(f"not comparable with {counted(self.other, 'other protocol')} of this data set{why}")
        return " · ".join(part for part in parts if part)


_BOARD = ("dataset", "split", "protocol", "metric")
_INTERVALS = {"f1_interval": ("f1_low", "f1_high"), "accuracy_interval": ("accuracy_low", "accuracy_high")}
COLUMNS: tuple[str, ...] = (
    *_BOARD,
    *(name for item in dataclasses.fields(Row) for name in _INTERVALS.get(item.name, (item.name,))),
)
"""The columns of `Leaderboard.table`, in order."""


def _flat(row: Row) -> dict[str, Cell]:
    flat: dict[str, Cell] = {}
    for item in dataclasses.fields(row):
        value = getattr(row, item.name)
        if item.name in _INTERVALS:
            flat |= zip(_INTERVALS[item.name], value, strict=True)
        else:
            flat[item.name] = value
    return flat


def _count(outcomes: Mapping[str, int], noun: str) -> str:
    by_state = ", ".join(f"{outcomes[state]} {state}" for state in STATES if outcomes.get(state))
    return f"{counted(sum(outcomes.values()), noun)}: {by_state}"
