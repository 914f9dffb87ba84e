"""Read labelled images from a folder, or from a CSV file beside them.

Layouts: `DIR/<class>/*.jpg`, `DIR/{train,val,test}/<class>/*.jpg`, and a CSV of `file,label[,split]` (a path
ending in `.csv`, or `DIR/labels.csv`) whose files are relative to it.
"""

from __future__ import annotations

import csv
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from harness.errors import DataError
from harness.specs import Sample, Split
from harness.text import counted

# Those that files of the formats that `decode` reads go by.
EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
LABELS_FILE = "labels.csv"

_SPLITS: dict[str, Split] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
_LIKE_A_SPLIT = re.compile(
    r"(?:.*[ _.-])?(train|test|val|dev|eval|pred)(?:ing|id|idation|iction)?(?:[ _-]?(?:set|data|images))?\d*",
    re.IGNORECASE,
)
_LAYOUTS = "DIR/<class>/*.jpg, DIR/{train,val,test}/<class>/*.jpg, or a CSV of file,label[,split]"
_SHOWN = 5


def read_folder(path: Path) -> list[Sample]:
    """List the labelled images of a folder or CSV file.

    Hidden entries are left out, and so are symbolic links: they leave the tree, or name an image twice.

    Args:
        path: A folder, or a file ending in `.csv`.

    Returns:
        Samples sorted by id; an id is the NFC form of the path below the folder, with forward slashes.

    Raises:
        DataError: The folder is missing, empty, or in no known layout; a class has no image; a name is not
            valid UTF-8; the CSV lacks columns, names files that are missing or lie outside its folder, or has
            an unknown split.
    """
    look_at_folder(path)
    file = csv_of(path)
    samples = _read_csv(file) if file else _read_classes(path)
    return sorted(samples, key=lambda sample: sample.id)


def look_at_folder(path: Path) -> None:
    """Check that a CSV file is there, or a folder and an image in it; the first that is found is enough.

    Raises:
        DataError: It is missing, its name is not valid UTF-8, or there is no image.
    """
    for name in (str(path.absolute()), os.path.realpath(path)):
        _check_utf8(name, "folder")
    if path.suffix.lower() == ".csv":
        if not path.exists():
            raise DataError("the CSV file does not exist", where=str(path), fixes=["check the path"])
    elif not path.is_dir():
        what = "is no folder" if path.exists() else "does not exist"
        fixes = ["check the path", f"lay the images out as {_LAYOUTS}"]
        raise DataError(f"the data folder {what}", where=str(path), fixes=fixes)
    elif not csv_of(path) and not any(any(_images_below(folder)) for folder in _subfolders(path)):
        raise _nothing_found(path)


