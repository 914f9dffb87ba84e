from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import shutil
import sqlite3
import threading
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from harness import NoTrialSucceeded, StorageError, UsageError, run_study
from harness.errors import DataError, PluginError, UnknownNameError, WeightsError
from harness.records import read_record, read_records
from harness.search import budget
from harness.search.cost import CostModel
from harness.search.folder import locked_study
from harness.search.result import choose_finalists
from harness.search.study import check_study


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One finished study of the test plugin, for the tests that only look."""
    from conftest import TINY

    from harness import load_registry
    from harness.config import parse_study

    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_HOME", str(folder / "home"))
        yield run_study(
            parse_study({**TINY, "finalize": {"top": 3, "seeds": 2}}),
            registry=load_registry(["tiny_plugin", "no:terminal"]),
            runs=folder / "runs",
        )


def table(result):
    """What of a study must not depend on when and how often it was interrupted."""
    return [
        (record.kind, record.number, record.state, record.config, dict(record.scores), record.predictions)
        for record in result.records
    ]


def test_a_study_ends_with_records_of_every_trial_and_of_the_finalists(finished):
    assert finished.exit_code == 0
    assert [record.number for record in finished.records if record.kind == "search"] == [0, 1, 2, 3]
    finals = [record for record in finished.records if record.kind == "final"]
    assert {record.config.seed for record in finals} == {1, 2}
    assert all(record.state in ("complete", "pruned") for record in finished.records)
    assert {record.config.init for record in finished.records} == {"scratch"}


def test_only_finalists_see_the_test_split(finished):
    for record in finished.records:
        stored = safetensors.numpy.load_file(finished.folder / record.folder / "predictions.safetensors")
        opened = any(name.startswith("test") for name in stored)
        assert opened == (record.kind == "final") == ("test" in record.scores)


def test_the_scores_equal_those_of_scikit_learn_on_the_saved_predictions(finished):
    for record in finished.records:
        stored = safetensors.numpy.load_file(finished.folder / record.folder / "predictions.safetensors")
        for split, scores in record.scores.items():
            labels = stored[f"{split}.labels"]
            chosen = stored[f"{split}.probabilities"].argmax(axis=1)
            macro = {"average": "macro", "zero_division": 0, "labels": np.unique(labels)}
            assert scores.accuracy == pytest.approx(accuracy_score(labels, chosen), abs=1e-12)
            assert scores.f1 == pytest.approx(f1_score(labels, chosen, **macro), abs=1e-12)
            assert scores.precision == pytest.approx(precision_score(labels, chosen, **macro), abs=1e-12)
            assert scores.recall == pytest.approx(recall_score(labels, chosen, **macro), abs=1e-12)


def test_a_study_learns_something(finished):
    assert finished.best.scores["val"].accuracy > 0.6


def test_a_record_names_who_provided_what_and_on_what_it_ran(finished):
    record = finished.records[0]
    assert record.providers["backbone"].plugin == "tiny_plugin"
    assert record.providers["optimizer"].distribution == "transfer-harness"
    assert record.environment["device"] == "cpu"
    assert record.environment["torch"]
    assert record.cost.params >= record.cost.trainable > 0
    assert record.weights.init == "scratch"


def test_the_optuna_database_holds_every_trial(finished):
    import optuna

    study = optuna.load_study(study_name=finished.name, storage=f"sqlite:///{finished.folder}/study.db")
    assert [trial.number for trial in study.trials] == [0, 1, 2, 3]
    values = {
        record.number: record.curve[-1].val_f1 for record in finished.records if record.kind == "search"
    }
    for trial in study.trials:
        if trial.state.name == "COMPLETE":
            assert trial.value == values[trial.number]


def test_finalists_are_the_best_of_each_backbone_first(finished):
    finalists = choose_finalists(list(finished.records), 2)
    best = {}
    for record in finished.records:
        if record.kind == "search" and record.state == "complete":
            name = record.config.backbone
            best[name] = max(best.get(name, 0), record.scores["val"].f1)
    assert [record.scores["val"].f1 for record in finalists] == sorted(best.values(), reverse=True)[:2]


@pytest.mark.parametrize("begin", [run_study, check_study])
def test_a_misspelt_data_set_is_named_before_weights_are_looked_for(tiny, registry, begin):
    config = tiny(dataset="dto", init="pretrained", weights_dir="no-such-folder")
    with pytest.raises(UnknownNameError, match="unknown data set 'dto'"):
        begin(config, registry=registry)


def test_the_same_command_again_trains_nothing(tiny, registry, tmp_path):
    first = run_study(tiny(), registry=registry, runs=tmp_path)
    again = run_study(tiny(), registry=registry, runs=tmp_path)
    assert [record.created for record in again.records] == [record.created for record in first.records]


def test_more_trials_go_on_where_the_study_ended(tiny, registry, tmp_path):
    few = run_study(tiny(trials=2), registry=registry, runs=tmp_path)
    more = run_study(tiny(trials=4), registry=registry, runs=tmp_path)
    whole = run_study(tiny(trials=4), registry=registry, runs=tmp_path / "whole")
    assert few.folder == more.folder
    searched = [row for row in table(more) if row[0] == "search"]
    assert searched[:2] == [row for row in table(few) if row[0] == "search"]
    assert searched == [row for row in table(whole) if row[0] == "search"]


class Interrupt:
    """An observer that stops the study at an epoch of a trial, as a signal does."""

    def __init__(self, number, epoch):
        self.at = (number, epoch)

    def install(self, monkeypatch):
        import signal

        from harness.registry import Registry

        notify = Registry.notify

        def watch(registry, hook, **values):
            if hook == "harness_epoch_finished" and (values["number"], values["epoch"]) == self.at:
                self.at = None
                signal.raise_signal(signal.SIGINT)
            notify(registry, hook, **values)

        monkeypatch.setattr(Registry, "notify", watch)


@pytest.mark.parametrize("at", [(0, 1), (3, 2)])
def test_a_study_killed_in_a_trial_resumes_to_the_same_table(tiny, registry, tmp_path, monkeypatch, at):
    whole = run_study(tiny(), registry=registry, runs=tmp_path / "whole")
    with monkeypatch.context() as patch:
        Interrupt(*at).install(patch)
        stopped = run_study(tiny(), registry=registry, runs=tmp_path / "cut")
    assert stopped.exit_code == 130
    assert len([record for record in stopped.records if record.kind == "search"]) < 4
    resumed = run_study(tiny(), registry=registry, runs=tmp_path / "cut")
    assert resumed.exit_code == 0
    assert table(resumed) == table(whole)


@pytest.mark.parametrize(
    ("where", "pruner"),
    [
        ("ask", "median"),
        ("suggest", "none"),
        ("record", "halving"),
        ("record", "hyperband"),
        ("tell", "median"),
    ],
)
def test_a_study_killed_between_two_steps_resumes_to_the_same_table(
    tiny, registry, tmp_path, monkeypatch, where, pruner
):
    """The third trial dies, as by kill -9: in a suggestion, before its record, before the tell."""
    import optuna

    from harness.search import training
    from harness.search.index import Index

    # Nine epochs are the fewest in which halving has a rung.
    study = tiny(trials=4, train={"epochs": 9}, search={"pruner": pruner}, finalize={"top": 0})
    whole = run_study(study, registry=registry, runs=tmp_path / "whole")
    calls = {"count": 0}

    def dying(function, at):
        def call(*values, **named):
            calls["count"] += 1
            if calls["count"] > at:
                raise KeyboardInterrupt
            return function(*values, **named)

        return call

    with monkeypatch.context() as patch:
        owner, name, at = {
            "ask": (optuna.Study, "ask", 2),
            "suggest": (optuna.Trial, "suggest_float", 5),
            "tell": (Index, "tell", 2),
            "record": (training, "write_record", 2),
        }[where]
        patch.setattr(owner, name, dying(getattr(owner, name), at))
        with pytest.raises(KeyboardInterrupt):
            run_study(study, registry=registry, runs=tmp_path / "cut")
    resumed = run_study(study, registry=registry, runs=tmp_path / "cut")
    assert table(resumed) == table(whole)


@pytest.mark.parametrize(("sampler", "pruner"), [("tpe", "hyperband"), ("gp", "none"), ("gp", "hyperband")])
def test_a_lost_database_is_rebuilt_from_the_records(tiny, registry, tmp_path, sampler, pruner):
    search = {"sampler": sampler, "pruner": pruner}
    first = run_study(tiny(trials=6, search=search, finalize={"top": 0}), registry=registry, runs=tmp_path)
    (first.folder / "study.db").unlink()
    study = tiny(trials=8, search=search, finalize={"top": 0})
    resumed = run_study(study, registry=registry, runs=tmp_path)
    whole = run_study(study, registry=registry, runs=tmp_path / "whole")
    assert table(resumed) == table(whole)


def test_a_database_that_fails_in_mid_study_is_a_storage_error(tiny, registry, tmp_path, monkeypatch):
    import optuna

    def fail(*values, **named):
        raise optuna.exceptions.StorageInternalError("disk I/O error")

    monkeypatch.setattr(optuna.Study, "ask", fail)
    with pytest.raises(StorageError, match="database cannot be used") as caught:
        run_study(tiny(), registry=registry, runs=tmp_path)
    assert caught.value.exit_code == 6


def overwrite(database):
    database.write_bytes(b"\0" * 4096 + database.read_bytes()[4096:])


def cut_off(database):
    database.write_bytes(database.read_bytes()[:20_000])


def statement(text):
    def damage(database):
        with contextlib.closing(sqlite3.connect(database)) as connection, connection:
            connection.execute(text)

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        overwrite,
        cut_off,
        statement("DELETE FROM studies"),
        statement("DELETE FROM trial_params"),
        statement("UPDATE trials SET state = 'LOST'"),
        statement("UPDATE trial_params SET distribution_json = '{'"),
        statement("UPDATE trial_intermediate_values SET intermediate_value = 0"),
    ],
    ids=["overwritten", "cut off", "no study", "no parameters", "states", "distributions", "values"],
)
def test_a_damaged_database_is_rebuilt_from_the_records(tiny, registry, tmp_path, damage):
    study = tiny(trials=2, finalize={"top": 0}, train={"epochs": 1})
    first = run_study(study, registry=registry, runs=tmp_path)
    before = index(first)
    damage(first.folder / "study.db")
    assert table(run_study(study, registry=registry, runs=tmp_path)) == table(first)
    assert index(first) == before


def index(result):
    import optuna

    study = optuna.load_study(study_name=result.name, storage=f"sqlite:///{result.folder}/study.db")
    return [(trial.state, trial.params, trial.intermediate_values) for trial in study.trials]


def test_a_full_disk_stops_the_study_and_costs_no_trial(tiny, registry, tmp_path, monkeypatch):
    import safetensors.numpy

    def fail(tensors, path):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.numpy, "save_file", fail)
        with pytest.raises(StorageError, match="cannot be read or written"):
            run_study(tiny(), registry=registry, runs=tmp_path)
    assert run_study(tiny(), registry=registry, runs=tmp_path).exit_code == 0


def test_another_space_under_the_same_name_is_refused_with_the_difference(tiny, registry, tmp_path):
    run_study(tiny(name="mine", trials=1), registry=registry, runs=tmp_path)
    with pytest.raises(UsageError, match="is another study") as caught:
        run_study(tiny(name="mine", trials=1, space={"optimizer": "sgd"}), registry=registry, runs=tmp_path)
    assert 'space.optimizer: ["adamw","sgd"] there, ["sgd"] now' in str(caught.value)
    assert caught.value.exit_code == 2


def test_extend_opens_a_generation_that_knows_the_old_trials(tiny, registry, tmp_path):
    old = run_study(tiny(name="mine", trials=3), registry=registry, runs=tmp_path)
    wider = {"freeze_depth": [0.0, 0.25, 0.5, 0.75, 1.0]}
    new = run_study(tiny(name="mine", trials=4, space=wider), registry=registry, runs=tmp_path, extend=True)
    assert new.name == "mine@2"
    numbers = [record.number for record in new.records if record.kind == "search"]
    kept = [
        record for record in old.records if record.kind == "search" and record.state in ("complete", "pruned")
    ]
    assert numbers == list(range(len(kept), len(kept) + 4))
    again = run_study(tiny(name="mine", trials=4, space=wider), registry=registry, runs=tmp_path)
    assert again.name == "mine@2"
    third = run_study(
        tiny(name="mine", trials=1, space={"optimizer": ["adamw", "sgd", "adam"]}),
        registry=registry,
        runs=tmp_path,
        extend=True,
    )
    assert third.name == "mine@3"
    assert len(third.records) == 2, "one trial of its own and its final"
    assert [record.created for record in again.records] == [record.created for record in new.records]


def test_extend_refuses_what_would_make_old_scores_mean_something_else(tiny, registry, tmp_path):
    run_study(tiny(name="mine", trials=1), registry=registry, runs=tmp_path)
    for change in ({"metric": "accuracy"}, {"train": {"epochs": 4}}):
        with pytest.raises(UsageError, match="is another study") as caught:
            run_study(tiny(name="mine", trials=1, **change), registry=registry, runs=tmp_path, extend=True)
        assert "--extend allows changes of the space only" in str(caught.value)


def test_a_grid_that_is_extended_visits_the_points_that_are_new(tiny, registry, tmp_path):
    space = {"lr": 1e-2, "optimizer": "adamw", "backbone": "tiny-net"}
    grid = {"sampler": "grid", "pruner": "none"}
    old = tiny(name="g", trials=9, space={**space, "freeze_depth": [0.0, 0.5]}, search=grid)
    run_study(old, registry=registry, runs=tmp_path)
    new = tiny(name="g", trials=9, space={**space, "freeze_depth": [0.0, 0.5, 1.0]}, search=grid)
    result = run_study(new, registry=registry, runs=tmp_path, extend=True)
    assert [r.config.freeze_depth for r in result.records if r.kind == "search"] == [1.0]


def test_a_plugin_installed_later_leaves_a_begun_study_alone(tiny, registry, tmp_path, monkeypatch):
    from harness.catalog import Catalog

    study = tiny(trials=1, space={"backbone": ["tiny-*", "wide-*"]})
    run_study(study, registry=registry, runs=tmp_path)
    monkeypatch.setattr(Catalog, "expand", lambda *values, **named: ["a-new-net"])
    assert run_study(study, registry=registry, runs=tmp_path).exit_code == 0


def test_trials_of_one_configuration_give_one_finalist(tiny, registry, tmp_path):
    space = {"backbone": "tiny-net", "lr": 1e-2, "optimizer": "adamw", "freeze_depth": 0.0}
    study = tiny(trials=3, space=space, search={"pruner": "none"}, finalize={"top": 3})
    result = run_study(study, registry=registry, runs=tmp_path)
    assert len([record for record in result.records if record.kind == "final"]) == 1


def test_a_loss_that_draws_from_numpy_is_seeded_as_well(tiny, registry, tmp_path):
    study = tiny(trials=2, space={"loss": "drawing"}, search={"pruner": "none"}, finalize={"top": 0})
    first = run_study(study, registry=registry, runs=tmp_path / "a")
    second = run_study(study, registry=registry, runs=tmp_path / "b")
    assert table(first) == table(second)


def test_an_error_that_no_file_can_hold_is_recorded_all_the_same(tiny, registry, tmp_path):
    study = tiny(trials=4, space={"loss": ["cross-entropy", "mumbling"]}, search={"pruner": "none"})
    result = run_study(study, registry=registry, runs=tmp_path)
    assert any("\\udce9" in record.reason for record in result.records)


def test_a_changed_data_set_is_another_study(tiny, registry, tmp_path, monkeypatch):
    import tiny_plugin

    run_study(tiny(name="mine", trials=1), registry=registry, runs=tmp_path)
    monkeypatch.setitem(tiny_plugin.SIZES, "val", 15)
    with pytest.raises(UsageError, match="the data set: its images, labels or splits changed"):
        run_study(tiny(name="mine", trials=1), registry=registry, runs=tmp_path)
    unnamed = run_study(tiny(trials=1), registry=registry, runs=tmp_path)
    monkeypatch.setitem(tiny_plugin.SIZES, "val", 18)
    assert run_study(tiny(trials=1), registry=registry, runs=tmp_path).name != unnamed.name


@pytest.mark.parametrize(
    ("loss", "said"), [("nan", "nan: "), ("oom", "oom: "), ("raising", "error: loss 'raising': RuntimeError")]
)
def test_a_trial_that_fails_is_an_outcome_and_the_study_goes_on(tiny, registry, tmp_path, loss, said):
    study = tiny(trials=6, space={"loss": ["cross-entropy", loss]}, search={"pruner": "none"})
    result = run_study(study, registry=registry, runs=tmp_path)
    failed = [record for record in result.records if record.state == "failed"]
    assert failed
    assert all(record.reason.startswith(said) and not record.scores for record in failed)
    assert result.exit_code == 3
    assert {record.state for record in result.records} == {"failed", "complete"}


def test_a_study_without_one_complete_trial_ends_with_its_own_error(tiny, registry, tmp_path):
    with pytest.raises(NoTrialSucceeded) as caught:
        run_study(tiny(trials=2, space={"loss": "raising"}), registry=registry, runs=tmp_path)
    assert caught.value.exit_code == 4
    assert "this loss is out of order" in str(caught.value)
    assert list(tmp_path.glob("*/trials/*/error.txt"))


def test_a_study_in_which_everything_fails_ends_after_twenty_trials_and_tries_as_many_again(
    tiny, registry, tmp_path
):
    asked = tiny(trials=100, space={"loss": "raising"})
    for trials in (20, 40):
        with pytest.raises(NoTrialSucceeded, match=f"without a complete trial, of {trials}"):
            run_study(asked, registry=registry, runs=tmp_path)


def test_a_study_in_which_everything_diverges_is_told_to_learn_more_slowly(tiny, registry, tmp_path):
    study = tiny(trials=1, space={"lr": 1e30, "optimizer": "sgd", "backbone": "wide-net"})
    with pytest.raises(NoTrialSucceeded) as caught:
        run_study(study, registry=registry, runs=tmp_path)
    assert "--lr" in str(caught.value)
    assert "error.txt" not in str(caught.value)


def test_a_study_says_what_it_left_out_and_which_test_images_it_trains_on(tiny, registry, tmp_path, caplog):
    from PIL import Image

    random = np.random.default_rng(0)
    for label in ("cat", "dog"):
        for split, count in (("train", 5), ("val", 2), ("test", 2)):
            folder = tmp_path / "photos" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    photos = tmp_path / "photos"
    (photos / "test/cat/0.png").write_bytes((photos / "train/cat/0.png").read_bytes())
    (photos / "train/dog/1.png").write_bytes(b"nothing")
    result = run_study(
        tiny(dataset=str(photos), trials=1, skip_bad=True, finalize={"top": 0}),
        registry=registry,
        runs=tmp_path / "runs",
    )
    assert [record.dataset.skipped for record in result.records] == [1]
    assert "1 image left out: unreadable" in caplog.text
    assert "1 test image in train or val too" in caplog.text


def test_two_processes_cannot_run_one_study(tiny, registry, tmp_path):
    first = run_study(tiny(trials=1), registry=registry, runs=tmp_path)
    with locked_study(first.folder), pytest.raises(StorageError, match="another process"):
        run_study(tiny(trials=2), registry=registry, runs=tmp_path)


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_study_that_another_process_begins_meanwhile_is_not_mixed_with_this_one(
    tiny, registry, tmp_path, monkeypatch, epochs
):
    """While weights are fetched, somebody else takes the name: for the same study, or for another."""
    from harness.search import study as module

    preflight = module._preflight
    study = tiny(name="mine", trials=1, train={"epochs": 1}, finalize={"top": 0})
    other = tiny(name="mine", trials=2, train={"epochs": epochs}, finalize={"top": 0})

    def overtaken(*values, **named):
        if named.get("fetch", True):
            monkeypatch.setattr(module, "_preflight", preflight)
            run_study(study, registry=registry, runs=tmp_path)
        return preflight(*values, **named)

    monkeypatch.setattr(module, "_preflight", overtaken)
    if epochs == 1:
        result = run_study(other, registry=registry, runs=tmp_path)
        assert len(result.records) == 2
        return
    with pytest.raises(UsageError, match="is another study"):
        run_study(other, registry=registry, runs=tmp_path)
    assert [record.config.epochs for record in read_records(tmp_path / "mine")] == [1]


def test_a_finalist_that_failed_once_leaves_no_error_when_it_is_trained_again(
    tiny, registry, tmp_path, monkeypatch
):
    from harness.engine.trial import Engine

    study = tiny(trials=1, train={"epochs": 1})

    def fail(*values, **named):
        raise RuntimeError("once")

    with monkeypatch.context() as patch:
        conclude = Engine._conclude

        def fail_finals(engine, finished, job, *values, **named):
            return (fail if job.kind == "final" else conclude)(engine, finished, job, *values, **named)

        patch.setattr(Engine, "_conclude", fail_finals)
        failed = run_study(study, registry=registry, runs=tmp_path)
    assert list(failed.folder.glob("finals/*/error.txt"))
    again = run_study(study, registry=registry, runs=tmp_path)
    assert [record.state for record in again.records] == ["complete", "complete"]
    assert not list(again.folder.glob("finals/*/error.txt"))


def test_a_grid_study_visits_each_point_once_and_ends(tiny, registry, tmp_path):
    study = tiny(
        trials=50,
        space={"lr": [1e-3, 1e-2], "optimizer": "adamw", "freeze_depth": [0.0, 1.0], "backbone": "tiny-net"},
        search={"sampler": "grid", "pruner": "none"},
    )
    result = run_study(study, registry=registry, runs=tmp_path)
    points = [(r.config.lr, r.config.freeze_depth) for r in result.records if r.kind == "search"]
    assert sorted(points) == [(1e-3, 0.0), (1e-3, 1.0), (1e-2, 0.0), (1e-2, 1.0)]


@pytest.mark.parametrize("sampler", ["random", "gp"])
def test_every_sampler_proposes_distinct_points(tiny, registry, tmp_path, sampler):
    result = run_study(tiny(trials=8, search={"sampler": sampler}), registry=registry, runs=tmp_path)
    points = [record.config.digest() for record in result.records if record.kind == "search"]
    assert len(set(points)) == 8


@pytest.mark.parametrize("pruner", ["median", "hyperband", "halving"])
def test_every_pruner_works_by_epoch(tiny, registry, tmp_path, pruner):
    study = tiny(
        trials=9, train={"epochs": 9}, search={"pruner": pruner, "sampler": "random"}, finalize={"top": 0}
    )
    result = run_study(study, registry=registry, runs=tmp_path)
    pruned = [record for record in result.records if record.state == "pruned"]
    assert pruned
    assert all(len(record.curve) < 9 and record.scores["val"].n == 12 for record in pruned)


def test_a_study_can_run_outside_the_main_thread(tiny, registry, tmp_path):
    results = []
    thread = threading.Thread(
        target=lambda: results.append(run_study(tiny(trials=1), registry=registry, runs=tmp_path))
    )
    thread.start()
    thread.join()
    assert results[0].exit_code == 0


def test_a_damaged_study_file_is_a_storage_error(tiny, registry, tmp_path):
    first = run_study(tiny(name="mine", trials=1), registry=registry, runs=tmp_path)
    (first.folder / "study.json").write_text("{")
    with pytest.raises(StorageError, match="a study cannot be read") as caught:
        run_study(tiny(name="mine", trials=1), registry=registry, runs=tmp_path)
    assert caught.value.exit_code == 6


def test_records_read_back_as_they_were_returned(finished):
    assert tuple(read_records(finished.folder)) == finished.records
    path = finished.folder / finished.records[0].folder / "record.json"
    assert read_record(path) == finished.records[0]
    assert json.loads(path.read_text())["schema"] == "harness.record/1"


def test_a_missing_record_is_named_with_the_way_out(tiny, registry, tmp_path):
    import shutil

    study = {"space": {"freeze_depth": 0.0}, "train": {"epochs": 1}, "finalize": {"top": 0}}
    first = run_study(tiny(trials=7, **study), registry=registry, runs=tmp_path)
    shutil.rmtree(first.folder / "trials" / "0001")
    with pytest.raises(StorageError, match="the record of trial 1 is missing") as caught:
        run_study(tiny(trials=8, **study), registry=registry, runs=tmp_path)
    assert "move the folders from 0001 on away" in str(caught.value)


def test_a_damaged_study_keeps_no_other_from_running(tiny, registry, tmp_path):
    first = run_study(tiny(name="mine", trials=1), registry=registry, runs=tmp_path)
    (first.folder / "study.json").write_text("{")
    assert run_study(tiny(name="yours", trials=1), registry=registry, runs=tmp_path).exit_code == 0


def test_a_study_without_a_complete_trial_says_where_to_look(tmp_path):
    from harness.search.result import StudyResult

    result = StudyResult(name="sig", folder=tmp_path, dataset="dots", metric="f1", trials=1, records=())
    with pytest.raises(NoTrialSucceeded) as caught:
        _ = result.best
    assert f"harness study show {tmp_path.name} --runs {tmp_path.parent}" in caught.value.fixes[0]


@pytest.mark.parametrize(("name", "said"), [("gone", "does not exist"), ("text", "found 0 images")])
@pytest.mark.parametrize("start", [run_study, check_study])
def test_data_that_are_missing_are_said_before_weights_are_looked_for(
    tmp_path, tiny, registry, start, name, said
):
    (tmp_path / "text" / "cat").mkdir(parents=True)
    (tmp_path / "text" / "cat" / "a.txt").write_text("no image")
    config = tiny(
        dataset=str(tmp_path / name), init="pretrained", weights_dir=str(tmp_path / "no-weights-here")
    )
    with pytest.raises(DataError, match=said):
        start(config, registry=registry)


@pytest.fixture
def own_weights(tmp_path):
    """Return a function that writes a checkpoint of the bundled ResNet, sound or of another network."""
    import timm
    from safetensors.torch import save_file

    file = tmp_path / "weights.safetensors"

    def write(name):
        save_file(timm.create_model(name, num_classes=7).state_dict(), str(file))
        return file

    return write


@pytest.mark.parametrize("probes", [True, False])
def test_a_checkpoint_of_another_network_ends_a_study_which_goes_on_with_the_right_one(
    tiny, registry, tmp_path, own_weights, probes
):
    name = "test_resnet.formula1"
    study = tiny(
        init="pretrained",
        trials=1,
        weights={name: str(own_weights("test_efficientnet"))},
        space={"backbone": [name]},
        train={"epochs": 1},
        search={"probes": probes},
        finalize={"top": 0},
    )
    with pytest.raises(WeightsError, match="not one of backbone 'test_resnet'"):
        check_study(study, registry)
    with pytest.raises(WeightsError, match="not one of backbone 'test_resnet'"):
        run_study(study, registry=registry, runs=tmp_path / "runs")
    own_weights("test_resnet")
    for trials in (1, 2):
        result = run_study(
            study.model_copy(update={"trials": trials}), registry=registry, runs=tmp_path / "runs"
        )
        assert [record.state for record in result.records] == ["complete"] * trials
    own_weights("test_resnet")
    with pytest.raises(UsageError, match="are not those that study"):
        run_study(study.model_copy(update={"trials": 3}), registry=registry, runs=tmp_path / "runs")


def test_a_size_that_a_backbone_cannot_take_is_refused_before_a_study_begins(tiny, registry, tmp_path):
    study = tiny(space={"backbone": ["test_vit"]}, train={"image_size": 50})
    for begin in (check_study, partial(run_study, runs=tmp_path / "runs")):
        with pytest.raises(UsageError, match=r"50 px: .*; use 160 px, its own size"):
            begin(study, registry=registry)
    assert not (tmp_path / "runs").exists()


def test_a_backbone_that_cannot_be_built_is_named_in_a_dry_run(tiny, registry, monkeypatch):
    def build(num_classes, weights, image_size):
        raise ValueError("out of order")

    component = registry.backbones.get("tiny-net")
    broken = dataclasses.replace(component, spec=dataclasses.replace(component.spec, build=build))
    monkeypatch.setitem(registry.backbones._specs, "tiny-net", broken)
    with pytest.raises(PluginError, match="backbone 'tiny-net' cannot be built") as caught:
        check_study(tiny(space={"backbone": ["tiny-net"]}), registry)
    assert "ValueError: out of order" in caught.value.why


def test_a_choice_that_always_fails_is_soon_left(tiny, registry, tmp_path):
    study = tiny(
        trials=16, space={"loss": ["cross-entropy", "raising"]}, train={"epochs": 1}, finalize={"top": 0}
    )
    result = run_study(study, registry=registry, runs=tmp_path / "runs")
    assert sum(record.state == "failed" for record in result.records) <= 6


@pytest.mark.parametrize("name", ["a?b", "a#b", "{x}", "50%20 off"])
def test_the_folder_of_a_study_may_have_any_name(tiny, registry, tmp_path, name):
    study = tiny(trials=1, finalize={"top": 0})
    result = run_study(study, registry=registry, runs=tmp_path / name)
    assert (result.folder / "study.db").stat().st_size > 0


def test_a_study_that_lacks_only_finalists_keeps_to_its_budget_too(tiny, registry, tmp_path, monkeypatch):
    study = tiny(trials=3, finalize={"top": 3})
    first = run_study(study, registry=registry, runs=tmp_path / "runs")
    shutil.rmtree(first.folder / "finals")
    ticks = itertools.count()
    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    again = run_study(study.model_copy(update={"budget": 2}), registry=registry, runs=tmp_path / "runs")
    # The best, whatever it takes.
    assert [record.kind for record in again.records].count("final") == 1
    assert again.timed_out


def test_an_opening_that_does_not_fit_into_a_budget_gives_way_to_what_does(
    tiny, registry, tmp_path, monkeypatch
):
    def seconds(self, backbone, freeze_depth, epochs):
        return 1e6 if freeze_depth == 0 else 0.01

    monkeypatch.setattr(CostModel, "seconds", seconds)
    study = tiny(
        trials=4,
        budget=300,
        space={"backbone": ["tiny-net"], "freeze_depth": [0.0, 0.25, 0.5, 0.75, 1.0]},
        finalize={"top": 0},
    )
    result = run_study(study, registry=registry, runs=tmp_path / "runs")
    depths = [record.config.freeze_depth for record in result.records]
    assert len(depths) == 4
    assert 0.0 not in depths
    assert not result.timed_out


def test_a_study_that_has_begun_probes_nothing_more(tiny, registry, tmp_path):
    study = tiny(
        init="pretrained",
        trials=1,
        space={"backbone": ["test_resnet.formula1"]},
        train={"epochs": 1},
        finalize={"top": 0},
    )
    folder = run_study(study, registry=registry, runs=tmp_path / "runs").folder
    (folder / "probes.json").unlink()
    result = run_study(study.model_copy(update={"trials": 2}), registry=registry, runs=tmp_path / "runs")
    assert len(result.records) == 2
    assert not (folder / "probes.json").exists()
