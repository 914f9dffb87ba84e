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