def walk_visible(
    path: Path, onerror: Callable[[OSError], None] | None = None
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yield a folder and each below it, with its folders and files by name; hidden ones are left out."""
    for current, folders, files in os.walk(path, onerror=onerror):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        yield Path(current), folders, sorted(name for name in files if not is_hidden(name))


def find_links(path: Path) -> list[Path]:
    """Return the symbolic links to folders and images that `read_folder` leaves out; of a CSV file none."""
    if csv_of(path):
        return []
    return [link for folder in walk_visible(path) for link in links_in(*folder)]


def links_in(current: Path, folders: Sequence[str], files: Sequence[str]) -> list[Path]:
    """Return the symbolic links to folders and images in one folder."""
    entries = [current / name for name in (*folders, *filter(is_image, files))]
    return [entry for entry in entries if entry.is_symlink()]


def csv_of(path: Path) -> Path | None:
    """Return the CSV file that lists the images of a path, if one does."""
    if path.suffix.lower() == ".csv":
        return path
    return path / LABELS_FILE if (path / LABELS_FILE).is_file() else None


def _read_classes(root: Path) -> list[Sample]:
    top = _subfolders(root)
    parts: list[tuple[Split | None, Path]] = [(None, root)]
    named = all(folder.name.lower() in _SPLITS for folder in top)
    if any(_is_split_folder(folder, loose=named) for folder in top):
        strange = [folder.name for folder in top if folder.name.lower() not in _SPLITS]
        if strange:
            raise DataError(
                f"the folder mixes splits and other folders: {_first(strange)}",
                where=str(root),
                fixes=["name the splits train, val and test", f"list files and splits in {LABELS_FILE}"],
            )
        parts = [(_SPLITS[folder.name.lower()], folder) for folder in top]
    samples = []
    filled: dict[str, bool] = {}
    for split, part in parts:
        for folder in _subfolders(part):
            label = _nfc(folder.name)
            files = list(_images_below(folder))
            filled[label] = filled.get(label, False) or bool(files)
            samples += [Sample(id=_id(file, root), label=label, image=file, split=split) for file in files]
    if not samples:
        raise _nothing_found(root)
    _refuse_splits(root, filled)
    if len(filled) == 1 and parts[0][0] is None:
        _refuse_outer(root)
    empty = sorted(label for label, has_images in filled.items() if not has_images)
    if empty:
        raise DataError(
            f"{counted(len(empty), 'class folder')} without an image: {_first(empty)}",
            where=str(root),
            fixes=["add images or remove the folder"],
        )
    return samples


def _refuse_outer(root: Path) -> None:
    """Name the folder of the classes, where it is alone in another: so archives unpack.

    Raises:
        DataError: It is.
    """
    inner, inside = root, _subfolders(root)
    while len(inside) == 1:
        inner, inside = inside[0], _subfolders(inside[0])
    if inner == root or not inside or any(is_image(entry.name) for entry in inner.iterdir()):
        return
    raise DataError(
        f"the folder holds one class only, {_subfolders(root)[0].name}",
        where=str(root),
        why=f"the folders that look like classes lie deeper, in {inner}: "
        f"{_first(folder.name for folder in inside)}",
        fixes=[f"name that folder: {inner}"],
    )


def _refuse_splits(root: Path, labels: Iterable[str]) -> None:
    """Name the classes, where they are splits by other names.

    Raises:
        DataError: They are.
    """
    found = {label: _LIKE_A_SPLIT.fullmatch(label) for label in labels}
    # Of one kind they may be classes after all: `freight-train` and `steam-train`.
    kinds = {match[1].lower() for match in found.values() if match}
    if len(kinds) > 1 and all(found.values()):
        raise DataError(
            f"the folders of the classes are named like splits: {_first(sorted(found))}",
            where=str(root),
            fixes=[
                "name the splits train, val and test, and give each one folder per class",
                f"list files, labels and splits in {LABELS_FILE}",
            ],
        )


def _is_split_folder(folder: Path, *, loose: bool) -> bool:
    """Tell `train/<class>/*.jpg`, where asked with loose images beside, from a class called `train`."""
    if folder.name.lower() not in _SPLITS:
        return False
    if loose and any(any(_images_below(inside)) for inside in _subfolders(folder)):
        return True
    entries = [entry for entry in folder.iterdir() if not is_hidden(entry.name)]
    return any(entry.is_dir() for entry in entries) and not any(is_image(entry.name) for entry in entries)


def _subfolders(folder: Path) -> list[Path]:
    try:
        entries = sorted(entry for entry in folder.iterdir() if not is_hidden(entry.name))
    except OSError as error:
        raise _closed(error) from error
    return [entry for entry in entries if entry.is_dir() and not entry.is_symlink()]


def _images_below(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise _closed(error) from error

    for current, _, files in walk_visible(folder, refuse):
        for name in files:
            file = current / name
            if is_image(name) and not file.is_symlink():
                yield file


def _closed(error: OSError) -> DataError:
    return DataError("a folder cannot be read", where=str(error.filename), why=error.strerror or str(error))


def _nothing_found(root: Path) -> DataError:
    loose = sum(1 for entry in root.iterdir() if is_image(entry.name) and not is_hidden(entry.name))
    why = []
    if loose:
        why.append(f"{counted(loose, 'image')} directly in it have no class")
    links = find_links(root)
    if links:
        why.append(f"{counted(len(links), 'symbolic link')} not followed")
    looked = ", ".join(extension[1:] for extension in EXTENSIONS)
    return DataError(
        f"found 0 images under {root}; looked for {looked} in one folder per class",
        where=str(root),
        why="; ".join(why),
        fixes=[f"lay the images out as {_LAYOUTS}"],
    )


def _read_csv(path: Path) -> list[Sample]:
    rows = _rows(path)
    root = path.parent
    real_root = root.resolve()
    missing, outside, unlabelled, unknown, samples = [], [], [], [], []
    for line, row in rows:
        name, label, split = row["file"], _nfc(row["label"]), row.get("split", "").lower()
        file = root / name
        if not name or not label:
            unlabelled.append(f"line {line}")
        elif split and split not in _SPLITS:
            unknown.append(f"{split!r} in line {line}")
        elif not file.resolve().is_relative_to(real_root):
            outside.append(name)
        elif not file.is_file():
            missing.append(name)
        else:
            where, base = (Path(os.path.normpath(path.absolute())) for path in (file, root))
            # A row may name it by another way than the one that led to the CSV.
            name = _id(where, base) if where.is_relative_to(base) else _id(file.resolve(), real_root)
            samples.append(Sample(id=name, label=label, image=where, split=_SPLITS.get(split)))
    for what, found, fix in (
        ("rows without a file or label", unlabelled, "complete the rows or remove them"),
        ("unknown splits", unknown, f"use one of {', '.join(_SPLITS)}"),
        ("files outside the folder of the CSV", outside, "name files relative to the CSV, below its folder"),
        ("files that do not exist", missing, "correct the names; they are relative to the CSV"),
    ):
        if found:
            raise DataError(f"the CSV has {len(found)} {what}: {_first(found)}", where=str(path), fixes=[fix])
    if not samples:
        raise DataError(f"found 0 images: {path.name} has no rows", where=str(path))
    return samples


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Read the rows of a CSV with their line numbers; column names and cells without outer spaces."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns = {name: name.strip().lower() for name in reader.fieldnames or ()}
            lacking = [name for name in ("file", "label") if name not in columns.values()]
            if lacking:
                raise DataError(
                    f"the CSV has no column {' and no column '.join(lacking)}",
                    where=str(path),
                    why=f"its first line names {_first(columns.values()) or 'nothing'}",
                    fixes=["start it with the line: file,label  or: file,label,split"],
                )
            return [
                (reader.line_num, {columns[key]: (row[key] or "").strip() for key in columns})
                for row in reader
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError("the CSV cannot be read", where=str(path), why=str(error)) from error


def _id(file: Path, root: Path) -> str:
    name = _nfc(file.relative_to(root).as_posix())
    _check_utf8(name, "file")
    return name


def _check_utf8(name: str, what: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        fixes = [f"rename the {what}"]
        raise DataError(f"a {what} name is not valid UTF-8", where=repr(name), fixes=fixes) from None


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def is_hidden(name: str) -> bool:
    """Say whether a file or folder of that name is passed over."""
    # macOS leaves a folder of that name in archives, with the names of all images in it.
    return name.startswith(".") or name == "__MACOSX"


def is_image(name: str) -> bool:
    """Say whether a file of that name is taken for an image."""
    return name.lower().endswith(EXTENSIONS)


def _first(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
