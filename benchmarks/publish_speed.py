"""Publish a thousand drawn bundles: seconds by step, and bytes. `python benchmarks/publish_speed.py`.

The bundles are drawn once into `--folder` and kept for the next time; seven of ten hold one training, as a
study makes by default, the others three. Half are of six classes and 380 test images, the others of 8 and
400, 10 and 1,000, and 102 and 1,000; ten in a thousand are of 102 classes and 6,149 images. With `--one` all
are of the first kind and stand in one table.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from bundles_factory import make_bundle

from harness.leaderboard import publish as publishing
from harness.leaderboard.bundle import bundle_files, write_bundle

# (data set, classes, test images, share of all bundles)
MIX = (
    ("six", 6, 380, 0.50),
    ("eight", 8, 400, 0.15),
    ("ten", 10, 1000, 0.25),
    ("flowers", 102, 1000, 0.09),
    ("flowers-large", 102, 6149, 0.01),
)
FAMILIES = ("resnet", "convnext_", "vit_", "efficientnet_b")
BACKBONES = [f"{family}{size}.in1k" for family in FAMILIES for size in range(10)]
STEPS = (
    *("verify_file", "bundle_entries", "rank", "summarise_run"),
    *("format_csv", "format_json", "format_latex", "render_page"),
)


def draw_bundles(folder: Path, count: int, mix: tuple[tuple[str, int, int, float], ...]) -> None:
    """Write bundles until there are as many as asked for."""
    rng = random.Random(0)
    have = len(list(bundle_files(folder)))
    for name, classes, n, share in mix:
        for number in range(round(count * share)):
            config = {
                "lr": round(10 ** rng.uniform(-5, -2), 7),
                "freeze_depth": rng.choice([0.0, 0.25, 0.5, 0.75, 1.0]),
                "optimizer": rng.choice(["adamw", "sgd", "lamb"]),
                "augmentation": rng.choice(["none", "flip-crop", "trivial-augment"]),
                "seconds": round(3 * 10 ** rng.uniform(0, 3), 3),
                "params": rng.randrange(600_000, 90_000_000),
                "backbone": rng.choice(BACKBONES),
                "quality": rng.uniform(0.55, 0.96),
                "study": f"{name}-{rng.randrange(16**8):08x}",
                "seeds": (1, 2, 3) if number % 10 < 3 else (1,),
            }
            if have > 0:
                have -= 1
                continue
            write_bundle(folder, make_bundle(dataset=name, classes=classes, n=n, draw=number, **config))


def timed(owner: Any, name: str, spent: dict[str, float]) -> None:
    """Replace a function of a module by one that adds up the CPU seconds it takes."""
    inner: Callable[..., Any] = getattr(owner, name)

    def outer(*args: Any, **named: Any) -> Any:
        start = time.process_time()
        try:
            return inner(*args, **named)
        finally:
            spent[name] += time.process_time() - start

    setattr(owner, name, outer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundles", type=int, default=1000)
    parser.add_argument("--folder", type=Path, default=Path("build/publish"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--one", action="store_true", help="one table of all")
    options = parser.parse_args()
    records = options.folder / "records"
    draw_bundles(records, options.bundles, (("six", 6, 380, 1.0),) if options.one else MIX)
    held = list(bundle_files(records))
    size = sum(path.stat().st_size for path in held) / 2**20
    print(f"{len(held)} bundles, {size:.1f} MiB, {options.jobs} processes")

    spent: dict[str, float] = defaultdict(float)
    for name in STEPS:
        # What runs in other processes is counted there, as a whole.
        if options.jobs == 1 or name != "verify_file":
            timed(publishing, name, spent)
    wall, cpu = time.perf_counter(), time.process_time()
    publication = publishing.publish(records, jobs=options.jobs)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    others = children.ru_utime + children.ru_stime
    print(
        f"{publication.runs} runs published in {wall:.1f} s; CPU {cpu:.1f} s here, {others:.1f} s in others"
    )
    for name, seconds in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"  {name:<18} {seconds:7.2f} s CPU")
    for name, text in publication.files.items():
        print(f"  {name:<24} {len(text.encode()):>9,} bytes")
    publishing.write_publication(publication, options.folder)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory {memory:.2f} GiB")


if __name__ == "__main__":
    main()
