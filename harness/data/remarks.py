"""What a folder holds that is not read, and what speaks for other classes than its folders."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from harness.data.folder import csv_of, is_image, links_in, walk_visible
from harness.specs import Sample
from harness.text import listed

_NOT_READ = (".heic", ".heif", ".avif", ".jp2", ".j2k", ".jxl", ".tga", ".dng", ".cr2", ".nef", ".arw")


def find_remarks(path: Path, samples: Sequence[Sample]) -> list[str]:
    """Return what a user should know of a folder that was read; of a CSV file nothing.

    Args:
        path: The folder.
        samples: What `read_folder` found in it.
    """
    if csv_of(path):
        return []
    links, loose, strange = _left_out(path, samples)
    repeated, classes = _repeated_folders(samples)
    remarks = {
        "symbolic links not followed: copy what they point to": links,
        "images left out that lie in no folder of a class": loose,
        "images left out because their format is not read: convert them to jpg or png": strange,
    }
    lines = [
        listed(what, [str(file.relative_to(path)) for file in files])
        for what, files in remarks.items()
        if files
    ]
    if repeated:
        shown = ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")
        what = f"the same folders lie in {len(classes)} classes ({shown}), and no image beside them"
        lines.append(listed(f"{what}: if they are the classes, name the folder that holds them", repeated))
    return lines


def _left_out(path: Path, samples: Sequence[Sample]) -> tuple[list[Path], list[Path], list[Path]]:
    """Return links, the images that no class has, and those whose names end in what is not read."""
    known = {sample.image for sample in samples if isinstance(sample.image, Path)}
    links: list[Path] = []
    loose, strange = [], []
    for current, folders, files in walk_visible(path):
        links += links_in(current, folders, files)
        for name in files:
            file = current / name
            if is_image(name) and file not in known and not file.is_symlink():
                loose.append(file)
            elif name.lower().endswith(_NOT_READ):
                strange.append(file)
    return links, loose, strange


def _repeated_folders(samples: Sequence[Sample]) -> tuple[list[str], list[str]]:
    """Return folders that lie in several classes, and those; nothing where a class has images of its own.

    Of `<view>/<class>/*.jpg` the views are taken for the classes. One name alone says nothing: `images`.
    """
    inside: dict[str, set[str]] = defaultdict(set)
    for sample in samples:
        below = sample.id.split("/")[2 if sample.split else 1 :]
        if len(below) == 1:
            return [], []
        inside[sample.label].add(below[0])
    counts = Counter(name for names in inside.values() for name in names)
    repeated = sorted(name for name, count in counts.items() if count > 1)
    if len(repeated) < 2:
        return [], []
    return repeated, sorted(label for label, names in inside.items() if names & set(repeated))
