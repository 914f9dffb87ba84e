from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from harness.data.folder import find_links, look_at_folder, read_folder
from harness.errors import DataError


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def listed(root: Path) -> list[tuple[str, str, str | None]]:
    return [(sample.id, sample.label, sample.split) for sample in read_folder(root)]


def test_one_folder_per_class(tmp_path: Path) -> None:
    touch(tmp_path, "dog/b.PNG", "cat/a.jpg", "cat/deep/c.TIFF", "cat/notes.txt", "dog/b.jfif", "dog/b.ppm")
    assert listed(tmp_path) == [
        ("cat/a.jpg", "cat", None),
        ("cat/deep/c.TIFF", "cat", None),
        ("dog/b.PNG", "dog", None),
        ("dog/b.jfif", "dog", None),
        ("dog/b.ppm", "dog", None),
    ]


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_split_folders(tmp_path: Path, val: str) -> None:
    touch(tmp_path, "train/cat/a.jpg", f"{val}/cat/a.jpg", "test/cat/a.jpg")
    assert {(id, split) for id, _, split in listed(tmp_path)} == {
        ("train/cat/a.jpg", "train"),
        (f"{val}/cat/a.jpg", "val"),
        ("test/cat/a.jpg", "test"),
    }


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    touch(tmp_path, "train/a.jpg", "bus/b.jpg")
    assert [label for _, label, _ in listed(tmp_path)] == ["bus", "train"]


@pytest.mark.parametrize(
    "names",
    [
        ("Training/glioma/a.jpg", "Testing/glioma/a.jpg"),
        ("seg_train/seg_train/sea/a.jpg", "seg_test/seg_test/sea/a.jpg", "seg_pred/seg_pred/a.jpg"),
        ("train/seg_train/sea/a.jpg", "test/seg_test/sea/a.jpg"),
        ("train/cat.1.jpg", "test1/1.jpg"),
        ("training_set/cats/a.jpg", "test_set/cats/a.jpg"),
        ("train2017/a.jpg", "val2017/b.jpg"),
    ],
)
def test_splits_by_other_names_are_not_taken_for_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    touch(tmp_path, *names)
    with pytest.raises(DataError, match="named like splits: ") as caught:
        read_folder(tmp_path)
    assert caught.value.where == str(tmp_path)
    assert "train, val and test" in caught.value.fixes[0]


@pytest.mark.parametrize(
    "labels", [("freight-train", "steam_train"), ("train", "bus"), ("contest", "trainer")]
)
def test_classes_may_be_called_much_like_splits(tmp_path: Path, labels: tuple[str, str]) -> None:
    touch(tmp_path, *(f"{label}/a.jpg" for label in labels))
    assert {label for _, label, _ in listed(tmp_path)} == set(labels)


def test_loose_images_beside_the_classes_of_splits_make_no_classes_of_these(tmp_path: Path) -> None:
    splits = ("train", "test")
    touch(tmp_path, *(f"{split}/{name}.jpg" for split in splits for name in ("cat/a", "dog/a", "loose")))
    assert {(label, split) for _, label, split in listed(tmp_path)} == {
        (label, split) for label in ("cat", "dog") for split in splits
    }


def test_a_class_called_train_may_have_images_deeper_too(tmp_path: Path) -> None:
    touch(tmp_path, "train/a.jpg", "train/steam/b.jpg", "bus/c.jpg")
    assert [label for _, label, _ in listed(tmp_path)] == ["bus", "train", "train"]


def test_splits_beside_another_folder_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "train/cat/a.jpg", "extra/cat/a.jpg")
    with pytest.raises(DataError, match="extra"):
        read_folder(tmp_path)


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "cat/a.jpg", "cat/.b.jpg", ".ipynb_checkpoints/c.jpg", "__MACOSX/cat/._a.jpg")
    touch(tmp_path, "cat/.thumbnails/d.jpg")
    assert [id for id, _, _ in listed(tmp_path)] == ["cat/a.jpg"]


