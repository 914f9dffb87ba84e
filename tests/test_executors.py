from __future__ import annotations

import os
import signal

import pytest

from harness import run_study
from harness.errors import HarnessError
from harness.search import child
from harness.search.training import Trainings


def losses(*names):
    return {
        "space": {"loss": list(names), "backbone": "tiny-net"},
        "search": {"pruner": "none", "sampler": "grid"},
    }


@pytest.fixture
def process(tiny):
    """A study whose trials run in a worker process."""

    def make(**changes):
        space = {"lr": 1e-2, "optimizer": "adamw", "freeze_depth": 0.0, **changes.pop("space", {})}
        return tiny(run={"executor": "process", **changes.pop("run", {})}, space=space, **changes)

    return make


def test_a_worker_process_gives_the_bits_of_the_inline_run(process, tiny, registry, tmp_path):
    apart = run_study(process(trials=2, finalize={"top": 0}), registry=registry, runs=tmp_path / "a")
    inline = run_study(
        process(trials=2, finalize={"top": 0}, run={"executor": "inline"}),
        registry=registry,
        runs=tmp_path / "b",
    )
    assert [r.predictions for r in apart.records] == [r.predictions for r in inline.records]
    assert apart.records[0].scores == inline.records[0].scores


def test_a_crash_costs_one_trial_and_the_worker_is_replaced(process, registry, tmp_path):
    study = process(trials=2, finalize={"top": 0}, **losses("crashing", "cross-entropy"))
    result = run_study(study, registry=registry, runs=tmp_path)
    outcomes = {record.config.loss: (record.state, record.reason) for record in result.records}
    assert outcomes["crashing"] == ("failed", "crash: the worker process ended with exit code 7")
    assert outcomes["cross-entropy"] == ("complete", "")
    assert result.exit_code == 3


@pytest.mark.slow
def test_a_hanging_trial_is_killed_after_the_stall_time(process, registry, tmp_path):
    study = process(trials=2, finalize={"top": 0}, run={"stall": 4}, **losses("hanging", "cross-entropy"))
    result = run_study(study, registry=registry, runs=tmp_path)
    outcomes = {record.config.loss: record.reason for record in result.records}
    assert outcomes["hanging"] == "hang: no training step for 4 s"
    assert outcomes["cross-entropy"] == ""


def test_a_signal_stops_the_study_and_leaves_no_worker(process, registry, tmp_path, monkeypatch, started):
    from harness.registry import Registry

    notify = Registry.notify

    def interrupt_at_first_epoch(registry, hook, **values):
        if hook == "harness_epoch_finished":
            os.kill(os.getpid(), signal.SIGTERM)
        notify(registry, hook, **values)

    monkeypatch.setattr(Registry, "notify", interrupt_at_first_epoch)
    study = process(trials=1, finalize={"top": 0}, train={"epochs": 200}, **losses("slow"))
    result = run_study(study, registry=registry, runs=tmp_path)
    assert result.exit_code == 143
    assert result.records == ()
    assert started[0]._process.poll() is not None


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_to_the_whole_job_is_for_the_parent_to_answer(
    process, registry, tmp_path, monkeypatch, started, name
):
    judge = Trainings._judge

    def judge_and_signal(trainings, *arguments):
        os.kill(started[0]._process.pid, getattr(signal, name))
        return judge(trainings, *arguments)

    monkeypatch.setattr(Trainings, "_judge", judge_and_signal)
    result = run_study(process(trials=1, finalize={"top": 0}), registry=registry, runs=tmp_path)
    assert [record.state for record in result.records] == ["complete"]


def test_a_worker_that_dies_between_two_trials_costs_none(process, registry, tmp_path, monkeypatch, started):
    keep = Trainings._keep

    def keep_and_kill(trainings, *arguments):
        started[-1]._process.kill()
        started[-1]._process.wait()
        return keep(trainings, *arguments)

    monkeypatch.setattr(Trainings, "_keep", keep_and_kill)
    result = run_study(process(trials=2, finalize={"top": 0}), registry=registry, runs=tmp_path)
    assert [record.state for record in result.records] == ["complete"] * 2
    assert len(started) == 2


def test_a_worker_that_cannot_start_ends_the_study_before_its_trials(
    process, registry, tmp_path, monkeypatch
):
    monkeypatch.setattr(child, "_environment", lambda: {**os.environ, "PYTHONHOME": str(tmp_path)})
    with pytest.raises(HarnessError, match="cannot start") as caught:
        run_study(process(trials=2), registry=registry, runs=tmp_path / "runs")
    assert "exit code 1" in caught.value.why
    assert not list(tmp_path.glob("runs/*/trials/*"))
