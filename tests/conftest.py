from __future__ import annotations

import os

import pytest

# The tests run in several processes: threads on top of them would wait for each other at full speed.
os.environ.setdefault("OMP_NUM_THREADS", "1")

TINY = {
    "dataset": "dots",
    "init": "scratch",
    "trials": 4,
    "space": {"backbone": ["tiny-net", "wide-net"], "freeze_depth": [0.0, 0.5, 1.0], "augmentation": "none"},
    "train": {"epochs": 3, "batch_size": 8},
    "finalize": {"top": 1},
    "run": {"executor": "inline", "device": "cpu", "threads": 1},
}
"""A study of seconds on the test plugin."""


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """No test reads or writes the user's caches, or the studies of the current folder."""
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HARNESS_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")


@pytest.fixture
def registry():
    from harness import load_registry

    return load_registry(["tiny_plugin", "no:terminal"])


@pytest.fixture
def tiny():
    """Return a function that makes a study on the test plugin, with changes."""
    from harness.config import parse_study

    def make(**changes):
        values = {key: dict(value) if isinstance(value, dict) else value for key, value in TINY.items()}
        for key, value in changes.items():
            values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
        return parse_study(values)

    return make


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """The folder of a finished study on the test plugin with two seeds of one finalist; not to be changed."""
    from harness import load_registry, run_study
    from harness.config import parse_study

    folder = tmp_path_factory.mktemp("tiny_run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_HOME", str(folder / "home"))
        result = run_study(
            parse_study(
                {
                    **TINY,
                    "trials": 1,
                    "space": {"backbone": "tiny-net", "freeze_depth": 0.5, "augmentation": "none"},
                    "finalize": {"top": 1, "seeds": 2},
                    "name": "tiny",
                }
            ),
            registry=load_registry(["tiny_plugin", "no:terminal"]),
            runs=folder / "runs",
        )
    return result.folder


@pytest.fixture
def harness_cli(capsys):
    """Return a function that runs a command line in this process and returns (code, stdout, stderr)."""
    from harness.cli import main

    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return caught.value.code, out, err

    return run


@pytest.fixture
def started(monkeypatch):
    """Return the processes of trials that are started, as they come."""
    from harness.search.child import Child

    found = []
    start = Child.__init__

    def remember(child):
        start(child)
        found.append(child)

    monkeypatch.setattr(Child, "__init__", remember)
    return found
