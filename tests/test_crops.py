from __future__ import annotations

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from harness.data.crops import Box, resize_boxes


def draw(count: int, seed: int) -> tuple[list[torch.Tensor], list[Box]]:
    generator = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    images, boxes = [], []
    for _ in range(count):
        height, width = number(20, 90), number(20, 90)
        images.append(
            torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8).permute(2, 0, 1)
        )
        h, w = number(5, height), number(5, width)
        boxes.append(Box(number(0, height - h), number(0, width - w), h, w, bool(number(0, 1))))
    return images, boxes


def resize_all(images, boxes, size, interpolation):
    """Lay images out one after the other, and resize them together."""
    starts, total = [], 0
    for image in images:
        starts.append(total)
        total += image[0].numel()
    pixels = torch.cat([image.permute(1, 2, 0).reshape(-1, 3) for image in images])
    return resize_boxes(pixels, starts, [image.shape[2] for image in images], boxes, size, interpolation)


def resize_alone(image, box, size, interpolation):
    found = functional.resized_crop(
        image, *box[:4], [size, size], interpolation=InterpolationMode(interpolation), antialias=True
    )
    return found.flip(2) if box.flipped else found


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [24, 72])
def test_the_pixels_are_those_of_torchvision_one_image_at_a_time(size, interpolation):
    # More than are resized together, shrunk and enlarged, narrow and flat.
    images, boxes = draw(80, seed=size)
    found = resize_all(images, boxes, size, interpolation)
    assert found.dtype == torch.uint8
    assert found.is_contiguous(memory_format=torch.channels_last)
    for number, (image, box) in enumerate(zip(images, boxes, strict=True)):
        assert torch.equal(found[number], resize_alone(image, box, size, interpolation)), box


@pytest.mark.parametrize("level", [0, 255])
def test_a_sharp_edge_overshoots_no_byte(level):
    image = torch.full((3, 40, 40), 255 - level, dtype=torch.uint8)
    image[:, 10:30, 10:30] = level
    image = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    box = Box(0, 0, 40, 40)
    assert torch.equal(resize_all([image], [box], 64, "bicubic")[0], resize_alone(image, box, 64, "bicubic"))


def test_boxes_of_the_wanted_size_keep_their_pixels():
    images, _ = draw(3, seed=0)
    boxes = [Box(1, 2, 12, 12), Box(0, 0, 12, 12, True), Box(3, 1, 12, 12)]
    found = resize_all(images, boxes, 12, "bicubic")
    for number, (image, box) in enumerate(zip(images, boxes, strict=True)):
        expected = image[:, box.top : box.top + 12, box.left : box.left + 12]
        assert torch.equal(found[number], expected.flip(2) if box.flipped else expected)


def test_one_side_of_the_wanted_size_is_no_special_case():
    images, _ = draw(2, seed=1)
    boxes = [Box(0, 0, 16, 20), Box(0, 0, 20, 16)]
    found = resize_all(images, boxes, 16, "bicubic")
    for number, (image, box) in enumerate(zip(images, boxes, strict=True)):
        assert torch.equal(found[number], resize_alone(image, box, 16, "bicubic"))
