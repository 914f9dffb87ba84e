"""Plugins as strangers write them: installed, broken, colliding, named on the command line."""

from __future__ import annotations

import importlib
import logging
import random
import sys
import textwrap
from dataclasses import FrozenInstanceError
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from harness import Family, LossSpec, hookimpl
from harness.catalog import Catalog
from harness.cli import main
from harness.errors import PluginError, UnknownNameError, UsageError
from harness.records import Provider
from harness.registry import components_of, load_registry

LOSS = """
from harness import LossSpec, hookimpl

@hookimpl
def harness_losses():
    yield LossSpec(name={name!r}, summary="a loss", build=lambda classes: None)
"""

HOOK = "from harness import hookimpl\n@hookimpl\n"


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a distribution with one plugin module on the import path, as pip would."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    before = set(sys.modules)

    def write(code, *, plugin="fake", distribution=None, module=None, value=None, version="1.2"):
        distribution = distribution or f"harness-{plugin}"
        module = module or f"fake_{plugin.replace('-', '_')}"
        (site / f"{module}.py").write_text(textwrap.dedent(code))
        info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[harness]\n{plugin} = {value or module}\n")
        importlib.invalidate_caches()
        return info

    yield write
    for name in set(sys.modules) - before:
        if name.startswith("fake_"):
            del sys.modules[name]


def info_of(name, *arguments):
    return {info.name: info for info in load_registry(arguments).plugins}[name]


def test_an_installed_plugin_is_found_with_its_distribution_and_version(install):
    install(LOSS.format(name="fake-loss"))
    registry = load_registry()
    info = next(info for info in registry.plugins if info.name == "fake")
    assert (info.distribution, info.version, info.status) == ("harness-fake", "1.2", "ok")
    assert info.hooks == ("harness_losses",)
    assert info.components == (("loss", "fake-loss", "a loss"),)
    provider = registry.losses.get("fake-loss").provider
    assert (provider.name, provider.plugin) == ("fake-loss", "fake")
    assert (provider.distribution, provider.version) == ("harness-fake", "1.2")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import not_there", "No module named 'not_there' (fake_bad.py, line 1)"),
        ("\n\n1 / 0", "ZeroDivisionError: division by zero (fake_bad.py, line 3)"),
        ("def broken(:", "fake_bad.py, line 1"),
        ("import sys\nsys.exit(3)", "SystemExit: 3"),
        ("class Odd(Exception):\n    def __str__(self): raise ValueError\nraise Odd", "Odd"),
        (HOOK + "def harness_lossez(): pass", "did you mean 'harness_losses'?"),
        (HOOK + "def harness_losses(): return 3", "returned int, not an iterable"),
        (HOOK + "def harness_losses(): return None", "returned NoneType"),
        (HOOK + "def harness_losses(): yield 'mse'", "yielded str, not LossSpec"),
        (HOOK + "def harness_losses(): raise OSError('disk')", "OSError: disk"),
        (HOOK + "def harness_losses(model): yield", "model"),
        (HOOK.rstrip() + "(wrapper=True)\ndef harness_losses(): yield", "harness_losses is a hook wrapper"),
        ("def harness_losses(): return []", "harness_losses lacks @hookimpl"),
        (LOSS.format(name="x") + "def harness_optimisers(): pass", "did you mean 'harness_optimizers'?"),
        ("x = 1", "implements no hook"),
        (LOSS.format(name="two words"), "the name 'two words'"),
        (LOSS.format(name="../up"), "the name '../up'"),
        (LOSS.format(name="a:b"), "the name 'a:b'"),
        (LOSS.format(name=""), "the name ''"),
        (LOSS.format(name=None), "the name None"),
        (LOSS.format(name="x").replace("'x'", "'x', **{'naem': 1}"), "unexpected keyword argument 'naem'"),
        (LOSS.format(name="x").replace("yield", "return 2 * [").rstrip() + "]", "yielded loss 'x' twice"),
        (LOSS.format(name="x").replace("LossSpec", "ScheduleSpec"), "yielded ScheduleSpec, not LossSpec"),
    ],
)
def test_a_broken_plugin_is_listed_with_its_reason_and_stops_nothing(install, code, reason):
    install(code, plugin="bad")
    install(LOSS.format(name="good-loss"), plugin="good")
    registry = load_registry()
    infos = {info.name: info for info in registry.plugins}
    assert infos["bad"].status == "broken"
    assert reason in infos["bad"].reason
    assert "\n" not in infos["bad"].reason
    assert infos["bad"].distribution == "harness-bad"
    assert infos["bad"].components == ()
    assert infos["good"].status == "ok"
    assert registry.losses.get("good-loss")
    assert registry.losses.get("cross-entropy")


