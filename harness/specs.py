"""What a plugin yields: frozen descriptions from which the host builds the real objects.

A spec is cheap. Whatever is heavy (torch, timm, torchvision) is imported inside its `build`. Values that the
host would stumble over later, or take for something else, are refused where they are written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar, get_args

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor, nn
    from torch.optim import Optimizer

Split: TypeAlias = Literal["train", "val", "test"]
Interpolation: TypeAlias = Literal["nearest", "bilinear", "bicubic"]
ParamGroup: TypeAlias = dict[str, Any]
"""A torch parameter group: `params`, and the `lr` and `weight_decay` the host chose for it."""

SpecT = TypeVar("SpecT", bound="Spec", covariant=True)


def _check(field: str, value: object, holds: bool, wanted: str) -> None:
    if not holds:
        raise ValueError(f"{field} is {value!r}, not {wanted}")


def _are_numbers(values: object, count: int) -> bool:
    return (
        isinstance(values, Sequence)
        and len(values) == count
        and all(isinstance(value, int | float) for value in values)
    )


def _is_array(value: object) -> bool:
    # Not at the top of the module: most specs have nothing to do with NumPy.
    import numpy as np

    return isinstance(value, np.ndarray)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What every component says of itself."""

    name: str
    """Kebab-case for our own components, upstream's name verbatim for theirs."""
    summary: str
    """One line, shown by `harness plugins info`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family(Generic[SpecT]):
    """Many components behind one entry, listed only when somebody asks (all of timm, say).

    A member is found by its own name or by `family:name`.
    """

    name: str
    summary: str
    members: Callable[[], Iterable[str]]
    """List the names of all members. May import what is heavy."""
    spec: Callable[[str], SpecT]
    """Describe one member. May import what is heavy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One labelled image of a data set.

    Raises:
        TypeError, ValueError: A field holds something else than it says.
    """

    id: str
    """Unique in its data set, stable over machines: a relative path with forward slashes."""
    label: str
    """Class name."""
    image: Path | npt.NDArray[np.uint8]
    """A file, or uint8 pixels of shape (H, W) or (H, W, 3)."""
    split: Split | None = None
    """The official split, where the data set has one, in exactly these words."""

    def __post_init__(self) -> None:
        if not isinstance(self.id, str):
            raise TypeError(f"the id {self.id!r} of a sample is no str")
        if not isinstance(self.label, str):
            raise TypeError(f"sample {self.id!r} has the label {self.label!r}, which is no str")
        if self.split is not None and self.split not in get_args(Split):
            raise ValueError(f"sample {self.id!r} has the split {self.split!r}, not train, val, test or None")
        if not isinstance(self.image, Path) and not _is_array(self.image):
            kind = type(self.image).__name__
            raise TypeError(f"sample {self.id!r} has a {kind} as image, not a Path or a NumPy array")


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSpec(Spec):
    """A named data set. Splitting, decoding and evaluation belong to the host."""

    build: Callable[[Path, bool], Iterable[Sample]]
    """`(folder, download) -> samples`. Reads `folder`; fetches what is missing only if `download` is true."""
    licence: str
    """Terms of the images, as upstream states them."""
    url: str
    """Where the data set is described; empty for one that the plugin makes itself."""
    download_url: str = ""
    """A file the download starts with; asked for first, so that a machine without network says so."""
    size: str = ""
    """What is downloaded, in words: `330 MB`."""
    citation: str = ""
    """Authors, title, venue, year."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """How a backbone wants its images.

    Raises:
        ValueError: A field is out of its range.
    """

    size: int = 224
    """Side of the square input, in pixels."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of red, green and blue, in [0, 1]."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Likewise, above 0."""
    interpolation: Interpolation = "bicubic"
    crop: float = 0.875
    """Share of the resized short side that the centre crop keeps, in (0, 1]."""

    def __post_init__(self) -> None:
        known = get_args(Interpolation)
        is_size = isinstance(self.size, int) and self.size >= 1
        is_mean = _are_numbers(self.mean, 3) and all(0 <= value <= 1 for value in self.mean)
        is_std = _are_numbers(self.std, 3) and all(0 < value < math.inf for value in self.std)
        is_crop = _are_numbers((self.crop,), 1) and 0 < self.crop <= 1
        _check("InputSpec.size", self.size, is_size, "a whole number of pixels")
        _check("InputSpec.mean", self.mean, is_mean, "3 numbers in [0, 1]")
        _check("InputSpec.std", self.std, is_std, "3 numbers above 0")
        is_known = self.interpolation in known
        _check("InputSpec.interpolation", self.interpolation, is_known, f"one of {', '.join(known)}")
        _check("InputSpec.crop", self.crop, is_crop, "above 0 and at most 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsSpec:
    """Where a backbone's pretrained weights come from."""

    source: str
    """A hub repository or an address, shown to the user."""
    licence: str
    """Licence of the weights; `unknown` where upstream states none."""
    cached: Callable[[], Path | None]
    """Return the local file, or None when it has to be fetched. Uses no network."""
    fetch: Callable[[], Path]
    """Return the local file, downloading it if needed."""
    probe_url: str = ""
    """An address that answers if `fetch` can work; empty when nothing is fetched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneSpec(Spec):
    """A network that turns images into logits."""

    build: Callable[[int, Path | None, int], nn.Module]
    """`(num_classes, weights, image_size) -> model` mapping (N, 3, S, S) floats to (N, num_classes) logits.

    `weights` is a checkpoint of any class count, whose head is left out; None initialises at random.
    `image_size` is the S that the model will be given; a network that takes any size ignores it.
    """
    input: InputSpec = InputSpec()
    weights: WeightsSpec | None = None
    """None: the backbone has no pretrained weights."""
    blocks: Callable[[nn.Module], Sequence[Sequence[str]] | None] | None = None
    """Parameter names of each block from input to output. Freeze depth counts these.

    None: each layer is a block, in the order in which a forward pass calls it.
    """
    head: Callable[[nn.Module], Sequence[str]] | None = None
    """Names of the modules that make up the new head. None: the last layer a forward pass calls."""
    fixed_size: bool = False
    """True: only `input.size` works. False: other sizes may be asked for."""


Policy: TypeAlias = "Callable[[Tensor], Tensor]"
"""A function from one uint8 image (3, H, W) to one uint8 image (3, size, size)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentationSpec(Spec):
    """A training-time augmentation policy."""

    build: Callable[[InputSpec], Policy | tuple[Policy, ...]]
    """Return a policy, or a tuple of them that are all the views there are.

    One alone may draw from torch's, NumPy's and Python's global generators, which the host seeds per image
    and view: an image looks otherwise in every epoch. Those of a tuple draw nothing, and an image gets them
    in turn, beginning with one of its own: frozen layers run over it once for each of them.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassInfo:
    """What a loss may know of the labels."""

    num_classes: int
    counts: tuple[int, ...]
    """Training images of each class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSpec(Spec):
    """A training loss."""

    build: Callable[[ClassInfo], nn.Module]
    """Return a module `(logits (N, C) float, labels (N,) int64) -> scalar`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSpec(Spec):
    """An optimizer.

    Raises:
        ValueError: `lr` is not (low, high) with 0 < low < high.
    """

    build: Callable[[Sequence[ParamGroup]], Optimizer]
    """Take parameter groups that carry `params`, `lr` and `weight_decay`."""
    lr: tuple[float, float]
    """Sensible bounds of the learning rate for fine-tuning; searched when a study names none of its own."""

    def __post_init__(self) -> None:
        is_range = _are_numbers(self.lr, 2) and 0 < self.lr[0] < self.lr[1] < math.inf
        _check("OptimizerSpec.lr", self.lr, is_range, "(low, high) with 0 < low < high")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleSpec(Spec):
    """A learning-rate schedule. The host adds the linear warm-up before it."""

    build: Callable[[int], Callable[[int], float]]
    """`steps -> (step -> factor)`: the factor on the learning rate, for step 0 to steps - 1."""
