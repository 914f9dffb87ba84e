from __future__ import annotations

from pathlib import Path

import pytest

from harness import paths
from harness.errors import UsageError


def test_a_tilde_stands_for_the_home_folder():
    assert paths.expand("~/images") == Path.home() / "images"


def test_the_home_folder_of_nobody_is_named(monkeypatch):
    with pytest.raises(UsageError, match="of nobody known here") as caught:
        paths.expand("~no-such-user/images")
    assert caught.value.where == "~no-such-user/images"
    monkeypatch.setenv("HARNESS_RUNS", "~no-such-user/runs")
    with pytest.raises(UsageError):
        paths.runs()


@pytest.mark.parametrize("variable", ["HARNESS_RUNS", "HARNESS_HOME"])
def test_an_empty_variable_is_as_one_that_is_not_set(monkeypatch, variable):
    place = {"HARNESS_RUNS": paths.runs, "HARNESS_HOME": paths.home}[variable]
    monkeypatch.delenv(variable)
    expected = place()
    monkeypatch.setenv(variable, "")
    assert place() == expected


def test_a_study_is_named_as_a_shell_takes_it_and_with_its_folder_where_that_is_another(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("HARNESS_RUNS", str(tmp_path / "runs"))
    assert paths.study_arguments(tmp_path / "runs/mine") == "mine"
    assert paths.study_arguments(tmp_path / "runs/my own") == "'my own'"
    other = tmp_path / "other runs"
    assert paths.study_arguments(other / "my own") == f"'my own' --runs '{other}'"
    monkeypatch.chdir(tmp_path)
    assert paths.runs_flag(Path("runs")) == ""
    assert paths.runs_flag(Path("others")) == " --runs others"
