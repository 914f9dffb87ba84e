from __future__ import annotations

import errno
import hashlib
import io
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from harness.data import bank as module
from harness.data.bank import Bank, centre_crop, prepare, short_side
from harness.data.decode import decode
from harness.data.manifest import Item
from harness.data.scan import content_sha256
from harness.errors import DataError, StorageError


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def item(name: str, image: np.ndarray | Path) -> Item:
    content = image.read_bytes() if isinstance(image, Path) else image
    return Item(id=name, label=0, split="train", sha256=content_sha256(content), image=image)


def items_of(*shapes: tuple[int, int]) -> list[Item]:
    return [item(str(index), noise(*shape, seed=index)) for index, shape in enumerate(shapes)]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that were decoded."""
    names: list[str] = []
    original = module._decoded

    def counted(one: Item) -> np.ndarray:
        names.append(one.id)
        return original(one)

    monkeypatch.setattr(module, "_decoded", counted)
    return names


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((40, 60), (16, 24)),
        ((60, 40), (24, 16)),
        ((10, 10), (16, 16)),
        ((4, 9), (16, 36)),
        ((20, 200), (16, 64)),
    ],
)
def test_the_short_side_becomes_the_wanted_one(shape: tuple[int, int], expected: tuple[int, int]) -> None:
    image = prepare(noise(*shape), 16, "bicubic")
    assert image.dtype == torch.uint8
    assert tuple(image.shape) == (3, *expected)


def test_resizing_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    image = prepare(stripes, 16, "bilinear")
    assert (image.float() - 127.5).abs().max() < 16


def test_an_image_of_the_wanted_size_keeps_its_pixels() -> None:
    pixels = noise(16, 20)
    assert torch.equal(prepare(pixels, 16, "bicubic"), torch.from_numpy(pixels).permute(2, 0, 1))


def test_a_very_long_image_is_cropped_in_its_middle() -> None:
    pixels = np.zeros((10, 100, 3), dtype=np.uint8)
    pixels[:, 30:70] = 200
    assert (prepare(pixels, 10, "nearest") == 200).all()


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_a_bank_holds_what_prepare_makes_of_each_image(tmp_path: Path, interpolation: str) -> None:
    items = items_of((40, 60), (10, 12), (60, 20), (16, 16), (300, 20))
    bank = Bank.open(items, 16, interpolation, tmp_path)
    assert len(bank) == 5
    for row, one in enumerate(items):
        assert torch.equal(bank.image(row), prepare(one.image, 16, interpolation))


def test_files_are_read_like_arrays(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(noise(30, 40)).save(path)
    bank = Bank.open([item("a", path)], 16, "bicubic", tmp_path)
    assert torch.equal(bank.image(0), prepare(decode(path, "a"), 16, "bicubic"))


def test_an_image_is_a_copy(tmp_path: Path) -> None:
    bank = Bank.open(items_of((20, 20)), 16, "bicubic", tmp_path)
    expected = bank.image(0).clone()
    bank.image(0).zero_()
    assert torch.equal(bank.image(0), expected)


def test_rows_follow_the_items_in_any_order(tmp_path: Path, decoded: list[str]) -> None:
    items = items_of((20, 20), (20, 30), (30, 20))
    first = Bank.open(items, 16, "bicubic", tmp_path)
    second = Bank.open(items[::-1], 16, "bicubic", tmp_path)
    assert sorted(decoded) == ["0", "1", "2"]
    assert torch.equal(first.image(0), second.image(2))
    assert second.rows([items[0], items[2]]) == [2, 0]


def test_an_image_is_decoded_once(tmp_path: Path, decoded: list[str]) -> None:
    items = items_of((20, 20), (20, 30))
    copy = item("copy", items[0].image)
    bank = Bank.open([*items, copy], 16, "bicubic", tmp_path)
    Bank.open([*items, copy], 16, "bicubic", tmp_path)
    assert len(decoded) == 2
    assert torch.equal(bank.image(0), bank.image(2))


def test_another_size_or_interpolation_is_another_bank(tmp_path: Path) -> None:
    items = items_of((40, 40))
    assert Bank.open(items, 16, "bicubic", tmp_path).image(0).shape[1] == 16
    assert Bank.open(items, 20, "bicubic", tmp_path).image(0).shape[1] == 20
    smooth, sharp = (Bank.open(items, 16, name, tmp_path).image(0) for name in ("bilinear", "bicubic"))
    assert not torch.equal(smooth, sharp)


def test_a_bank_of_training_images_touches_no_test_image(tmp_path: Path) -> None:
    train = items_of((20, 20))
    sealed = item("sealed", noise(20, 20, seed=9))
    Bank.open(train, 16, "bicubic", tmp_path)
    (index,) = (tmp_path / "bank").glob("*/index.json")
    assert sealed.sha256 not in index.read_text()


def test_enlargements_are_not_stored(tmp_path: Path) -> None:
    Bank.open(items_of((8, 8)), 64, "bicubic", tmp_path)
    (pixels,) = (tmp_path / "bank").glob("*/pixels.bin")
    assert pixels.stat().st_size == 8 * 8 * 3


def test_what_a_killed_process_left_is_replaced(tmp_path: Path) -> None:
    items = items_of((20, 20))
    expected = Bank.open(items, 16, "bicubic", tmp_path).image(0)
    (folder,) = (path for path in (tmp_path / "bank").iterdir() if path.is_dir())
    folder.rename(folder.with_name(f".{folder.name}.part"))
    assert torch.equal(Bank.open(items, 16, "bicubic", tmp_path).image(0), expected)
    assert [path.name for path in (tmp_path / "bank").iterdir() if path.is_dir()] == [folder.name]


@pytest.mark.parametrize("damage", ["short", "no index", "bad index", "empty index"])
def test_a_damaged_bank_is_decoded_again(tmp_path: Path, damage: str) -> None:
    items = items_of((20, 20))
    expected = Bank.open(items, 16, "bicubic", tmp_path).image(0)
    (folder,) = (path for path in (tmp_path / "bank").iterdir() if path.is_dir())
    if damage == "short":
        (folder / "pixels.bin").write_bytes(b"")
    elif damage == "no index":
        (folder / "index.json").unlink()
    else:
        (folder / "index.json").write_text("{" if damage == "bad index" else "")
    assert torch.equal(Bank.open(items, 16, "bicubic", tmp_path).image(0), expected)


def test_an_image_that_changed_after_the_check_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(noise(30, 40)).save(path)
    one = item("a", path)
    Image.fromarray(noise(30, 40, seed=1)).save(path)
    with pytest.raises(DataError, match="has changed"):
        Bank.open([one], 16, "bicubic", tmp_path)
    assert not list((tmp_path / "bank").glob("*/index.json"))


def test_an_image_that_is_gone_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(noise(30, 40)).save(path)
    one = item("a", path)
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        Bank.open([one], 16, "bicubic", tmp_path)


def test_a_full_disk_is_a_storage_error_that_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_write", full)
    with pytest.raises(StorageError, match="No space left") as caught:
        Bank.open(items_of((20, 20)), 16, "bicubic", tmp_path)
    assert any("HARNESS_HOME" in fix for fix in caught.value.fixes)
    assert not [path for path in (tmp_path / "bank").iterdir() if path.is_dir()]


def test_a_home_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        Bank.open(items_of((20, 20)), 16, "bicubic", tmp_path / "file")


def test_a_bank_without_items_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        Bank.open([], 16, "bicubic", tmp_path)


@pytest.mark.slow
def test_processes_that_open_one_bank_decode_it_once(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from harness.data import bank as module\n"
        "from harness.data.manifest import Item\n"
        "from harness.data.scan import content_sha256\n"
        "home, log = Path(sys.argv[1]), Path(sys.argv[1]) / 'log'\n"
        "original = module._decoded\n"
        "def counted(item):\n"
        "    with log.open('a') as file: file.write(item.id + chr(10))\n"
        "    return original(item)\n"
        "module._decoded = counted\n"
        "images = np.random.default_rng(0).integers(0, 256, (64, 40, 40, 3), dtype=np.uint8)\n"
        "items = [Item(id=str(i), label=0, split='train', sha256=content_sha256(image), image=image)\n"
        "         for i, image in enumerate(images)]\n"
        "bank = module.Bank.open(items, 16, 'bicubic', home)\n"
        "import hashlib\n"
        "print(hashlib.sha256(b''.join(bank.image(i).numpy().tobytes() for i in range(64))).hexdigest())\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = {process.communicate()[0] for process in running}
    assert all(process.returncode == 0 for process in running)
    assert len(outputs) == 1
    assert sorted((tmp_path / "log").read_text().split(), key=int) == [str(index) for index in range(64)]


def test_the_centre_crop_is_central() -> None:
    image = torch.arange(7 * 9, dtype=torch.uint8).reshape(1, 7, 9).repeat(3, 1, 1)
    assert torch.equal(centre_crop(image, 3), image[:, 2:5, 3:6])
    assert tuple(centre_crop(image, 7).shape) == (3, 7, 7)


def test_a_crop_larger_than_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match="holds no square"):
        centre_crop(torch.zeros(3, 4, 9, dtype=torch.uint8), 5)


@pytest.mark.parametrize(("size", "crop", "side"), [(224, 0.875, 256), (224, 0.95, 235), (224, 1.0, 224)])
def test_the_short_side_before_a_crop(size: int, crop: float, side: int) -> None:
    assert short_side(size, crop) == side


def test_the_pixels_of_a_fixed_image_never_change() -> None:
    # A golden value: other pixels under the same protocol would make rows incomparable.
    ramp = np.add.outer(np.arange(48), np.arange(64)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.stack([ramp, ramp * 2, 255 - ramp], axis=2)).save(buffer, "PNG")
    image = prepare(decode(buffer.getvalue(), "x"), 24, "nearest")
    found = hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()
    assert found[:16] == "8d2c687d5f0e01ea"


def test_a_bank_that_is_cleared_while_it_is_opened_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = items_of((20, 30), (30, 20))
    expected = Bank.open(items, 16, "bicubic", tmp_path)
    is_complete = module._is_complete

    def cleared_then(folder: Path) -> bool:
        found = is_complete(folder)
        if found:
            shutil.rmtree(folder)
            monkeypatch.setattr(module, "_is_complete", is_complete)
        return found

    monkeypatch.setattr(module, "_is_complete", cleared_then)
    found = Bank.open(items, 16, "bicubic", tmp_path)
    assert all(torch.equal(found.image(row), expected.image(row)) for row in range(2))
