from __future__ import annotations

import json
import sys

import pytest
from click.testing import CliRunner

from harness.cli.models import command
from harness.errors import PluginError, UnknownNameError

TINY = ("tiny_plugin", "no:terminal")
BROKEN = """
from harness import BackboneSpec, WeightsSpec, hookimpl

def fail(*values):
    raise ValueError("out of order")

@hookimpl
def harness_backbones():
    weights = WeightsSpec(source="s", licence="l", cached={cached}, fetch=fail)
    yield BackboneSpec(name="broken-net", summary="s", build=fail, weights=weights)
"""


def run(*arguments, plugins=("no:terminal",)):
    return CliRunner().invoke(command, arguments, obj=plugins, catch_exceptions=False)


def listed(*arguments, **options):
    result = run("list", "--json", *arguments, **options)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["schema"] == "harness.models/1"
    return {model["name"]: model for model in document["models"]}


def test_a_glob_lists_what_it_matches():
    found = listed("test_resnet*", "test_vit")
    bundled = found.pop("test_resnet.formula1")

    assert set(found) == {"test_resnet", "test_resnet.r160_in1k", "test_vit"}
    assert found["test_resnet"]["input"] == 160
    assert found["test_resnet"]["licence"] == "apache-2.0"
    assert found["test_resnet"]["source"] == "timm/test_resnet.r160_in1k"
    assert (bundled["cached"], bundled["input"], bundled["licence"]) == (True, 64, "Apache-2.0")


def test_backbones_without_weights_are_listed_when_asked_for():
    assert "test_maxvit" not in listed("test_m*")
    assert listed("test_m*", "--all")["test_maxvit"]["pretrained"] is False


def test_what_is_left_out_is_counted_beside_the_table():
    result = run("list", "test_m*", "test_vit")

    assert result.stdout.splitlines()[0].split() == ["name", "input", "licence", "cached", "source"]
    assert "test_vit" in result.stdout
    assert "--all shows" in result.stderr


def test_only_cached_ones_are_listed_when_asked_for(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    # Part of the package, and so always here.
    assert set(listed("test_resnet*", "--cached")) == {"test_resnet.formula1"}

    repository = tmp_path / "models--timm--test_resnet.r160_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"x")

    assert set(listed("test_resnet*", "--cached")) == {
        "test_resnet",
        "test_resnet.formula1",
        "test_resnet.r160_in1k",
    }


def test_a_licence_filters():
    assert "test_vit" in listed("test_*", "--licence", "APACHE")
    assert listed("test_*", "--licence", "proprietary") == {}


def test_parameters_are_counted_only_when_asked_for():
    counted = listed("test_convnext", "test_efficientnet", "--max-params", "300K")

    assert set(counted) == {"test_convnext"}
    assert counted["test_convnext"]["params"] < 300_000
    assert "params" not in listed("test_convnext")["test_convnext"]


def test_a_count_that_is_none_is_refused():
    result = run("list", "--max-params", "3X")

    assert result.exit_code == 2
    assert "30M" in result.output


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'test_resnet'"):
        run("list", "test_resnett")


def test_info_tells_parameters_blocks_and_what_each_depth_freezes():
    result = run("info", "test_vit", "--json")
    document = json.loads(result.stdout)

    assert document["schema"] == "harness.models/1"
    model = document["model"]
    assert model["params"] == 371_240
    assert model["blocks"] == 7
    assert model["provider"]["plugin"] == "builtin-backbones"
    steps = {step["depth"]: step for step in model["freeze"]}
    assert steps[0.0]["frozen_blocks"] == 0
    assert steps[1.0]["frozen_param_share"] == 1.0
    shares = [step["frozen_param_share"] for step in model["freeze"]]
    assert shares == sorted(shares)


def test_info_is_readable_and_covers_a_backbone_of_a_plugin():
    result = run("info", "tiny-net", plugins=TINY)

    assert result.exit_code == 0
    assert "tiny_plugin" in result.stdout
    assert "freeze depth" in result.stdout


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Return a function that makes a plugin of which one backbone fails, and names it."""

    def write(name, cached):
        (tmp_path / f"{name}.py").write_text(BROKEN.format(cached=cached))
        monkeypatch.syspath_prepend(tmp_path)
        return (name, "no:terminal")

    yield write
    for name in ("broken_a", "broken_b", "broken_c"):
        sys.modules.pop(name, None)


def test_a_backbone_that_cannot_tell_of_its_weights_costs_one_cell_of_the_list(broken):
    for name, cached in (("broken_a", "fail"), ("broken_b", "lambda: 'net.pt'")):
        plugins = broken(name, cached)
        found = listed("broken-net", "test_resnet.formula1", plugins=plugins)
        assert (found["broken-net"]["cached"], found["test_resnet.formula1"]["cached"]) == (None, True)
        row = run("list", "broken-net", plugins=plugins).stdout.splitlines()[1]
        assert row.split() == ["broken-net", "224", "l", "?", "s"]
        assert listed("broken-net", "--cached", plugins=plugins) == {}


@pytest.mark.parametrize("arguments", [("info", "broken-net"), ("list", "broken-net", "--max-params", "1M")])
def test_a_backbone_that_cannot_be_built_is_named_with_its_plugin(broken, arguments):
    plugins = broken("broken_c", "lambda: None")
    with pytest.raises(PluginError, match="'broken-net' cannot be built for images of 224 px") as caught:
        run(*arguments, plugins=plugins)
    assert "plugin broken_c (-p)" in caught.value.where
    assert "ValueError: out of order (broken_c.py, line 5)" in caught.value.why
