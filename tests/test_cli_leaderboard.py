import csv
import dataclasses
import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from records_factory import COUNTS, answer, make_entry, make_protocol, make_record, write_runs

from harness.cli import main
from harness.predictions import Predictions, write_predictions


@pytest.fixture
def runs(tmp_path):
    records = [make_record(number=n, f1=0.8 + n / 100, lr=1e-4 * (n + 1)) for n in range(3)]
    other = make_record(study="leafy", dataset="beans", backbone="test_vit", init="scratch", f1=0.4)
    return write_runs(tmp_path, *records, make_record(number=3, state="failed"), other)


@pytest.fixture
def harness(capsys, monkeypatch):
    """Run the command line: exit code, stdout, stderr."""

    def run(*arguments, command="show"):
        monkeypatch.setattr(sys, "path", [*sys.path])
        with pytest.raises(SystemExit) as ended:
            main(["leaderboard", command, *map(str, arguments)])
        streams = capsys.readouterr()
        return ended.value.code, streams.out, streams.err

    return run


def test_show_prints_a_table_for_each_data_set(harness, runs):
    code, out, err = harness("--runs", runs)
    assert (code, err) == (0, "")
    assert "beans · macro-F1 on val" in out
    assert "4 trials: 3 complete, 1 failed" in out
    assert out.index("beans") < out.index("trashnet")


def test_the_runs_folder_comes_from_the_environment(harness, runs, monkeypatch):
    monkeypatch.setenv("HARNESS_RUNS", str(runs))
    assert "trashnet" in harness()[1]


def test_json_is_a_document_on_stdout_alone(harness, runs):
    for flags in (["--json"], ["--format", "json"], ["--json", "--format", "json"]):
        code, out, err = harness("--runs", runs, *flags)
        document = json.loads(out)
        assert (code, err) == (0, "")
        assert document["schema"] == "harness.leaderboard/1"
        assert [board["dataset"] for board in document["leaderboards"]] == ["beans", "trashnet"]


def test_json_and_another_format_exclude_each_other(harness, runs):
    code, out, err = harness("--runs", runs, "--json", "--format", "csv")
    assert (code, out) == (2, "")
    assert "exclude each other" in err


def test_csv_is_one_table_of_all_boards(harness, runs):
    rows = list(csv.DictReader(io.StringIO(harness("--runs", runs, "--format", "csv")[1])))
    assert [(row["dataset"], row["rank"]) for row in rows] == [
        ("beans", "1"),
        ("trashnet", "1"),
        ("trashnet", "1"),
        ("trashnet", "1"),
    ]


def test_markdown_is_for_pasting(harness, runs):
    assert "| 1 | test_vit |" in harness("--runs", runs, "--format", "md")[1]


def test_data_sets_and_studies_limit_what_is_shown(harness, runs):
    assert "trashnet" not in harness("--runs", runs, "-d", "beans")[1]
    assert "trashnet" not in harness("--runs", runs, "leafy")[1]
    both = harness("--runs", runs, "-d", "trashnet", "-d", "beans", "-d", "trashnet")[1]
    assert both.count("trashnet ·") == both.count("beans ·") == 1


def test_metric_by_and_split_are_passed_on(harness, runs):
    out = harness("--runs", runs, "--metric", "accuracy", "--by", "backbone", "-d", "trashnet", "--json")[1]
    (board,) = json.loads(out)["leaderboards"]
    assert (board["metric"], board["by"], len(board["rows"])) == ("accuracy", "backbone", 1)
    code, out, err = harness("--runs", runs, "--split", "test")
    assert (code, out) == (0, "")
    assert "nothing to rank for trashnet: 3 complete trainings, none with test scores" in err


def test_an_unknown_data_set_names_the_nearest(harness, runs):
    code, out, err = harness("--runs", runs, "-d", "bean")
    assert (code, out) == (2, "")
    assert "did you mean 'beans'?" in err


def test_an_unknown_study_names_the_nearest(harness, runs):
    code, out, err = harness("--runs", runs, "leavy")
    assert (code, out) == (2, "")
    assert "did you mean 'leafy'?" in err


