from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

PLUGIN = """
import numpy as np
import harness

def build(folder, download):
    if not folder.is_dir():
        raise RuntimeError("Dataset not found. You can use download=True to download it")
    rng = np.random.default_rng(0)
    for label in ("[red]", "b"):
        for index in range(6):
            yield harness.Sample(id=f"{label}/{index}", label=label,
                                 image=rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))

@harness.hookimpl
def harness_datasets():
    yield harness.DatasetSpec(name="beans", summary="evil \\x1b[2J [bold]summary", build=build, licence="MIT",
                              url="http://127.0.0.1/", download_url="http://127.0.0.1:9/x", size="3 MB")
"""


@pytest.fixture(autouse=True)
def plugin(tmp_path, monkeypatch):
    """A plugin with a data set that is not here and cannot be fetched."""
    (tmp_path / "beans_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("beans_plugin", None)


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    for number, label in enumerate(("cat", "dog")):
        (root / label).mkdir(parents=True)
        for index in range(8 + number):
            pixels = np.full((6, 6, 3), 100 * number + index, dtype=np.uint8)
            Image.fromarray(pixels).save(root / label / f"{index}.png")
    return root


@pytest.fixture
def data(harness_cli):
    """Run `harness -p beans_plugin data ...`."""
    return lambda *arguments: harness_cli("-p", "beans_plugin", "data", *arguments)


def test_list_shows_names_licences_and_what_is_here(data):
    code, out, _ = data("list")
    assert code == 0
    lines = {line.split()[0]: line for line in out.splitlines() if line.split()}
    assert lines["petals"].split()[1] == "yes"
    assert lines["beans"].split()[1] == "no"
    assert "MIT" in lines["beans"]
    assert "CC-BY-SA-4.0" in lines["pets"]


def test_list_shows_foreign_text_as_it_is(data):
    _, out, _ = data("list")
    assert "\x1b" not in out
    assert "[bold]summary" in "".join(out.split())


def test_list_as_json(data, tmp_path):
    code, out, _ = data("list", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["schema"] == "harness.data/1"
    beans = next(row for row in document["datasets"] if row["name"] == "beans")
    assert (beans["licence"], beans["size"], beans["present"]) == ("MIT", "3 MB", False)
    assert beans["folder"] == str(tmp_path / "home" / "data" / "beans")


def test_get_without_a_network_says_what_to_do(data):
    code, out, err = data("get", "beans")
    assert code == 5
    assert out == ""
    assert err.startswith("error: data set 'beans' is not on this machine and could not be downloaded")
    assert "harness data get beans (3 MB)" in err


def test_get_of_what_is_here_counts_it(data, tmp_path):
    (tmp_path / "home" / "data" / "beans").mkdir(parents=True)
    code, out, _ = data("get", "beans")
    assert code == 0
    assert "12 images" in out


def test_get_of_a_path_is_a_usage_error(data, photos):
    code, _, err = data("get", photos)
    assert code == 2
    assert "only named data sets" in err


@pytest.mark.parametrize("verb", ["get", "check", "info"])
def test_an_unknown_name_suggests_the_nearest(data, verb):
    code, _, err = data(verb, "baens")
    assert code == 2
    assert "did you mean 'beans'" in err


@pytest.mark.parametrize("verb", ["check", "info"])
def test_a_missing_folder_is_a_data_error(data, verb, tmp_path):
    code, _, err = data(verb, tmp_path / "gone")
    assert code == 5
    assert "does not exist" in err


def test_check_describes_a_sound_folder(data, photos):
    code, out, _ = data("check", photos)
    assert code == 0
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert lines["classes"] == "2: cat, dog"
    assert lines["images"] == "17: train 13, val 2, test 2"
    assert lines["smallest"] == "cat: 8 (train 6, val 1, test 1)"
    assert "seed 0" in lines["split"]
    assert lines["audit"].startswith("0 of 2 test images are in another split too; across splits 0 copies, 0")
    assert "it can be trained on" in lines["protocol"]


def test_check_lists_problems_and_warnings_and_exits_5(data, photos):
    (photos / "cat" / "bad\x1b[2J.jpg").write_bytes(b"text")
    (photos / "dog" / "copy.png").write_bytes((photos / "cat" / "0.png").read_bytes())
    code, out, _ = data("check", photos)
    assert code == 5
    assert "unreadable images (1)" in out
    assert "\x1b" not in out
    assert "copies under another label (1)" in out
    assert "cat/0.png = dog/copy.png" in out


def test_check_warns_of_links_that_are_not_followed(data, photos, tmp_path):
    (tmp_path / "birds").mkdir()
    (photos / "bird").symlink_to(tmp_path / "birds")
    code, out, _ = data("check", photos)
    assert code == 0
    assert "warning    symbolic links not followed: copy what they point to (1)\n      bird" in out


@pytest.fixture
def leaky(photos):
    """The shades, and a picture whose copies and re-encoded copies lie under two labels."""
    coarse = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((60, 60), Image.Resampling.BICUBIC)
    picture.save(photos / "cat" / "a.png")
    picture.resize((40, 40)).save(photos / "dog" / "b\x1b[2J.jpg")
    (photos / "dog" / "c.png").write_bytes((photos / "dog" / "0.png").read_bytes())
    return photos


def test_check_tells_near_duplicates_and_what_to_do_and_exits_0(data, leaky):
    code, out, _ = data("check", leaky)
    assert code == 0
    assert "\x1b" not in out
    assert "warning    images with near duplicates under another label (1)\n      cat/a.png ~ dog/b" in out
    assert "correct it, or remove the picture" in out
    assert "under two labels 0 and 2; copies within a split 2; 18 without structure" in out


def test_check_as_json_has_the_groups(data, leaky):
    code, out, _ = data("check", leaky, "--json")
    audit = json.loads(out)["audit"]
    assert code == 0
    assert audit["groups"]["near_two_labels"] == [["cat/a.png", "dog/b\x1b[2J.jpg"]]
    assert audit["groups"]["exact_within_split"] == [["dog/0.png", "dog/c.png"]]
    assert audit["groups"]["missing_classes"] == {"train": [], "val": [], "test": []}
    assert audit["counts"]["near_two_labels"] == 2
    assert audit["counts"]["exact_across_splits"] == 0


def test_check_can_leave_bad_images_out(data, photos):
    (photos / "cat" / "bad.jpg").write_bytes(b"text")
    code, out, _ = data("check", photos, "--skip-bad")
    assert code == 0
    assert "left out unreadable images (1)" in out


def test_check_as_json(data, photos):
    (photos / "cat" / "bad.jpg").write_bytes(b"text")
    code, out, _ = data("check", photos, "--json")
    document = json.loads(out)
    assert code == 5
    assert document["schema"] == "harness.data/1"
    assert document["classes"] == ["cat", "dog"]
    assert document["counts"]["train"] == [6, 7]
    assert len(document["protocol"]) == 64
    assert len(document["problems"]) == 1


def test_check_of_a_named_set_downloads_nothing(data, tmp_path):
    code, _, err = data("check", "beans")
    assert code == 5
    assert "could not be downloaded" not in err
    assert not (tmp_path / "home" / "data" / "beans").exists()


def test_check_of_a_named_set_shows_foreign_names_as_they_are(data, tmp_path):
    (tmp_path / "home" / "data" / "beans").mkdir(parents=True)
    code, out, _ = data("check", "beans")
    assert code == 0
    assert "2: [red], b" in out


def test_info_of_a_name(data):
    code, out, _ = data("info", "beans", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["schema"] == "harness.data/1"
    assert document["plugin"] == "beans_plugin (-p)"
    assert document["present"] is False
    code, out, _ = data("info", "beans")
    assert "\x1b" not in out
    assert "[bold]summary" in out


def test_info_of_a_folder_reads_no_image(data, photos):
    (photos / "cat" / "0.png").write_bytes(b"")
    code, out, _ = data("info", photos, "--json")
    document = json.loads(out)
    assert code == 0
    assert document["images"] == 17
    assert document["classes"] == ["cat", "dog"]


def test_info_and_check_name_a_csv_alike(data, photos):
    rows = "".join(f"{label}/{index}.png,{label}\n" for label in ("cat", "dog") for index in range(8))
    for csv, name in (("pets.csv", "pets"), ("labels.csv", "photos")):
        (photos / csv).write_text("file,label\n" + rows)
        for verb in ("info", "check"):
            _, out, _ = data(verb, photos / csv, "--json")
            assert json.loads(out)["name"] == name


@pytest.mark.parametrize("verb", ["get", "check", "info"])
def test_an_empty_name_is_not_the_current_folder(data, photos, monkeypatch, verb):
    monkeypatch.chdir(photos)
    code, _, err = data(verb, "")
    assert code == 2
    assert "a data set has an empty name" in err


@pytest.mark.slow
def test_list_and_check_import_nothing_heavy(photos):
    script = (
        "import sys\n"
        "from harness.cli import main\n"
        "for arguments in (['data', 'list'], ['data', 'check', sys.argv[1]]):\n"
        "    try:\n"
        "        main(arguments)\n"
        "    except SystemExit as error:\n"
        "        assert error.code == 0, error.code\n"
        "heavy = ('torch', 'torchvision', 'timm', 'optuna', 'pandas', 'scipy')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    command = [sys.executable, "-c", script, str(photos)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
