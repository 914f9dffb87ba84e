from __future__ import annotations

from pathlib import Path

import pytest

from harness.config import DEFAULT_STUDY, load_study_file, parse_study

STUDIES = sorted((Path(__file__).parent.parent / "studies").glob("*.toml"))


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_a_shipped_study_is_valid_and_says_how_to_run_it(file):
    parse_study(load_study_file(file), where=str(file))
    assert f"harness study run studies/{file.name}" in file.read_text()


def test_quick_is_the_study_that_runs_without_arguments():
    assert parse_study(load_study_file(STUDIES[0].with_name("quick.toml"))) == parse_study(DEFAULT_STUDY)


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_the_components_of_a_shipped_study_exist(file):
    from harness import load_registry
    from harness.search.space import resolve_space

    space = resolve_space(parse_study(load_study_file(file)), load_registry())
    assert space.axes
