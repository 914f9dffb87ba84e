"""Plant copies into folders of images, and count which the audit of `harness data check` finds.

Of each folder a copy is made in which images of the training split come back in the test split: byte for
byte, re-encoded, resized, cropped. An image counts as found where the audit names it together with its
source. False alarms are sought in the folder as it is: what is named there must be looked at, for which
--sheets draws it. The last rows say what the fingerprints cost in the scan that decodes every image, in CPU
seconds.

usage: duplicates.py [--images 200] [--sheets DIR] DIR...
"""

from __future__ import annotations

import argparse
import io
import random
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from harness.data.audit import Audit
from harness.data.decode import decode, read_bytes
from harness.data.fingerprint import alike, fingerprint
from harness.data.manifest import Item, Manifest, SplitRules, check_dataset
from harness.data.scan import content_sha256
from harness.registry import load_registry

SIDE = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    parser.add_argument(
        "--images", type=int, default=200, help="planted of each kind, spread over the classes"
    )
    parser.add_argument("--sheets", type=Path, help="where to draw what is named in the folders as they are")
    arguments = parser.parse_args()
    columns = {folder.resolve().name: measure(folder, arguments) for folder in arguments.folders}
    print(f"| | {' | '.join(columns)} |\n| --- |{' --- |' * len(columns)}")
    for row in next(iter(columns.values())):
        print(f"| {row} | {' | '.join(column[row] for column in columns.values())} |")
    search(60_000)


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        clean = audited(folder, work / "home")
        results = {"images": f"{len(clean.items):,}"}
        planted = plant(clean, folder, work / "planted", arguments.images)
        audit = audited(work / "planted", work / "home").audit
    together = {id: group for kind in across(audit) for group in kind for id in group}
    exact = {id: group for group in audit.exact_across_splits for id in group}
    for kind, pairs in planted.items():
        known = exact if kind == "copied" else together
        found = sum(source in known.get(copy, ()) for source, copy in pairs)
        results[f"{kind}: found"] = f"{found / len(pairs):.1%}" if pairs else "-"
    record = clean.audit.record()
    results["as it is: copies across splits"] = str(record.exact_across_splits)
    results["as it is: near duplicates across splits"] = str(record.near_across_splits)
    results["as it is: copies under two labels"] = str(record.exact_two_labels)
    results["as it is: near duplicates under two labels"] = str(record.near_two_labels)
    results["as it is: without structure"] = str(record.featureless)
    if arguments.sheets:
        draw(clean, arguments.sheets / f"{folder.resolve().name}.png")
    return {**results, **costs(clean.items)}


def audited(folder: Path, home: Path) -> Manifest:
    check = check_dataset(str(folder), load_registry(()), rules=SplitRules(), home=home)
    if check.problems:
        raise SystemExit("\n".join(check.problems))
    return check.manifest


def across(audit: Audit) -> tuple[tuple[tuple[str, ...], ...], ...]:
    return audit.exact_across_splits, audit.near_across_splits


def plant(clean: Manifest, folder: Path, target: Path, images: int) -> dict[str, list[tuple[str, str]]]:
    """Copy a folder and plant into it; return source and planted image of each kind."""
    for item in clean.items:
        path = target / item.split / clean.classes[item.label] / Path(item.id).name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            raise SystemExit(f"two images of one name: {path}")
        shutil.copyfile(item.image, path)
    # An image with a duplicate of its own would be found through that one.
    named = {id for kind in across(clean.audit) for group in kind for id in group}
    train = [item for item in clean.of("train") if item.id not in named]
    sources = random.Random(0).sample(train, min(images, len(train)))
    planted = {}
    for number, (kind, change) in enumerate(CHANGES.items()):
        pairs = []
        for item in sources:
            label = clean.classes[item.label]
            content, suffix = change(item)
            name = f"planted{number:02}-{Path(item.id).stem}{suffix}"
            (target / "test" / label / name).write_bytes(content)
            pairs.append((f"train/{label}/{Path(item.id).name}", f"test/{label}/{name}"))
        planted[kind] = pairs
    return planted


