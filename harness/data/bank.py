"""Decoded images on disk: each is decoded and resized once per machine, whatever reads it afterwards."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import PIL
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from harness.data.decode import DECODE, Pixels, decode, read_bytes
from harness.data.locks import locked
from harness.data.manifest import Item
from harness.data.scan import content_sha256
from harness.documents import canonical, digest
from harness.errors import DataError, StorageError
from harness.specs import InputSpec, Interpolation

SCHEMA = "harness.bank/1"
LONGEST = 4
"""An image's long side is centre-cropped to this multiple of its short side."""

Recipe: TypeAlias = tuple[int, Interpolation]
"""Short side of the images of a bank in pixels, and the interpolation of the resizing."""

_CHUNK = 256
_MODES = {mode.value: mode for mode in InterpolationMode}


class Bank:
    """Decoded images, by row: row i is `items[i]`. Made by `Bank.open`; safe to read from many processes."""

    def __init__(
        self, items: Sequence[Item], folder: Path, resize: int, interpolation: Interpolation
    ) -> None:
        index = _read_index(folder)
        self.items = tuple(items)
        self._places = [index[item.sha256] for item in self.items]
        self._pixels = np.memmap(folder / "pixels.bin", dtype=np.uint8, mode="r")
        self._resize = resize
        self._interpolation = interpolation
        self._rows = {item.id: row for row, item in enumerate(self.items)}
        self.content = digest(
            [_recipe(resize, interpolation), [[item.id, item.sha256] for item in self.items]]
        )
        """Names the bank's pixels, in their order."""

    @classmethod
    def open(
        cls,
        items: Sequence[Item],
        resize: int,
        interpolation: Interpolation,
        home: Path,
        on_chunk: Callable[[], None] = lambda: None,
        *,
        reduced: Callable[[Item], Tensor] | None = None,
    ) -> Bank:
        """Map the decoded images of some items, decoding them first if nobody has.

        Only these items are read: a bank of training images never touches a test image.

        Args:
            items: The bank's rows, in order; at least one.
            resize: Short side in pixels.
            interpolation: Of the resizing.
            home: Folder of all banks and caches.
            on_chunk: Called now and then while images are decoded, by this process or another.
            reduced: Gives what `reduce_image` makes of an item, where that is at hand; None decodes.

        Raises:
            DataError: An image has changed or gone since the manifest was made.
            StorageError: The disk is full, or the folder cannot be written.
        """
        if not items:
            raise ValueError("a bank needs at least one item")
        folder = home / "bank" / _key(items, resize, interpolation)
        if _is_complete(folder):
            # Unless somebody clears the cache at this moment.
            with suppress(OSError, ValueError):
                return cls(items, folder, resize, interpolation)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with locked(folder.with_name(f".{folder.name}.lock"), on_chunk):
                # Another process may have decoded while this one waited for the lock.
                if not _is_complete(folder):
                    default = partial(_decode_reduced, resize=resize, interpolation=interpolation)
                    _fill(items, folder, reduced or default, on_chunk)
                # Who clears the cache waits for this lock.
                return cls(items, folder, resize, interpolation)
        except OSError as error:
            raise StorageError(
                "decoded images cannot be stored",
                where=str(folder),
                why=error.strerror or str(error),
                fixes=["free disk space there", "choose another folder with HARNESS_HOME"],
            ) from error

    def __len__(self) -> int:
        return len(self.items)

    def image(self, row: int) -> Tensor:
        """Return an own copy of an image: uint8 (3, h, w), channels last in memory, short side `resize`."""
        offset, height, width = self._places[row]
        stored = np.array(self._pixels[offset : offset + height * width * 3]).reshape(height, width, 3)
        return _enlarged(torch.from_numpy(stored).permute(2, 0, 1), self._resize, self._interpolation)

    def shape(self, row: int) -> tuple[int, int]:
        """Return height and width of what `image` returns."""
        _, height, width = self._places[row]
        short = min(height, width)
        if short >= self._resize:
            return height, width
        # As torchvision rounds.
        long = int(self._resize * max(height, width) / short)
        return (self._resize, long) if height <= width else (long, self._resize)

    def rows(self, items: Iterable[Item]) -> list[int]:
        """Return the rows of some of the bank's items."""
        return [self._rows[item.id] for item in items]


def prepare(pixels: Pixels, resize: int, interpolation: Interpolation) -> Tensor:
    """Turn decoded pixels into what a bank holds: the one way from an image to a network's input.

    The long side is centre-cropped to four times the short one; then the short side becomes `resize`, with
    antialiasing, keeping the aspect.

    Args:
        pixels: uint8 (H, W, 3).
        resize: Short side in pixels.
        interpolation: Of the resizing.

    Returns:
        uint8 (3, h, w).
    """
    return _enlarged(reduce_image(pixels, resize, interpolation), resize, interpolation)


def centre_crop(image: Tensor, size: int) -> Tensor:
    """Cut the central square out of an image (3, h, w) whose sides are at least `size` pixels."""
    height, width = image.shape[-2:]
    if min(height, width) < size:
        raise ValueError(f"an image of {height} x {width} holds no square of {size}")
    top, left = round((height - size) / 2), round((width - size) / 2)
    return image[..., top : top + size, left : left + size]


