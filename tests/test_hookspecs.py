"""Every hook is documented with its arguments, and every example in the documentation runs."""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import harness
from harness import StudyView, hookspecs
from harness.errors import DataError
from harness.registry import HOOKS, KINDS, components_of, plural
from harness.testing import plugin_checks

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
REGISTERING = [f"harness_{plural(kind)}" for kind in KINDS]
OBSERVING = [hook for hook in HOOKS if hook not in REGISTERING]
VALUES = {"trial": None, "kind": "k", "number": 3, "epoch": 1, "value": 0.5, "record": None, "records": []}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)


EXAMPLES = blocks("python")


def executed(code: str, **names: object) -> ModuleType:
    module = ModuleType("example")
    vars(module).update(names)
    exec(compile(textwrap.dedent(code), "example", "exec"), vars(module))
    return module


def hooks_of(code: str) -> set[str]:
    return set(re.findall(r"def (harness_\w+)", code))


def read_beans(folder, download):
    raise DataError("no beans")


def build_tiny_net(num_classes, weights, image_size):
    pooled = nn.Conv2d(3, 4, 3, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*pooled, nn.Linear(4, num_classes))


def build_upside_down(given):
    return lambda image: image.flip(1)[:, :1, :1].repeat(1, given.size, given.size)


STUBS = {"read_beans": read_beans, "build_tiny_net": build_tiny_net, "build_upside_down": build_upside_down}


def test_there_are_six_hooks_that_register_and_six_that_observe():
    assert (len(REGISTERING), len(OBSERVING)) == (6, 6)
    assert set(REGISTERING) < set(HOOKS)


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_in_the_guide_with_its_arguments(hook):
    arguments = ", ".join(inspect.signature(getattr(hookspecs, hook)).parameters)
    assert f"\n### `{hook}({arguments})`\n" in GUIDE


def test_the_guide_invents_no_hook():
    headings = re.findall(r"^### `(\w+)", GUIDE, re.MULTILINE)
    assert headings == list(HOOKS)


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_says_what_it_is_for(hook):
    assert inspect.getdoc(getattr(hookspecs, hook)).splitlines()[0].endswith(".")


@pytest.mark.parametrize("hook", REGISTERING)
def test_the_example_of_every_hookspec_conforms(hook):
    example = inspect.getdoc(getattr(hookspecs, hook)).partition("Example::\n")[2]
    public = {name: getattr(harness, name) for name in harness.__all__}
    plugin = executed(example, torch=torch, nn=nn, **public, **STUBS)
    assert f"harness_{plural(components_of(plugin)[0][0])}" == hook
    for check in plugin_checks(plugin):
        check()


@pytest.mark.parametrize("code", [code for code in EXAMPLES if hooks_of(code) & set(REGISTERING)])
def test_every_example_of_the_guide_conforms(code):
    plugin = executed(code)
    assert components_of(plugin)
    for check in plugin_checks(plugin):
        check()


def test_every_hook_that_registers_has_an_example():
    assert set(REGISTERING) <= set().union(*map(hooks_of, EXAMPLES))


def test_the_observer_of_the_guide_writes_what_it_says(tmp_path):
    (code,) = [code for code in EXAMPLES if "class CurveLog" in code]
    observer = executed(code).CurveLog()
    assert components_of(observer) == []
    study = StudyView(name="s", dataset="d", metric="f1", trials=1, epochs=1, folder=str(tmp_path))
    observer.harness_epoch_finished(study, "search", 3, 1, 0.5)
    assert (tmp_path / "curves.csv").read_text() == "search,3,1,0.5\n"


@pytest.mark.parametrize("hook", OBSERVING)
def test_an_observer_takes_the_arguments_it_wants(hook, registry):
    names = list(inspect.signature(getattr(hookspecs, hook)).parameters)
    for wanted in (names, names[-1:], []):
        seen = []
        code = f"def {hook}({', '.join(wanted)}): seen.append([{', '.join(wanted)}])"
        plugin = executed(f"from harness import hookimpl\n@hookimpl\n{code}", seen=seen)
        registry._manager.register(plugin, name="watch")
        values = {name: VALUES.get(name, "a study") for name in names}
        registry.notify(hook, **values)
        registry._manager.unregister(name="watch")
        assert seen == [[values[name] for name in wanted]]


def test_the_test_of_the_guide_runs(monkeypatch):
    (code,) = [code for code in EXAMPLES if "parametrize_with_checks" in code]
    monkeypatch.syspath_prepend(ROOT / "plugins" / "harness-example")
    test = executed(code).test_conformance
    monkeypatch.delitem(sys.modules, "harness_example")
    (mark,) = test.pytestmark
    assert len(mark.args[1]) == 7


def test_every_python_block_of_the_guide_is_tested():
    tested = [code for code in EXAMPLES if "harness_" in code]
    assert len(tested) == len(EXAMPLES) == 10


@pytest.mark.parametrize("code", blocks("toml"))
def test_the_toml_of_the_guide_is_valid(code):
    assert tomllib.loads(code)["project"]["dependencies"] == ["transfer-harness"]


def test_the_guide_says_that_installing_is_trusting():
    assert "Installing a plugin is trusting it" in GUIDE


@pytest.mark.parametrize("name", re.findall(r"\]\((\.\./[^)#]+)\)", GUIDE))
def test_the_links_of_the_guide_lead_somewhere(name):
    assert (ROOT / "docs" / name).exists()
