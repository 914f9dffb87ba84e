"""What a user asks of a study: one pydantic model behind the TOML file, the flags and the Python API."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from harness.errors import UsageError, nearest
from harness.paths import expand

SCHEMA: Literal["harness.study/1"] = "harness.study/1"
DEVICES = r"^(auto|cpu|mps|cuda(:\d+)?)$"
"""Pattern of what a training may be asked to run on."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class Range(_Model):
    """An interval: `{ low = 1e-5, high = 1e-2, log = true }` or `{ low = 0, high = 1, step = 0.25 }`."""

    low: float
    high: float
    step: float | None = Field(default=None, gt=0)
    log: bool = False

    @model_validator(mode="after")
    def _is_ordered(self) -> Range:
        if self.high <= self.low:
            raise ValueError(f"high ({self.high:g}) must be above low ({self.low:g})")
        if self.log and self.low <= 0:
            raise ValueError(f"low must be above 0 on a log scale (got {self.low:g})")
        if self.log and self.step:
            raise ValueError("step and log exclude each other")
        # But for the rounding of the difference.
        if self.step and self.step > (self.high - self.low) * (1 + 1e-9):
            raise ValueError(f"step ({self.step:g}) must not be larger than from low to high")
        return self


def _as_list(value: object) -> object:
    return value if isinstance(value, list | tuple | dict | Range) else [value]


def _without_repeats(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(values))


def _axis_kind(value: object) -> str:
    if value == "auto":
        return "auto"
    return "range" if isinstance(value, dict | Range) else "choices"


Names: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(_as_list), Field(min_length=1)]
"""Component names to choose from; one name stands for a list of one."""
Numbers: TypeAlias = Annotated[
    Annotated[Range, Tag("range")] | Annotated[tuple[float, ...], Field(min_length=1), Tag("choices")],
    Discriminator(_axis_kind),
    BeforeValidator(_as_list),
]
"""A number, a list of numbers to choose from, or a range."""
AutoOrNumbers: TypeAlias = Annotated[
    Annotated[Literal["auto"], Tag("auto")]
    | Annotated[Range, Tag("range")]
    | Annotated[tuple[float, ...], Field(min_length=1), Tag("choices")],
    Discriminator(_axis_kind),
    BeforeValidator(lambda value: value if value == "auto" else _as_list(value)),
]


class SpaceConfig(_Model):
    """What is searched. A single value fixes an axis."""

    backbone: Names = (
        "resnet18.a1_in1k",
        "efficientnet_b0.ra_in1k",
        "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    )
    """Names or globs; `harness models list` shows them."""
    freeze_depth: Numbers = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Share of the backbone's blocks that is frozen, in [0, 1]."""
    lr: AutoOrNumbers = "auto"
    """`auto` searches within the bounds that each optimizer states for itself."""
    optimizer: Names = ("adamw", "sgd")
    augmentation: Names = ("flip-crop",)
    loss: Names = ("cross-entropy",)
    schedule: Names = ("cosine",)
    weight_decay: Numbers = (0.05,)
    head_init: Annotated[
        tuple[Literal["ridge", "timm", "xavier", "kaiming", "zero"], ...],
        BeforeValidator(_as_list),
        AfterValidator(_without_repeats),
        Field(min_length=1),
    ] = ("ridge",)
    """How the new head starts; `ridge` takes what ridge regression finds on the features of the backbone."""

    @model_validator(mode="after")
    def _is_in_bounds(self) -> SpaceConfig:
        for name, low, high in (("freeze_depth", 0.0, 1.0), ("lr", 0.0, None), ("weight_decay", 0.0, None)):
            axis = getattr(self, name)
            if axis == "auto":
                continue
            values = (axis.low, axis.high) if isinstance(axis, Range) else axis
            for value in values:
                if value < low or (high is not None and value > high) or (name == "lr" and value == 0):
                    bounds = "between 0 and 1" if high else ("above 0" if name == "lr" else "at least 0")
                    raise ValueError(f"{name} must be {bounds} (got {value:g})")
        return self


class TrainConfig(_Model):
    """Settings that all trials share."""

    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=32, ge=2)
    image_size: int = Field(default=0, ge=0)
    """Side in pixels; 0 takes each backbone's own."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps over which the learning rate rises linearly."""
    ema: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the averaged weights that are evaluated; 0 averages nothing."""
    clip_grad: float = Field(default=1.0, ge=0)
    """Largest gradient norm; 0 does not clip."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: bf16 on a CUDA GPU and, but for depthwise convolutions, on a CPU with AMX; fp32 elsewhere."""


