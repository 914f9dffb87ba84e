"""Training-time augmentation policies, for one uint8 image at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from harness import AugmentationSpec, InputSpec, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn


def build_none(inputs: InputSpec) -> tuple[Callable[[Tensor], Tensor]]:
    """Resize the short side and crop the centre: what evaluation sees."""
    return (_chain(*_centre(inputs)),)


def build_flip(inputs: InputSpec) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Show what evaluation sees and its mirror image, in turn."""
    from torchvision.transforms import v2

    return _chain(*_centre(inputs)), _chain(*_centre(inputs), v2.RandomHorizontalFlip(p=1.0))


def build_flip_crop(inputs: InputSpec) -> Callable[[Tensor], Tensor]:
    """Crop 35 to 100 % of the area at an aspect of 3:4 to 4:3, resize, flip every other time."""
    return _chain(*_flip_crop(inputs))


def build_trivial_augment(inputs: InputSpec) -> Callable[[Tensor], Tensor]:
    """Flip-crop, then TrivialAugment (Mueller and Hutter, ICCV 2021): one random operation, wide ranges."""
    from torchvision.transforms import v2

    return _chain(*_flip_crop(inputs), v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR))


def build_rand_augment(inputs: InputSpec) -> Callable[[Tensor], Tensor]:
    """Flip-crop, then RandAugment (Cubuk et al., NeurIPS 2020): two random operations, magnitude 9 of 30."""
    from torchvision.transforms import v2

    return _chain(
        *_flip_crop(inputs),
        v2.RandAugment(num_ops=2, magnitude=9, interpolation=v2.InterpolationMode.BILINEAR),
    )


def _centre(inputs: InputSpec) -> list[nn.Module]:
    from torchvision.transforms import v2

    # Rounded as evaluation does.
    side = max(inputs.size, math.floor(inputs.size / inputs.crop))
    return [
        v2.Resize(side, interpolation=v2.InterpolationMode(inputs.interpolation), antialias=True),
        v2.CenterCrop(inputs.size),
    ]


def _flip_crop(inputs: InputSpec) -> list[nn.Module]:
    from torchvision.transforms import v2

    return [
        v2.RandomResizedCrop(
            inputs.size,
            scale=(0.35, 1.0),
            interpolation=v2.InterpolationMode(inputs.interpolation),
            antialias=True,
        ),
        v2.RandomHorizontalFlip(),
    ]


def _chain(*transforms: nn.Module) -> Callable[[Tensor], Tensor]:
    from torchvision.transforms import v2

    policy: Callable[[Tensor], Tensor] = v2.Compose(list(transforms))
    return policy


@hookimpl
def harness_augmentations() -> Iterable[AugmentationSpec]:
    """Yield the policies."""
    yield AugmentationSpec(name="none", summary="resize and centre crop, as in evaluation", build=build_none)
    yield AugmentationSpec(
        name="flip", summary="as none, and mirrored left to right every other epoch", build=build_flip
    )
    yield AugmentationSpec(
        name="flip-crop", summary="random crop of 35 to 100 % of the area, random flip", build=build_flip_crop
    )
    yield AugmentationSpec(
        name="trivial-augment",
        summary="flip-crop, then one random operation of random strength",
        build=build_trivial_augment,
    )
    yield AugmentationSpec(
        name="rand-augment",
        summary="flip-crop, then two random operations of magnitude 9",
        build=build_rand_augment,
    )
