from __future__ import annotations

import os

import pytest

from harness import run_study
from harness.config import RunConfig
from harness.errors import DataError, StorageError
from harness.search import child as children
from harness.search.child import Child, PipeError, start_child, waiting
from harness.search.executors import ProcessExecutor


@pytest.fixture
def child():
    started = Child()
    yield started
    started.close()


def test_trials_in_this_process_want_no_child():
    assert start_child(RunConfig(executor="inline")) is None


def test_a_child_that_is_closed_answers_no_more_and_is_closed_again(child):
    child.close()
    child.close()
    assert child._process.poll() is not None
    with pytest.raises(PipeError):
        child.send("hello")


def test_what_a_child_prints_before_it_knows_its_log_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(children, "_environment", lambda: {**os.environ, "PYTHONVERBOSE": "1"})
    loud = Child()
    executor = ProcessExecutor(None, log=tmp_path / "logs" / "worker.log", stall=60, child=loud)
    assert loud.receive(0.5) is None
    executor.close()
    assert "import" in loud.early_output
    assert (tmp_path / "logs" / "worker.log").read_text() == loud.early_output


def test_a_log_that_cannot_be_written_leaves_no_child(tmp_path, child):
    (tmp_path / "logs").write_text("no folder")
    with pytest.raises(StorageError):
        ProcessExecutor(None, log=tmp_path / "logs" / "worker.log", stall=60, child=child)
    assert child._process.poll() is not None


def test_a_study_that_finds_no_data_leaves_no_child(tiny, registry, tmp_path, started):
    (tmp_path / "photos" / "a").mkdir(parents=True)
    (tmp_path / "photos" / "a" / "1.jpg").write_bytes(b"no image")
    (tmp_path / "photos" / "b").mkdir()
    (tmp_path / "photos" / "b" / "1.jpg").write_bytes(b"no image")
    study = tiny(dataset=str(tmp_path / "photos"), run={"executor": "process"})
    with pytest.raises(DataError):
        run_study(study, registry=registry, runs=tmp_path / "runs")
    assert [child._process.poll() is not None for child in started] == [True]


def test_a_study_starts_one_child_and_leaves_none(tiny, registry, tmp_path, started):
    study = tiny(trials=1, finalize={"top": 0}, run={"executor": "process"})
    assert run_study(study, registry=registry, runs=tmp_path).exit_code == 0
    assert [child._process.poll() is not None for child in started] == [True]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": "1000"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
    ],
)
def test_idle_threads_sleep_soon_unless_the_user_has_said_how_they_wait(given, expected):
    assert {**given, **waiting({"HOME": "/", **given})} == expected


def test_a_child_gets_what_says_how_its_threads_wait(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert children._environment()["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    assert children._environment()["GOMP_SPINCOUNT"] == "1000"
