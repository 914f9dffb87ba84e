from __future__ import annotations

import csv
import io
import json

import pytest
from PIL import Image

from harness.records import read_records


@pytest.fixture
def photos(tmp_path):
    """A split folder of three classes of coloured noise, as PNG files."""
    import numpy as np

    random = np.random.default_rng(1)
    for split, count in (("train", 8), ("val", 5), ("test", 7)):
        for label in range(3):
            folder = tmp_path / "photos" / split / f"class {label}"
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 150, (30, 40, 3), dtype=np.uint8)
                pixels[..., label] += 60
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "photos"


@pytest.fixture
def study(harness_cli, photos, tmp_path):
    code, _, err = harness_cli(
        *("-p", "tiny_plugin", "study", "run", "--dataset", photos, "--init", "scratch", "--name", "photos"),
        *(
            "--backbone",
            "tiny-net",
            "--epochs",
            "3",
            "--batch-size",
            "8",
            "--trials",
            "2",
            "--finalists",
            "1",
        ),
        *("--device", "cpu", "--threads", "1", "--set", "run.executor=inline"),
    )
    assert code == 0, err
    return tmp_path / "runs" / "photos"


def test_predict_on_the_test_folder_gives_exactly_the_score_of_the_board(harness_cli, study, photos):
    code, out, err = harness_cli("-p", "tiny_plugin", "predict", "photos", photos / "test", "--score")
    assert code == 0, err
    rows = list(csv.DictReader(io.StringIO(out)))
    assert len(rows) == 21
    final = next(record for record in read_records(study) if record.kind == "final")
    assert f"macro-F1 {final.scores['test'].f1!r}, accuracy {final.scores['test'].accuracy!r}" in err
    right = sum(row["class"] in row["file"] for row in rows)
    assert right / 21 == final.scores["test"].accuracy


def test_the_class_of_an_image_is_its_folder_wherever_one_stands(harness_cli, study, photos, monkeypatch):
    monkeypatch.chdir(photos / "test" / "class 1")
    for image in (".", "0.png"):
        code, _, err = harness_cli(
            "-p", "tiny_plugin", "predict", "photos", image, "--score", "--runs", study.parent
        )
        assert code == 0, err
        assert "macro-F1" in err


def test_folders_outside_of_those_that_are_given_name_no_class(harness_cli, study, photos, tmp_path):
    inside = tmp_path / "class 2" / "garage" / "2019"
    inside.mkdir(parents=True)
    (photos / "test" / "class 0" / "0.png").rename(inside / "0.png")
    predict = ("-p", "tiny_plugin", "predict", "photos")
    for image in (inside, inside.parent, inside / "0.png"):
        code, out, err = harness_cli(*predict, image, "--score")
        assert (code, out) == (5, "")
        assert "folder '2019' is no class of the model" in err
    code, _, err = harness_cli(*predict, inside.parents[1], "--score")
    assert code == 0, err


def test_predict_prints_probabilities_as_json(harness_cli, study, photos):
    image = photos / "test" / "class 0" / "0.png"
    code, out, _ = harness_cli("-p", "tiny_plugin", "predict", "photos", image, "--format", "json")
    assert code == 0
    (row,) = json.loads(out)["images"]
    assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert row["class"] == max(row["probabilities"], key=row["probabilities"].get)


def test_predict_takes_the_folder_of_a_finalist(harness_cli, study, photos):
    folder = next((study / "finals").iterdir())
    code, out, _ = harness_cli("-p", "tiny_plugin", "predict", folder, photos / "test")
    assert code == 0
    assert out.startswith("file,class,class 0,class 1,class 2\n")


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("nowhere.png", 5, "no such file or folder"),
        ("text.png", 5, "text.png"),
        ("empty", 5, "found 0 images"),
    ],
)
def test_predict_names_what_is_no_image(harness_cli, study, tmp_path, name, code, said):
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty").mkdir()
    got, _, err = harness_cli("-p", "tiny_plugin", "predict", "photos", tmp_path / name)
    assert got == code
    assert said in err
    assert name != "nowhere.png" or "  fix    check the path" in err
    assert "Traceback" not in err


def test_unreadable_images_are_left_out_and_named_and_the_others_answered_as_without_them(
    harness_cli, study, photos
):
    _, whole, scores = harness_cli("-p", "tiny_plugin", "predict", "photos", photos / "test", "--score")
    for label, name in ((0, "0a.png"), (1, "3a.png"), (2, "9.png")):
        (photos / "test" / f"class {label}" / name).write_text("not an image")
    code, out, err = harness_cli("-p", "tiny_plugin", "predict", "photos", photos / "test", "--score")
    assert code == 3
    assert out == whole
    assert err.startswith(scores)
    assert "left out unreadable images (3)" in err
    assert "3a.png: the content is no image in a known format" in err


def test_where_no_image_is_readable_nothing_is_printed(harness_cli, study, tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    for form in ("csv", "json"):
        code, out, err = harness_cli(
            *("-p", "tiny_plugin", "predict", "photos", tmp_path / "a.png", tmp_path / "b.png"),
            *("--format", form),
        )
        assert (code, out) == (5, "")
        assert "unreadable images (2)" in err


def test_score_refuses_folders_that_are_no_classes_before_anything_is_classified(harness_cli, study, photos):
    (photos / "test" / "class 0").rename(photos / "test" / "klasse 0")
    code, out, err = harness_cli("-p", "tiny_plugin", "predict", "photos", photos / "test", "--score")
    assert (code, out) == (5, "")
    assert "folder 'klasse 0' is no class of the model" in err


def test_score_and_folders_are_read_as_a_data_set_is(harness_cli, study, photos):
    _, whole, scores = harness_cli("-p", "tiny_plugin", "predict", "photos", photos / "test", "--score")
    for hidden in (".thumbnails", "__MACOSX"):
        (photos / "test" / hidden).mkdir()
        (photos / "test" / hidden / "0.png").write_text("not an image")
    for label in range(3):
        folder = photos / "test" / f"class {label}"
        (folder / "2019").mkdir()
        for name in ("5.png", "6.png"):
            (folder / name).rename(folder / "2019" / name)
    code, out, err = harness_cli("-p", "tiny_plugin", "predict", "photos", photos / "test", "--score")
    assert (code, err) == (0, scores)
    assert len(out.splitlines()) == len(whole.splitlines())


def test_predict_refuses_a_device_that_is_none(harness_cli, study, photos):
    code, _, err = harness_cli("-p", "tiny_plugin", "predict", "photos", photos / "test", "--device", "gpu")
    assert code == 2
    assert "device: must be auto, cpu, mps, cuda or cuda:N (got 'gpu')" in err


def test_weights_and_card_must_be_of_each_other(harness_cli, study, photos):
    folder = next((study / "finals").iterdir())
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    code, _, err = harness_cli("-p", "tiny_plugin", "predict", "photos", photos / "test")
    assert code == 6
    assert "weights and card are not of each other" in err


def test_a_study_without_a_finalist_says_so(harness_cli, photos):
    harness_cli(
        *("-p", "tiny_plugin", "study", "run", "--dataset", photos, "--init", "scratch", "--name", "bare"),
        *("--backbone", "tiny-net", "--epochs", "1", "--trials", "1", "--finalists", "0"),
        *("--device", "cpu", "--threads", "1", "--set", "run.executor=inline"),
    )
    code, _, err = harness_cli("-p", "tiny_plugin", "predict", "bare", photos / "test")
    assert code == 2
    assert "has no finalist yet" in err
    assert "harness study finalize bare --finalists 1" in err
