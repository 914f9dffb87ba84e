"""The example plugin, as a stranger uses it: built, installed, listed, blocked, checked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from harness.testing import plugin_checks

EXAMPLE = Path(__file__).parents[1] / "plugins" / "harness-example"


def run(*command: str | Path, **options) -> str:
    line = [str(part) for part in command]
    done = subprocess.run(line, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("example")
    # A copy: no build leaves anything in the source tree.
    shutil.copytree(EXAMPLE, folder / "src", ignore=shutil.ignore_patterns("__pycache__", "dist"))
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", folder / "dist", folder / "src")
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel):
    """Return the environment of a Python in which the wheel is installed beside this harness."""
    site = wheel.parent / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run(*pip, "--no-index", "--no-deps", "--target", site, wheel)
    return {**os.environ, "PYTHONPATH": str(site), "COLUMNS": "80"}


def harness_command(installed, *arguments):
    return run(sys.executable, "-m", "harness", *arguments, env=installed)


def listed(installed, *arguments):
    plugins = json.loads(harness_command(installed, *arguments, "plugins", "list", "--json"))["plugins"]
    return {plugin["name"]: plugin for plugin in plugins}


def test_the_plugin_is_under_thirty_lines():
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in EXAMPLE.rglob("*.py"))
    assert lines < 30


def test_the_plugin_depends_on_the_distribution_and_not_on_its_namesake():
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["dependencies"] == ["transfer-harness"]


def test_the_installed_plugin_is_listed_with_its_distribution_and_version(installed):
    example = listed(installed)["example"]
    assert (example["distribution"], example["version"]) == ("harness-example", "0.1.0")
    assert (example["status"], example["hooks"]) == ("ok", ["harness_losses"])
    assert [component["name"] for component in example["components"]] == ["poly-1"]
    table = harness_command(installed, "plugins", "list")
    row = next(line for line in table.splitlines() if "harness-example" in line)
    assert row.split() == ["example", "harness-example", "ok", "losses:", "poly-1"]


def test_the_installed_plugin_can_be_blocked(installed):
    example = listed(installed, "-p", "no:example")["example"]
    assert (example["status"], example["components"]) == ("blocked", [])


def test_the_plugin_runs_without_installation(tmp_path):
    shutil.copy(EXAMPLE / "harness_example.py", tmp_path / "mynet.py")
    out = run(sys.executable, "-m", "harness", "-p", "mynet", "plugins", "info", "mynet", cwd=tmp_path)
    assert "loss poly-1" in out


@pytest.mark.slow
def test_the_plugins_own_tests_pass_where_it_is_installed(installed, wheel):
    tests = wheel.parent.parent / "src" / "tests"
    out = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests, env=installed, cwd=tests)
    assert "7 passed" in out


def test_the_plugin_conforms(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLE)
    import harness_example

    for check in plugin_checks(harness_example):
        check()
    del sys.modules["harness_example"]


def test_the_loss_is_cross_entropy_plus_one_minus_the_probability(monkeypatch):
    import torch

    monkeypatch.syspath_prepend(EXAMPLE)
    import harness_example

    logits, labels = torch.tensor([[2.0, 0.0, 1.0], [0.0, 0.5, 0.0]]), torch.tensor([0, 2])
    right = logits.softmax(1)[[0, 1], labels]
    expected = (-right.log() + 1 - right).mean()
    assert torch.allclose(harness_example.build_poly_1(None)(logits, labels), expected)
    del sys.modules["harness_example"]
