"""A bank in the memory of a device, where policies that only cut, resize and flip run on whole batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from harness.data.bank import Bank
from harness.data.crops import Box, resize_boxes
from harness.data.views import Augmentation, kept_generators, send
from harness.specs import Policy

Draw: TypeAlias = Callable[[int, int], Box | None]
"""(height, width) -> the box that a policy takes, drawn from the global generators as the policy draws it;
None where it does more than take a box."""

_CHUNK = 1 << 26
"""Bytes that are copied at a time."""


class ResidentBank:
    """All images of a bank in the memory of a device: uint8, as `Bank.image` gives them.

    Args:
        bank: Of decoded images.
        device: That has room for `resident_bytes` of it.
    """

    def __init__(self, bank: Bank, device: torch.device) -> None:
        self._bank = bank
        self._sizes = [bank.shape(row) for row in range(len(bank))]
        counts = [height * width for height, width in self._sizes]
        self._starts = [0, *accumulate(counts)]
        self._pixels = torch.empty(self._starts[-1], 3, dtype=torch.uint8, device=device)
        # What later trials draw is the same, and to draw it takes a GPU's time several times over.
        self._drawn: dict[tuple[str, str, str, int], npt.NDArray[np.int32]] = {}
        waiting: list[Tensor] = []
        begin = size = 0
        for row, count in enumerate(counts):
            waiting.append(bank.image(row).permute(1, 2, 0).reshape(-1, 3))
            size += count
            if 3 * size >= _CHUNK or row + 1 == len(counts):
                self._pixels[begin : begin + size] = send(torch.cat(waiting), device)
                begin, size = begin + size, 0
                waiting.clear()

    def train_batch(self, rows: Sequence[int], view: int, augmentation: Augmentation) -> Tensor | None:
        """Augment some images; as `views.train_batch`, but for the layout in memory.

        Returns:
            uint8 (N, 3, S, S) on the device, channels last in memory; None where the policy does more than to
            cut, resize and flip.
        """
        found = read_policies(augmentation)
        if found is None:
            return None
        draws, size, interpolation = found
        key = repr(augmentation.policies), augmentation.name, augmentation.dataset_key, view
        if key not in self._drawn:
            self._drawn[key] = np.zeros((len(self._bank), len(Box._fields)), dtype=np.int32)
        drawn = self._drawn[key]
        with kept_generators():
            for row in rows:
                # No box is empty but the one that is still to be drawn.
                if drawn[row].any():
                    continue
                draw = draws[augmentation.choose(self._bank.items[row], view)]
                box = draw(*self._sizes[row])
                if box is None:
                    return None
                drawn[row] = box
        boxes = [
            Box(top, left, height, width, bool(flipped))
            for top, left, height, width, flipped in drawn[list(rows)].tolist()
        ]
        return self._resize(rows, boxes, size, interpolation)

    def eval_batch(self, rows: Sequence[int], size: int) -> Tensor:
        """Return centre crops: uint8 (N, 3, size, size) on the device, channels last in memory."""
        return self._resize(rows, [_centre(*self._sizes[row], size) for row in rows], size, "bilinear")

    def _resize(self, rows: Sequence[int], boxes: Sequence[Box], size: int, interpolation: str) -> Tensor:
        starts, widths = [self._starts[row] for row in rows], [self._sizes[row][1] for row in rows]
        return resize_boxes(self._pixels, starts, widths, boxes, size, interpolation)


def resident_bytes(bank: Bank) -> int:
    """Return the bytes that a bank takes on a device."""
    return sum(3 * height * width for height, width in map(bank.shape, range(len(bank))))


def read_policies(augmentation: Augmentation) -> tuple[list[Draw], int, str] | None:
    """Return how each of its policies draws its boxes, and the size and the interpolation of their resizing.

    None but for torchvision's own transforms in one of two chains: a random resized crop; or a resizing that
    changes nothing here, and a centre crop. A random horizontal flip may come after either.
    """
    found = [_read(policy) for policy in augmentation.policies]
    known = [one for one in found if one is not None]
    _, size, interpolation = known[0] if known else (None, 0, "")
    if any(one is None or one[1:] != (size, interpolation) for one in found):
        return None
    return [draw for draw, _, _ in known], size, interpolation


def _read(policy: Policy) -> tuple[Draw, int, str] | None:
    chain: Any = policy
    if type(chain) is not v2.Compose:
        return None
    steps: list[nn.Module] = list(chain.transforms)
    if any(step._forward_hooks or step._forward_pre_hooks for step in steps):
        return None
    match [type(step) for step in steps]:
        case [v2.RandomResizedCrop] | [v2.RandomResizedCrop, v2.RandomHorizontalFlip]:
            return _random_boxes(*steps)
        case [v2.Resize, v2.CenterCrop] | [v2.Resize, v2.CenterCrop, v2.RandomHorizontalFlip]:
            return _centre_boxes(*steps)
    return None


def _random_boxes(crop: Any, flip: Any = None) -> tuple[Draw, int, str] | None:
    # A name or a member of the enumeration.
    interpolation = getattr(crop.interpolation, "value", crop.interpolation)
    if crop.size[0] != crop.size[1] or not crop.antialias or interpolation not in ("bilinear", "bicubic"):
        return None

    def draw(height: int, width: int) -> Box:
        # Of the image the transform asks for nothing but its size.
        box = crop.make_params([torch.empty(3, height, width, device="meta")])
        return Box(box["top"], box["left"], box["height"], box["width"], _is_flipped(flip))

    return draw, crop.size[0], interpolation


def _centre_boxes(resize: Any, crop: Any, flip: Any = None) -> tuple[Draw, int, str] | None:
    if resize.size is None or len(resize.size) != 1 or resize.max_size is not None:
        return None
    side, size = resize.size[0], crop.size[0]
    if crop.size[1] != size:
        return None

    def draw(height: int, width: int) -> Box | None:
        fits = min(height, width) == side >= size
        return _centre(height, width, size)._replace(flipped=_is_flipped(flip)) if fits else None

    return draw, size, "bilinear"


def _is_flipped(flip: Any) -> bool:
    # As the transform draws it.
    return flip is not None and not bool(torch.rand(1) >= flip.p)


def _centre(height: int, width: int, size: int) -> Box:
    return Box(round((height - size) / 2), round((width - size) / 2), size, size)
