"""Cut, resize and flip many images at once, on any device, with the pixels that torchvision makes on a CPU.

A CPU resizes bytes in whole numbers (ATen's antialiased kernels, after Pillow's): weights of 16 bits, first
along the rows, then along the columns, rounded to bytes in between. Sums of whole numbers are the same on
every device and in every order, so a GPU that computes in this way gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_TOGETHER = 64
"""Images that are resized at a time: bounds the memory."""
_REACH = {"bilinear": 1.0, "bicubic": 2.0}
"""Pixels to each side that a filter reads where it does not shrink."""


class Box(NamedTuple):
    """The part of an image that is wanted."""

    top: int
    left: int
    height: int
    width: int
    flipped: bool = False
    """Left to right."""


def resize_boxes(
    pixels: Tensor,
    starts: Sequence[int],
    widths: Sequence[int],
    boxes: Sequence[Box],
    size: int,
    interpolation: str,
) -> Tensor:
    """Cut a box out of each of some images, resize it and flip it where asked.

    Args:
        pixels: uint8 (P, 3), the pixels of images one after the other, row by row.
        starts: Number of each image's first pixel.
        widths: Of the images.
        boxes: Within the images.
        size: Side of the result. Boxes of this size keep their pixels.
        interpolation: `bilinear` or `bicubic`, antialiased.

    Returns:
        uint8 (N, 3, size, size) on the device of `pixels`, channels last in memory.
    """
    groups = []
    for at in range(0, len(boxes), _TOGETHER):
        part = slice(at, at + _TOGETHER)
        groups.append(_resize(pixels, starts[part], widths[part], boxes[part], size, interpolation))
    return torch.cat(groups).permute(0, 3, 1, 2)


def _resize(
    pixels: Tensor,
    starts: Sequence[int],
    widths: Sequence[int],
    boxes: Sequence[Box],
    size: int,
    interpolation: str,
) -> Tensor:
    """Return uint8 (N, size, size, 3)."""
    begins = [
        start + box.top * width + box.left for start, width, box in zip(starts, widths, boxes, strict=True)
    ]
    heights, lengths = [box.height for box in boxes], [box.width for box in boxes]
    numbers = torch.tensor([begins, widths, heights, lengths, [box.flipped for box in boxes]])
    if pixels.device.type == "cuda":
        numbers = numbers.pin_memory()
    begin, width, height, length, flipped = numbers.to(pixels.device, non_blocking=True)
    rows = torch.arange(max(heights), device=pixels.device)
    # Below its box an image repeats the last row: no weight reaches it.
    lines = begin[:, None] + torch.minimum(rows, height[:, None] - 1) * width[:, None]

    if heights == lengths == [size] * len(boxes):
        columns = torch.arange(size, device=pixels.device).expand(len(boxes), -1)
        columns = torch.where(flipped[:, None] > 0, columns.flip(1), columns)
        return _gather(pixels, lines[:, :, None] + columns[:, None])

    first, weights, bits = _weigh(length, max(lengths), size, interpolation)
    mirrored = flipped[:, None] > 0
    first = torch.where(mirrored, first.flip(1), first)
    weights = torch.where(mirrored[:, :, None], weights.flip(1), weights)
    total = _half(bits).expand(-1, len(rows), size, 3).clone()
    for tap in range(weights.shape[2]):
        columns = torch.minimum(first + tap, length[:, None] - 1)
        found = _gather(pixels, lines[:, :, None] + columns[:, None])
        total += found * weights[:, None, :, tap, None]
    narrowed = _to_bytes(total, bits)

    first, weights, bits = _weigh(height, max(heights), size, interpolation)
    total = _half(bits).expand(-1, size, size, 3).clone()
    images = torch.arange(len(boxes), device=pixels.device)[:, None]
    for tap in range(weights.shape[2]):
        total += (
            narrowed[images, torch.minimum(first + tap, height[:, None] - 1)] * weights[:, :, tap, None, None]
        )
    return _to_bytes(total, bits)


def _gather(pixels: Tensor, places: Tensor) -> Tensor:
    """Return the pixels at some places: uint8 (*places.shape, 3)."""
    return pixels.index_select(0, places.reshape(-1)).view(*places.shape, 3)


def _half(bits: Tensor) -> Tensor:
    """Return what rounds a sum of weights of so many bits: int32 (N, 1, 1, 1)."""
    return (1 << (bits - 1)).int()[:, None, None, None]


def _to_bytes(total: Tensor, bits: Tensor) -> Tensor:
    return (total >> bits.int()[:, None, None, None]).clamp_(0, 255).to(torch.uint8)


def _weigh(lengths: Tensor, longest: int, size: int, interpolation: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return how each of `size` pixels is made of a line of pixels, as ATen works it out.

    Args:
        lengths: int64 (N,), of the lines.
        longest: The largest of them.
        size: Pixels to make.
        interpolation: The filter.

    Returns:
        The first pixel that is read, int64 (N, size); the weights, int32 (N, size, taps); and the bits of the
        weights after the point, int64 (N,).
    """
    device, reach = lengths.device, _REACH[interpolation]
    scale = lengths.double()[:, None] / size
    stretch = scale.clamp(min=1)
    support = reach * stretch
    taps = 2 * math.ceil(reach * max(longest / size, 1)) + 1
    centre = scale * (torch.arange(size, dtype=torch.float64, device=device) + 0.5)
    first = (centre - support + 0.5).long().clamp(min=0)
    end = torch.minimum((centre + support + 0.5).long(), lengths[:, None])
    places = first[:, :, None] + torch.arange(taps, device=device)
    distance = (places.double() - centre[:, :, None] + 0.5) * (1 / stretch)[:, :, None]
    shares = _bicubic(distance) if interpolation == "bicubic" else (1 - distance.abs()).clamp_(min=0)
    shares = torch.where(places < end[:, :, None], shares, 0.0)
    total = torch.zeros_like(centre)
    for tap in range(taps):
        # One after the other: the order decides the last bit.
        total = total + shares[:, :, tap]
    shares = shares / total[:, :, None]
    # As many bits as the largest weight leaves below 2 ** 15.
    steps = 2.0 ** torch.arange(1, 23, device=device)
    bits = ((0.5 + shares.amax((1, 2))[:, None] * steps).long() < 2**15).sum(1)
    scaled = shares * (2.0 ** bits.double())[:, None, None]
    return first, (scaled + torch.where(scaled < 0, -0.5, 0.5)).trunc().int(), bits


def _bicubic(distance: Tensor) -> Tensor:
    """Return Keys' filter with a = -0.5."""
    x = distance.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