def test_a_renamed_or_copied_study_goes_by_its_folder(harness, runs, harness_cli):
    (runs / "leafy").rename(runs / "my leaves")
    shutil.copytree(runs / "my leaves", runs / "copy")
    out = harness("--runs", runs, "my leaves", "--json")[1]
    (board,) = json.loads(out)["leaderboards"]
    assert [row["study"] for row in board["rows"]] == ["my leaves"]
    assert harness("--runs", runs, "leafy")[0] == 2
    out = harness("--runs", runs, "copy", "my leaves", "--json")[1]
    assert sorted(row["study"] for row in json.loads(out)["leaderboards"][0]["rows"]) == ["copy", "my leaves"]
    code, out, _ = harness("copy", "my leaves", "--runs", runs, command="compare")
    assert code == 0
    assert "my leaves/0" in out


def test_a_study_without_records_is_known(harness, runs):
    (runs / "begun").mkdir()
    (runs / "begun/study.json").write_text("{}", encoding="utf-8")
    code, out, err = harness("--runs", runs, "begun")
    assert (code, out) == (0, "")
    assert err == "study 'begun' has no records yet\n  go on  the command that began it\n"
    code, out, err = harness("--runs", runs, "begun", "leafy")
    assert "beans" in out
    assert "study 'begun' has no records yet" in err


@pytest.mark.parametrize(("name", "said"), [("gone.json", "no such file"), ("gone", "unknown study 'gone'")])
def test_submit_tells_a_missing_file_from_an_unknown_study(harness, runs, name, said):
    code, out, err = harness(name, "--runs", runs, command="submit")
    assert (code, out) == (6 if name.endswith("json") else 2, "")
    assert said in err
    assert "  fix    " in err


def test_verify_refuses_a_study_in_place_of_its_bundles(harness, runs):
    code, out, err = harness(runs / "leafy", command="verify")
    assert (code, out) == (5, "")
    assert f"submit it first: harness leaderboard submit {runs / 'leafy'}" in err


def test_a_study_whose_records_are_damaged_is_said_so(harness, runs):
    (runs / "leafy/trials/0000/record.json").write_text("{", encoding="utf-8")
    code, out, err = harness("--runs", runs, "leafy")
    assert (code, out) == (0, "")
    assert "no record of study 'leafy' can be read" in err
    assert "yet" not in err
    assert "nothing to rank" not in err


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], ""),
        (["--format", "md"], ""),
        (["--json"], '{\n  "schema": "harness.leaderboard/1",\n  "leaderboards": []\n}\n'),
    ],
)
def test_no_records_is_no_error(harness, tmp_path, flags, expected):
    for folder, what in (
        (tmp_path, "no records"),
        (tmp_path / "none", f"no such folder {tmp_path / 'none'}\n"),
    ):
        code, out, err = harness("--runs", folder, "-d", "beans", *flags)
        assert (code, out) == (0, expected)
        assert what in err
        assert "harness study run" in err


def test_no_records_as_csv_is_a_header(harness, tmp_path):
    assert harness("--runs", tmp_path, "--format", "csv")[1].startswith("dataset,split,protocol,metric,rank,")


def test_a_study_whose_trials_all_failed_is_named(harness, tmp_path):
    write_runs(tmp_path, make_record(state="failed"))
    code, out, err = harness("--runs", tmp_path)
    assert (code, out) == (0, "")
    assert "nothing to rank for trashnet: 0 complete trainings" in err


def test_damaged_records_are_warnings(harness, runs):
    damaged = runs / "demo/trials/0002/record.json"
    damaged.write_text(damaged.read_text(encoding="utf-8").replace("0.82", "0.99"), encoding="utf-8")
    code, out, err = harness("--runs", runs, "-d", "trashnet", "--json")
    assert code == 0
    assert [row["number"] for row in json.loads(out)["leaderboards"][0]["rows"]] == [1, 0]
    assert f"warning: left out {damaged}" in err
    assert "damaged or edited" in err


def test_a_hostile_name_does_not_reach_the_terminal(harness, tmp_path):
    failed = make_record(number=1, state="failed", dataset="\x1bz")
    write_runs(tmp_path, make_record(dataset="\x1b[2Jx", backbone="\u202ey"), failed)
    _, out, err = harness("--runs", tmp_path)
    assert "\x1b" not in out + err
    assert "\u202e" not in out
    assert "x" in out
    assert "z" in err


