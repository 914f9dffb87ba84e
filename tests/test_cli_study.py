from __future__ import annotations

import json
import shutil

import pytest

from harness.cli.settings import study_values
from harness.config import DEFAULT_STUDY, DRAWN

TINY = (
    *("--dataset", "dots", "--init", "scratch", "--backbone", "tiny-net", "--augmentation", "none"),
    *(
        "--epochs",
        "2",
        "--batch-size",
        "8",
        "--trials",
        "2",
        "--finalists",
        "1",
        "--device",
        "cpu",
        "--threads",
        "1",
    ),
    *("--set", "run.executor=inline"),
)


@pytest.fixture
def run(harness_cli):
    def call(*arguments):
        return harness_cli("-p", "tiny_plugin", *arguments)

    return call


def test_run_prints_progress_to_stderr_and_the_leaderboard_to_stdout(run):
    code, out, err = run("study", "run", *TINY)
    assert code == 0, err
    assert "[1/2] macro-F1" in err
    assert "[2/2] macro-F1" in err
    assert "[final] macro-F1" in err
    assert "tiny-net" in out
    assert "majority" in out
    assert "\x1b" not in out + err


@pytest.mark.parametrize("name", DRAWN)
def test_drawn_flowers_are_studied_with_the_settings_of_the_default_study(name):
    assert study_values(None, {"dataset": name, "trials": 3}) == {
        **DEFAULT_STUDY,
        "dataset": name,
        "trials": 3,
    }
    assert study_values(None, {"dataset": "photos"}) == {"dataset": "photos"}


def test_a_study_of_drawn_flowers_ends_with_what_to_do_next(run, monkeypatch):
    code, _, err = run("study", "run", *TINY)
    assert "yours:" not in err
    monkeypatch.setattr("harness.config.DRAWN", ("dots",))
    code, _, err = run("study", "run", *TINY)
    assert code == 0
    assert "yours:    harness study run --dataset DIR" in err


def test_run_resumes_with_the_same_command(run):
    run("study", "run", *TINY)
    code, out, err = run("study", "run", *TINY)
    assert code == 0
    assert "resumes at 2 of 2" in err
    assert "tiny-net" in out


def test_json_is_the_only_thing_on_stdout(run):
    code, out, err = run("study", "run", "--json", *TINY)
    assert code == 0
    summary = json.loads(out)
    assert summary["schema"] == "harness.study-summary/1"
    assert summary["outcomes"] == {"complete": 2}
    assert err == ""


def test_quiet_prints_the_result_alone(run):
    code, out, err = run("study", "run", "-q", *TINY)
    assert code == 0
    assert "tiny-net" in out
    assert "[1/2]" not in err


def test_reading_commands_show_the_study(run):
    run("study", "run", "--name", "mine", *TINY)
    code, out, _ = run("study", "list")
    assert code == 0
    assert "mine" in out and "2/2" in out
    code, out, _ = run("study", "show", "mine")
    assert out.count("tiny-net") == 3
    code, out, _ = run("study", "best", "mine")
    assert "backbone      tiny-net" in out
    assert "model.safetensors" in out
    for command in (["list"], ["show", "mine"], ["best", "mine"]):
        code, out, _ = run("study", *command, "--json")
        assert code == 0
        assert json.loads(out)["schema"].startswith("harness.")


def test_a_renamed_or_copied_study_goes_by_its_folder(run, tmp_path):
    runs = tmp_path / "all runs"
    run("study", "run", "--name", "mine", *TINY, "--runs", runs)
    (runs / "mine").rename(runs / "my own")
    shutil.copytree(runs / "my own", runs / "copy")
    out = run("study", "list", "--runs", runs)[1]
    assert [line.split("  ")[0] for line in out.splitlines()[1:]] == ["copy", "my own"]
    code, out, _ = run("study", "show", "my own", "--runs", runs, "--json")
    found = json.loads(out)
    assert (code, found["name"]) == (0, "my own")
    assert {record["study"] for record in found["records"]} == {"my own"}
    # More finals than it began with are of the same run still.
    code, _, err = run("study", "finalize", "my own", "--seeds", "2", "--runs", runs)
    assert code == 0, err
    code, _, err = run("leaderboard", "submit", "my own", "--runs", runs, "--to", tmp_path / "records")
    assert code == 0, err


def test_hints_can_be_pasted(run, tmp_path):
    runs = tmp_path / "all runs"
    _, _, err = run("study", "run", "--name", "mine", *TINY, "--runs", runs)
    assert f"use it:   harness predict mine --runs '{runs}' IMAGES..." in err
    assert f"compare:  harness leaderboard show --runs '{runs}'" in err
    _, _, err = run("study", "show", "mime", "--runs", runs)
    assert f"harness study list --runs '{runs}'" in err
    _, _, err = run("study", "run", "--name", "mine", *TINY)
    assert "use it:   harness predict mine IMAGES..." in err


def test_a_study_file_and_flags_are_one_study(run, tmp_path):
    file = tmp_path / "x.toml"
    file.write_text('dataset = "dots"\ntrials = 9\ninit = "scratch"\n[space]\nbackbone = "tiny-net"\n')
    code, out, err = run("study", "run", file, "--trials", "3", "--lr", "1e-4:1e-2", "--dry-run")
    assert code == 0, err
    resolved = json.loads(out)
    assert resolved["study"]["trials"] == 3
    assert resolved["study"]["space"]["lr"] == {"low": 1e-4, "high": 1e-2, "step": None, "log": True}


