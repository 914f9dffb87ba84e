"""A training step where glibc gives freed memory back to the kernel, and where it keeps it as in a worker.

Processes of either kind take turns; each trains a network on random images, one thread, fp32. Of the medians
of a process's steps, of its page faults a step and of its peak memory the medians over processes are printed.
Linux with glibc only.

usage: kept_memory.py [--model NAME:SIZE ...] [--batch 16] [--steps 12] [--repeats 3]
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys

import torch
from precision import build, draw_batch, time_step

from harness.search.worker import keep_freed_memory

MODELS = (
    "test_resnet.formula1:64",
    "mobilenetv3_small_100:224",
    "efficientnet_b0:224",
    "resnet18:224",
    "vit_tiny_patch16_224:224",
)
ARMS = ("given back", "kept")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", help="NAME:SIZE, of timm or bundled; repeatable")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3, help="processes of each kind")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.arm:
        print(*run_steps(arguments))
        return
    print("| model | given back, ms | faults | peak MB | kept, ms | faults | peak MB | ratio |")
    print("| --- " * 8 + "|", flush=True)
    for model in arguments.model or MODELS:
        found: dict[str, list[list[float]]] = {arm: [] for arm in ARMS}
        for _ in range(arguments.repeats):
            for arm, rows in found.items():
                rows.append(measure(model, arm, arguments))
        (given, *_), (kept, *_) = columns = [
            [statistics.median(column) for column in zip(*rows, strict=True)] for rows in found.values()
        ]
        cells = [f"{value:,.0f}" for arm in columns for value in arm]
        print(f"| {model} | {' | '.join(cells)} | {given / kept:.2f} |", flush=True)


def measure(model: str, arm: str, arguments: argparse.Namespace) -> list[float]:
    """Return milliseconds and page faults of a step, and the peak memory in MB, of a process of its own."""
    command = [sys.executable, __file__, "--model", model, "--arm", arm]
    command += ["--batch", str(arguments.batch), "--steps", str(arguments.steps)]
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    return [float(value) for value in output.split()]


def run_steps(arguments: argparse.Namespace) -> tuple[float, float, float]:
    """Train for some steps in this process."""
    if arguments.arm == "kept" and not keep_freed_memory(os.environ):
        raise SystemExit("this C library cannot be told to keep memory, or variables say what it does")
    torch.set_num_threads(1)
    name, size = arguments.model[0].rsplit(":", 1)
    model = build(name, int(size))
    batch = draw_batch(model, int(size), arguments.batch)
    # The first steps make kernels and let memory grow.
    for _ in range(3):
        time_step(model, *batch, "fp32")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    seconds = statistics.median(time_step(model, *batch, "fp32") for _ in range(arguments.steps))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return 1000 * seconds, (usage.ru_minflt - before) / arguments.steps, usage.ru_maxrss * 1024 / 1e6


if __name__ == "__main__":
    main()
