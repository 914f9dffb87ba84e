"""The conformance kit on our own components, and the index of them in plugins/README.md."""

from __future__ import annotations

import tomllib
from pathlib import Path
from pkgutil import resolve_name

import pytest

from harness import load_registry
from harness.registry import KINDS
from harness.testing import plugin_checks

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PLUGINS = PROJECT["entry-points"]["harness"]
# The smallest of each family: the rest is upstream's, and too large for a unit test.
MEMBERS = {
    "builtin-backbones": {
        "timm": ["test_resnet", "test_efficientnet", "test_vit"],
        "torchvision": ["squeezenet1_1"],
    },
    "builtin-optimizers": {"timm": ["lion", "radam"]},
}


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(check, id=f"{name}/{check.id}")
        for name, value in PLUGINS.items()
        for check in plugin_checks(resolve_name(value), members=MEMBERS.get(name))
    ],
)
def test_conformance(check):
    check()


def test_every_built_in_plugin_is_found_and_sound():
    infos = {info.name: info for info in load_registry().plugins}
    for name in PLUGINS:
        assert infos[name].status == "ok", infos[name].reason
        assert infos[name].distribution == PROJECT["name"]


def index_of_components() -> str:
    registry = load_registry()
    lines = ["| kind | plugin | built-in components |", "| --- | --- | --- |"]
    for kind in KINDS:
        for info in registry.plugins:
            if info.name in PLUGINS:
                families = registry.catalog(kind).families()
                names = [
                    f"`{name}:*` ({summary})" if name in families else f"`{name}`"
                    for component_kind, name, summary in info.components
                    if component_kind == kind
                ]
                lines += [f"| {kind} | `{info.name}` | {', '.join(names)} |"] if names else []
    return "\n".join(lines)


def test_the_index_of_built_in_components_is_fresh():
    text = (ROOT / "plugins" / "README.md").read_text(encoding="utf-8")
    index = text.partition("<!-- index -->\n")[2].partition("\n<!-- /index -->")[0]
    assert index == index_of_components(), f"put this between the marks:\n{index_of_components()}"