def test_a_broken_plugin_leaves_no_observer_behind(install):
    install(
        """
        from harness import hookimpl
        calls = []

        @hookimpl
        def harness_study_started(study):
            calls.append(study)

        @hookimpl
        def harness_losses():
            raise OSError
        """,
        plugin="half",
    )
    load_registry(["no:terminal"]).notify("harness_study_started", study=1)
    assert sys.modules["fake_half"].calls == []


def test_an_entry_point_that_names_nothing_is_broken(install):
    install(LOSS.format(name="x"), plugin="gone", value="fake_gone:Missing")
    install(LOSS.format(name="y"), plugin="garbled", value="not a module!")
    assert "has no attribute 'Missing'" in info_of("gone").reason
    assert info_of("garbled").status == "broken"


def test_a_control_character_in_an_error_cannot_reach_the_terminal(install):
    install("raise ValueError('\\x1b[31mred')", plugin="loud")
    assert "\x1b" not in info_of("loud").reason


def test_malformed_metadata_breaks_one_plugin_and_not_the_tool(install):
    info = install(LOSS.format(name="x"), plugin="torn")
    (info / "entry_points.txt").write_text("[harness]\nno equals sign\n")
    info = install(LOSS.format(name="y"), plugin="nameless")
    (info / "METADATA").unlink()
    infos = {info.name: info for info in load_registry().plugins}
    assert infos["harness-torn"].status == "broken"
    assert "metadata cannot be read" in infos["harness-torn"].reason
    assert "ok" in {info.status for info in infos.values()}


def test_a_class_is_instantiated_once(install):
    install(
        """
        from harness import hookimpl
        made = []

        class Watch:
            def __init__(self):
                made.append(self)

            @hookimpl
            def harness_study_started(self, study):
                made.append(study)
        """,
        plugin="watch",
        value="fake_watch:Watch",
    )
    registry = load_registry(["no:terminal"])
    registry.notify("harness_study_started", study="s")
    made = sys.modules["fake_watch"].made
    assert made == [registry.plugin("watch"), "s"]


def test_a_class_that_wants_arguments_is_broken(install):
    install("class Greedy:\n    def __init__(self, x): pass", plugin="greedy", value="fake_greedy:Greedy")
    assert "missing 1 required positional argument" in info_of("greedy").reason


def test_a_plugin_shifts_no_random_numbers(install):
    install(
        """
        import random, numpy, torch
        from harness import hookimpl

        def reseed():
            random.seed(0); numpy.random.seed(0); torch.manual_seed(0)

        reseed()

        @hookimpl
        def harness_losses():
            reseed()
            return []

        @hookimpl
        def harness_study_started(study):
            reseed()
        """,
        plugin="seeder",
    )
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(7)
    expected = (random.random(), np.random.rand(), torch.rand(1).item())
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(7)
    load_registry(["no:terminal"]).notify("harness_study_started", study=None)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


def test_what_a_plugin_prints_while_it_loads_stays_out_of_standard_output(install, capsys):
    install("print('hello from import')\n" + LOSS.format(name="x"), plugin="chatty")
    load_registry()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "hello from import" in captured.err


def test_two_distributions_of_one_plugin_name_are_an_error_that_names_both(install):
    install(LOSS.format(name="a"), plugin="same", distribution="harness-one", module="fake_one")
    install(LOSS.format(name="b"), plugin="same", distribution="harness-two", module="fake_two")
    with pytest.raises(PluginError, match=r"'same': harness-one 1\.2, harness-two 1\.2") as caught:
        load_registry()
    assert "-p no:same" in str(caught.value)
    assert info_of("same", "no:same").status == "blocked"


