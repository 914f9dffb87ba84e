"""Peak memory of a study on a CPU by number of images, and what it leaves on disk.

Each count runs in a fresh process: a study of two trials that differ in their learning rate, so that decoded
images (the bank) and activations are both stored and read. The memory of the study's process and of its
worker is sampled from /proc until they end: the kernel's peak of resident memory (VmHWM), and the largest
sample of what is not backed by a file (RssAnon). The rest of the resident memory is mapped files, which the
kernel takes back when it needs room. Linux only.

Images are JPEG files that differ in a comment, so that a hundred thousand are written in seconds; weights are
random, given as a checkpoint, because `--init scratch` shares nothing between trials. Results are kept in
`--work`: running it again goes on with the counts that are missing. A count's files are removed after it.

usage: memory.py [--images 1000 8000 100000] [--size 224] [--backbone mobilenetv3_small_050] [--depth 0.5]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = 10
STUDY = """
dataset = "{work}/photos"
name = "memory"
trials = 2
weights = {{ "{backbone}" = "{work}/weights.safetensors" }}

[space]
backbone = "{backbone}"
freeze_depth = {depth}
lr = [1e-3, 3e-3]
optimizer = "adamw"
augmentation = "none"

[train]
epochs = 1
image_size = {size}

[search]
sampler = "grid"
pruner = "none"
probes = false

[finalize]
top = 0

[run]
device = "cpu"
threads = 1
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 8000, 100_000])
    parser.add_argument("--size", type=int, default=224, help="side of the images, in pixels")
    parser.add_argument("--backbone", default="mobilenetv3_small_050", help="of timm")
    parser.add_argument("--depth", type=float, default=0.5, help="freeze depth; above 0")
    parser.add_argument("--work", type=Path, default=Path("memory"), help="folder of files and measurements")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    print("| images | size | study, peak MB | anonymous | worker, peak MB | anonymous | bank, MB ", end="")
    print(
        "| activations, MB | seconds |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True
    )
    for images in arguments.images:
        name = f"{arguments.backbone}-{arguments.depth:g}-{arguments.size}px-{images}.json"
        file = arguments.work / name
        if not file.exists():
            check_room(arguments.work, images, arguments.size)
            with tempfile.TemporaryDirectory(dir=arguments.work) as work:
                result = measure(images, Path(work).absolute(), arguments)
            file.write_text(json.dumps(result) + "\n", encoding="utf-8")
        row = json.loads(file.read_text(encoding="utf-8"))
        cells = [f"{value:,.0f}" for value in row.values()]
        print(f"| {images:,} | {arguments.size} | {' | '.join(cells)} |", flush=True)


def check_room(folder: Path, images: int, size: int) -> None:
    """Refuse what would fill the disk: pixels, files, and activations that are at most as large again."""
    needed, free = 2.5 * images * (3 * size**2 + 4096), shutil.disk_usage(folder).free
    if needed > free:
        raise SystemExit(
            f"{images} images need {needed / 1e9:.0f} GB at most, and {free / 1e9:.0f} GB are free: "
            "choose a smaller --size, or another disk with --work"
        )


def measure(images: int, work: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Run a study of so many images and return what it took, in MB and seconds."""
    write_photographs(work / "photos", images, arguments.size)
    options = {"backbone": arguments.backbone, "depth": arguments.depth, "size": arguments.size}
    (work / "study.toml").write_text(STUDY.format(work=work, **options), encoding="utf-8")
    write_weights(work / "weights.safetensors", arguments.backbone)
    command = ["study", "run", str(work / "study.toml"), "--runs", str(work / "runs"), "--quiet"]
    began = time.perf_counter()
    with (work / "log.txt").open("w+", encoding="utf-8") as log:
        study = subprocess.Popen(
            [sys.executable, "-m", "harness", *command],
            env={**os.environ, "HARNESS_HOME": str(work / "home")},
            stdout=log,
            stderr=log,
        )
        peaks = watch(study)
        log.seek(0)
        if study.returncode:
            raise SystemExit(log.read())
    seconds = time.perf_counter() - began
    records = sorted(work.glob("runs/memory/trials/*/record.json"))
    passes = [json.loads(record.read_text(encoding="utf-8"))["cost"]["prefix_passes"] for record in records]
    if len(passes) != 2 or not passes[0] or passes[1]:
        raise SystemExit(f"the second trial did not read what the first had stored: {passes} passes")
    return {
        **{f"{role} {field}": kibibytes * 1024 / 1e6 for (role, field), kibibytes in peaks.items()},
        "bank": size_of(work / "home" / "bank") / 1e6,
        "activations": size_of(work / "home" / "activations") / 1e6,
        "seconds": seconds,
    }


def watch(study: subprocess.Popen[bytes]) -> dict[tuple[str, str], int]:
    """Wait for a study; return the peaks of it and of its worker, in KiB."""
    peaks = {(role, field): 0 for role in ("study", "worker") for field in ("VmHWM", "RssAnon")}
    while study.poll() is None:
        children = read_text(Path(f"/proc/{study.pid}/task/{study.pid}/children")).split()
        # torch asks other programs for a moment, too.
        workers = [
            pid for pid in children if "harness.search.worker" in read_text(Path(f"/proc/{pid}/cmdline"))
        ]
        for role, pid in [("study", study.pid), *(("worker", pid) for pid in workers)]:
            for line in read_text(Path(f"/proc/{pid}/status")).splitlines():
                field, _, value = line.partition(":")
                if (role, field) in peaks:
                    peaks[role, field] = max(peaks[role, field], int(value.split()[0]))
        time.sleep(0.05)
    return peaks


def read_text(file: Path) -> str:
    """Return the content of a file of /proc; nothing when its process has ended."""
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""


def write_photographs(folder: Path, images: int, size: int) -> None:
    """Write JPEG files of one drawing a class; a number in a comment tells each from all others."""
    generator = np.random.default_rng(0)
    drawings = []
    for label in range(CLASSES):
        (folder / str(label)).mkdir(parents=True)
        coarse = Image.fromarray(generator.integers(0, 256, (8, 8, 3), np.uint8))
        content = io.BytesIO()
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(content, "jpeg", quality=85)
        drawings.append(content.getvalue())
    for number in range(images):
        label, comment = number % CLASSES, f"{number:08}".encode()
        start, rest = drawings[label][:2], drawings[label][2:]
        length = (2 + len(comment)).to_bytes(2, "big")
        file = folder / str(label) / f"{number:06}.jpg"
        file.write_bytes(start + b"\xff\xfe" + length + comment + rest)


def write_weights(file: Path, backbone: str) -> None:
    """Write a checkpoint of random weights."""
    import timm
    from safetensors.torch import save_model

    save_model(timm.create_model(backbone), str(file))


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


if __name__ == "__main__":
    main()