def test_learning_rates_that_are_named_one_by_one_are_all_tried(run):
    given = ("--dataset", "dots", "--backbone", "tiny-net", "--init", "scratch", "--dry-run")
    code, out, err = run("study", "run", *given, "--lr", "1e-3", "--lr", "1e-2")
    assert code == 0, err
    assert json.loads(out)["study"]["space"]["lr"] == [1e-3, 1e-2]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--dataset", "dotz"], 2, "did you mean 'dots'?"),
        (
            ["--dataset", "dots", "--backbone", "tiny-nat"],
            2,
            "unknown backbone 'tiny-nat', did you mean 'tiny-net'?",
        ),
        (["--dataset", "dots", "--optimizer", "adamm"], 2, "unknown optimizer 'adamm', did you mean 'adam"),
        (
            ["--dataset", "dots", "--trials", "0"],
            2,
            "trials: Input should be greater than or equal to 1 (got 0)",
        ),
        (["--dataset", "dots", "--metric", "f2"], 2, "metric: must be one of f1, accuracy"),
        (["--dataset", "dots", "--lr", "fast"], 2, "write learning rates as"),
        (["--dataset", "dots", "--lr", "1e-3", "--lr", "auto"], 2, "write learning rates as"),
        (["--dataset", "dots", "--set", "x"], 2, "write --set as KEY=VALUE"),
        (
            ["--dataset", "dots", "--set", "train.epoch=3"],
            2,
            "train.epoch: unknown key, did you mean 'epochs'?",
        ),
        (["--dataset", "dots", "--optimizer", "zzz"], 2, "list what there is: harness plugins list"),
        (["--dataset", "dots", "--backbone", "zzz"], 2, "list what there is: harness models list --all"),
        (["--dataset", "dots", "--backbone", "zzz*"], 2, "list what there is: harness models list --all"),
        (["--dataset", "dots", "--set", "epochs=3"], 2, "unknown key, did you mean 'train.epochs'?"),
        (["--dataset", "./nowhere/"], 5, "nowhere"),
        (["--dataset", "dots", "--trial", "3"], 2, "--trials"),
        (["none.toml"], 2, "no such study file"),
    ],
)
def test_a_wrong_command_line_says_what_and_exits(run, arguments, code, said):
    got, out, err = run("study", "run", "--init", "scratch", *arguments)
    assert (got, out) == (code, "")
    assert said in err
    assert "Traceback" not in err


def test_an_unknown_study_is_named_with_the_nearest(run):
    run("study", "run", "--name", "mine", *TINY)
    code, _, err = run("study", "show", "mime")
    assert code == 2
    assert "unknown study 'mime', did you mean 'mine'?" in err


def test_an_unknown_command_is_named_with_the_nearest(harness_cli):
    code, _, err = harness_cli("stduy")
    assert code == 2
    assert "Did you mean 'study'?" in err


def test_a_missing_device_is_said_before_any_trial(run):
    code, _, err = run("study", "run", *TINY, "--device", "cuda:7")
    assert code == 2
    assert "device 'cuda:7' is not available" in err


def test_a_hostile_study_name_or_class_cannot_reach_the_terminal(run, tmp_path):
    from PIL import Image

    for split in ("train", "val", "test"):
        for name, colour in (("[bold]a\x1b[2J", 40), ("b\u202e", 200)):
            folder = tmp_path / "evil" / split / name
            folder.mkdir(parents=True)
            for index in range(2):
                Image.new("RGB", (24, 24), (colour + index + len(split), 0, 0)).save(folder / f"{index}.png")
    code, out, err = run("study", "run", *TINY, "--dataset", tmp_path / "evil")
    assert code == 0, err
    assert "\x1b" not in out + err
    assert "\u202e" not in out + err


def test_a_damaged_record_hides_no_other(run, tmp_path):
    run("study", "run", "--name", "mine", *TINY)
    (tmp_path / "runs" / "mine" / "trials" / "0000" / "record.json").write_text("garbage")
    for command in (["study", "list"], ["study", "show", "mine"], ["leaderboard", "show"]):
        code, out, _ = run(*command)
        assert code == 0
        assert "mine" in out or "tiny-net" in out
    code, _, err = run("study", "run", "--name", "mine", *TINY)
    assert code == 6
    assert "record.json" in err


def test_a_dry_run_finds_missing_data_and_trains_nothing(run, tmp_path):
    code, _, err = run("study", "run", *TINY, "--dataset", tmp_path / "nowhere", "--dry-run")
    assert code == 5
    assert "nowhere" in err
    code, out, _ = run("study", "run", *TINY, "--dry-run")
    assert code == 0
    assert json.loads(out)["space"]["axes"]
    assert not (tmp_path / "runs").exists()


def test_a_folder_given_as_study_file_is_explained(run, tmp_path):
    code, _, err = run("study", "run", tmp_path)
    assert code == 2
    assert f"harness study run --dataset {tmp_path}" in err


def test_broken_toml_in_a_setting_is_said_so(run):
    code, _, err = run("study", "run", *TINY, "--set", 'space.optimizer=["adamw"')
    assert code == 2
    assert "is no valid TOML" in err


@pytest.mark.parametrize(
    ("flags", "trials", "budget"),
    [
        ({}, 20, None),
        ({"budget": "1h30m"}, None, 5400),
        ({"settings": ["budget=90s"]}, None, 90),
        ({"budget": "90s", "trials": 7}, 7, 90),
    ],
)
def test_a_budget_has_no_number_of_trials_unless_one_is_given(flags, trials, budget):
    from harness.cli.settings import study_values
    from harness.config import parse_study

    study = parse_study(study_values(None, flags))
    assert (study.trials, study.budget) == (trials, budget)