def test_stdout_without_unicode_is_no_error(runs, monkeypatch):
    write_runs(runs, make_record(study="foreign", dataset="caf\u00e9"))
    for form in ("table", "md", "csv", "json"):
        stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setattr(sys, "path", [*sys.path])
        with pytest.raises(SystemExit) as ended:
            main(["leaderboard", "show", "--runs", str(runs), "--format", form])
        stdout.flush()
        assert ended.value.code == 0
        assert stdout.buffer.getvalue().isascii()


def test_showing_imports_nothing_heavy(runs):
    code = (
        "import sys\n"
        "from harness.cli import main\n"
        "try:\n"
        f"    main(['leaderboard', 'show', '--runs', {str(runs)!r}])\n"
        "except SystemExit as ended:\n"
        "    assert ended.code == 0\n"
        "heavy = {'torch', 'pandas', 'scipy', 'optuna', 'pydantic', 'timm', 'pluggy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def write_finals(runs, study, accuracy, *, number=0, seeds=(1, 2), size=300, **values):
    """Write final trainings with the answers that their scores follow from."""
    labels = np.arange(size) % 3
    for seed in seeds:
        part = make_predictions(answer(labels, accuracy, 100 * number + seed), labels)
        predictions = write_predictions(
            runs / study / f"finals/{number:04d}-seed{seed}", {"val": part, "test": part}
        )
        entry = make_entry(part.chosen, labels, study=study, kind="final", number=number, seed=seed, **values)
        record = dataclasses.replace(entry.record, predictions=predictions)
        write_runs(runs, record)


def make_predictions(chosen, labels):
    return Predictions(
        probabilities=np.eye(3, dtype=np.float32)[chosen],
        labels=labels,
        images=np.zeros((len(labels), 32), dtype=np.uint8),
    )


@pytest.fixture
def finals(tmp_path):
    write_finals(tmp_path, "good", 0.95)
    write_finals(tmp_path, "good", 0.7, number=3, lr=1e-3)
    write_finals(tmp_path, "weak", 0.7, seeds=(1,))
    write_finals(tmp_path, "other", 0.7, protocol=make_protocol("two", decode="srgb/2"))
    return tmp_path


def test_predictions_on_disk_are_paired(harness, finals):
    out = harness("--runs", finals, "good", "weak", "--json")[1]
    (board,) = json.loads(out)["leaderboards"]
    first = board["rows"][0]
    assert (first["study"], first["number"]) == ("good", 0)
    assert [row["rank"] for row in board["rows"]] == [1, 2, 2]
    assert all(row["has_answers"] for row in board["rows"])
    damaged = finals / "good/finals/0000-seed1/predictions.safetensors"
    damaged.write_bytes(b"{}")
    out = harness("--runs", finals, "good", "weak", "--json")[1]
    rows = json.loads(out)["leaderboards"][0]["rows"]
    assert [row["has_answers"] for row in rows] == [False, True, True]
    assert [row["rank"] for row in rows] == [1, 2, 2]


def test_compare_takes_the_best_run_of_a_study(harness, finals):
    code, out, err = harness("good", "weak", "--runs", finals, command="compare")
    assert (code, err) == (0, "")
    assert "good/0" in out
    assert "weak/0" in out
    assert "macro-F1 on test (300 images)" in out
    assert "paired" in out
    assert "they differ at 95 %" in out
    assert "2 seeds" in out


def test_compare_two_trials_of_one_study_as_json(harness, finals):
    arguments = ("weak", "good/3", "--runs", finals, "--metric", "accuracy", "--json")
    code, out, _ = harness(*arguments, command="compare")
    found = json.loads(out)
    assert code == 0
    assert found["schema"] == "harness.leaderboard-comparison/1"
    assert (found["one"]["study"], found["other"]["number"]) == ("weak", 3)
    difference = found["difference"]
    assert difference["interval"][0] < difference["estimate"] < difference["interval"][1]
    assert (difference["paired"], difference["is_clear"]) == (True, False)
    assert difference["p"] > 0.05
    assert harness(*arguments, command="compare")[1] == out


def test_compare_of_trials_is_on_val(harness, runs):
    code, out, _ = harness("demo/0", "demo/1", "--runs", runs, command="compare")
    assert code == 0
    assert "on val" in out
    assert "unpaired" in out
    assert "one seed each" in out
    code, _, err = harness("demo/0", "demo/1", "--runs", runs, "--split", "test", command="compare")
    assert code == 2
    assert "no score on test" in err


def test_compare_refuses_two_protocols_and_says_what_differs(harness, finals):
    code, out, err = harness("good", "other", "--runs", finals, command="compare")
    assert (code, out) == (2, "")
    assert "cannot be compared" in err
    assert "decoding of images: srgb/1 against srgb/2" in err


def test_compare_refuses_a_run_with_itself(harness, finals):
    code, _, err = harness("good", "good/0", "--runs", finals, command="compare")
    assert code == 2
    assert "the same run" in err


@pytest.mark.parametrize("command", ["compare", "diff"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("god", "did you mean 'good'"),
        ("good/9", "study good has trials 0, 3"),
        ("good/x", "unknown study 'good/x'"),
        ("", "unknown study ''"),
    ],
)
def test_unknown_runs_are_named(harness, finals, command, name, message):
    code, out, err = harness(name, "weak", "--runs", finals, command=command)
    assert (code, out) == (2, "")
    assert message in err


def test_compare_in_an_empty_folder_says_what_to_do(harness, tmp_path):
    code, _, err = harness("a", "b", "--runs", tmp_path, command="compare")
    assert code == 2
    assert "harness study run" in err


def test_diff_says_that_runs_are_comparable(harness, finals):
    code, out, _ = harness("good", "weak", "--runs", finals, command="diff")
    assert code == 0
    assert out.startswith("comparable: both are of protocol")
    found = json.loads(harness("good", "weak", "--runs", finals, "--json", command="diff")[1])
    assert (found["comparable"], found["differences"]) == (True, [])


def test_diff_says_in_words_what_differs(harness, tmp_path):
    one = make_protocol()
    digests = {**one.splits, "train": "0" * 64, "val": "1" * 64}
    other = dataclasses.replace(one, digest="f" * 64, splits=digests, selection="best", classes="2" * 64)
    second = make_record(
        study="b", protocol=other, counts={**COUNTS, "train": (33, 20, 49)}, init="scratch", dataset="trash"
    )
    dataset = dataclasses.replace(second.dataset, classes=("glass", "metal", "\x1bpaper"), split="official")
    write_runs(tmp_path, make_record(study="a"), dataclasses.replace(second, dataset=dataset))
    code, out, _ = harness("a", "b", "--runs", tmp_path, command="diff")
    assert code == 0
    assert "\x1b" not in out
    assert "data set: trashnet against trash" in out
    assert "classes: 1 added (␛paper)" in out
    assert "classes: 1 removed (paper)" in out
    assert "train images: 100 against 102, at least 52 added and 50 removed (glass +3, paper -50, " in out
    assert "val images: 20 against 20" in out
    assert "test images" not in out
    assert "how the splits came about: stratified, seed 0 against official" in out
    assert "which weights are scored: last against best" in out
    assert "initialisation: pretrained against scratch" in out


def test_as_many_images_that_are_other_files_or_renamed_are_named(harness, tmp_path):
    one = make_protocol()
    other = dataclasses.replace(one, digest="f" * 64, splits={**one.splits, "test": "0" * 64})
    write_runs(tmp_path, make_record(study="a"), make_record(study="b", protocol=other))
    out = harness("a", "b", "--runs", tmp_path, command="diff")[1]
    assert out == "test images: as many of each class, but not the same files, or under other names\n"


def test_across_data_sets_backbones_are_summarised(harness, tmp_path):
    for dataset in ("beans", "leaves"):
        for name, f1 in (("a", 0.9), ("b", 0.8)):
            write_runs(
                tmp_path, make_record(study=f"{dataset}-{name}", dataset=dataset, backbone=name, f1=f1)
            )
    code, out, err = harness("--runs", tmp_path, "--across")
    assert (code, err) == (0, "")
    assert "2 backbones across 2 data sets · beans, leaves" in out
    found = json.loads(harness("--runs", tmp_path, "--across", "--json")[1])
    assert found["schema"] == "harness.leaderboard-summary/1"
    # Without predictions, and with the same confusion matrix, they share both ranks.
    assert [item["mean_rank"] for item in found["summaries"][0]["standings"]] == [1.5, 1.5]
    code, out, err = harness("--runs", tmp_path, "--across", "-d", "beans")
    assert (code, out) == (0, "")
    assert "nothing to summarise of pretrained runs" in err
    assert harness("--runs", tmp_path, "--across", "--format", "csv")[0] == 2