def picture(item: Item) -> Image.Image:
    return Image.fromarray(decode(item.image, item.id))


def encoded(image: Image.Image, kind: str, **options: int) -> tuple[bytes, str]:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue(), f".{kind.lower()}"


def jpeg(quality: int):
    return lambda item: encoded(picture(item), "JPEG", quality=quality)


def resized(share: float, quality: int = 0):
    def change(item: Item) -> tuple[bytes, str]:
        image = picture(item)
        size = (max(1, round(image.width * share)), max(1, round(image.height * share)))
        image = image.resize(size, Image.Resampling.BICUBIC)
        return encoded(image, "JPEG", quality=quality) if quality else encoded(image, "PNG")

    return change


def squeezed(item: Item) -> tuple[bytes, str]:
    image = picture(item)
    side = min(image.size)
    return encoded(image.resize((side, side), Image.Resampling.BICUBIC), "PNG")


def cropped(share: float):
    def change(item: Item) -> tuple[bytes, str]:
        image = picture(item)
        left, top = round(image.width * share / 2), round(image.height * share / 2)
        return encoded(image.crop((left, top, image.width - left, image.height - top)), "PNG")

    return change


def grey(item: Item) -> tuple[bytes, str]:
    return encoded(picture(item).convert("L"), "PNG")


CHANGES = {
    "copied": lambda item: (read_bytes(item.image, item.id), Path(item.id).suffix),
    "as PNG": lambda item: encoded(picture(item), "PNG"),
    **{f"JPEG, quality {quality}": jpeg(quality) for quality in (30, 50, 75, 95)},
    "WebP, quality 50": lambda item: encoded(picture(item), "WEBP", quality=50),
    **{f"resized to {share:.0%}": resized(share) for share in (0.5, 0.75, 1.5, 2.0)},
    "resized to 75%, JPEG, quality 50": resized(0.75, 50),
    "resized to 50%, JPEG, quality 30": resized(0.5, 30),
    "squeezed to a square": squeezed,
    "in grey": grey,
    "cropped by 2%": cropped(0.02),
    "cropped by 5%": cropped(0.05),
}


def costs(items: tuple[Item, ...]) -> dict[str, str]:
    """Time the parts of the scan of up to 2,000 images, in CPU seconds per 1,000 of them."""
    items = items[:: max(1, len(items) // 2000)]
    reading = describing = 0.0
    for item in items:
        started = time.process_time()
        content = read_bytes(item.image, item.id)
        content_sha256(content)
        pixels = decode(content, item.id)
        decoded = time.process_time()
        fingerprint(pixels)
        describing += time.process_time() - decoded
        reading += decoded - started
    return {
        "reading, hashing and decoding 1,000 images": f"{reading / len(items) * 1000:.2f} s",
        "their fingerprints": f"{describing / len(items) * 1000:.3f} s",
        "scan with them / without": f"{1 + describing / reading:.3f}",
    }


def search(count: int) -> None:
    vectors = np.random.default_rng(0).normal(size=(count, 63)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    started = time.process_time()
    pairs = sum(len(first) for first, _ in alike(vectors))
    seconds = time.process_time() - started
    print(f"\nAll pairs of {count:,} drawn fingerprints: {seconds:.1f} CPU seconds, {pairs} alike.")


def draw(manifest: Manifest, file: Path) -> None:
    """Draw what is named, a row a group: up to six images."""
    audit = manifest.audit
    groups = [*audit.near_across_splits, *audit.near_two_labels, *audit.exact_two_labels]
    groups += audit.exact_across_splits
    if not groups:
        return
    items = {item.id: item for item in manifest.items}
    sheet = Image.new("RGB", (6 * SIDE, len(groups) * (SIDE + 12)), "grey")
    text = ImageDraw.Draw(sheet)
    for row, group in enumerate(groups):
        for column, id in enumerate(group[:6]):
            place = (column * SIDE, row * (SIDE + 12))
            sheet.paste(picture(items[id]).resize((SIDE, SIDE)), place)
            text.text((place[0], place[1] + SIDE), id[-21:], fill="white")
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(file)


if __name__ == "__main__":
    main()
