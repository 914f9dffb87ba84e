from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["plugins", "list"],
        ["leaderboard", "show"],
        ["study", "--help"],
        ["completion", "bash"],
    ],
    ids=" ".join,
)
def test_a_light_command_imports_no_torch(arguments):
    code = (
        "import sys\n"
        "from harness.cli import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit as end: code = end.code\n"
        "heavy = {'torch', 'torchvision', 'timm', 'optuna', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert not code, code\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(harness_cli, shell):
    code, out, _ = harness_cli("completion", shell)
    assert code == 0
    assert "_HARNESS_COMPLETE" in out


def test_help_lists_every_command_without_importing_it(harness_cli):
    from harness.cli import COMMANDS

    code, out, _ = harness_cli("--help")
    assert code == 0
    assert all(name in out for name in COMMANDS)


@pytest.mark.slow
def test_doctor_checks_this_machine(harness_cli, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    code, out, _ = harness_cli("doctor", "--json")
    findings = {item["check"]: item for item in json.loads(out)["findings"]}
    assert code == 0, findings
    assert (
        findings["torch"]["verdict"]
        == findings["training"]["verdict"]
        == findings["storage"]["verdict"]
        == "ok"
    )
    assert all(item["fix"] for item in findings.values() if item["verdict"] != "ok")


@pytest.mark.parametrize("arguments", ["plugins list", "plugins list --json", "models list"])
def test_a_broken_pipe_is_no_error(arguments):
    command = f"{sys.executable} -m harness {arguments} | head -c 1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("arguments", ["plugins list", "study run --help"])
def test_an_output_that_is_full_is_no_bug(arguments):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "harness", *arguments.split()],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 6
    assert done.stderr.startswith("error: the output cannot be written")


@pytest.mark.parametrize("command", ["data check", "study show"])
def test_a_path_that_no_file_can_have_is_no_bug(command):
    arguments = [*command.split(), "a" * 300]
    run = [sys.executable, "-c", f"from harness.cli import main; main({arguments!r})"]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 6
    assert done.stderr.startswith("error: a file or folder cannot be used\n  where  aaa")
    assert "Traceback" not in done.stderr


def test_a_name_that_the_output_cannot_encode_is_escaped(tmp_path):
    folder = tmp_path / "\u65e5\u672c"
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for number in range(5):
            colour = (50 * number, 9, 99 if label == "cat" else 0)
            Image.new("RGB", (8, 8), colour).save(folder / label / f"{number}.png")
    done = subprocess.run(
        [sys.executable, "-m", "harness", "data", "check", str(folder)],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "\\u65e5\\u672c" in done.stdout


def test_every_suggested_option_and_command_is_there():
    from harness.cli import command
    from harness.cli.leaderboard import submit
    from harness.cli.study import run
    from harness.cli.suggestions import COMMANDS, OPTIONS

    there = {option for param in (*run.params, *submit.params) for option in param.opts}
    assert {option.split()[0] for option in OPTIONS} <= there
    for line in COMMANDS:
        found = command
        for word in line.split()[1:]:
            found = found.get_command(None, word)
            assert found is not None, line


@pytest.mark.parametrize(
    ("line", "suggestion"),
    [
        ("study run --timeout 5", "--budget 20m"),
        ("study run --max-time 5", "--budget 20m"),
        ("study run --gpu", "--device cuda"),
        ("study run --model x", "--backbone NAME"),
        ("study run --learning_rate 1", "--lr RATE"),
        ("study run --pretrained", "--init pretrained"),
        ("study run --aug x", "--augmentation NAME"),
        ("study run --out x", "--runs DIR"),
        ("study run --jobs 4", "--threads N"),
        ("study run --epoch 4", "--epochs"),
        ("leaderboard publish --output x", "--to DIR"),
        ("leaderboard show --gpu", ""),
        ("study run --zzz", ""),
        ("run", "harness study run"),
        ("train", "harness study run"),
        ("study train", "harness study run"),
        ("stduy", "study"),
        ("study shwo", "show"),
        ("zzz", ""),
    ],
)
def test_what_is_unknown_gets_a_suggestion_that_fits_or_none(harness_cli, line, suggestion):
    code, out, err = harness_cli(*line.split())
    assert (code, out) == (2, "")
    assert "No such" in err
    if suggestion:
        assert f"Did you mean {suggestion!r}?" in err
    else:
        assert "mean" not in err
