"""Pretrain a backbone on the source task: `python -m harness_builtin.formula.pretrain test_resnet`.

Counted in steps, seeded, and resumable: the same command goes on from the last checkpoint. The same recipe on
another machine gives the same scores within their noise, not the same bits.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import click
import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample
from torch.optim.swa_utils import AveragedModel

from harness import __version__
from harness_builtin.backbones import build_timm, find_timm_head
from harness_builtin.checkpoints import below
from harness_builtin.formula.bundled import INPUT
from harness_builtin.formula.classes import NUM_CLASSES, VERSION, draw_classes, draw_latents
from harness_builtin.formula.render import SIDE, Renderer

Images: TypeAlias = npt.NDArray[np.uint8]

_CHUNK = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All that decides the weights, apart from the machine's rounding."""

    backbone: str
    steps: int = 8_000
    images: int = 100_000
    """Drawn once, then seen again in random crops and mirrored."""
    held_out: int = 5_000
    """Images of other latents, for the source accuracy."""
    batch: int = 128
    lr: float = 3e-3
    weight_decay: float = 0.05
    warm_up: float = 0.04
    """Share of the steps in which the learning rate rises."""
    small_side: int = 40
    """Side of the images in the first part of the steps, in pixels."""
    small_share: float = 0.6
    """Share of the steps on small images."""
    ema: float = 0.999
    crop: float = 0.35
    """Smallest share of an image's area that a random crop keeps."""
    precision: str = "auto"
    """`fp32` or `bf16`; `auto` is bf16 on a GPU."""
    seed: int = 0
    formula: int = VERSION


_DEFAULTS = Recipe(backbone="")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("backbone")
@click.option("--out", type=click.Path(path_type=Path), default=Path("pretrained"), show_default=True)
@click.option("--steps", default=_DEFAULTS.steps, show_default=True)
@click.option("--images", default=_DEFAULTS.images, show_default=True, help="Of 12 KB, kept in OUT.")
@click.option("--batch", default=_DEFAULTS.batch, show_default=True)
@click.option("--lr", default=_DEFAULTS.lr, show_default=True)
@click.option("--small-side", default=_DEFAULTS.small_side, show_default=True)
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16"]),
    default=_DEFAULTS.precision,
    help="auto: bf16 on a GPU. A CPU with bf16 units is up to twice as fast with it.",
)
@click.option("--seed", default=_DEFAULTS.seed, show_default=True)
@click.option("--threads", default=0, help="CPU threads; 0 takes all.")
@click.option("--device", default="", help="cuda, cpu; default: a GPU where there is one.")
def main(out: Path, threads: int, device: str, **choices: Any) -> None:
    """Pretrain a timm BACKBONE on images drawn from formulas; writes weights and a report to OUT."""
    if threads:
        torch.set_num_threads(threads)
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    recipe = Recipe(**choices)
    out.mkdir(parents=True, exist_ok=True)
    report = pretrain(recipe, out, where)
    click.echo(json.dumps(report, indent=1))


