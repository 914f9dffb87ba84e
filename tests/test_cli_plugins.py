"""`harness plugins`: what a user sees, in 80 columns and as JSON."""

from __future__ import annotations

import importlib
import json
import sys

import pytest

LONG = "a-loss-with-a-name-that-is-longer-than-any-column-of-a-table-in-eighty-columns"


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Write plugin modules into the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    before = set(sys.modules)

    def write(code, name="mynet"):
        (tmp_path / f"{name}.py").write_text("from harness import *\n" + code)
        importlib.invalidate_caches()
        return name

    yield write
    for name in set(sys.modules) - before:
        if name.startswith("mynet"):
            del sys.modules[name]


def losses(*names, summary="a loss", build="None"):
    lines = [f"    yield LossSpec(name={name!r}, summary={summary!r}, build={build})\n" for name in names]
    return "@hookimpl\ndef harness_losses():\n" + "".join(lines)


CROSS_ENTROPY = "lambda c: __import__('torch').nn.CrossEntropyLoss()"


def test_the_table_fits_eighty_columns_and_truncates_nothing(harness_cli, mine):
    code, out, _ = harness_cli("-p", mine(losses(LONG)), "plugins", "list")
    assert code == 0
    table, _, rest = out.partition("\nPython")
    assert max(len(line) for line in table.splitlines()) <= 80
    assert "…" not in out
    # The name is folded, so its letters stand below each other in the last column.
    column = table.splitlines()[1].index("Provides")
    assert LONG in "".join(line[column:].strip() for line in table.splitlines())
    assert sys.executable in rest
    assert "-m pip install" in rest
    assert "trusting" in rest


def test_the_list_says_where_a_plugin_comes_from_and_what_it_does(harness_cli, mine):
    mine(losses("one", "two") + "@hookimpl\ndef harness_study_started(study): pass\n")
    code, out, _ = harness_cli("-p", "mynet", "-p", "no:terminal", "plugins", "list")
    assert code == 0
    lines = out.splitlines()
    column = lines[1].index("Provides")
    rows = {line.split()[0]: line[:column].split()[1:] for line in lines[2:] if line.strip()}
    provided = " ".join(line[column:].strip() for line in lines)
    assert rows["mynet"] == ["-p", "ok"]
    assert "losses: one, two observes: study_started" in provided
    assert rows["terminal"] == ["transfer-harness", "blocked"]


def test_a_broken_plugin_is_listed_with_its_reason_and_the_exit_code_is_0(harness_cli, monkeypatch, tmp_path):
    info = tmp_path / "harness_bad-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: harness-bad\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[harness]\nbad = no_such_module_here\n")
    monkeypatch.syspath_prepend(tmp_path)
    code, out, _ = harness_cli("plugins", "list", "--json")
    bad = next(plugin for plugin in json.loads(out)["plugins"] if plugin["name"] == "bad")
    assert code == 0
    assert bad == {
        "name": "bad",
        "distribution": "harness-bad",
        "version": "1",
        "status": "broken",
        "reason": "ModuleNotFoundError: No module named 'no_such_module_here'",
        "hooks": [],
        "components": [],
    }
    code, out, _ = harness_cli("plugins", "info", "bad")
    assert code == 0
    assert "status   broken: ModuleNotFoundError" in out
    code, _, err = harness_cli("plugins", "check", "bad")
    assert code == 7
    assert "plugin 'bad' is broken" in err


def test_foreign_text_cannot_drive_the_terminal(harness_cli, mine):
    mine(losses("x", summary="\x1b[31mred[/bold]\u202e"))
    code, out, _ = harness_cli("-p", "mynet", "plugins", "info", "mynet")
    assert code == 0
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert "␛[31mred[/bold]<U+202E>" in out


def test_json_has_a_schema_and_everything(harness_cli, mine):
    mine(losses("x") + "@hookimpl\ndef harness_schedules():\n"
         "    yield Family(name='many', summary='m', members=list, spec=None)\n")  # fmt: skip
    code, out, err = harness_cli("-p", "mynet", "plugins", "list", "--json")
    assert (code, err) == (0, "")
    values = json.loads(out)
    assert values["schema"] == "harness.plugins/1"
    assert values["python"] == sys.executable
    mynet = next(plugin for plugin in values["plugins"] if plugin["name"] == "mynet")
    assert mynet["hooks"] == ["harness_losses", "harness_schedules"]
    assert mynet["components"] == [
        {"kind": "loss", "name": "x", "summary": "a loss", "family": False},
        {"kind": "schedule", "name": "many", "summary": "m", "family": True},
    ]
    code, out, _ = harness_cli("-p", "mynet", "plugins", "info", "mynet", "--json")
    assert json.loads(out) == {"schema": "harness.plugins/1", "plugin": mynet}


