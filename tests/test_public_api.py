"""The names that plugins and scripts may rely on, and what it costs to reach them."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import harness

ROOT = Path(__file__).parents[1]
HEAVY = ["torch", "torchvision", "timm", "optuna", "pandas", "pydantic", "scipy", "sklearn"]


def test_the_public_names_are_sorted_and_unique():
    assert harness.__all__ == sorted(set(harness.__all__))


@pytest.mark.parametrize("name", harness.__all__)
def test_every_public_name_can_be_imported(name):
    assert getattr(harness, name) is not None


def test_no_public_name_is_forgotten():
    homes = [name for names in harness._HOMES.values() for name in names]
    assert sorted([*homes, "__version__"]) == harness.__all__
    assert dir(harness) == harness.__all__


def test_type_checkers_see_the_names_where_they_are():
    tree = ast.parse(Path(harness.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    seen = {node.module: [alias.name for alias in node.names] for node in block.body}
    assert seen == harness._HOMES


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Studi'"):
        _ = harness.Studi


@pytest.mark.parametrize("name", harness.__all__)
def test_every_public_name_is_documented(name):
    if name not in ("__version__", "ParamGroup"):
        assert (getattr(harness, name).__doc__ or "").strip()


def test_the_version_is_the_newest_of_the_changelog():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    releases = [name for name in re.findall(r"^## \[?([^\]\s]+)", text, re.MULTILINE) if name != "Unreleased"]
    assert releases[0] == harness.__version__


def test_the_installed_package_is_this_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert version(project["name"]) == harness.__version__


def imported_by(code: str) -> set[str]:
    program = f"{code}\nimport json, sys\nprint('\\n' + json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def command_line(*arguments: str) -> str:
    return (
        f"from harness.cli import main\ntry:\n    main({list(arguments)})\n"
        "except SystemExit as end:\n    assert not end.code"
    )


@pytest.mark.parametrize(
    "code",
    [
        "import harness",
        "import harness.cli",
        "from harness import LossSpec, hookimpl, HarnessError, load_registry\nload_registry()",
        command_line("--help"),
        command_line("--version"),
        command_line("plugins", "list"),
        command_line("plugins", "list", "--json"),
        command_line("plugins", "info", "builtin-losses"),
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code):
    assert imported_by(code) == set()


def test_what_is_needed_is_seen_here():
    assert "torch" in imported_by("import harness.testing")
