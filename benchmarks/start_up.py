"""Measure the CPU seconds of the commands that must be light, and list the heavy modules they import.

usage: start_up.py [RUNS]      (a folder of studies, for `leaderboard show`)
"""

from __future__ import annotations

import resource
import subprocess
import sys

COMMANDS = (["--help"], ["plugins", "list"], ["leaderboard", "show"], ["study", "run", "--help"])
HEAVY = ("torch", "torchvision", "timm", "optuna", "scipy", "pandas", "pydantic", "numpy")
CODE = """
import sys
from harness.cli import main
try:
    main(sys.argv[1:])
finally:
    print("IMPORTED", *(name for name in {heavy!r} if name in sys.modules), file=sys.stderr)
"""


def main() -> None:
    runs = ["--runs", sys.argv[1]] if len(sys.argv) > 1 else []
    print(f"{'command':<28} CPU s (least of 5)  heavy imports")
    for command in COMMANDS:
        arguments = [*command, *runs] if command[0] == "leaderboard" else command
        seconds = []
        for _ in range(5):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            done = subprocess.run(
                [sys.executable, "-c", CODE.format(heavy=HEAVY), *arguments],
                capture_output=True,
                text=True,
                check=True,
            )
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        imported = done.stderr.rpartition("IMPORTED")[2].strip() or "none"
        print(f"harness {' '.join(command):<20} {min(seconds):.2f}                {imported}")


if __name__ == "__main__":
    main()
