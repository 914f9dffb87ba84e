"""A perceptual fingerprint of an image, and the search for images whose fingerprints are alike.

A fingerprint is the low frequencies of the image's brightness, each weighted by its frequency, so that the
product of two fingerprints is that of the pictures' gradients: brightness, contrast and wide shadows count
little, edges count. It is the perceptual hash by discrete cosine transform (Zauner 2010) with values in place
of bits: re-encoded and resized copies stay alike, other pictures do not.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from harness.data.decode import Pixels

FINGERPRINT = "dct-63/1"
"""Names the recipe: a change of what is computed changes it."""
ALIKE = 0.98
"""From this correlation on two fingerprints are of one picture; `benchmarks/duplicates.py` measures it."""

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]

_GRID = 16
_KEPT = 8
_LENGTH = _KEPT * _KEPT - 1
# More rows cost time and tell little: each is the mean of whole stretches of pixels.
_ROWS = 64
# In grey levels, over the gradients of the whole grid. Below it there is little but noise of the encoding.
_LEAST_CONTRAST = 20.0
_LUMA = np.array([0.299, 0.587, 0.114])
_BLOCK = 1024


def fingerprint(pixels: Pixels) -> str:
    """Describe the structure of an image.

    The aspect does not matter: the image is read on a square grid.

    Args:
        pixels: uint8 (H, W, 3), any size.

    Returns:
        63 signed bytes in base 64; empty for an image without structure, which is like all others.
    """
    rows = pixels[:: max(1, pixels.shape[0] // _ROWS)]
    height, width = rows.shape[:2]
    values = _analysis(height) @ rows.reshape(height, 3 * width).astype(np.float32) @ _colour_analysis(width)
    values = (values * _frequencies()).ravel()[1:]
    # Beside the decoding of a small image each call of NumPy's shows: hence so few.
    if values @ values < _LEAST_CONTRAST**2:
        return ""
    values *= 127 / max(values.max(), -values.min())
    return binascii.b2a_base64(np.rint(values).astype(np.int8), newline=False).decode()


def unpack(fingerprints: Sequence[str]) -> Floats:
    """Turn N fingerprints that are not empty into unit vectors (N, 63)."""
    packed = b"".join(binascii.a2b_base64(text) for text in fingerprints)
    vectors = np.frombuffer(packed, np.int8).reshape(-1, _LENGTH).astype(np.float32)
    unit: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def alike(vectors: Floats) -> Iterator[tuple[Indices, Indices]]:
    """Yield the pairs of vectors that are alike, in parts.

    All pairs are compared, block by block: 60,000 images take seconds, and memory does not grow with them.

    Args:
        vectors: Unit vectors (N, 63).

    Yields:
        First and second indices of pairs, each pair once.
    """
    for top in range(0, len(vectors), _BLOCK):
        for left in range(top, len(vectors), _BLOCK):
            products = vectors[top : top + _BLOCK] @ vectors[left : left + _BLOCK].T
            found = np.flatnonzero(products >= ALIKE)
            if not len(found):
                continue
            first, second = np.divmod(found, products.shape[1])
            if left == top:
                once = first < second
                first, second = first[once], second[once]
            yield first + top, second + left


@lru_cache(maxsize=256)
def _analysis(size: int) -> Floats:
    """Return the matrix (8, size) from an axis of pixels to the low frequencies of 16 cells.

    Cells overlap, as in a linear resize with antialiasing: a shift by part of a pixel changes little.
    """
    step = size / _GRID
    centres = (np.arange(_GRID) + 0.5) * step
    distances = np.abs(np.arange(size) + 0.5 - centres[:, None])
    weights = np.maximum(0, 1 - distances / max(step, 1))
    weights /= weights.sum(axis=1, keepdims=True)
    angles = np.pi * np.arange(_KEPT)[:, None] * (2 * np.arange(_GRID) + 1) / (2 * _GRID)
    transform = np.cos(angles) * np.sqrt(2 / _GRID)
    transform[0] /= np.sqrt(2)
    analysis: Floats = (transform @ weights).astype(np.float32)
    return analysis


@lru_cache(maxsize=256)
def _colour_analysis(size: int) -> Floats:
    """Return the matrix (3 * size, 8) that also mixes the colours of each pixel into its brightness."""
    mixed = _analysis(size).T[:, None, :] * _LUMA[:, None]
    analysis: Floats = mixed.reshape(3 * size, _KEPT).astype(np.float32)
    return analysis


@lru_cache(maxsize=1)
def _frequencies() -> Floats:
    """Return the weights (8, 8) that turn products of pictures into products of their gradients."""
    eigenvalues = 4 * np.sin(np.pi * np.arange(_KEPT) / (2 * _GRID)) ** 2
    weights: Floats = np.sqrt(eigenvalues[:, None] + eigenvalues).astype(np.float32)
    return weights
