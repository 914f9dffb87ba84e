"""Run a study on each folder of images, kill it half-way with SIGINT, resume it, and print the leaderboards.

usage: resume_on_folders.py [--trials 12] [--runs DIR] [harness options ...] -- DIR...
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SPACE = (
    *("--threads", "1"),
    *("--init", "scratch", "--backbone", "test_resnet", "--backbone", "test_efficientnet"),
    *("--backbone", "test_convnext", "--optimizer", "adamw", "--optimizer", "sgd", "--image-size", "64"),
    *("--freeze-depth", "0", "--freeze-depth", "0.25", "--freeze-depth", "0.5"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--runs", type=Path, default=Path(tempfile.mkdtemp()) / "runs")
    arguments = parser.parse_args()
    for folder in arguments.folders:
        command = [
            *(sys.executable, "-m", "harness", "study", "run", "--dataset", str(folder.resolve())),
            *("--trials", str(arguments.trials), "--epochs", str(arguments.epochs)),
            *("--runs", str(arguments.runs.resolve()), *SPACE),
        ]
        started = time.perf_counter()
        print(f"## {folder.name}\n$ harness {' '.join(command[3:])}", flush=True)
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL)
        ended = 0
        for line in process.stderr:
            print(line, end="", flush=True)
            ended += line.startswith("[")
            if ended == arguments.trials // 2:
                # In the middle of the next trial.
                time.sleep(3)
                os.kill(process.pid, signal.SIGINT)
                ended = -(10**6)
        print(f"exit code {process.wait()}; the same command again:", flush=True)
        again = subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
        print(f"exit code {again.returncode}, {time.perf_counter() - started:.0f} s in all\n", flush=True)
    show = [sys.executable, "-m", "harness", "leaderboard", "show", "--runs", str(arguments.runs.resolve())]
    print(subprocess.run([*show, "--format", "md"], check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main()