class SearchConfig(_Model):
    """How the space is searched."""

    sampler: Literal["gp", "tpe", "random", "grid"] = "gp"
    pruner: Literal["none", "median", "hyperband", "halving"] = "halving"
    """`halving`: of the trials of a freeze depth a third goes on after 3, 9, 27 epochs, where twice as many
    are still to come."""
    probes: bool = True
    """Probe the features of pretrained backbones first: the first trials come in their order."""


class SplitConfig(_Model):
    """How a data set without official splits is divided; stratified by class."""

    val: float = Field(default=0.15, gt=0, lt=0.9)
    test: float = Field(default=0.15, gt=0, lt=0.9)
    seed: int = Field(default=0, ge=0)


class FinalizeConfig(_Model):
    """The finalising step: the only one that opens the test split."""

    top: int = Field(default=3, ge=0)
    """Finalists: the best trial of each backbone first, then the next best. 0 keeps the test split shut."""
    seeds: int = Field(default=1, ge=1)
    """Fresh seeds that each finalist is trained with."""


class RunConfig(_Model):
    """Where and how it runs; no part of a study's identity."""

    device: str = Field(default="auto", pattern=DEVICES)
    threads: int = Field(default=0, ge=0)
    """CPU threads of a trial; 0 takes all cores. Another count changes the last bits of the weights."""
    executor: Literal["process", "inline"] = "process"
    """`process` isolates trials from the study; `inline` is for debugging."""
    cache_gb: float | None = Field(default=None, ge=0)
    """Gigabytes for stored activations; default: a fifth of the free disk, at most 50. 0 stores none."""
    gpu_share: float = Field(default=0.9, gt=0, le=1)
    """Share of a GPU's memory that a process of the study may take; at most half of it holds decoded images
    and features between batches."""
    deterministic: bool = False
    """On a GPU, use only kernels that give the same bits in each run: slower, and an operation that has none
    fails the trial. On a CPU runs of the same number of threads have the same bits anyway."""
    compile: bool = False
    """On a GPU, compile trials that train everything for long; later processes find what is compiled."""
    stall: int = Field(default=900, ge=4)
    """Seconds without a training step after which a trial counts as hung."""


def _seconds(value: object) -> object:
    """Accept `90`, `90s`, `30m`, `1h30m`."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    # A number without a unit is seconds only where it stands alone: 1h30 is an hour and a half to most.
    if text.isdecimal():
        return int(text)
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    if not match or not text:
        raise ValueError(f"write a time as 90s, 30m or 1h30m (got {value!r})")
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return 3600 * hours + 60 * minutes + seconds


DEFAULT_TRIALS = 20


class StudyConfig(_Model):
    """A study, as asked for."""

    schema_: Literal["harness.study/1"] = Field(default=SCHEMA, alias="schema")
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """Default: the data set's name and the digest of the study."""
    dataset: str = Field(min_length=1)
    """A name of `harness data list`, a folder, or a CSV file of file,label[,split]."""
    metric: Literal["f1", "accuracy"] = "f1"
    """What the search maximises on the validation split; `f1` is macro-F1."""
    trials: int | None = Field(default=None, ge=1)
    """In total, over all resumptions. Default: 20, or with a budget as many as it pays for."""
    budget: Annotated[Annotated[int, Field(gt=0)] | None, BeforeValidator(_seconds)] = None
    """Seconds, or `30m`, `1h30m`: for all that one command does, finalists included."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    init: Literal["pretrained", "scratch"] = "pretrained"
    weights: Mapping[str, Path] = Field(default_factory=dict)
    """Backbone name -> checkpoint file of any class count."""
    weights_dir: Path | None = None
    """A folder with `<backbone>.safetensors`."""
    skip_bad: bool = False
    """Leave unreadable images out, counted in the record, instead of refusing the data set."""
    space: SpaceConfig = SpaceConfig()
    train: TrainConfig = TrainConfig()
    search: SearchConfig = SearchConfig()
    split: SplitConfig = SplitConfig()
    finalize: FinalizeConfig = FinalizeConfig()
    run: RunConfig = RunConfig()

    @model_validator(mode="before")
    @classmethod
    def _is_bounded(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("trials") is None and not values.get("budget"):
            return {**values, "trials": DEFAULT_TRIALS}
        return values

    @model_validator(mode="after")
    def _fits_together(self) -> StudyConfig:
        if self.split.val + self.split.test >= 0.95:
            raise ValueError("split.val and split.test leave nothing to train on")
        if self.init == "scratch" and (self.weights or self.weights_dir):
            raise ValueError("init = 'scratch' and weights exclude each other")
        if self.search.sampler == "grid":
            for axis in ("freeze_depth", "lr", "weight_decay"):
                value = getattr(self.space, axis)
                if value == "auto" or (isinstance(value, Range) and not value.step):
                    raise ValueError(f"sampler 'grid' needs a list or a step for space.{axis}")
        return self


DRAWN = ("petals", "petals-hard", "petals-longtail")
"""Data sets that are drawn on this machine, for which the default study's settings are made."""

