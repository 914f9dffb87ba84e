from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.data import scan as scan_module
from harness.data.manifest import Manifest, SplitRules, check_dataset, load_manifest
from harness.errors import DataError, UnknownNameError
from harness.records import Provider
from harness.registry import Catalog
from harness.specs import DatasetSpec, Sample

RULES = SplitRules(val=0.25, test=0.25, seed=0)


def registry(*specs: DatasetSpec) -> Any:
    catalog: Catalog[DatasetSpec] = Catalog("dataset")
    for spec in specs:
        catalog.add(spec, Provider(name=spec.name, plugin="p", distribution="d", version="1"))
    return SimpleNamespace(datasets=catalog)


def paint(path: Path, shade: int, *, side: int = 6) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((side, side, 3), [shade, shade // 2, 7], dtype=np.uint8)).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of eight different images each."""
    root = tmp_path / "photos"
    for number, label in enumerate(("cat", "dog")):
        for index in range(8):
            paint(root / label / f"{index}.png", 100 * number + index)
    return root


def load(dataset: object, tmp_path: Path, **options: Any) -> Manifest:
    return load_manifest(str(dataset), registry(), rules=RULES, home=tmp_path / "home", **options)


def problems(dataset: object, tmp_path: Path, **options: Any) -> str:
    check = check_dataset(str(dataset), registry(), rules=RULES, home=tmp_path / "home", **options)
    return "\n".join(check.problems)


def test_a_folder_is_split_by_class(photos: Path, tmp_path: Path) -> None:
    manifest = load(photos, tmp_path)
    assert manifest.dataset == "photos"
    assert manifest.classes == ("cat", "dog")
    assert manifest.counts() == {"train": (4, 4), "val": (2, 2), "test": (2, 2)}
    assert manifest.licence == "not stated"
    assert "seed 0" in manifest.split_rule
    assert [item.id for item in manifest.items] == sorted(item.id for item in manifest.items)
    assert manifest.of("val") == tuple(item for item in manifest.items if item.split == "val")
    assert manifest.warnings == ()


def test_the_record_of_the_data_set(photos: Path, tmp_path: Path) -> None:
    manifest = load(photos, tmp_path)
    record = manifest.dataset_record()
    assert (record.name, record.classes) == ("photos", ("cat", "dog"))
    assert record.counts == manifest.counts()
    assert record.split == manifest.split_rule


def test_the_fingerprint_does_not_depend_on_place_or_format_of_the_path(photos: Path, tmp_path: Path) -> None:
    first = load(photos, tmp_path).protocol()
    moved = photos.rename(tmp_path / "elsewhere")
    assert load(f"{moved}/", tmp_path).protocol() == first


def test_the_fingerprint_changes_with_a_name_a_label_a_pixel_or_a_split(photos: Path, tmp_path: Path) -> None:
    manifest = load(photos, tmp_path)
    item = manifest.items[0]
    digests = {manifest.protocol().digest}
    for changed in (
        replace(item, id="other.png"),
        replace(item, label=1),
        replace(item, sha256="0" * 64),
        replace(item, split="test" if item.split != "test" else "train"),
    ):
        digests.add(replace(manifest, items=(changed, *manifest.items[1:])).protocol().digest)
    digests.add(replace(manifest, classes=("cat", "dogs")).protocol().digest)
    assert len(digests) == 6


def test_the_fingerprint_says_which_split_differs(photos: Path, tmp_path: Path) -> None:
    manifest = load(photos, tmp_path)
    sealed = replace(manifest, items=manifest.of("train") + manifest.of("val")).protocol()
    whole = manifest.protocol()
    assert sealed.splits["train"] == whole.splits["train"]
    assert sealed.splits["val"] == whole.splits["val"]
    assert sealed.splits["test"] != whole.splits["test"]
    assert sealed.digest != whole.digest


def test_a_manifest_travels_to_another_process(photos: Path, tmp_path: Path) -> None:
    manifest = load(photos, tmp_path)
    assert ForkingPickler.loads(bytes(ForkingPickler.dumps(manifest))) == manifest


def test_a_second_load_reads_no_image(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(photos, tmp_path)

    def refuse(*_: object) -> None:
        raise AssertionError("an image was read")

    monkeypatch.setattr(scan_module, "_look", refuse)
    assert load(photos, tmp_path) == first


def test_official_splits_are_kept_with_one_class_map(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "val", "test")):
        for label in ("b", "a"):
            paint(tmp_path / "set" / split / label / "x.png", 20 * number + ord(label))
    manifest = load(tmp_path / "set", tmp_path)
    assert manifest.split_rule == "official"
    found = [(item.id, item.label) for item in manifest.of("test")]
    assert found == [("test/a/x.png", 0), ("test/b/x.png", 1)]


def test_one_class_is_refused(tmp_path: Path) -> None:
    for index in range(5):
        paint(tmp_path / "set" / "cat" / f"{index}.png", index)
    assert "only 1 class: cat" in problems(tmp_path / "set", tmp_path)


def test_a_class_with_too_few_images_is_named_with_split_and_count(photos: Path, tmp_path: Path) -> None:
    paint(photos / "owl" / "0.png", 201)
    paint(photos / "owl" / "1.png", 202)
    paint(photos / "rat" / "0.png", 203)
    found = problems(photos, tmp_path)
    assert "classes with too few images, each split needs at least 1 (2)" in found
    assert "owl: 0 in val (has 2 different images)" in found
    assert "rat: 0 in val and test (has 1 different images)" in found
    assert "cat" not in found


def test_copies_do_not_count_as_images(photos: Path, tmp_path: Path) -> None:
    for index in range(5):
        paint(photos / "owl" / f"{index}.png", 201)
    assert "owl: 0 in val and test (has 1 different images)" in problems(photos, tmp_path)


def test_a_class_that_training_never_sees_is_refused(tmp_path: Path) -> None:
    shades = iter(range(200))
    for split, labels in (("train", "ab"), ("val", "ab"), ("test", "abc")):
        for label in labels:
            paint(tmp_path / "set" / split / label / "x.png", next(shades))
    found = problems(tmp_path / "set", tmp_path)
    assert "classes without training images (1)" in found
    assert "c: 0 in val, 1 in test" in found


def test_splits_without_training_images_are_refused(tmp_path: Path) -> None:
    for split in ("val", "test"):
        for label in "ab":
            paint(tmp_path / "set" / split / label / "x.png", ord(label))
    assert "no images to train on" in problems(tmp_path / "set", tmp_path)


def test_unreadable_images_are_refused_with_their_paths(photos: Path, tmp_path: Path) -> None:
    for index in range(12):
        (photos / "cat" / f"bad{index:02}.jpg").write_bytes(b"text")
    with pytest.raises(DataError, match="1 problem\n") as caught:
        load(photos, tmp_path)
    message = str(caught.value)
    assert "unreadable images (12)" in message
    assert "cat/bad00.jpg: the content is no image" in message
    assert "and 2 more" in message
    assert "bad11" not in message
    assert "skip_bad" in message
    assert caught.value.exit_code == 5


def test_unreadable_images_can_be_left_out_and_are_counted(photos: Path, tmp_path: Path) -> None:
    expected = load(photos, tmp_path).protocol()
    (photos / "cat" / "bad.jpg").write_bytes(b"")
    manifest = load(photos, tmp_path, skip_bad=True)
    assert manifest.skipped == 1
    assert "left out unreadable images (1)" in manifest.warnings[0]
    assert manifest.protocol() == expected


def test_all_problems_are_reported_at_once(photos: Path, tmp_path: Path) -> None:
    (photos / "cat" / "bad.jpg").write_bytes(b"")
    paint(photos / "owl" / "0.png", 201)
    with pytest.raises(DataError, match="2 problems") as caught:
        load(photos, tmp_path)
    assert "unreadable" in caught.value.what
    assert "owl" in caught.value.what


def test_the_same_content_under_two_labels_is_a_warning(photos: Path, tmp_path: Path) -> None:
    (photos / "dog" / "copy.png").write_bytes((photos / "cat" / "0.png").read_bytes())
    manifest = load(photos, tmp_path)
    assert "images with copies under another label" in manifest.warnings[0]
    assert "cat/0.png = dog/copy.png" in manifest.warnings[0]


def test_copies_in_two_official_splits_are_a_warning(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        for label in "ab":
            paint(tmp_path / "set" / split / label / "x.png", ord(label))
    (warning,) = load(tmp_path / "set", tmp_path).warnings
    assert "images with copies in another split (2)" in warning


def test_copies_within_a_class_share_a_split(photos: Path, tmp_path: Path) -> None:
    for index in range(8):
        (photos / "cat" / f"copy{index}.png").write_bytes((photos / "cat" / f"{index}.png").read_bytes())
    manifest = load(photos, tmp_path)
    splits = {item.id: item.split for item in manifest.items}
    assert all(splits[f"cat/copy{index}.png"] == splits[f"cat/{index}.png"] for index in range(8))
    assert manifest.warnings == ()


def beans(folder: Path, download: bool) -> list[Sample]:
    rng = np.random.default_rng(0)
    return [
        Sample(id=f"{label}/{index}", label=label, image=rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        for label in ("a", "b")
        for index in range(6)
    ]


def spec(build: Any = beans) -> DatasetSpec:
    return DatasetSpec(name="beans", summary="", build=build, licence="MIT", url="")


def test_a_registered_name_is_built_in_its_own_folder(tmp_path: Path) -> None:
    folders = []

    def build(folder: Path, download: bool) -> list[Sample]:
        folders.append(folder)
        return beans(folder, download)

    manifest = load_manifest("beans", registry(spec(build)), rules=RULES, home=tmp_path)
    assert folders == [tmp_path / "data" / "beans"]
    assert (manifest.dataset, manifest.licence) == ("beans", "MIT")
    assert len(manifest.items) == 12


def test_a_name_wins_over_a_folder_unless_a_path_is_written(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos.rename(tmp_path / "beans")
    monkeypatch.chdir(tmp_path)
    known = registry(spec())
    assert load_manifest("beans", known, rules=RULES, home=tmp_path).classes == ("a", "b")
    assert load_manifest("./beans", known, rules=RULES, home=tmp_path).classes == ("cat", "dog")
    assert load_manifest("beans", registry(), rules=RULES, home=tmp_path).classes == ("cat", "dog")


def test_an_unknown_name_suggests_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownNameError, match="unknown data set 'baens', did you mean 'beans'") as caught:
        load_manifest("baens", registry(spec()), rules=RULES, home=tmp_path)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["./gone", "gone/", "gone.csv", "~/gone-from-here"])
def test_a_path_that_does_not_exist_is_a_data_error(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="does not exist") as caught:
        load_manifest(name, registry(spec()), rules=RULES, home=tmp_path)
    assert caught.value.exit_code == 5


def test_a_csv_is_named_by_its_file_and_labels_csv_by_its_folder(photos: Path, tmp_path: Path) -> None:
    rows = "".join(f"{label}/{index}.png,{label}\n" for label in ("cat", "dog") for index in range(8))
    (photos / "pets.csv").write_text("file,label\n" + rows)
    (photos / "labels.csv").write_text("file,label\n" + rows)
    assert load(photos / "pets.csv", tmp_path).dataset == "pets"
    assert load(photos / "labels.csv", tmp_path).dataset == "photos"
    assert load(photos, tmp_path).protocol() == load(photos / "pets.csv", tmp_path).protocol()


def test_two_images_of_one_id_are_refused(tmp_path: Path) -> None:
    def build(folder: Path, download: bool) -> list[Sample]:
        return [replace(sample, id="same") for sample in beans(folder, download)]

    with pytest.raises(DataError, match=r"ids that name two images \(1\)"):
        load_manifest("beans", registry(spec(build)), rules=RULES, home=tmp_path)


def test_official_splits_for_some_images_only_are_refused(photos: Path, tmp_path: Path) -> None:
    rows = [
        f"{label}/{index}.png,{label},{'train' if index else ''}\n"
        for label in ("cat", "dog")
        for index in range(8)
    ]
    (photos / "labels.csv").write_text("file,label,split\n" + "".join(rows))
    assert "images without a split beside others that have one (2)" in problems(photos, tmp_path)


def test_checking_a_folder_imports_nothing_heavy(photos: Path, tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from types import SimpleNamespace\n"
        "from pathlib import Path\n"
        "from harness.data.manifest import SplitRules, check_dataset\n"
        "from harness.registry import Catalog\n"
        "known = SimpleNamespace(datasets=Catalog('dataset'))\n"
        "check = check_dataset(sys.argv[1], known, rules=SplitRules(), home=Path(sys.argv[2]))\n"
        "assert not check.problems, check.problems\n"
        "heavy = ('torch', 'torchvision', 'timm', 'optuna', 'pandas', 'scipy')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(photos), str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