def recipe_of(inputs: InputSpec) -> Recipe:
    """Return the recipe of the bank that a network reads."""
    return short_side(inputs.size, inputs.crop), inputs.interpolation


def short_side(size: int, crop: float) -> int:
    """Return the short side of which a centre crop of `size` keeps the share `crop`, as timm rounds it."""
    return max(size, math.floor(size / crop))


def reduce_image(pixels: Pixels, resize: int, interpolation: Interpolation) -> Tensor:
    """Crop, and shrink what is larger. What is smaller stays: a bank must not store enlargements.

    Args:
        pixels: uint8 (H, W, 3).
        resize: Short side in pixels.
        interpolation: Of the resizing.

    Returns:
        uint8 (3, h, w), as it is stored.
    """
    height, width = pixels.shape[:2]
    longest = LONGEST * min(height, width)
    top, left = max(0, (height - longest) // 2), max(0, (width - longest) // 2)
    pixels = pixels[top : top + longest, left : left + longest]
    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
    return _resized(image, resize, interpolation) if min(pixels.shape[:2]) > resize else image


def _enlarged(image: Tensor, resize: int, interpolation: Interpolation) -> Tensor:
    return _resized(image, resize, interpolation) if min(image.shape[1:]) < resize else image


def _resized(image: Tensor, resize: int, interpolation: Interpolation) -> Tensor:
    resized: Tensor = functional.resize(image, [resize], interpolation=_MODES[interpolation], antialias=True)
    return resized


def _key(items: Sequence[Item], resize: int, interpolation: Interpolation) -> str:
    """Name a bank by all that its pixels depend on."""
    return digest([*_recipe(resize, interpolation), sorted({item.sha256 for item in items})])[:32]


def _recipe(resize: int, interpolation: Interpolation) -> list[object]:
    # Kernels for other CPUs round otherwise.
    kernels = [platform.machine(), torch.backends.cpu.get_cpu_capability()]
    return [SCHEMA, DECODE, LONGEST, resize, interpolation, [PIL.__version__, torch.__version__], kernels]


def _is_complete(folder: Path) -> bool:
    """Tell whether a bank is whole: it gets its name last, so only its files can have been damaged since."""
    try:
        index = _read_json(folder)
        return bool(index["places"]) and (folder / "pixels.bin").stat().st_size == index["bytes"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _read_index(folder: Path) -> dict[str, list[int]]:
    places: dict[str, list[int]] = _read_json(folder)["places"]
    return places


def _read_json(folder: Path) -> dict[str, Any]:
    body: dict[str, Any] = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    return body


def _fill(
    items: Sequence[Item],
    folder: Path,
    reduced: Callable[[Item], Tensor],
    on_chunk: Callable[[], None],
) -> None:
    """Decode into a folder beside, and rename it. The caller holds the lock: older parts are dead ones."""
    part = folder.with_name(f".{folder.name}.part")
    for remains in (part, folder):
        if remains.exists():
            shutil.rmtree(remains)
    part.mkdir()
    unique = list({item.sha256: item for item in items}.values())
    try:
        with (part / "pixels.bin").open("wb") as file:
            places = _write(file, unique, reduced, on_chunk)
            file.flush()
            os.fsync(file.fileno())
        index = {"schema": SCHEMA, "bytes": (part / "pixels.bin").stat().st_size, "places": places}
        (part / "index.json").write_text(canonical(index) + "\n", encoding="utf-8")
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _write(
    file: IO[bytes],
    items: Sequence[Item],
    reduced: Callable[[Item], Tensor],
    on_chunk: Callable[[], None],
) -> dict[str, list[int]]:
    """Append images; return offset, height and width by content.

    Plain writes, not a mapped file: on a full disk they raise, where a map would kill the process.
    """
    places: dict[str, list[int]] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for chunk in _chunks(items):
            on_chunk()
            for item, image in zip(chunk, pool.map(reduced, chunk), strict=True):
                height, width = image.shape[1:]
                places[item.sha256] = [file.tell(), height, width]
                file.write(np.ascontiguousarray(image.permute(1, 2, 0).numpy()).data)
    return places


def _chunks(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """Yield groups of bounded size, so that decoding cannot run far ahead of writing."""
    for start in range(0, len(items), _CHUNK):
        yield items[start : start + _CHUNK]


def _decode_reduced(item: Item, *, resize: int, interpolation: Interpolation) -> Tensor:
    return reduce_image(_decoded(item), resize, interpolation)


def _decoded(item: Item) -> Pixels:
    content = read_bytes(item.image, item.id) if isinstance(item.image, Path) else item.image
    if content_sha256(content) != item.sha256:
        raise DataError(
            "an image has changed since the data set was checked",
            where=str(item.image) if isinstance(item.image, Path) else item.id,
            fixes=["keep the data unchanged while a study runs", "restore the image, or start a new study"],
        )
    return decode(content, item.id)
