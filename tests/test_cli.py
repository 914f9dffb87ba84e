from __future__ import annotations

import json
import subprocess
import sys

import pytest


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


def test_a_broken_pipe_is_no_error():
    command = f"{sys.executable} -m harness plugins list --json | head -c 1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
