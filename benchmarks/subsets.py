"""Folders of images for the benchmarks: the first so many of each class, from a folder or drawn here."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from harness_builtin import petals


def make_subset(source: str, target: Path, sizes: dict[str, int]) -> Path:
    """Fill a folder with at most `sizes[split]` images a class of each split, and return it.

    Args:
        source: One of the gardens of `petals`, which can draw more than the data set has; `digits` of
            scikit-learn; or a folder with train, val and test.
        target: Made anew, unless it is there.
        sizes: Images a class by split; 0 takes all.
    """
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=target.parent))
    taken: Counter[tuple[str, str]] = Counter()
    for split, label, name, image in _images(source, sizes):
        if sizes[split] and taken[split, label] >= sizes[split]:
            continue
        taken[split, label] += 1
        place = partial / split / label / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(image, Path):
            shutil.copyfile(image, place)
        else:
            Image.fromarray(image).save(place)
    try:
        partial.rename(target)
    except OSError:
        # Another benchmark was faster.
        if not target.is_dir():
            raise
        shutil.rmtree(partial)
    return target


def _images(source: str, sizes: dict[str, int]):
    if source == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        seen: Counter[int] = Counter()
        for index, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
            seen[label] += 1
            split = "train" if seen[label] <= 20 else "val" if seen[label] <= 50 else "test"
            yield split, str(label), f"{index:04}.png", (pixels * 255 / 16).astype(np.uint8)
    elif Path(source).is_dir():
        for file in sorted(Path(source).glob("*/*/*")):
            yield file.parts[-3], file.parts[-2], file.name, file
    else:
        own = petals.GARDENS[source]
        counts = tuple(sizes[split] or own.sizes[number] for number, split in enumerate(petals.SPLITS))
        garden = dataclasses.replace(own, sizes=counts)
        for split, label, index in petals.list_places(garden):
            image = petals.render(garden, split, label, index)
            yield petals.SPLITS[split], garden.flowers[label].name, f"{index:03}.png", image
