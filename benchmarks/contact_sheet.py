"""Draw contact sheets to look at: a row a class, a column an image.

usage: contact_sheet.py [--to DIR] [--columns 14]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from harness_builtin.formula.classes import FAMILIES, NUM_CLASSES, draw_classes, draw_latents
from harness_builtin.formula.render import Renderer
from harness_builtin.petals import GARDENS, render

ROWS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, default=Path("sheets"))
    parser.add_argument("--columns", type=int, default=14)
    arguments = parser.parse_args()
    arguments.to.mkdir(parents=True, exist_ok=True)
    for name, garden in GARDENS.items():
        labels = range(len(garden.flowers))
        rows = [[render(garden, 0, label, index) for index in range(arguments.columns)] for label in labels]
        save(np.array(rows), arguments.to / f"{name}.png")
    renderer, first = Renderer(draw_classes()), 0
    for family, count in FAMILIES.items():
        labels = torch.arange(first, first + count, count // ROWS)[:ROWS]
        labels = labels.repeat_interleave(arguments.columns)
        # Any latents do: an image's class and its latents are independent.
        latents = torch.as_tensor(draw_latents("val", NUM_CLASSES, len(labels))[1])
        images = renderer.render(labels, latents).permute(0, 2, 3, 1).numpy()
        save(
            images.reshape(ROWS, arguments.columns, *images.shape[1:]), arguments.to / f"formula-{family}.png"
        )
        first += count


def save(images: np.ndarray, file: Path) -> None:
    """Write images (rows, columns, height, width, 3), doubled in size."""
    sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in images])
    Image.fromarray(sheet.repeat(2, axis=0).repeat(2, axis=1)).save(file)
    print(file)


if __name__ == "__main__":
    main()