def pretrain(recipe: Recipe, out: Path, device: torch.device) -> dict[str, Any]:
    """Train, going on from a checkpoint of the same recipe; return the report that is also written.

    Writes `<backbone>.safetensors`, without head and in half precision, and `<backbone>.json`.
    """
    run = _Run(recipe, out / f"{recipe.backbone}.checkpoint.pt", device)
    run.resume()
    run.try_small()
    data = draw_images(out, "train", recipe.images, device)
    held_out = draw_images(out, "val", recipe.held_out, device)
    for entry in run.train(data, held_out):
        click.echo(json.dumps(entry))
    head = below(find_timm_head(recipe.backbone, run.average))
    tensors = {
        name: value.detach().cpu().half().contiguous() if value.is_floating_point() else value.cpu()
        for name, value in run.average.state_dict().items()
        if not head(name)
    }
    file = out / f"{recipe.backbone}.safetensors"
    save_file(tensors, file)
    report = {
        "recipe": asdict(recipe),
        "samples": recipe.steps * recipe.batch,
        "source_accuracy": run.evaluate(held_out),
        "seconds": round(run.seconds),
        "precision": run.precision,
        "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "versions": {"harness": __version__, **_versions()},
        "bytes": file.stat().st_size,
    }
    (out / f"{recipe.backbone}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def draw_images(folder: Path, split: str, count: int, device: torch.device) -> Images:
    """Draw images once: uint8 (count, 3, 64, 64), mapped from a file that later calls find."""
    file = folder / f"formula-{VERSION}-{split}-{count}.npy"
    with FileLock(file.with_suffix(".lock")):
        if not file.exists():
            partial = file.with_suffix(".partial")
            shape = (count, 3, SIDE, SIDE)
            images = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
            renderer = Renderer(draw_classes(), device)
            for first in range(0, count, _CHUNK):
                labels, latents = draw_latents(split, first, min(_CHUNK, count - first))
                drawn = renderer.render(torch.as_tensor(labels), torch.as_tensor(latents))
                images[first : first + len(drawn)] = drawn.cpu().numpy()
                if first % (20 * _CHUNK) == 0:
                    click.echo(f"drawing {split}: {first} of {count}")
            images.flush()
            partial.replace(file)
    found: Images = np.load(file, mmap_mode="r")
    return found


class _Run:
    """One pretraining: the network, its average, and the step it has come to."""

    def __init__(self, recipe: Recipe, checkpoint: Path, device: torch.device) -> None:
        torch.manual_seed(recipe.seed)
        self._recipe, self._checkpoint, self._device = recipe, checkpoint, device
        # A CPU without units for it is slower in bf16, and nothing public says whether it has them.
        auto = "bf16" if device.type == "cuda" else "fp32"
        self.precision = auto if recipe.precision == "auto" else recipe.precision
        model = build_timm(recipe.backbone, NUM_CLASSES, None, SIDE).to(device)
        self._model: nn.Module = model.to(memory_format=torch.channels_last)
        self._averaged = AveragedModel(self._model, avg_fn=self._blend, use_buffers=True)
        decayed = [p for p in model.parameters() if p.ndim > 1]
        others = [p for p in model.parameters() if p.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": recipe.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=recipe.lr, fused=True)
        self._step = 0
        self.seconds = 0.0

    @property
    def average(self) -> nn.Module:
        """The averaged network."""
        module: nn.Module = self._averaged.module
        return module

    def _blend(self, average: Tensor, new: Tensor, count: Any) -> Tensor:
        # Short at first, so that the beginning is forgotten.
        share = min(self._recipe.ema, (1 + self._step) / (10 + self._step))
        return average + (1 - share) * (new - average) if average.is_floating_point() else new

    def resume(self) -> None:
        """Go on from the checkpoint, if it is of the same recipe."""
        if not self._checkpoint.exists():
            return
        state = torch.load(self._checkpoint, map_location=self._device, weights_only=True)
        if state["recipe"] != asdict(self._recipe):
            raise click.ClickException(
                f"{self._checkpoint} is of another recipe; remove it or choose another --out"
            )
        self._model.load_state_dict(state["model"])
        self._averaged.load_state_dict(state["averaged"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._step, self.seconds = state["step"], state["seconds"]

    def try_small(self) -> None:
        """Refuse a small side that the network does not work with, before anything is drawn."""
        side = self._recipe.small_side
        try:
            with torch.no_grad():
                self.average.eval()(torch.zeros(2, 3, side, side, device=self._device))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise click.ClickException(
                f"{self._recipe.backbone} does not work with images of {side} px: {error}; "
                f"add --small-side {SIDE}"
            ) from error

    def _save(self) -> None:
        state = {
            "recipe": asdict(self._recipe),
            "model": self._model.state_dict(),
            "averaged": self._averaged.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "step": self._step,
            "seconds": self.seconds,
        }
        partial = self._checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self._checkpoint)

    def train(self, data: Images, held_out: Images) -> Iterator[dict[str, float]]:
        """Train to the last step; yield progress now and then."""
        recipe = self._recipe
        every = max(1, min(250, recipe.steps // 4))
        began, loss_sum, seen = time.monotonic(), 0.0, 0
        order = (-1, torch.empty(0))
        while self._step < recipe.steps:
            epoch, place = divmod(self._step, max(1, len(data) // recipe.batch))
            if order[0] != epoch:
                order = (epoch, _shuffled(len(data), recipe.seed, epoch))
            index = order[1][place * recipe.batch : (place + 1) * recipe.batch]
            small = self._step < recipe.small_share * recipe.steps
            images = self._batch(data, index, recipe.small_side if small else SIDE)
            self._model.train()
            for group in self._optimizer.param_groups:
                group["lr"] = recipe.lr * self._factor()
            with self._autocast():
                loss = cross_entropy(self._model(images), (index % NUM_CLASSES).to(self._device))
            self._optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
            self._optimizer.step()
            self._averaged.update_parameters(self._model)
            self._step += 1
            loss_sum, seen = loss_sum + float(loss.detach()), seen + 1
            if self._step % every == 0 or self._step == recipe.steps:
                self.seconds, began = self.seconds + time.monotonic() - began, time.monotonic()
                entry = {
                    "step": self._step,
                    "loss": round(loss_sum / seen, 4),
                    "seconds": round(self.seconds),
                }
                if not small and self._step % (4 * every) == 0 and self._step < recipe.steps:
                    entry["accuracy"] = self.evaluate(held_out)
                self._save()
                yield entry
                loss_sum, seen = 0.0, 0

    def _factor(self) -> float:
        """Share of the highest learning rate: linear warm-up, then half a cosine."""
        warm = max(1, round(self._recipe.warm_up * self._recipe.steps))
        if self._step < warm:
            return (self._step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (self._step - warm) / (self._recipe.steps - warm)))

    def _autocast(self) -> Any:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _batch(self, data: Images, index: Tensor, side: int) -> Tensor:
        """Return random crops, half of them mirrored: (batch, 3, side, side) floats about in [-1, 1]."""
        draw = torch.Generator().manual_seed(self._recipe.seed * 2**32 + self._step)
        images = torch.from_numpy(data[index.sort().values.numpy()]).to(self._device)
        # Read in file order, then put back in the order of the labels.
        images = images[index.argsort().argsort().to(self._device)]
        u = torch.rand(5, len(index), generator=draw)
        area = self._recipe.crop + (1 - self._recipe.crop) * u[0]
        ratio = torch.exp((u[1] * 2 - 1) * math.log(4 / 3) / 2)
        wide, high = (area.sqrt() * ratio).clamp(max=1), (area.sqrt() / ratio).clamp(max=1)
        theta = torch.zeros(len(index), 2, 3)
        theta[:, 0, 0] = wide * torch.where(u[4] < 0.5, -1.0, 1.0)
        theta[:, 1, 1] = high
        theta[:, 0, 2], theta[:, 1, 2] = (2 * u[2] - 1) * (1 - wide), (2 * u[3] - 1) * (1 - high)
        grid = affine_grid(theta.to(self._device), [len(index), 3, side, side], align_corners=False)
        crops = grid_sample(_normalised(images), grid, padding_mode="reflection", align_corners=False)
        return crops.contiguous(memory_format=torch.channels_last)

    def evaluate(self, held_out: Images) -> float:
        """Return the averaged network's accuracy on held-out images, in [0, 1]."""
        self.average.eval()
        right = 0
        with torch.no_grad(), self._autocast():
            for first in range(0, len(held_out), 500):
                images = torch.tensor(held_out[first : first + 500], device=self._device)
                guess = self.average(_normalised(images)).argmax(1).cpu()
                right += int((guess == torch.arange(first, first + len(guess)) % NUM_CLASSES).sum())
        return round(right / len(held_out), 4)


def _normalised(images: Tensor) -> Tensor:
    """Return uint8 images as the floats that trials with these weights will give the network."""
    mean, std = INPUT.mean[0], INPUT.std[0]
    return images.float().div_(255 * std).sub_(mean / std)


def _shuffled(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 2**32 + 2**31 + epoch))


def _processor() -> str:
    threads = torch.get_num_threads()
    return f"{threads} CPU thread{'s' if threads > 1 else ''} of {os.cpu_count()}, {platform.machine()}"


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "timm", "numpy")}


if __name__ == "__main__":
    main()