def test_symbolic_links_are_not_followed(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    touch(root, "cat/a.jpg", "dog/b.jpg")
    touch(tmp_path, "elsewhere/c.jpg")
    (root / "cat" / "loop").symlink_to(root)
    (root / "cat" / "away").symlink_to(tmp_path / "elsewhere")
    (root / "bird").symlink_to(tmp_path / "elsewhere")
    (root / "dog" / "c.jpg").symlink_to(tmp_path / "elsewhere" / "c.jpg")
    assert [id for id, _, _ in listed(root)] == ["cat/a.jpg", "dog/b.jpg"]


def test_a_folder_of_links_says_that_they_are_not_followed(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/c.jpg")
    root = tmp_path / "photos"
    (root / "cat").mkdir(parents=True)
    (root / "cat" / "c.jpg").symlink_to(tmp_path / "elsewhere" / "c.jpg")
    with pytest.raises(DataError) as caught:
        read_folder(root)
    assert "1 symbolic link not followed" in caught.value.why
    (root / "dog").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError) as caught:
        read_folder(root)
    assert "2 symbolic links not followed" in caught.value.why


def test_links_that_are_not_followed_are_listed_once(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    touch(root, "cat/a.jpg", "dog/deep/b.jpg", "notes.txt")
    touch(tmp_path, "elsewhere/c.jpg")
    (root / "bird").symlink_to(tmp_path / "elsewhere")
    (root / "dog" / "deep" / "c.jpg").symlink_to(tmp_path / "elsewhere" / "c.jpg")
    (root / "readme").symlink_to(root / "notes.txt")
    (root / ".hidden").symlink_to(tmp_path / "elsewhere")
    assert find_links(root) == [root / "bird", root / "dog" / "deep" / "c.jpg"]
    (root / "labels.csv").write_text("file,label\n", encoding="utf-8")
    assert find_links(root) == []


@pytest.mark.parametrize("outer", ["photos", "archive/photos"])
@pytest.mark.parametrize("parts", ["", "train/"])
def test_a_folder_around_the_folder_of_classes_is_refused_and_the_inner_named(
    tmp_path: Path, outer: str, parts: str
) -> None:
    names = [f"{outer}/{parts}{label}/a.jpg" for label in ("ant", "bee", "cat")]
    touch(tmp_path, *names, f"{outer}/val/ant/b.jpg" if parts else f"{outer}/readme.txt", "__MACOSX/a.jpg")
    with pytest.raises(DataError, match="one class only") as caught:
        read_folder(tmp_path)
    assert ("train, val" if parts else "ant, bee, cat") in caught.value.why
    assert caught.value.fixes == (f"name that folder: {tmp_path / outer}",)
    assert len(read_folder(tmp_path / outer)) == 3 + bool(parts)


@pytest.mark.parametrize("deep", ["", "deep/", "deep/er/"])
def test_one_class_with_images_of_its_own_is_no_outer_folder(tmp_path: Path, deep: str) -> None:
    touch(tmp_path, "cat/a.jpg", f"cat/{deep}b.jpg")
    assert [label for _, label, _ in listed(tmp_path)] == ["cat", "cat"]


@pytest.mark.parametrize("name", ["gone", "gone.csv", "empty", "text"])
def test_a_look_finds_what_is_no_data(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "text/cat/a.txt", "text/b.jpg", "good/cat/a.jpg")
    (tmp_path / "empty").mkdir()
    look_at_folder(tmp_path / "good")
    with pytest.raises(DataError, match=r"does not exist|found 0 images"):
        look_at_folder(tmp_path / name)


def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    touch(tmp_path, "photos/cat/a.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    assert [id for id, _, _ in listed(tmp_path / "link")] == ["cat/a.jpg"]


def test_ids_and_labels_are_nfc(tmp_path: Path) -> None:
    nfd = unicodedata.normalize("NFD", "Käse")
    touch(tmp_path, f"{nfd}/é 🐝\n.jpg")
    ((id, label, _),) = listed(tmp_path)
    assert label == unicodedata.normalize("NFC", nfd)
    assert unicodedata.is_normalized("NFC", id)


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "cat/a.jpg")
    try:
        (tmp_path / "cat" / "b\udcff.jpg").write_bytes(b"")
    except (OSError, UnicodeEncodeError):
        pytest.skip("the file system refuses such names itself")
    with pytest.raises(DataError, match="UTF-8"):
        read_folder(tmp_path)


def test_a_folder_whose_own_path_is_not_utf8_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "caf\udce9"
    try:
        touch(root, "cat/a.jpg")
    except (OSError, UnicodeEncodeError):
        pytest.skip("the file system refuses such names itself")
    (tmp_path / "link").symlink_to(root)
    for path in (root, tmp_path / "link"):
        with pytest.raises(DataError, match="a folder name is not valid UTF-8") as caught:
            read_folder(path)
        assert caught.value.where == repr(str(root))
        assert caught.value.fixes == ("rename the folder",)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist") as caught:
        read_folder(tmp_path / "gone")
    assert caught.value.exit_code == 5
    assert caught.value.fixes


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    with pytest.raises(DataError, match="is no folder"):
        read_folder(tmp_path / "a.jpg")


def test_an_empty_folder_says_where_and_for_what_it_looked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found 0 images under") as caught:
        read_folder(tmp_path)
    assert str(tmp_path) in caught.value.what
    assert "webp" in caught.value.what


def test_images_without_a_class_are_mentioned(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    with pytest.raises(DataError) as caught:
        read_folder(tmp_path)
    assert "2 images directly in it" in caught.value.why


def test_an_empty_class_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "cat/a.jpg", "dog/notes.txt")
    with pytest.raises(DataError, match="1 class folder without an image: dog"):
        read_folder(tmp_path)


def write_csv(root: Path, text: str, name: str = "labels.csv") -> Path:
    path = root / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_csv_names_files_labels_and_splits(tmp_path: Path) -> None:
    touch(tmp_path, "x/a.jpg", "b.jpg")
    text = "\ufeffFile, label ,split,note\nx/a.jpg,cat,train,1\n./b.jpg, dog,VALID,2\n"
    path = write_csv(tmp_path, text, "my.csv")
    assert listed(path) == [("b.jpg", "dog", "val"), ("x/a.jpg", "cat", "train")]


def test_a_csv_and_its_files_may_be_named_in_different_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "real", "x/a.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path)
    named = (f"{tmp_path}/real/x/a.jpg", "../real/x/a.jpg", "x/../x/a.jpg")
    for name in named:
        write_csv(tmp_path / "real", f"file,label\n{name},cat\n")
        for csv in (tmp_path / "real" / "labels.csv", Path("real/labels.csv"), Path("link/labels.csv")):
            assert [sample.id for sample in read_folder(csv)] == ["x/a.jpg"], (name, csv)


def test_labels_csv_in_a_folder_is_used(tmp_path: Path) -> None:
    touch(tmp_path, "x/a.jpg", "y/b.jpg")
    write_csv(tmp_path, "file,label\nx/a.jpg,cat\n")
    assert listed(tmp_path) == [("x/a.jpg", "cat", None)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column file"),
        ("path,label\na.jpg,cat\n", "no column file"),
        ("file,class\na.jpg,cat\n", "no column label"),
        ("file,label\n", "0 images"),
        ("file,label\na.jpg,\n", "line 2"),
        ("file,label\na.jpg\n", "line 2"),
        ("file,label,split\na.jpg,cat,holdout\n", "'holdout' in line 2"),
        ("file,label\ngone.jpg,cat\n", r"gone\.jpg"),
        ("file,label\n" + "".join(f"gone{i}.jpg,cat\n" for i in range(9)), "9 files .* and 4 more"),
        ("file,label\n../outside.jpg,cat\n", r"outside the folder .*: \.\./outside\.jpg"),
        ("file,label\n/etc/hostname,cat\n", "outside the folder"),
        ("file,label\nlink.jpg,cat\n", "outside the folder"),
        ('file,label\n"a.jpg,cat\n', "cannot be read"),
    ],
)
def test_a_bad_csv_is_refused(tmp_path: Path, text: str, message: str) -> None:
    root = tmp_path / "photos"
    touch(tmp_path, "outside.jpg", "photos/a.jpg")
    (root / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    path = write_csv(root, text)
    with pytest.raises(DataError, match=message) as caught:
        read_folder(path)
    assert caught.value.where == str(path)


def test_a_csv_of_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes("file,label\na.jpg,Käse\n".encode("latin-1"))
    with pytest.raises(DataError, match="cannot be read"):
        read_folder(path)


def test_a_missing_csv_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_folder(tmp_path / "gone.csv")
