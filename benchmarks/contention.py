"""A training step beside other work: how the idle threads of a worker wait decides what it takes.

Times steps of a bundled ResNet (32 images of 64 px) with a thread a core, alone and beside processes that
keep a core busy each: with libgomp's own way to wait and with that of the workers. Each is a process
of its own session, as a worker is. Linux only.

usage: contention.py [--busy 1] [--threads N] [--steps 12]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

import torch
from precision import build, draw_batch, time_step

from harness.search.child import waiting

BACKBONE, IMAGES, SIZE = "test_resnet.formula1", 32, 64
BUSY = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"
"""Also ends where this is killed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--busy", type=int, default=1, help="processes that keep a core busy each")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the training")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--time", choices=("fp32", "bf16"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.time:
        print(time_steps(arguments.time, arguments.threads, arguments.steps))
        return
    print("| beside | precision | libgomp's own, ms | the worker's, ms | ratio |")
    print("| --- | --- | --- | --- | --- |")
    for count in (0, arguments.busy):
        for precision in ("fp32", "bf16"):
            busy = [
                subprocess.Popen([sys.executable, "-c", BUSY], start_new_session=True) for _ in range(count)
            ]
            try:
                own, ours = (
                    measure(precision, arguments, variables) for variables in ({}, waiting(clean(os.environ)))
                )
            finally:
                for process in busy:
                    process.kill()
                    process.wait()
            beside = f"{count} busy" if count else "nothing"
            print(f"| {beside} | {precision} | {own:.0f} | {ours:.0f} | {own / ours:.1f} |", flush=True)


def clean(variables) -> dict[str, str]:
    """Return variables without those that say how threads wait."""
    return {
        name: value for name, value in variables.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    }


def measure(precision: str, arguments: argparse.Namespace, variables: dict[str, str]) -> float:
    """Return milliseconds of a step in a process with some variables."""
    command = [sys.executable, __file__, "--time", precision]
    command += ["--threads", str(arguments.threads), "--steps", str(arguments.steps)]
    found = subprocess.run(
        command,
        env={**clean(os.environ), **variables},
        stdout=subprocess.PIPE,
        check=True,
        start_new_session=True,
    )
    return float(found.stdout)


def time_steps(precision: str, threads: int, steps: int) -> float:
    """Return the median milliseconds of training steps."""
    torch.set_num_threads(threads)
    model = build(BACKBONE, SIZE)
    batch = draw_batch(model, SIZE, IMAGES)
    return 1000 * statistics.median(time_step(model, *batch, precision) for _ in range(steps))


if __name__ == "__main__":
    main()
