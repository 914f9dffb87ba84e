"""One recipe from an image file to RGB pixels, the same for every data set.

The recipe is part of a record's protocol: a change of meaning changes `DECODE`.
"""

from __future__ import annotations

import io
import threading
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from harness.errors import DataError

DECODE = "pil-rgb/1"
"""Names the recipe: EXIF orientation applied, 16-bit grey divided by 257, alpha put on white, first frame."""
MAX_PIXELS = 50_000_000
"""Larger images are refused before they are decoded."""

Pixels = npt.NDArray[np.uint8]

# Only decoders for what a photograph comes in: some of Pillow's others start programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
_ORIENTATION = 0x0112
_TIFF_BITS, _TIFF_MEANING = 258, 262
_WHITE_IS_ZERO = 0
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_warnings_lock = threading.Lock()


def decode(image: Path | bytes | Pixels, where: str) -> Pixels:
    """Decode an image to RGB.

    Args:
        image: A file, its content, or uint8 pixels of shape (H, W) or (H, W, 3).
        where: Names the image in errors.

    Returns:
        A new contiguous uint8 array of shape (H, W, 3).

    Raises:
        DataError: The image is missing, empty, damaged, above `MAX_PIXELS`, or has no 8-bit meaning.
    """
    if isinstance(image, np.ndarray):
        return _decode_array(image, where)
    content = read_bytes(image, where) if isinstance(image, Path) else image
    if not content:
        raise _unreadable(where, "the file is empty")
    try:
        with _open(content, where) as opened:
            opened.load()
            return _to_rgb(opened, where)
    except (DataError, MemoryError):
        raise
    # Decoders meet damage with many kinds of exception.
    except Exception as error:
        raise _unreadable(where, _line(error)) from error


def read_bytes(path: Path, where: str) -> bytes:
    """Return a file's content.

    Raises:
        DataError: The file is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(where, error.strerror or str(error)) from error


def _decode_array(pixels: Pixels, where: str) -> Pixels:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise _unreadable(
            where, f"pixels must be uint8 of shape (H, W) or (H, W, 3), not {pixels.dtype} {pixels.shape}"
        )
    if not pixels.size:
        raise _unreadable(where, f"the image has no pixels: shape {pixels.shape}")
    _check_size(pixels.shape[1], pixels.shape[0], where)
    if pixels.ndim == 2:
        return np.repeat(pixels[:, :, None], 3, axis=2)
    return np.array(pixels, order="C")


def _open(content: bytes, where: str) -> Image.Image:
    try:
        # Pillow warns from 89 million pixels on; ours is the stricter limit and the one message to show.
        # The filters of `warnings` belong to the whole process, hence the lock.
        with _warnings_lock, warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = Image.open(io.BytesIO(content), formats=_FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise _unreadable(where, _line(error)) from error
    except UnidentifiedImageError as error:
        raise _unreadable(where, "the content is no image in a known format") from error
    _check_size(*opened.size, where)
    return opened


def _check_size(width: int, height: int, where: str) -> None:
    if width * height > MAX_PIXELS:
        limit = MAX_PIXELS // 1_000_000
        raise _unreadable(where, f"{width} x {height} pixels is above the limit of {limit} million")


def _to_rgb(image: Image.Image, where: str) -> Pixels:
    orientation = _orientation(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        tags = getattr(image, "tag_v2", {})
        if tags.get(_TIFF_BITS, (16,)) != (16,) or tags.get(_TIFF_MEANING) == _WHITE_IS_ZERO:
            # Pillow gives both as they lie in the file: almost black, and as a negative.
            why = "a TIFF of 12 bit, or of 16 bit where zero is white: convert the file to 8 bit"
            raise _unreadable(where, why)
        grey = _from_16_bit(image)
        rgb = Image.fromarray(np.repeat(grey[:, :, None], 3, axis=2))
    elif image.mode in ("I", "F"):
        raise _unreadable(where, "32-bit grey values have no fixed range: convert the file to 8 or 16 bit")
    elif image.has_transparency_data or image.mode in ("La", "RGBa"):
        rgba = image.convert("RGBA")
        rgb = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    else:
        rgb = image.convert("RGB")
    if orientation in _TRANSPOSE:
        rgb = rgb.transpose(_TRANSPOSE[orientation])
    return np.array(rgb, dtype=np.uint8, order="C")


def _from_16_bit(image: Image.Image) -> Pixels:
    values = np.asarray(image).astype(np.int64)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        values[values == transparent] = 65535
    return ((values.clip(0, 65535) + 128) // 257).astype(np.uint8)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    # Damaged metadata beside sound pixels: the image is as it lies in the file.
    except Exception:
        return 1


def _line(error: BaseException) -> str:
    text = str(error).splitlines()
    return text[0] if text else type(error).__name__


def _unreadable(where: str, why: str) -> DataError:
    return DataError("an image cannot be read", where=where, why=why, fixes=["replace the file or remove it"])