def test_info_shows_every_component_with_its_summary(harness_cli):
    code, out, _ = harness_cli("plugins", "info", "builtin-losses")
    assert code == 0
    assert "package  transfer-harness" in out
    assert "hooks    harness_losses" in out
    assert "loss focal\n  focal loss, gamma 2" in out


@pytest.mark.parametrize("command", ["info", "check"])
def test_an_unknown_plugin_names_the_nearest(harness_cli, command):
    code, out, err = harness_cli("plugins", command, "builtin-loses")
    assert (code, out) == (2, "")
    assert "did you mean 'builtin-losses'?" in err


def test_check_passes_a_sound_plugin(harness_cli, mine):
    mine(losses("x", build=CROSS_ENTROPY))
    code, out, _ = harness_cli("-p", "mynet", "plugins", "check", "mynet")
    assert code == 0
    assert "ok    loss/x/prefers-the-right-answer" in out
    assert out.splitlines()[-1] == "7 checks passed, 0 failed"


def test_check_fails_an_unsound_plugin_with_7(harness_cli, mine):
    total = "type('Sum', (__import__('torch').nn.Module,), {'forward': lambda self, x, y: x.sum()})"
    mine(losses("x", build=f"lambda c: {total}()"))
    code, out, _ = harness_cli("-p", "mynet", "plugins", "check", "mynet")
    assert code == 7
    assert "FAIL  loss/x/prefers-the-right-answer\n      x: a right answer costs" in out
    code, out, _ = harness_cli("-p", "mynet", "plugins", "check", "mynet", "--json")
    values = json.loads(out)
    assert code == 7
    assert (values["schema"], values["name"], values["failed"]) == ("harness.plugins/1", "mynet", 1)
    assert len(values["checks"]) == values["passed"] + 1
    (failed,) = [check for check in values["checks"] if check["status"] == "failed"]
    assert failed["message"].startswith("x: a right answer costs")


def test_check_takes_the_members_of_a_family(harness_cli, mine):
    mine(
        "def spec(name):\n"
        "    return ScheduleSpec(name=name, summary='s', build=lambda steps: lambda step: float(name))\n"
        "@hookimpl\ndef harness_schedules():\n"
        "    yield Family(name='flat', summary='s', members=lambda: ['1', '0.5', '2'], spec=spec)\n"
    )
    code, out, _ = harness_cli("-p", "mynet", "plugins", "check", "mynet", "--member", "flat:2")
    assert code == 7
    assert "FAIL  schedule/2/gives-factors" in out
    assert "schedule/1/" not in out
    code, _, err = harness_cli("-p", "mynet", "plugins", "check", "mynet", "--member", "sharp:2")
    assert code == 2
    assert "'sharp:2' is no member of a family of plugin 'mynet'" in err


def test_a_module_that_is_missing_is_a_clear_error(harness_cli):
    code, out, err = harness_cli("-p", "missing_module", "plugins", "list")
    assert (code, out) == (7, "")
    assert "plugin 'missing_module' cannot be loaded" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("module", "imports", "said"),
    [
        ("mynet", "import nothing_here.sub", "install 'nothing_here', which 'mynet' imports"),
        ("mynet.sub", "", "name a module, without .py"),
        ("mynet.py", "", "name a module, without .py"),
        ("mynet", "raise ValueError", "repair it"),
    ],
)
def test_a_module_that_cannot_be_loaded_says_what_to_do(harness_cli, mine, module, imports, said):
    mine(imports + "\n")
    code, _, err = harness_cli("-p", module, "plugins", "list")
    assert code == 7
    assert said in err


def test_blocking_an_unknown_plugin_is_a_usage_error(harness_cli):
    code, _, err = harness_cli("-p", "no:terminl", "plugins", "list")
    assert code == 2
    assert "did you mean 'terminal'?" in err
