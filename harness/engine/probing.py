"""A look at the features of frozen backbones before anything trains: probes, and heads to start from."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from harness.engine.features import Features
from harness.engine.heads import place_ridge
from harness.engine.job import ProbeJob, TrialJob
from harness.engine.outcome import raise_if_machine_failed, say_in_a_line
from harness.engine.prefix import PrefixCounts
from harness.engine.probes import ProbeResult, knn_probe, ridge_probe
from harness.engine.setup import Setup
from harness.records import ProbeRecord

_NOT_LINEAR = "its head is not one linear layer"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadStart:
    """Where the head of a training starts."""

    how: str
    """For the record: `ridge`, another name of `head_init`, or why the head is as it is built."""
    is_built: bool = False
    """Whether its numbers are those that the building of the backbone draws."""
    layer: str = ""
    """The linear layer that is the head, where ridge regression has a say."""
    weight: Tensor | None = None
    bias: Tensor | None = None
    counts: PrefixCounts = field(default_factory=PrefixCounts)
    """What was sent through the backbone for it, in this trial."""

    @staticmethod
    def as_built(why: str) -> HeadStart:
        """Return what ridge regression has no say in."""
        return HeadStart(how=f"as built: {why}", is_built=True)

    def place(self, model: nn.Module) -> None:
        """Put it into a model."""
        if self.weight is not None and self.bias is not None:
            layer = model.get_submodule(self.layer)
            assert isinstance(layer, nn.Linear)
            place_ridge(layer, self.weight, self.bias)


class Prober:
    """Looks at backbones through one linear layer on their features.

    Args:
        setup: Of the study's trials.
        num_classes: Of the data set.
        home: Where a look that fails says it was.
    """

    def __init__(self, setup: Setup, num_classes: int, home: Path) -> None:
        self._setup = setup
        self._num_classes = num_classes
        self._home = home
        self._starts: dict[tuple[object, ...], HeadStart] = {}

    def probe(self, job: ProbeJob, *, on_step: Callable[[], None]) -> ProbeRecord:
        """Say how well a backbone's features tell the classes apart; what goes wrong is part of the answer.

        Raises:
            StorageError, DataError: The machine failed, not the backbone.
        """
        began = time.perf_counter()
        trial = TrialJob(
            kind="search",
            number=0,
            config=job.config,
            weights=job.weights,
            folder=self._home,
            sharing=job.sharing,
            depths=job.depths,
        )
        try:
            with self._setup.tidied():
                found = self._look(trial, PrefixCounts(), on_step)
                if found is None:
                    return ProbeRecord.failed(job.config.backbone, _NOT_LINEAR)
                data, ridge = found
                nearest = knn_probe(*data, self._num_classes)
        except Exception as error:
            raise_if_machine_failed(error, trial)
            seconds = time.perf_counter() - began
            return ProbeRecord.failed(job.config.backbone, say_in_a_line(error), seconds)
        return ProbeRecord(
            backbone=job.config.backbone,
            ridge_f1=ridge.f1,
            ridge_accuracy=ridge.accuracy,
            knn_f1=nearest.f1,
            knn_accuracy=nearest.accuracy,
            seconds=time.perf_counter() - began,
        )

    def find_starts(self, jobs: Sequence[TrialJob], on_step: Callable[[], None]) -> list[HeadStart]:
        """Return where the heads of trials start; ridge regression runs once for all trials of a backbone.

        Where it has no say (random weights give no features to speak of, or more than one linear layer is the
        head) a head stays as it is built.

        Args:
            jobs: Trials that train together, and share what is spent on this.
            on_step: Called after each pass of images.

        Raises:
            StorageError, DataError: The machine failed, not the backbone.
        """
        counts = PrefixCounts()
        starts = [self._find_start(job, counts, on_step) for job in jobs]
        return [dataclasses.replace(start, counts=counts) for start in starts]

    def _find_start(self, job: TrialJob, counts: PrefixCounts, on_step: Callable[[], None]) -> HeadStart:
        config = job.config
        if config.head_init != "ridge":
            return HeadStart(how=config.head_init, is_built=config.head_init == "timm")
        if job.weights is None:
            return HeadStart.as_built("its backbone starts from random weights")
        key = _origin(job)
        if key not in self._starts:
            bare = dataclasses.replace(config, freeze_depth=1.0, head_init="timm")
            try:
                self._look(dataclasses.replace(job, config=bare, test=()), counts, on_step)
            except Exception as error:
                raise_if_machine_failed(error, job)
                self._starts[key] = HeadStart.as_built(say_in_a_line(error))
        return self._starts[key]

    def _look(
        self, job: TrialJob, counts: PrefixCounts, on_step: Callable[[], None]
    ) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], ProbeResult] | None:
        """Fit ridge regression to the features of a backbone; return what it saw, and what came out.

        None where the backbone's head is not one linear layer.
        """
        opened = self._setup.open(job, self._setup.build(job), on_step)
        layer = opened.part.head
        if layer is None or opened.prefix is None:
            self._starts[_origin(job)] = HeadStart.as_built(_NOT_LINEAR)
            return None
        features = Features(opened.images, opened.prefix, self._setup.residency.claim)
        data = self._data(features)
        ridge = ridge_probe(*data, self._num_classes)
        counts.passes += opened.prefix.counts.passes
        counts.seconds += opened.prefix.counts.seconds
        norm = float(ridge.weight.norm())
        self._starts[_origin(job)] = (
            HeadStart(how="ridge", layer=layer, weight=ridge.weight, bias=ridge.bias)
            if 0 < norm < math.inf
            else HeadStart.as_built("the features say nothing of the classes")
        )
        return data, ridge

    def _data(self, features: Features) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what a probe learns from and is scored on, on the device."""
        device = self._setup.device
        if device.type == "mps":
            # Apple's GPUs have no float64.
            device = torch.device("cpu")
        return (
            features.train(0).to(device),
            features.labels("train").to(device),
            features.split("val").to(device),
            features.labels("val").to(device),
        )


def _origin(job: TrialJob) -> tuple[object, ...]:
    """Name all that the features of a trial's backbone depend on, in one study."""
    config = job.config
    return config.backbone, config.image_size, config.augmentation, job.weights
