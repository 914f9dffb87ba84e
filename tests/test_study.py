from __future__ import annotations

import json
import threading

import numpy as np
import pytest
import safetensors.numpy
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from harness import NoTrialSucceeded, StorageError, UsageError, run_study
from harness.records import read_record, read_records
from harness.search.result import choose_finalists


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
    assert len([record for record in stopped.records if record.kind == "search"]) == at[0]
    resumed = run_study(tiny(), registry=registry, runs=tmp_path / "cut")
    assert resumed.exit_code == 0
    assert table(resumed) == table(whole)


def test_a_record_written_before_optuna_was_told_is_told_at_the_next_start(
    tiny, registry, tmp_path, monkeypatch
):
    from harness.search.folder import StudyFolder

    with monkeypatch.context() as patch:
        patch.setattr(StudyFolder, "tell", lambda *values: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_study(tiny(), registry=registry, runs=tmp_path)
    resumed = run_study(tiny(), registry=registry, runs=tmp_path)
    whole = run_study(tiny(), registry=registry, runs=tmp_path / "whole")
    assert table(resumed) == table(whole)


def test_a_lost_database_is_rebuilt_from_the_records(tiny, registry, tmp_path):
    first = run_study(tiny(trials=3), registry=registry, runs=tmp_path)
    (first.folder / "study.db").unlink()
    resumed = run_study(tiny(trials=4), registry=registry, runs=tmp_path)
    whole = run_study(tiny(trials=4), registry=registry, runs=tmp_path / "whole")
    searched = [row for row in table(resumed) if row[0] == "search"]
    assert searched == [row for row in table(whole) if row[0] == "search"]


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
    assert numbers == list(range(len(kept), 4))
    again = run_study(tiny(name="mine", trials=4, space=wider), registry=registry, runs=tmp_path)
    assert again.name == "mine@2"
    assert [record.created for record in again.records] == [record.created for record in new.records]


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
    ("loss", "said"), [("nan", "nan: "), ("oom", "oom: "), ("raising", "error: RuntimeError")]
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


def test_a_timeout_starts_no_new_trial(tiny, registry, tmp_path, monkeypatch):
    import time

    study = tiny(trials=4, timeout=1)
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with pytest.raises(NoTrialSucceeded):
        run_study(study, registry=registry, runs=tmp_path)


def test_two_processes_cannot_run_one_study(tiny, registry, tmp_path):
    from harness.search.folder import StudyFolder

    first = run_study(tiny(trials=1), registry=registry, runs=tmp_path)
    with StudyFolder.open(first.folder).lock(), pytest.raises(StorageError, match="another process"):
        run_study(tiny(trials=2), registry=registry, runs=tmp_path)


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
    assert len({record.config.lr for record in result.records if record.kind == "search"}) == 8


@pytest.mark.parametrize("pruner", ["median", "hyperband", "halving"])
def test_every_pruner_works_by_epoch(tiny, registry, tmp_path, pruner):
    study = tiny(trials=12, train={"epochs": 4}, search={"pruner": pruner, "sampler": "random"})
    result = run_study(study, registry=registry, runs=tmp_path)
    pruned = [record for record in result.records if record.state == "pruned"]
    assert pruned
    assert all(len(record.curve) < 4 and record.scores["val"].n == 12 for record in pruned)


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
