"""The search space: resolved once against the installed plugins, then frozen with its study."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from harness.config import DEFAULT_TRIALS, Range, StudyConfig
from harness.errors import HarnessError, UsageError
from harness.records import TrialConfig
from harness.registry import Registry

if TYPE_CHECKING:
    import optuna

Value: TypeAlias = str | float

FEW_DEPTHS = 20
"""Of an interval with steps: of more freeze depths each comes about once, and there is nothing to share."""

# The axes of `SpaceConfig` that name components, and the catalog each is looked up in.
COMPONENTS = {
    "backbone": "backbone",
    "optimizer": "optimizer",
    "augmentation": "augmentation",
    "loss": "loss",
    "schedule": "schedule",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One dimension: choices, or an interval. Evenly spaced numbers are both, so that they have an order."""

    name: str
    choices: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What a study searches; independent of what is installed later."""

    axes: tuple[Axis, ...]
    lr_bounds: Mapping[str, tuple[float, float]]
    """By optimizer, for the axis `lr_position`: 0 is the lower bound, 1 the upper one, on a log scale."""
    image_sizes: Mapping[str, int]
    """Input size of each backbone, in pixels."""

    def suggest(self, trial: optuna.Trial) -> dict[str, Value]:
        """Ask Optuna for a point."""
        return {axis.name: _suggest(trial, axis) for axis in self.axes}

    def grid(self) -> dict[str, list[Value]]:
        """Return all values of each axis.

        Raises:
            UsageError: An axis is continuous.
        """
        return {axis.name: list(_values(axis)) for axis in self.axes if len(axis.choices) != 1}

    def grid_points(self, seed: int) -> list[dict[str, Value]]:
        """Return each point of the grid once, in an order drawn from the seed.

        Raises:
            UsageError: An axis is continuous.
        """
        grid = self.grid()
        points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
        random.Random(seed).shuffle(points)
        return points

    def distributions(self) -> dict[str, optuna.distributions.BaseDistribution]:
        """Return what Optuna searches: the axes that have more than one value."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution

        return {
            axis.name: CategoricalDistribution(list(axis.choices))
            if axis.choices and not axis.step
            else FloatDistribution(axis.low, axis.high, step=axis.step, log=axis.log)
            for axis in self.axes
            if len(axis.choices) != 1
        }

    def params_of(self, config: TrialConfig) -> dict[str, Value] | None:
        """Return a configuration as Optuna's parameters, or None when it lies outside the space."""
        params: dict[str, Value] = {}
        for axis in self.axes:
            if axis.name == "lr_position":
                low, high = self.lr_bounds.get(config.optimizer, (math.inf, math.inf))
                if not low <= config.lr <= high:
                    return None
                value: Value = min(1.0, math.log(config.lr / low) / math.log(high / low))
            else:
                value = getattr(config, axis.name)
            if not _contains(axis, value):
                return None
            if len(axis.choices) != 1:
                params[axis.name] = value
        return params

    def trial_config(self, study: StudyConfig, point: Mapping[str, Value], seed: int) -> TrialConfig:
        """Turn a point into what one training is told."""
        values = dict(point)
        if "lr_position" in values:
            low, high = self.lr_bounds[str(values["optimizer"])]
            values["lr"] = low * (high / low) ** float(values.pop("lr_position"))
        train = study.train
        return TrialConfig(
            **values,  # type: ignore[arg-type]
            image_size=self.image_sizes[str(values["backbone"])],
            init=study.init,
            epochs=train.epochs,
            batch_size=train.batch_size,
            warmup=train.warmup,
            ema=train.ema,
            clip_grad=train.clip_grad,
            precision=train.precision,
            seed=seed,
        )

    def probe_config(self, study: StudyConfig, backbone: str) -> TrialConfig:
        """Return what a training of a backbone's head is told, to look at its features."""
        point = {axis.name: axis.choices[0] if axis.choices else axis.low for axis in self.axes}
        return self.trial_config(study, {**point, "backbone": backbone, "freeze_depth": 1.0}, study.seed)

    @property
    def backbones(self) -> tuple[str, ...]:
        """The backbones to choose from."""
        axis = next(axis for axis in self.axes if axis.name == "backbone")
        return tuple(str(name) for name in axis.choices)

    @property
    def depths(self) -> tuple[float, ...]:
        """The freeze depths to choose from; none where they are an interval, or as good as one."""
        axis = next(axis for axis in self.axes if axis.name == "freeze_depth")
        if not axis.choices and not axis.step:
            return ()
        depths = tuple(float(value) for value in itertools.islice(_values(axis), FEW_DEPTHS + 1))
        return depths if axis.choices or len(depths) <= FEW_DEPTHS else ()

    def sharing(self, trials: int | None) -> float:
        """Return how many trials have one backbone and freeze depth, on average; at least 1.

        Where a budget bounds a study, nobody knows how many trials it pays for: as many as by default.
        """
        # Of an interval of freeze depths each value comes once.
        places = len(self.backbones) * len(self.depths)
        return max(1.0, (trials or DEFAULT_TRIALS) / places) if places else 1.0

    def to_json(self) -> dict[str, Any]:
        """Return the form that is stored with the study."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Space:
        """Restore a stored space."""
        return Space(
            axes=tuple(Axis(**{**axis, "choices": tuple(axis["choices"])}) for axis in value["axes"]),
            lr_bounds={name: (low, high) for name, (low, high) in value["lr_bounds"].items()},
            image_sizes=dict(value["image_sizes"]),
        )


def resolve_space(study: StudyConfig, registry: Registry, *, where: str = "study") -> Space:
    """Expand globs and check every name against the installed plugins.

    Raises:
        UsageError: Names that do not exist, all at once.
    """
    chosen: dict[str, list[str]] = {}
    errors: list[HarnessError] = []
    for field, kind in COMPONENTS.items():
        names: list[str] = []
        for pattern in getattr(study.space, field):
            try:
                names += registry.catalog(kind).expand(pattern)
            except UsageError as error:
                errors.append(error)
        chosen[field] = list(dict.fromkeys(names))
    if len(errors) == 1:
        errors[0].where = where
        raise errors[0]
    if errors:
        raise UsageError(
            f"invalid study, {len(errors)} errors\n" + "\n".join(f"  {error.what}" for error in errors),
            where=where,
        )
    axes = [
        _names_axis("backbone", chosen["backbone"]),
        _number_axis("freeze_depth", study.space.freeze_depth),
        Axis(name="lr_position", low=0.0, high=1.0)
        if study.space.lr == "auto"
        else _number_axis("lr", study.space.lr),
        _names_axis("optimizer", chosen["optimizer"]),
        _names_axis("augmentation", chosen["augmentation"]),
        _names_axis("loss", chosen["loss"]),
        _names_axis("schedule", chosen["schedule"]),
        _number_axis("weight_decay", study.space.weight_decay),
        _names_axis("head_init", list(study.space.head_init)),
    ]
    bounds = {name: registry.optimizers.get(name).spec.lr for name in chosen["optimizer"]}
    return Space(
        axes=tuple(axes), lr_bounds=bounds, image_sizes=_image_sizes(study, chosen["backbone"], registry)
    )


def _image_sizes(study: StudyConfig, backbones: list[str], registry: Registry) -> dict[str, int]:
    sizes = {}
    for name in backbones:
        spec = registry.backbones.get(name).spec
        size = study.train.image_size or spec.input.size
        if spec.fixed_size and size != spec.input.size:
            raise UsageError(
                f"backbone {name!r} takes images of {spec.input.size} px only, not {size}",
                where="train.image_size",
                fixes=["leave image_size out", "leave the backbone out"],
            )
        sizes[name] = size
    return sizes


def _names_axis(name: str, values: list[str]) -> Axis:
    return Axis(name=name, choices=tuple(values))


def _number_axis(name: str, values: Range | tuple[float, ...]) -> Axis:
    if isinstance(values, Range):
        return Axis(name=name, low=values.low, high=values.high, step=values.step, log=values.log)
    numbers = sorted(set(values))
    # As written: 0.1 + 0.2 is 0.3 here, and a third, which no decimal is, makes plain choices.
    gaps = {Decimal(str(b)) - Decimal(str(a)) for a, b in itertools.pairwise(numbers)}
    if len(numbers) > 2 and len(gaps) == 1:
        # Evenly spaced numbers have an order that the sampler can use; bare choices have none.
        step = float(gaps.pop())
        return Axis(name=name, choices=tuple(numbers), low=numbers[0], high=numbers[-1], step=step)
    return Axis(name=name, choices=tuple(numbers))


def _suggest(trial: optuna.Trial, axis: Axis) -> Value:
    if len(axis.choices) == 1:
        return axis.choices[0]
    if axis.choices and not axis.step:
        return cast(Value, trial.suggest_categorical(axis.name, list(axis.choices)))
    value = trial.suggest_float(axis.name, axis.low, axis.high, step=axis.step, log=axis.log)
    if not axis.step:
        return value
    # Back to the number that the user wrote; rounding keeps 0.30000000000000004 out of records and digests.
    steps = round((value - axis.low) / axis.step)
    return axis.choices[steps] if axis.choices else round(axis.low + steps * axis.step, 9)


def _contains(axis: Axis, value: Value) -> bool:
    if axis.choices:
        return value in axis.choices
    value = float(value)
    if not axis.low <= value <= axis.high:
        return False
    steps = (value - axis.low) / axis.step if axis.step else 0.0
    return abs(steps - round(steps)) < 1e-6


def _values(axis: Axis) -> Iterator[Value]:
    if axis.choices:
        yield from axis.choices
    elif axis.step:
        count = math.floor((axis.high - axis.low) / axis.step + 1e-9) + 1
        yield from (round(axis.low + index * axis.step, 9) for index in range(count))
    else:
        raise UsageError(
            f"sampler 'grid' needs a list or a step for space.{axis.name.removesuffix('_position')}"
        )