def test_one_distribution_seen_twice_is_one_plugin(install, tmp_path, monkeypatch):
    install(LOSS.format(name="a"), plugin="twice", distribution="harness-twice")
    other = tmp_path / "other"
    info = other / "harness.twice-9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: Harness.Twice\nVersion: 9\n")
    (info / "entry_points.txt").write_text("[harness]\ntwice = fake_twice\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(other)])
    importlib.invalidate_caches()
    assert info_of("twice").version == "1.2"


def test_two_components_of_one_name_are_an_error_that_names_both(install, capsys):
    install(LOSS.format(name="focal"), plugin="rival")
    with pytest.raises(PluginError) as caught:
        load_registry()
    message = str(caught.value)
    assert "loss 'focal' is provided twice" in message
    assert "transfer-harness" in message
    assert "harness-rival 1.2" in message
    with pytest.raises(SystemExit) as left:
        main(["plugins", "list"])
    assert left.value.code == 7
    assert "-p no:rival" in capsys.readouterr().err
    registry = load_registry(["no:rival"])
    assert registry.losses.get("focal").provider.plugin == "builtin-losses"
    assert load_registry(["no:builtin-losses"]).losses.get("focal").provider.plugin == "rival"


def test_a_blocked_plugin_is_not_even_imported(install):
    install("raise SystemExit('imported')", plugin="never")
    info = info_of("never", "no:never")
    assert (info.status, info.reason) == ("blocked", "")
    assert "fake_never" not in sys.modules


def test_blocking_an_unknown_plugin_names_the_nearest(install):
    install(LOSS.format(name="x"), plugin="example")
    with pytest.raises(UnknownNameError, match="'exmaple', did you mean 'example'"):
        load_registry(["no:exmaple"])


def test_a_named_module_that_is_missing_or_broken_is_an_error(install):
    install("1 / 0", plugin="crash", module="fake_crash")
    with pytest.raises(PluginError) as caught:
        load_registry(["missing_module"])
    assert "ModuleNotFoundError: No module named 'missing_module'" in str(caught.value)
    assert "without .py" in str(caught.value)
    with pytest.raises(PluginError, match="'fake_crash' cannot be loaded"):
        load_registry(["no:crash", "fake_crash"])
    with pytest.raises(PluginError, match="'json' cannot be loaded") as caught:
        load_registry(["json"])
    assert "implements no hook" in str(caught.value)
    assert "pydoc harness.hookspecs" in caught.value.fixes[0]


def test_a_module_of_the_current_folder_can_be_named(tmp_path, monkeypatch):
    (tmp_path / "fake_here.py").write_text(LOSS.format(name="here"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    registry = load_registry(["fake_here", "fake_here"])
    assert [info.distribution for info in registry.plugins if info.name == "fake_here"] == ["-p"]
    assert registry.arguments == ("fake_here", "fake_here")
    assert registry.losses.get("here").provider.distribution == "-p"
    assert sys.path[0] != str(tmp_path), "a file of the current folder must shadow nothing"
    del sys.modules["fake_here"]


@pytest.mark.parametrize("plugin", ["twin", "fake_twin"])
def test_naming_the_module_of_an_installed_plugin_changes_nothing(install, plugin):
    install(LOSS.format(name="x"), plugin=plugin, module="fake_twin")
    registry = load_registry(["fake_twin"])
    assert [info.name for info in registry.plugins if "twin" in info.name] == [plugin]
    assert registry.losses.get("x").provider.plugin == plugin


def test_a_module_named_like_another_plugin_leaves_that_one_alone(install, tmp_path, monkeypatch):
    install(LOSS.format(name="sound"), plugin="fake_name", module="fake_sound")
    (tmp_path / "fake_name.py").write_text(LOSS.format(name="other"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PluginError, match="'fake_name' cannot be loaded") as caught:
        load_registry(["fake_name"])
    assert "already called 'fake_name'" in str(caught.value)


def test_two_entry_points_of_one_module_keep_the_first(install):
    install(LOSS.format(name="x"), plugin="first", module="fake_shared")
    install(LOSS.format(name="x"), plugin="second", module="fake_shared")
    infos = {info.name: info for info in load_registry().plugins}
    assert (infos["first"].status, infos["second"].status) == ("ok", "broken")


def test_fifty_plugins_load(install):
    for number in range(50):
        install(LOSS.format(name=f"loss-{number}"), plugin=f"many-{number}")
    registry = load_registry()
    assert sum(info.status == "ok" and info.name.startswith("many") for info in registry.plugins) == 50
    assert {f"loss-{number}" for number in range(50)} < set(registry.losses.names())


def test_a_hook_of_a_newer_harness_can_be_marked_optional(install):
    code = LOSS.format(name="x") + "@hookimpl(optionalhook=True)\ndef harness_pruners(): return []\n"
    install(code, plugin="ahead")
    assert info_of("ahead").status == "ok"


def test_a_helper_of_a_plugin_may_be_called_what_no_hook_is(install):
    install("def harness_home(): pass\n" + LOSS.format(name="x"), plugin="helped")
    assert info_of("helped").status == "ok"


def test_an_observer_that_raises_is_reported_once_and_stops_nothing(install, caplog):
    install(
        """
        import sys
        from harness import hookimpl
        calls = []

        @hookimpl
        def harness_study_started(study):
            calls.append(study)
            sys.exit("enough") if len(calls) > 1 else 1 / 0
        """,
        plugin="a-angry",
    )
    install(
        """
        from harness import hookimpl
        calls = []

        @hookimpl
        def harness_study_started(study):
            calls.append(study)
        """,
        plugin="b-calm",
    )
    registry = load_registry(["no:terminal"])
    with caplog.at_level(logging.WARNING, "harness.plugins"):
        for _ in range(3):
            registry.notify("harness_study_started", study="s")
    assert [record.message for record in caplog.records] == [
        "plugin 'a-angry' failed in harness_study_started: ZeroDivisionError: division by zero "
        "(fake_a_angry.py, line 9) (said once; the study goes on)"
    ]
    assert sys.modules["fake_a_angry"].calls == ["s"] * 3
    assert sys.modules["fake_b_calm"].calls == ["s"] * 3


def test_an_observer_changes_nothing_that_others_see(install):
    install(
        """
        from harness import hookimpl

        @hookimpl
        def harness_trial_finished(record):
            record["scores"].clear()
        """,
        plugin="vandal",
    )
    record = {"scores": {"val": 1.0}}
    load_registry(["no:terminal"]).notify("harness_trial_finished", study=None, record=record)
    assert record == {"scores": {"val": 1.0}}


def test_an_interrupt_passes_through_an_observer(install):
    install(HOOK + "def harness_study_started(study): raise KeyboardInterrupt", plugin="ctrl-c")
    with pytest.raises(KeyboardInterrupt):
        load_registry(["no:terminal"]).notify("harness_study_started", study=None)


def test_asking_for_the_object_of_a_plugin_that_is_not_loaded_says_why(install):
    install("1 / 0", plugin="bad")
    registry = load_registry(["no:builtin-losses"])
    with pytest.raises(PluginError, match="'bad' is broken"):
        registry.plugin("bad")
    with pytest.raises(PluginError, match="'builtin-losses' is blocked"):
        registry.plugin("builtin-losses")
    with pytest.raises(UnknownNameError, match="'builtin-losss', did you mean 'builtin-losses'"):
        registry.plugin("builtin-losss")


def test_a_plugin_object_needs_no_installation():
    class Plugin:
        @hookimpl
        def harness_losses(self):
            yield loss("mine")

    assert [(kind, item.name) for kind, item in components_of(Plugin)] == [("loss", "mine")]
    assert components_of(Plugin())


# --- catalogs ---


def loss(name):
    return LossSpec(name=name, summary="a loss", build=lambda classes: None)


def family(name, members, spec=loss):
    return Family(name=name, summary="many", members=lambda: members, spec=spec)


@pytest.fixture
def catalog():
    catalog = Catalog("loss")
    for item in (loss("plain"), family("east", ["a.x", "b", "plain"]), family("west", ["b", "c"])):
        catalog.add(item, Provider(name=item.name, plugin="p", distribution="d", version="1"))
    return catalog


def test_members_of_families_are_found_by_name_and_by_prefix(catalog):
    assert catalog.get("a.x").spec.name == "a.x"
    assert catalog.get("a.x").provider.name == "a.x"
    assert catalog.get("west:b").spec.name == "b"
    assert catalog.get("west:b").provider.plugin == "p"
    assert catalog.names() == ["a.x", "b", "c", "plain"]
    assert catalog.families() == ["east", "west"]
    assert [component.spec.name for component in catalog.specs()] == ["plain"]


def test_a_member_of_two_families_is_ambiguous(catalog):
    with pytest.raises(UsageError, match="'b' is ambiguous") as caught:
        catalog.get("b")
    assert "east:b or west:b" in str(caught.value)


def test_a_component_that_stands_alone_is_found_without_listing_families(catalog):
    called = []
    watched = Family(name="slow", summary="s", members=lambda: called.append(1) or ["z"], spec=loss)
    catalog.add(watched, Provider(name="slow", plugin="p", distribution="d", version="1"))
    assert catalog.get("plain").spec.name == "plain"
    assert called == []
    assert catalog.get("east:plain").spec.name == "plain"
    catalog.get("z")
    catalog.get("z")
    assert called == [1], "members are listed once"


@pytest.mark.parametrize(
    ("pattern", "names"),
    [("plain", ["plain"]), ("?", ["b", "c"]), ("[ab]*", ["a.x", "b"]), ("west:*", ["west:b", "west:c"])],
)
def test_globs_match_names_and_members(catalog, pattern, names):
    assert catalog.expand(pattern) == names


@pytest.mark.parametrize("name", ["plian", "east:nope", "nofamily:b", "zz*", "east:zz*", ""])
def test_an_unknown_name_is_an_error_that_says_where(catalog, name):
    with pytest.raises(UnknownNameError, match="unknown loss") as caught:
        catalog.expand(name, where="space.loss")
    assert "space.loss" in str(caught.value)


def test_the_nearest_name_is_offered(catalog):
    with pytest.raises(UnknownNameError, match="did you mean 'plain'"):
        catalog.get("plian")
    with pytest.raises(UnknownNameError, match=r"did you mean 'east:a\.x'"):
        catalog.get("east:a.y")


def test_a_family_that_cannot_be_listed_is_said_once_and_hides_nothing_else(catalog, caplog):
    def fail():
        raise ImportError("no timm")

    broken = Family(name="north", summary="s", members=fail, spec=loss)
    catalog.add(broken, Provider(name="north", plugin="cold", distribution="d", version="1"))
    assert catalog.names() == ["a.x", "b", "c", "plain"]
    assert catalog.get("c").spec.name == "c"
    assert len(caplog.records) == 1
    for name in ("unknown", "north:x"):
        with pytest.raises(UnknownNameError) as caught:
            catalog.get(name)
        assert "plugin 'cold' could not be listed: ImportError: no timm" in str(caught.value)


@pytest.mark.parametrize("members", [[1], None])
def test_a_family_that_lists_no_names_is_broken(catalog, members):
    catalog.add(family("odd", members), Provider(name="odd", plugin="p", distribution="d", version="1"))
    assert catalog.members("odd") == ()


def test_a_member_that_cannot_be_described_names_the_plugin(catalog):
    def fail(name):
        raise KeyError(name)

    provider = Provider(name="x", plugin="cold", distribution="harness-cold", version="1")
    catalog.add(family("raises", ["r"], fail), provider)
    catalog.add(family("lies", ["l"], lambda name: SimpleNamespace(name=name)), provider)
    with pytest.raises(PluginError, match="family 'raises' cannot describe loss 'r'") as caught:
        catalog.get("r")
    assert "harness-cold" in str(caught.value)
    with pytest.raises(PluginError, match="'lies'") as caught:
        catalog.get("l")
    assert "returned SimpleNamespace, not LossSpec" in str(caught.value)


def test_a_family_and_a_component_cannot_share_a_name(catalog):
    provider = Provider(name="east", plugin="q", distribution="e", version="2")
    for item in (loss("east"), family("plain", [])):
        with pytest.raises(PluginError, match="provided twice"):
            catalog.add(item, provider)


def test_specs_are_frozen():
    with pytest.raises(FrozenInstanceError):
        loss("a").name = "b"
