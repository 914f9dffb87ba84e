"""Folders of images for the benchmarks: the first so many of each class, from a folder or drawn here."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

import harness
from harness import paths


def make_subset(source: str, target: Path, sizes: dict[str, int]) -> Path:
    """Fill a folder with at most `sizes[split]` images a class of each split, and return it.

    Args:
        source: A named data set of harness, `digits` of scikit-learn, or a folder with train, val and test.
        target: Made anew, unless it is there.
        sizes: Images a class by split; 0 takes all.
    """
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=target.parent))
    taken: Counter[tuple[str, str]] = Counter()
    for split, label, name, image in _images(source):
        if sizes[split] and taken[split, label] >= sizes[split]:
            continue
        taken[split, label] += 1
        place = partial / split / label / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(image, Path):
            shutil.copyfile(image, place)
        else:
            Image.fromarray(image).save(place)
    partial.rename(target)
    return target


def _images(source: str):
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
        registry = harness.load_registry(["no:terminal"])
        home = paths.home() / "data" / source
        for sample in registry.datasets.get(source).spec.build(home, False):
            name = sample.id.rpartition("/")[2]
            image = sample.image
            yield sample.split, sample.label, image.name if isinstance(image, Path) else f"{name}.png", image
