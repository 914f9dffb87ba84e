from __future__ import annotations

import pytest

from harness.config import DEFAULT_STUDY, load_study_file, parse_study
from harness.errors import UsageError


def errors_of(values):
    with pytest.raises(UsageError) as caught:
        parse_study(values)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_all_errors_of_a_study_are_said_at_once_with_their_paths():
    text = errors_of(
        {
            "dataset": "x",
            "trials": 0,
            "metric": "f2",
            "budget": "soon",
            "space": {"lr": {"low": 1e-2, "high": 1e-5, "log": True}},
        }
    )
    assert "4 errors" in text
    assert "trials: Input should be greater than or equal to 1 (got 0)" in text
    assert "metric: must be one of f1, accuracy (got 'f2')" in text
    assert "space.lr: high (1e-05) must be above low (0.01)" in text
    assert "budget: write a time as 90s, 30m or 1h30m (got 'soon')" in text


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"trails": 3}, "trails: unknown key, did you mean 'trials'?"),
        ({"space": {"optimzer": ["a"]}}, "space.optimzer: unknown key, did you mean 'optimizer'?"),
        (
            {"space": {"lr": {"low": 1, "hihg": 2, "high": 3}}},
            "space.lr.hihg: unknown key, did you mean 'high'?",
        ),
        ({"space": {"freeze_depth": 1.5}}, "freeze_depth must be between 0 and 1 (got 1.5)"),
        ({"space": {"freeze_depth": [-0.1]}}, "freeze_depth must be between 0 and 1 (got -0.1)"),
        ({"space": {"lr": 0}}, "lr must be above 0 (got 0)"),
        ({"space": {"lr": {"low": 0, "high": 1, "log": True}}}, "low must be above 0 on a log scale"),
        ({"space": {"backbone": []}}, "space.backbone"),
        ({"search": {"sampler": "grid"}}, "sampler 'grid' needs a list or a step for space.lr"),
        ({"init": "scratch", "weights_dir": "w"}, "exclude each other"),
        ({"schema": "harness.study/9"}, "schema: must be one of harness.study/1"),
        ({"name": "../evil"}, "name:"),
        ({"run": {"device": "gpu"}}, "run.device"),
        ({"run": {"gpu_share": 0}}, "run.gpu_share"),
        ({"run": {"gpu_share": 1.5}}, "run.gpu_share"),
        ({"run": {"deterministic": "sometimes"}}, "run.deterministic"),
        ({"run": {"compile": "maybe"}}, "run.compile"),
        ({"split": {"val": 0.5, "test": 0.5}}, "leave nothing to train on"),
        ({"train": {"epochs": float("nan")}}, "train.epochs"),
    ],
)
def test_a_wrong_value_is_named(values, said):
    assert said in errors_of({"dataset": "x", **values})


def test_the_dataset_is_required():
    assert "dataset: is required" in errors_of({})


def test_one_value_stands_for_a_list_of_one():
    space = parse_study({"dataset": "x", "space": {"backbone": "a", "lr": 0.1, "freeze_depth": 0}}).space
    assert (space.backbone, space.lr, space.freeze_depth) == (("a",), (0.1,), (0.0,))


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("30m", 1800), ("1h30m", 5400), ("1m30s", 90), (7, 7)]
)
def test_a_budget_is_written_as_people_do(text, seconds):
    assert parse_study({"dataset": "x", "budget": text}).budget == seconds


@pytest.mark.parametrize("text", ["1h30", "1m30", "h", "", "1d"])
def test_a_budget_that_could_mean_two_things_is_refused(text):
    with pytest.raises(UsageError, match="write a time as 90s, 30m or 1h30m"):
        parse_study({"dataset": "x", "budget": text})


def test_paths_in_a_study_file_are_relative_to_it(tmp_path):
    file = tmp_path / "studies" / "x.toml"
    file.parent.mkdir()
    file.write_text('dataset = "../photos"\nweights_dir = "w"\n[weights]\nnet = "net.safetensors"\n')
    values = load_study_file(file)
    assert values["dataset"] == str(file.parent / "../photos")
    assert values["weights_dir"] == str(file.parent / "w")
    assert values["weights"]["net"] == str(file.parent / "net.safetensors")


def test_a_name_in_a_study_file_stays_a_name(tmp_path):
    file = tmp_path / "x.toml"
    file.write_text('dataset = "flowers"\n')
    assert load_study_file(file)["dataset"] == "flowers"


@pytest.mark.parametrize("content", ["dataset = flowers", "\x00", "a = 1\na = 2"])
def test_a_file_that_is_no_toml_is_refused_with_its_name(tmp_path, content):
    file = tmp_path / "x.toml"
    file.write_text(content)
    with pytest.raises(UsageError, match=r"no valid TOML") as caught:
        load_study_file(file)
    assert str(file) in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"no such study file.*\n.*\n  fix    check the path"):
        load_study_file(tmp_path / "none.toml")


def test_the_default_study_is_valid_and_frozen():
    study = parse_study(DEFAULT_STUDY)
    assert study.trials >= 12
    with pytest.raises(ValueError, match="frozen"):
        study.trials = 3


def test_a_step_beyond_the_range_is_refused():
    with pytest.raises(UsageError, match="step"):
        parse_study({"dataset": "petals", "space": {"freeze_depth": {"low": 0.0, "high": 0.5, "step": 0.75}}})


def test_a_way_to_start_heads_that_is_named_twice_counts_once():
    study = parse_study({"dataset": "petals", "space": {"head_init": ["xavier", "ridge", "xavier"]}})
    assert study.space.head_init == ("xavier", "ridge")