# Pretrained backbones of three families on images that are drawn: needs nothing but this package.
DEFAULT_STUDY: dict[str, Any] = {
    "schema": SCHEMA,
    "dataset": "petals",
    "space": {
        "backbone": [
            "test_resnet.formula1",
            "test_efficientnet.formula1",
            "test_byobnet.formula1",
        ],
        "freeze_depth": [0.0, 0.25, 0.5, 0.75, 1.0],
        "lr": {"low": 2e-3, "high": 3e-2, "log": True},
        "optimizer": ["adamw", "sgd"],
        "augmentation": "flip",
    },
    "train": {"epochs": 9, "batch_size": 32},
    "finalize": {"top": 3},
}


def load_study_file(path: Path) -> dict[str, Any]:
    """Read a study's TOML file; paths in it are relative to the file.

    Raises:
        UsageError: The file is missing or no TOML.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(
            "no such study file",
            where=str(path),
            fixes=[
                "check the path",
                "name a data set or a folder of images with --dataset instead of a file",
            ],
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError("a study file is no valid TOML", where=str(path), why=str(error)) from error
    folder = path.parent
    dataset = values.get("dataset")
    if isinstance(dataset, str) and ("/" in dataset or dataset.endswith(".csv")):
        values["dataset"] = str(folder / expand(dataset))
    if isinstance(values.get("weights_dir"), str):
        values["weights_dir"] = str(folder / expand(values["weights_dir"]))
    if isinstance(values.get("weights"), dict):
        values["weights"] = {
            name: str(folder / expand(file)) if isinstance(file, str) else file
            for name, file in values["weights"].items()
        }
    return values


def parse_study(values: Mapping[str, Any], *, where: str = "study") -> StudyConfig:
    """Check a study; all its errors at once.

    Raises:
        UsageError: Lists each error with its dotted path and, for a misspelt key, the nearest one.
    """
    try:
        return StudyConfig.model_validate(dict(values))
    except ValidationError as error:
        lines = list(_explain(error))
        plural = f"{len(lines)} errors" if len(lines) > 1 else "1 error"
        raise UsageError(
            f"invalid study, {plural}\n" + "\n".join(f"  {line}" for line in lines), where=where
        ) from None


def _explain(error: ValidationError) -> Iterator[str]:
    for item in error.errors(include_url=False):
        # The union's tag is part of pydantic's location, not of the user's file.
        path = [str(part) for part in item["loc"] if part not in ("range", "choices", "auto")]
        dotted = ".".join(path)
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            near = _home(path[-1]) or nearest(path[-1], _fields(path[:-1]))
            message = "unknown key" + (f", did you mean {near!r}?" if near else "")
        elif item["type"] == "literal_error":
            given = item["input"]
            expected = re.findall(r"'([^']+)'", item["msg"])
            near = nearest(str(given), expected)
            message = f"must be one of {', '.join(expected)} (got {given!r})"
            message += f", did you mean {near!r}?" if near else ""
        elif item["type"] == "string_pattern_mismatch":
            message = f"{_PATTERNS[path[-1]]} (got {item['input']!r})"
        elif item["type"] == "missing":
            message = "is required"
        elif item["type"] == "too_short":
            message = "must not be empty"
        elif item["type"] != "value_error":
            shown = repr(item["input"])
            message += f" (got {shown if len(shown) < 60 else shown[:57] + '...'})"
        yield f"{dotted}: {message}" if dotted else message


_PATTERNS = {
    "device": "must be auto, cpu, mps, cuda or cuda:N",
    "name": "must be letters, digits, '.', '_' and '-', and begin with a letter or digit",
}


def _home(key: str) -> str | None:
    """Return the dotted path of a key that stands in another table of the study."""
    if key in StudyConfig.model_fields:
        return key
    tables = [name for name in StudyConfig.model_fields if key in _tables(name)]
    return f"{tables[0]}.{key}" if tables else None


def _tables(name: str) -> list[str]:
    kind = StudyConfig.model_fields[name].annotation
    return list(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else []


def _fields(path: list[str]) -> list[str]:
    model: type[BaseModel] = StudyConfig
    for part in path:
        field = model.model_fields.get(part)
        candidates = [field.annotation, *get_args(field.annotation)] if field else []
        inner = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if inner is None:
            return list(Range.model_fields)
        model = inner
    return [field.alias or name for name, field in model.model_fields.items()]
