"""Training steps and forward passes in bf16 against fp32 on a CPU, and what `auto` makes of each model.

Both precisions take turns, step by step, on random images, one thread; what counts is the quickest of some.

usage: precision.py [--model NAME:SIZE ...] [--batch 16] [--steps 5]
"""

from __future__ import annotations

import argparse
import time

import timm
import torch
from torch import Tensor, nn

import harness
from harness.engine.layout import lay_out, layout_of
from harness.engine.precision import autocast, choose_precision, has_amx

CPU = torch.device("cpu")
CLASSES = 10
PRECISIONS = ("fp32", "bf16")
MODELS = (
    "test_resnet.formula1:64",
    "test_byobnet.formula1:64",
    "test_efficientnet.formula1:64",
    "resnet18:224",
    "repvgg_a0:128",
    "resnext50_32x4d:128",
    "regnetx_002:128",
    "densenet121:128",
    "vit_tiny_patch16_224:224",
    "swin_tiny_patch4_window7_224:224",
    "mixer_s32_224:224",
    "mobilenetv3_small_100:224",
    "efficientnet_b0:128",
    "convnext_atto:128",
    "ghostnet_100:128",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", help="NAME:SIZE, of timm or bundled; repeatable")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"AMX: {'yes' if has_amx() else 'no'}\n")
    heads = (
        "model",
        "image, px",
        "step, fp32 ms",
        "bf16 ms",
        "ratio",
        "pass, fp32 ms",
        "bf16 ms",
        "ratio",
        "auto",
    )
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    for entry in arguments.model or MODELS:
        name, size = entry.rsplit(":", 1)
        model = build(name, int(size))
        steps, passes = measure(model, int(size), arguments.batch, arguments.steps)
        cells = [
            *(f"{1000 * seconds:.0f}" for seconds in steps),
            f"{steps[0] / steps[1]:.2f}",
            *(f"{1000 * seconds:.0f}" for seconds in passes),
            f"{passes[0] / passes[1]:.2f}",
            choose_precision("auto", CPU, model),
        ]
        print(f"| {name} | {size} | {' | '.join(cells)} |", flush=True)


def build(name: str, size: int) -> nn.Module:
    """Build a model and lay it out as the engine does."""
    torch.manual_seed(0)
    if name.endswith(".formula1"):
        spec = harness.load_registry(["no:terminal"]).backbones.get(name).spec
        model = spec.build(CLASSES, spec.weights.cached(), size)
    else:
        model = timm.create_model(name, num_classes=CLASSES)
    lay_out(model, size, CPU)
    return model


def measure(model: nn.Module, size: int, batch: int, steps: int) -> tuple[list[float], list[float]]:
    """Return the seconds of the quickest step and forward pass in each precision."""
    images, labels, updater = draw_batch(model, size, batch)
    seconds: dict[str, list[list[float]]] = {precision: [] for precision in PRECISIONS}
    # The first step of each makes its kernels.
    for _ in range(steps + 1):
        for precision, taken in seconds.items():
            taken.append(
                [
                    time_step(model, images, labels, updater, precision),
                    time_pass(model, images, precision),
                ]
            )
    least = [[min(column) for column in zip(*taken[1:], strict=True)] for taken in seconds.values()]
    return [own[0] for own in least], [own[1] for own in least]


def draw_batch(model: nn.Module, size: int, batch: int) -> tuple[Tensor, Tensor, torch.optim.Optimizer]:
    """Return random images that lie as the model does, random labels, and an optimizer of the model."""
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=layout_of(model))
    labels = torch.randint(0, CLASSES, (batch,))
    return images, labels, torch.optim.AdamW(model.parameters(), 1e-4, fused=True)


def time_step(
    model: nn.Module, images: Tensor, labels: Tensor, updater: torch.optim.Optimizer, precision: str
) -> float:
    model.train()
    began = time.perf_counter()
    with autocast(precision, CPU):
        logits = model(images)
    loss = nn.functional.cross_entropy(logits.float(), labels)
    updater.zero_grad()
    loss.backward()
    updater.step()
    return time.perf_counter() - began


def time_pass(model: nn.Module, images: Tensor, precision: str) -> float:
    model.eval()
    with torch.inference_mode(), autocast(precision, CPU):
        began = time.perf_counter()
        model(images)
        return time.perf_counter() - began


if __name__ == "__main__":
    main()
