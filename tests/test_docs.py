from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "plugins/README.md")]
PAGES += [*sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_within_the_repository_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_first_two_commands_of_the_readme_set_up_all_they_need():
    blocks = re.findall(r"```\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    main, tests = blocks[0].strip(), blocks[1].strip()
    for command in (main, tests):
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install ")
        assert "\n" not in command
    assert main.endswith("harness study run")
    assert tests.endswith(".venv/bin/pytest")


def test_every_field_of_a_study_is_in_its_guide():
    from harness.config import StudyConfig

    guide = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    fields = study_fields(StudyConfig)
    axes = [name.removeprefix("space.") for name in fields if name.startswith("space.")]
    axes_listed = re.findall(r"^\| `(\w+)` \|", table(guide, "| axis of `[space]` |"), re.M)
    assert axes_listed == axes
    rows = re.findall(r"^\| `([\w.]+)` \| .*? \| (.*?) \|", table(guide, "| key |"), re.M)
    assert [name for name, _ in rows] == [name for name in fields if not name.startswith("space.")]
    for name, default in rows:
        if default.startswith("`"):
            assert tomllib.loads(f"value = {default.strip('`')}")["value"] == fields[name], name
        else:
            assert fields[name] in (None, PydanticUndefined), name


def table(page, head):
    """Return the rows of the table that begins with a head."""
    return page[page.index(f"\n{head}") + 1 :].partition("\n\n")[0]


def study_fields(model, prefix=""):
    """Return the default of each key of a study, by its dotted name."""
    found = {}
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= study_fields(field.annotation, f"{prefix}{name}.")
        else:
            found[prefix + (field.alias or name)] = field.get_default(call_default_factory=True)
    return found


def test_every_script_of_the_benchmarks_is_listed():
    listed = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert not [path.name for path in (ROOT / "benchmarks").glob("*.py") if path.name not in listed]


@pytest.mark.slow
def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    names: dict[str, object] = {}
    exec(code, names)
    assert "TrialConfig(" in capsys.readouterr().out
    assert set(names["board"]["backbone"]) == {"test_efficientnet.formula1"}
