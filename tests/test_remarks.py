from __future__ import annotations

from pathlib import Path

import pytest

from harness.data.folder import read_folder
from harness.data.remarks import find_remarks


def remarks(root: Path, *names: str) -> list[str]:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return find_remarks(root, read_folder(root))


def test_nothing_is_said_of_a_folder_that_is_read_wholly(tmp_path: Path) -> None:
    names = ("cat/a.jpg", "dog/b.jpg", "dog/notes.txt", "readme.md", ".c.heic", "__MACOSX/._a.jpg")
    assert remarks(tmp_path, *names) == []


@pytest.mark.parametrize("part", ["", "train/"])
def test_images_that_no_class_has_are_counted(tmp_path: Path, part: str) -> None:
    names = (f"{part}cat/a.jpg", f"{part}dog/b.jpg", f"{part}c.jpg", "d.jpg")
    (remark,) = remarks(tmp_path, *names)
    assert remark.startswith(
        f"images left out that lie in no folder of a class ({len({names[2], names[3]})})"
    )
    assert f"{part}c.jpg" in remark


def test_images_of_formats_that_are_not_read_are_counted(tmp_path: Path) -> None:
    (remark,) = remarks(tmp_path, "cat/a.jpg", "cat/b.HEIC", "cat/deep/c.avif", "dog/d.jpg", "e.jp2")
    assert "format is not read: convert them to jpg or png (3)\n      e.jp2\n      cat/b.HEIC" in remark


def test_a_csv_file_lists_all_that_is_meant(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file,label\ncat/a.jpg,cat\n")
    assert remarks(tmp_path, "cat/a.jpg", "b.jpg", "c.heic") == []


@pytest.mark.parametrize("part", ["", "train/"])
def test_folders_that_recur_in_several_classes_may_be_the_classes(tmp_path: Path, part: str) -> None:
    views = ("color", "grayscale")
    names = [f"{part}{view}/{label}/a.jpg" for view in views for label in ("apple", "corn")]
    (remark,) = remarks(tmp_path, *names, f"{part}other/pear/a.jpg")
    assert remark.startswith("the same folders lie in 2 classes (color, grayscale), and no image beside them")
    assert remark.endswith("(2)\n      apple\n      corn")


@pytest.mark.parametrize(
    "names",
    [
        ("cat/one/a.jpg", "cat/two/a.jpg", "dog/one/a.jpg", "dog/two/a.jpg", "dog/b.jpg"),
        ("cat/images/a.jpg", "dog/images/a.jpg"),
        ("cat/one/a.jpg", "cat/two/a.jpg", "dog/three/a.jpg", "dog/two/a.jpg"),
    ],
)
def test_folders_within_classes_are_usual_otherwise(tmp_path: Path, names: tuple[str, ...]) -> None:
    assert remarks(tmp_path, *names) == []
