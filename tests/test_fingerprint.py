from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from harness.data import fingerprint as module
from harness.data.decode import Pixels, decode
from harness.data.fingerprint import ALIKE, alike, fingerprint, unpack


def scene(seed: int, height: int = 96, width: int = 128) -> Pixels:
    """A smooth random picture with some noise, as a photograph has."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return np.clip(smooth + rng.integers(-8, 9, smooth.shape), 0, 255).astype(np.uint8)


def likeness(first: Pixels, second: Pixels) -> float:
    one, other = unpack([fingerprint(first), fingerprint(second)])
    return float(one @ other)


def jpeg(pixels: Pixels, quality: int) -> Pixels:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return decode(file.getvalue(), "")


def resized(pixels: Pixels, share: float) -> Pixels:
    image = Image.fromarray(pixels)
    size = (round(image.width * share), round(image.height * share))
    return np.array(image.resize(size, Image.Resampling.BICUBIC))


@pytest.mark.parametrize("quality", [30, 60, 95])
@pytest.mark.parametrize("size", [(28, 28), (96, 128), (300, 200)])
def test_a_reencoded_image_is_alike(quality: int, size: tuple[int, int]) -> None:
    pixels = scene(0, *size)
    assert likeness(pixels, jpeg(pixels, quality)) > ALIKE


@pytest.mark.parametrize("share", [0.5, 0.77, 1.3, 2])
@pytest.mark.parametrize("size", [(32, 32), (96, 128), (300, 200)])
def test_a_resized_image_is_alike(share: float, size: tuple[int, int]) -> None:
    pixels = scene(1, *size)
    assert likeness(pixels, resized(pixels, share)) > ALIKE


def test_a_brighter_image_of_less_contrast_is_alike() -> None:
    pixels = scene(2)
    assert likeness(pixels, (pixels // 2 + 100).astype(np.uint8)) > ALIKE


def test_other_mirrored_and_turned_pictures_are_not_alike() -> None:
    pixels = scene(3)
    for other in (scene(4), pixels[:, ::-1], pixels[::-1], np.rot90(pixels).copy(), 255 - pixels):
        assert likeness(pixels, other) < 0.7


def test_the_edges_count_and_a_shadow_over_all_does_not() -> None:
    """Two sheets of paper under one lamp are two pictures."""
    shadow = np.linspace(0, 150, 128)[None, :, None] * np.ones((96, 1, 3))
    sheets = []
    for place in (20, 50):
        sheet = shadow.copy()
        sheet[place : place + 30, 40:90] += 60
        sheets.append(sheet.astype(np.uint8))
    assert likeness(*sheets) < ALIKE


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (6, 6), (500, 300)])
@pytest.mark.parametrize("shade", [0, 100, 255])
def test_an_image_without_structure_has_no_fingerprint(size: tuple[int, int], shade: int) -> None:
    assert fingerprint(np.full((*size, 3), shade, np.uint8)) == ""


def test_a_flat_image_with_the_noise_of_its_encoding_has_none() -> None:
    noise = np.random.default_rng(0).integers(127, 130, (64, 64, 3), dtype=np.uint8)
    assert fingerprint(jpeg(noise, 50)) == ""


@pytest.mark.parametrize("size", [(1, 9), (9, 1), (2, 2), (5, 300), (3000, 20)])
def test_images_of_any_shape_have_fingerprints(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    (vector,) = unpack([fingerprint(pixels)])
    assert vector.shape == (63,)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_tiny_grey_digits_are_told_apart() -> None:
    """28 pixels, mostly black: strokes of two shapes differ although their backgrounds are one."""
    digits = np.zeros((2, 28, 28, 3), np.uint8)
    digits[0, 4:24, 12:15] = 255
    digits[1, 4:24, 12:15] = digits[1, 4:7, 8:20] = 255
    assert likeness(*digits) < 0.9


def test_pairs_are_found_in_and_between_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 4)
    vectors = np.random.default_rng(0).normal(size=(11, 63)).astype(np.float32)
    vectors[[3, 9]] = vectors[1] + 0.01
    vectors[10] = vectors[8]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = {(int(a), int(b)) for first, second in alike(vectors) for a, b in zip(first, second, strict=True)}
    assert pairs == {(1, 3), (1, 9), (3, 9), (8, 10)}


def test_nothing_is_alike_where_there_is_nothing() -> None:
    assert list(alike(unpack([]))) == []
