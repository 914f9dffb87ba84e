from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.data import scan as module
from harness.data.scan import scan
from harness.errors import DataError
from harness.specs import Sample


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    (tmp_path / "photos").mkdir()
    found = []
    for index in range(3):
        path = tmp_path / "photos" / f"{index}.png"
        Image.new("RGB", (8, 8), (index, 0, 0)).save(path)
        found.append(Sample(id=path.name, label="a", image=path))
    return found


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that were read."""
    names: list[str] = []
    look = module._look

    def counted(sample: Sample, **options: object) -> object:
        names.append(sample.id)
        return look(sample, **options)

    monkeypatch.setattr(module, "_look", counted)
    return names


def test_verdicts_come_in_the_order_of_the_samples(tmp_path: Path, samples: list[Sample]) -> None:
    verdicts = scan(samples, tmp_path / "cache.json")
    expected = [hashlib.sha256(Path(str(sample.image)).read_bytes()).hexdigest() for sample in samples]
    assert [verdict.sha256 for verdict in verdicts] == expected
    assert not any(verdict.problem for verdict in verdicts)


def test_a_second_scan_reads_no_image(tmp_path: Path, samples: list[Sample], looks: list[str]) -> None:
    first = scan(samples, tmp_path / "cache.json")
    assert sorted(looks) == ["0.png", "1.png", "2.png"]
    looks.clear()
    assert scan(samples[::-1], tmp_path / "cache.json") == first[::-1]
    assert looks == []


def test_only_a_changed_image_is_read_again(tmp_path: Path, samples: list[Sample], looks: list[str]) -> None:
    before = scan(samples, tmp_path / "cache.json")
    path = Path(str(samples[1].image))
    size = path.stat().st_size
    path.write_bytes(b"x" * size)
    os.utime(path, ns=(1, 1))
    looks.clear()
    after = scan(samples, tmp_path / "cache.json")
    assert looks == ["1.png"]
    assert after[0] == before[0]
    assert after[1].problem


def test_an_image_that_is_replaced_by_one_of_its_size_and_time_is_read_again(
    tmp_path: Path, samples: list[Sample]
) -> None:
    before = scan(samples, tmp_path / "cache.json")
    path, other = Path(str(samples[1].image)), tmp_path / "other.png"
    status = path.stat()
    other.write_bytes(b"x" * status.st_size)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)
    after = scan(samples, tmp_path / "cache.json")
    assert after[0] == before[0]
    assert after[1].sha256 != before[1].sha256


def test_the_verdict_on_a_bad_image_is_kept_too(
    tmp_path: Path, samples: list[Sample], looks: list[str]
) -> None:
    Path(str(samples[0].image)).write_bytes(b"")
    first = scan(samples, tmp_path / "cache.json")
    looks.clear()
    assert scan(samples, tmp_path / "cache.json") == first
    assert first[0].problem == "the file is empty"
    assert looks == []


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema": "other"}', '{"schema": "harness.scan/2"}'])
def test_a_damaged_cache_only_costs_time(tmp_path: Path, samples: list[Sample], text: str) -> None:
    (tmp_path / "cache.json").write_text(text)
    assert len(scan(samples, tmp_path / "cache.json")) == 3


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path: Path, samples: list[Sample]) -> None:
    (tmp_path / "file").write_text("")
    assert len(scan(samples, tmp_path / "file" / "cache.json")) == 3


def test_fingerprints_are_kept_and_made_anew_by_another_recipe(
    tmp_path: Path, looks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    samples = [Sample(id="photo", label="a", image=path)]
    (first,) = scan(samples, tmp_path / "cache.json")
    assert len(first.fingerprint) == 84
    assert scan(samples, tmp_path / "cache.json") == [first]
    assert looks == ["photo"]
    monkeypatch.setattr(module, "_RECIPE", ["another"])
    scan(samples, tmp_path / "cache.json")
    assert looks == ["photo", "photo"]


def test_a_bad_image_has_no_fingerprint(tmp_path: Path, samples: list[Sample]) -> None:
    Path(str(samples[0].image)).write_bytes(b"text")
    assert scan(samples, tmp_path / "cache.json")[0].fingerprint == ""


def test_arrays_are_named_by_shape_and_pixels(tmp_path: Path) -> None:
    flat = np.arange(12, dtype=np.uint8)
    arrays = [flat.reshape(3, 4), flat.reshape(4, 3), flat.reshape(3, 4).copy(), flat.astype(np.float32)]
    samples = [Sample(id=str(i), label="a", image=a) for i, a in enumerate(arrays)]
    verdicts = scan(samples, tmp_path / "c.json")
    assert verdicts[0] == verdicts[2]
    assert verdicts[0].sha256 != verdicts[1].sha256
    assert "uint8" in verdicts[3].problem
    assert not (tmp_path / "c.json").exists()


def test_a_missing_file_is_a_problem_that_is_not_remembered(tmp_path: Path) -> None:
    path = tmp_path / "late.png"
    sample = Sample(id="late.png", label="a", image=path)
    assert scan([sample], tmp_path / "cache.json")[0].problem
    Image.new("RGB", (4, 4)).save(path)
    assert not scan([sample], tmp_path / "cache.json")[0].problem


def test_a_file_that_cannot_be_read_now_is_read_again_though_nothing_changed(
    tmp_path: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(path: Path, where: str) -> bytes:
        raise DataError("an image cannot be read", where=where, why="Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(module, "read_bytes", closed)
        assert all(verdict.problem for verdict in scan(samples, tmp_path / "cache.json"))
    assert not any(verdict.problem for verdict in scan(samples, tmp_path / "cache.json"))


def test_another_pillow_looks_at_bad_images_again(
    tmp_path: Path, samples: list[Sample], looks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scan(samples, tmp_path / "cache.json")
    looks.clear()
    monkeypatch.setattr(module, "_RECIPE", [*module._RECIPE[:-1], "another"])
    scan(samples, tmp_path / "cache.json")
    assert len(looks) == 3
