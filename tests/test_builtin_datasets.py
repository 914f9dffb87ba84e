from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import harness
from harness.data.bank import prepare, short_side
from harness_builtin import augmentations, datasets, petals

SPECS = {spec.name: spec for spec in datasets.harness_datasets()}
POLICIES = {spec.name: spec for spec in augmentations.harness_augmentations()}
INPUTS = harness.InputSpec(size=32)


def image(path, shade=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(path)


def summarised(samples):
    return sorted((sample.id, sample.label, sample.split) for sample in samples)


@pytest.fixture(scope="module")
def drawn():
    """Images of the drawn set."""
    return [petals.render(petals.GARDENS["petals"], 0, index % 12, index) for index in range(4)]


@pytest.mark.parametrize("name", SPECS)
def test_each_data_set_says_where_it_comes_from(name):
    spec = SPECS[name]
    assert spec.licence
    assert "\n" not in spec.summary
    if name not in petals.GARDENS:
        assert spec.url.startswith("https://")
        assert spec.download_url
        assert spec.size
        assert spec.citation


@pytest.mark.parametrize("name", [name for name in SPECS if name not in petals.GARDENS])
def test_missing_data_are_not_downloaded_unasked(tmp_path, name):
    with pytest.raises(RuntimeError, match="not found"):
        list(SPECS[name].build(tmp_path / name, False))
    assert not (tmp_path / name).exists()


def test_pets(tmp_path):
    base = tmp_path / "oxford-iiit-pet"
    for name in ("Bengal_1", "great_dane_1", "Bengal_2", "great_dane_2"):
        image(base / "images" / f"{name}.jpg")
    (base / "annotations").mkdir()
    (base / "annotations" / "trainval.txt").write_text("Bengal_1 1 1 1\ngreat_dane_1 2 2 1\n")
    (base / "annotations" / "test.txt").write_text("Bengal_2 1 1 1\ngreat_dane_2 2 2 1\n")
    assert summarised(SPECS["pets"].build(tmp_path, False)) == [
        ("oxford-iiit-pet/images/Bengal_1.jpg", "Bengal", "train"),
        ("oxford-iiit-pet/images/Bengal_2.jpg", "Bengal", "test"),
        ("oxford-iiit-pet/images/great_dane_1.jpg", "Great Dane", "train"),
        ("oxford-iiit-pet/images/great_dane_2.jpg", "Great Dane", "test"),
    ]


def test_dtd_takes_partition_1(tmp_path):
    base = tmp_path / "dtd" / "dtd"
    (base / "labels").mkdir(parents=True)
    for split in ("train", "val", "test"):
        (base / "labels" / f"{split}1.txt").write_text(f"dotted/{split}.jpg\nwoven/{split}.jpg\n")
        for label in ("dotted", "woven"):
            image(base / "images" / label / f"{split}.jpg")
    found = summarised(SPECS["dtd"].build(tmp_path, False))
    assert len(found) == 6
    assert ("dtd/dtd/images/woven/val.jpg", "woven", "val") in found


def test_eurosat_has_no_split(tmp_path):
    for label in ("Forest", "River"):
        image(tmp_path / "eurosat" / "2750" / label / f"{label}_1.jpg")
    assert summarised(SPECS["eurosat"].build(tmp_path, False)) == [
        ("eurosat/2750/Forest/Forest_1.jpg", "Forest", None),
        ("eurosat/2750/River/River_1.jpg", "River", None),
    ]


def test_food101(tmp_path):
    base = tmp_path / "food-101"
    (base / "meta").mkdir(parents=True)
    for split in ("train", "test"):
        (base / "meta" / f"{split}.json").write_text(json.dumps({"ramen": [f"ramen/{split}"]}))
        image(base / "images" / "ramen" / f"{split}.jpg")
    assert summarised(SPECS["food101"].build(tmp_path, False)) == [
        ("food-101/images/ramen/test.jpg", "ramen", "test"),
        ("food-101/images/ramen/train.jpg", "ramen", "train"),
    ]


def test_gtsrb_names_classes_by_number(tmp_path):
    base = tmp_path / "gtsrb"
    for number in (0, 1):
        image(base / "GTSRB" / "Training" / f"{number:05}" / "x.ppm")
    image(base / "GTSRB" / "Final_Test" / "Images" / "00000.ppm")
    (base / "GT-final_test.csv").write_text("Filename;Width;ClassId\n00000.ppm;4;1\n")
    assert [(label, split) for _, label, split in summarised(SPECS["gtsrb"].build(tmp_path, False))] == [
        ("01", "test"),
        ("00", "train"),
        ("01", "train"),
    ]


def test_flowers(tmp_path, monkeypatch):
    from scipy.io import savemat
    from torchvision.datasets import Flowers102

    monkeypatch.setattr(Flowers102, "_check_integrity", lambda self: True)
    base = tmp_path / "flowers-102"
    base.mkdir()
    # Two of each: of a single number, torchvision's reader makes no list.
    savemat(base / "setid.mat", {"trnid": [[1, 2]], "valid": [[3, 4]], "tstid": [[5, 6]]})
    savemat(base / "imagelabels.mat", {"labels": [[1, 2, 1, 2, 1, 102]]})
    found = summarised(SPECS["flowers"].build(tmp_path, False))
    assert found[0] == ("flowers-102/jpg/image_00001.jpg", "pink primrose", "train")
    assert found[5] == ("flowers-102/jpg/image_00006.jpg", "blackberry lily", "test")


@pytest.mark.parametrize(
    ("name", "upstream"),
    [("cifar10", "CIFAR10"), ("cifar100", "CIFAR100"), ("fashion-mnist", "FashionMNIST")],
)
def test_sets_in_memory_are_named_by_number(tmp_path, monkeypatch, name, upstream):
    class Upstream:
        classes = ("cat", "dog")

        def __init__(self, root, train, download):
            pixels = np.full((2, 28, 28), 1 + train, dtype=np.uint8)
            self.data = torch.from_numpy(pixels) if upstream == "FashionMNIST" else pixels
            self.targets = torch.tensor([0, 1]) if upstream == "FashionMNIST" else [0, 1]

    monkeypatch.setattr(f"torchvision.datasets.{upstream}", Upstream)
    samples = list(SPECS[name].build(tmp_path, False))
    assert summarised(samples) == [
        ("test/00000", "cat", "test"),
        ("test/00001", "dog", "test"),
        ("train/00000", "cat", "train"),
        ("train/00001", "dog", "train"),
    ]
    assert all(isinstance(sample.image, np.ndarray) and sample.image.dtype == np.uint8 for sample in samples)


@pytest.mark.parametrize("links", [True, False])
def test_archives_put_into_the_folder_by_hand_are_found(tmp_path, monkeypatch, links):
    def refuse(*_):
        raise OSError("no links on this file system")

    if not links:
        monkeypatch.setattr("pathlib.Path.hardlink_to", refuse)

    class Upstream:
        def __init__(self, root, *arguments, download):
            assert (root / "eurosat" / "EuroSAT.zip").read_text() == "mine"
            raise RuntimeError("seen")

    monkeypatch.setattr("torchvision.datasets.EuroSAT", Upstream)
    (tmp_path / "EuroSAT.zip").write_text("mine")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="seen"):
            list(SPECS["eurosat"].build(tmp_path, True))
    assert (tmp_path / "EuroSAT.zip").exists()


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("shape", [(40, 60), (37, 150), (32, 32), (20, 25)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
def test_a_policy_returns_a_square_of_the_wanted_size(name, shape, interpolation):
    built = POLICIES[name].build(harness.InputSpec(size=32, interpolation=interpolation))
    policies = built if isinstance(built, tuple) else [built] * 3
    pixels = torch.randint(0, 256, (3, *shape), dtype=torch.uint8)
    for seed, policy in enumerate(policies):
        torch.manual_seed(seed)
        result = policy(pixels)
        assert result.dtype == torch.uint8
        assert tuple(result.shape) == (3, 32, 32)


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_depends_on_the_seed_and_on_nothing_else(name, drawn):
    built = POLICIES[name].build(INPUTS)
    policies = built if isinstance(built, tuple) else [built] * 8
    pixels = torch.from_numpy(drawn[0]).permute(2, 0, 1)

    def views():
        torch.manual_seed(5)
        return torch.stack([policy(pixels) for policy in policies])

    first = views()
    assert torch.equal(views(), first)
    assert (name == "none") == all(torch.equal(view, first[0]) for view in first)
    assert len(policies) == {"none": 1, "flip": 2}.get(name, 8)


def test_no_augmentation_is_what_evaluation_sees(drawn):
    from harness.data.bank import centre_crop

    inputs = harness.InputSpec(size=40, crop=0.9)
    banked = prepare(drawn[0], short_side(inputs.size, inputs.crop), inputs.interpolation)
    assert torch.equal(POLICIES["none"].build(inputs)[0](banked), centre_crop(banked, 40))


@pytest.mark.parametrize("name", ["flip-crop", "trivial-augment", "rand-augment"])
def test_half_of_the_views_are_flipped(name):
    ramp = torch.arange(64, dtype=torch.uint8).mul(4).expand(3, 64, 64)
    torch.manual_seed(0)
    crop = POLICIES["flip-crop"].build(INPUTS)
    flipped = sum(bool(view[0, 0, 0] > view[0, 0, -1]) for view in (crop(ramp) for _ in range(100)))
    assert 30 < flipped < 70
