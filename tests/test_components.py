"""A study goes on with the components that it began with, or not at all."""

from __future__ import annotations

import sys

import pytest

from harness import UsageError, load_registry, run_study
from harness.errors import UnknownNameError
from harness.search.study import finalize_study

LOSS = """
from harness import LossSpec, hookimpl

def build(classes):
    from torch import nn
    return nn.CrossEntropyLoss()

@hookimpl
def harness_losses():
    yield LossSpec(name="other-loss", summary="a loss", build=build)
"""
LION = """
from harness import OptimizerSpec, hookimpl

@hookimpl
def harness_optimizers():
    yield OptimizerSpec(name="lion", summary="another lion", build=len, lr=(1e-5, 1e-3))
"""
BUILD = """
def build(groups):
    import torch
    return torch.optim.SGD(groups)

@hookimpl
"""
TINY = ("tiny_plugin", "no:terminal")


@pytest.fixture
def named(tmp_path, monkeypatch):
    """Return a function that makes a module, and loads it beside the plugin of the tests."""
    monkeypatch.syspath_prepend(tmp_path)

    def load(name, code):
        (tmp_path / f"{name}.py").write_text(code)
        return load_registry([*TINY, name])

    yield load
    for name in ("named_loss", "named_lion"):
        sys.modules.pop(name, None)


@pytest.fixture
def short(tiny):
    def make(**space):
        space = {"backbone": "wide-net", "freeze_depth": 1.0, **space}
        return tiny(trials=1, space=space, train={"epochs": 1}, finalize={"top": 0})

    return make


def test_a_study_that_goes_on_without_a_module_is_told_to_load_it(named, short, tmp_path):
    study = short(loss="other-loss")
    begun = run_study(study, registry=named("named_loss", LOSS), runs=tmp_path / "runs")
    bare = load_registry(TINY)
    with pytest.raises(UnknownNameError, match="unknown loss 'other-loss'") as caught:
        run_study(study.model_copy(update={"trials": 2}), registry=bare, runs=tmp_path / "runs")
    assert caught.value.fixes == ("load its plugin: harness -p named_loss study run ...",)
    with pytest.raises(UnknownNameError) as caught:
        finalize_study(begun.folder, finalists=1, registry=bare)
    assert caught.value.fixes == ("load its plugin: harness -p named_loss study finalize ...",)


def test_a_plugin_that_provides_what_a_study_began_with_otherwise_is_refused(named, short, tmp_path):
    study = short(optimizer="lion", lr=1e-4)
    begun = run_study(study, registry=load_registry(TINY), runs=tmp_path / "runs")
    shadowed = named("named_lion", LION)
    with pytest.raises(UsageError, match="began with components of other plugins") as caught:
        run_study(study.model_copy(update={"trials": 2}), registry=shadowed, runs=tmp_path / "runs")
    assert caught.value.why == (
        "optimizer 'lion': builtin-optimizers (transfer-harness) then, named_lion (-p) now"
    )
    assert caught.value.fixes == ("leave out -p named_lion",)
    with pytest.raises(UsageError, match="of other plugins"):
        finalize_study(begun.folder, finalists=1, registry=shadowed)


def test_a_plugin_that_a_study_began_with_is_asked_for_where_another_has_its_name(named, short, tmp_path):
    study = short(optimizer="lion", lr=1e-4)
    loaded = named("named_lion", LION.replace("len", "build").replace("@hookimpl", BUILD, 1))
    run_study(study, registry=loaded, runs=tmp_path / "runs")
    with pytest.raises(UsageError, match="began with components of other plugins") as caught:
        run_study(study, registry=load_registry(TINY), runs=tmp_path / "runs")
    assert caught.value.fixes == ("load its plugin: harness -p named_lion study run ...",)
