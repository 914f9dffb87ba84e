"""The whole plugin contract: six hooks that register components and six that observe a study.

A plugin is a module, or a class that the host instantiates, named by an entry point of the group
`harness`; it implements any of these with `@harness.hookimpl`. Registration hooks use no network, read no
more than a small file of their own, and import nothing heavy: that belongs into a spec's `build`. Observers
receive frozen values, can change nothing, and an error in one is reported once while the study goes on. No
hook can be a hook wrapper.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pluggy

from harness.records import ProbeRecord, StudyView, TrialConfig, TrialRecord
from harness.specs import (
    AugmentationSpec,
    BackboneSpec,
    DatasetSpec,
    Family,
    LossSpec,
    OptimizerSpec,
    ScheduleSpec,
)

hookspec = pluggy.HookspecMarker("harness")
hookimpl = pluggy.HookimplMarker("harness")


@hookspec
def harness_datasets() -> Iterable[DatasetSpec | Family[DatasetSpec]]:
    """Yield named data sets.

    Example::

        @hookimpl
        def harness_datasets():
            yield DatasetSpec(name="beans", summary="three leaf diseases", build=read_beans,
                              licence="MIT", url="https://example.org/beans")
    """
    return ()


@hookspec
def harness_backbones() -> Iterable[BackboneSpec | Family[BackboneSpec]]:
    """Yield backbones, or a family of them.

    Example::

        @hookimpl
        def harness_backbones():
            yield BackboneSpec(name="tiny-net", summary="two convolutions", build=build_tiny_net)
    """
    return ()


@hookspec
def harness_augmentations() -> Iterable[AugmentationSpec | Family[AugmentationSpec]]:
    """Yield training-time augmentation policies.

    Example::

        @hookimpl
        def harness_augmentations():
            yield AugmentationSpec(name="upside-down", summary="flip vertically", build=build_upside_down)
    """
    return ()


@hookspec
def harness_losses() -> Iterable[LossSpec | Family[LossSpec]]:
    """Yield training losses.

    Example::

        @hookimpl
        def harness_losses():
            yield LossSpec(name="plain", summary="cross-entropy",
                           build=lambda classes: nn.CrossEntropyLoss())
    """
    return ()


@hookspec
def harness_optimizers() -> Iterable[OptimizerSpec | Family[OptimizerSpec]]:
    """Yield optimizers.

    Example::

        @hookimpl
        def harness_optimizers():
            yield OptimizerSpec(name="rmsprop", summary="RMSprop", lr=(1e-5, 1e-2),
                                build=lambda groups: torch.optim.RMSprop(groups))
    """
    return ()


@hookspec
def harness_schedules() -> Iterable[ScheduleSpec | Family[ScheduleSpec]]:
    """Yield learning-rate schedules.

    Example::

        @hookimpl
        def harness_schedules():
            yield ScheduleSpec(name="linear", summary="straight down to zero",
                               build=lambda steps: lambda step: 1 - step / steps)
    """
    return ()


@hookspec
def harness_study_started(study: StudyView, records: Sequence[TrialRecord]) -> None:
    """Observe the start of a study, or its resumption with the records it has."""


@hookspec
def harness_probe_finished(study: StudyView, probe: ProbeRecord) -> None:
    """Observe what a backbone's features are worth before anything is trained."""


@hookspec
def harness_trial_started(study: StudyView, trial: TrialConfig, kind: str, number: int) -> None:
    """Observe the start of a training: `kind` is `search` or `final`."""


@hookspec
def harness_epoch_finished(
    study: StudyView, trial: TrialConfig, kind: str, number: int, epoch: int, value: float
) -> None:
    """Observe an epoch: `epoch` counts from 1, `value` is the study's metric on the validation split."""


@hookspec
def harness_trial_finished(study: StudyView, record: TrialRecord) -> None:
    """Observe the stored record of a training, whatever its outcome."""


@hookspec
def harness_study_finished(study: StudyView, records: Sequence[TrialRecord]) -> None:
    """Observe the end of a study, whether it is complete, stopped or interrupted."""
