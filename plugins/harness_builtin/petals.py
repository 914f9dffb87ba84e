"""Procedurally drawn flowers: a data set that needs no network, on which the choice of a fine-tune matters.

A class is a number of petals, their shape and their arrangement; colour, light, size, tilt, turn, background,
leaves and noise are left to chance. The pixels, and with them the fingerprint, are the same on every machine.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harness import Sample
from harness_builtin.drawing import SIDE, Flower, Scene, draw_flower

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

VERSION = 1
"""Part of every seed: another number is another data set."""

_CHUNK = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Garden:
    """One variant of the data set."""

    number: int
    """Part of every seed."""
    flowers: tuple[Flower, ...]
    sizes: tuple[int, int, int]
    """Images of the most frequent class in train, val and test."""
    tail: float = 1.0
    """How many times rarer the last class is than the first; the classes between fall geometrically."""
    scene: Scene = field(default_factory=Scene)

    def count(self, label: int, split: int) -> int:
        """Return how many images of a class a split has."""
        rank = label / max(1, len(self.flowers) - 1)
        share: float = self.tail**-rank
        return max(1, math.floor(self.sizes[split] * share + 0.5))


_FLOWERS = (
    Flower(petals=3, shape="round"),
    Flower(petals=4, shape="notched"),
    Flower(petals=5, shape="round"),
    Flower(petals=5, shape="pointed"),
    Flower(petals=5, shape="notched"),
    Flower(petals=5, shape="round", double=True),
    Flower(petals=6, shape="round"),
    Flower(petals=6, shape="pointed"),
    Flower(petals=6, shape="narrow"),
    Flower(petals=8, shape="pointed"),
    Flower(petals=8, shape="narrow"),
    Flower(petals=8, shape="narrow", double=True),
)
_HARD = (
    *_FLOWERS,
    Flower(petals=4, shape="round"),
    Flower(petals=6, shape="notched"),
    Flower(petals=7, shape="round"),
    Flower(petals=7, shape="pointed"),
    Flower(petals=7, shape="narrow"),
    Flower(petals=6, shape="pointed", double=True),
)
GARDENS = {
    "petals": Garden(number=0, flowers=_FLOWERS, sizes=(120, 40, 100)),
    "petals-hard": Garden(
        number=1,
        flowers=_HARD,
        sizes=(200, 50, 100),
        scene=Scene(tilt=0.5, smallest=0.45, clutter=0.8),
    ),
    "petals-longtail": Garden(number=2, flowers=_FLOWERS, sizes=(300, 100, 250), tail=10.0),
}


def build_petals(variant: str, folder: Path, download: bool) -> Iterable[Sample]:
    """Yield a variant's images, drawing them into `folder` the first time."""
    garden = GARDENS[variant]
    places = list_places(garden)
    images = _images(folder / f"images-{VERSION}.npy", garden, places)
    for (split, label, index), image in zip(places, images, strict=True):
        name = garden.flowers[label].name
        yield Sample(id=f"{SPLITS[split]}/{name}/{index:03}", label=name, image=image, split=SPLITS[split])


def _images(file: Path, garden: Garden, places: Sequence[tuple[int, int, int]]) -> Iterator[Pixels]:
    """Yield the images of a file; if it is missing or damaged, draw them on all cores and write it."""
    import numpy as np

    # A file cut short is one of these errors; a good one of another shape is not ours.
    with contextlib.suppress(OSError, ValueError, EOFError):
        kept = np.lib.format.open_memmap(file, mode="r")
        if kept.dtype == np.uint8 and kept.shape == (len(places), SIDE, SIDE, 3):
            yield from np.array(kept)
            return
    drawn: list[Pixels] = []
    # NumPy works without holding the interpreter, so that threads are enough.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for first in range(0, len(places), _CHUNK):
            part = list(pool.map(lambda place: render(garden, *place), places[first : first + _CHUNK]))
            drawn += part
            yield from part
    # A cache that cannot be written costs the next use some seconds, and is no reason to stop.
    with contextlib.suppress(OSError):
        _write(file, np.stack(drawn))


def _write(file: Path, images: Pixels) -> None:
    """Write a file wholly or not at all."""
    import numpy as np

    file.parent.mkdir(parents=True, exist_ok=True)
    # Two that draw at once do the same, and neither reads half a file.
    with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".npy", delete=False) as unfinished:
        try:
            np.save(unfinished, images)
            unfinished.close()
            Path(unfinished.name).replace(file)
        except BaseException:
            Path(unfinished.name).unlink(missing_ok=True)
            raise


def list_places(garden: Garden) -> list[tuple[int, int, int]]:
    """Return split, class and number within the class of every image."""
    return [
        (split, label, index)
        for split in range(len(SPLITS))
        for label in range(len(garden.flowers))
        for index in range(garden.count(label, split))
    ]


def render(garden: Garden, split: int, label: int, index: int) -> Pixels:
    """Draw one image of a garden; the same whatever else the garden holds."""
    seed = [VERSION, garden.number, split, label, index]
    return draw_flower(garden.flowers[label], garden.scene, seed)
