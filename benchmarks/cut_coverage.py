"""Cut the smallest model of each of timm's model modules at five freeze depths, and say how each was cut.

Every cut is compared with the whole model twice: by the engine, which takes another way where they differ,
and here, on images and random numbers that the engine has not seen: what differs only here is a silent
mismatch. Models lie in memory as the engine lays them on a CPU. The engine compares in fp32; `--precision
bf16` takes here what trials on a GPU compute in.

Some modules have no small model, or take large images. Those in `REDUCED` are built by timm's own entry point
with narrower layers, or get smaller images: it is the module's code that is cut, at its full depth. `--size`
gives smaller images to every model that takes them.

usage: cut_coverage.py [--largest 30] [--size 128] [--only MODULE ...] [--precision bf16] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg, get_pretrained_cfg, list_modules
from torch import Tensor, nn

from harness.engine.cut import TOLERANCE, Cut, bind_suffix, cut_model
from harness.engine.freeze import FreezePlan, apply_freeze, plan_freeze, set_train_mode
from harness.engine.layers import undisturbed
from harness.engine.layout import lay_out, layout_of, name_layout
from harness.engine.precision import autocast
from harness_builtin.backbones import find_timm_head, list_timm, list_timm_blocks

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduced:
    """A cheaper form of a module's models."""

    size: int
    """Side of the image, in pixels."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of `timm.create_model`, beside the name."""


REDUCED = {
    # 412 million parameters at the least; images of 546 px.
    "deepseek_vit": Reduced(size=126, options={"embed_dim": 256, "num_heads": 4}),
    # 167 million; 768 px.
    "gemma4_vit": Reduced(size=96, options={"embed_dim": 192, "num_heads": 3, "intermediate_size": 768}),
    # 896 px.
    "hieradet_sam2": Reduced(size=224),
    # 86 million; 384 px.
    "naflexvit": Reduced(size=96),
    # 85 and 82 million; 331 px.
    "nasnet": Reduced(size=96),
    "pnasnet": Reduced(size=96),
    # 87 million; 768 px.
    "qwen3_vit": Reduced(size=96),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """How a model was cut at one freeze depth."""

    method: str
    why: str = ""
    """Why not by tracing."""
    off: float = 0.0
    """Largest difference from the whole model."""
    layout: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--largest", type=float, default=30, help="of the models, in millions of parameters")
    parser.add_argument("--size", type=int, default=1024, help="of images, at most, where models allow it")
    parser.add_argument("--only", nargs="*", help="timm model modules; default: all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--out", type=Path, help="JSON lines; models that were run are left out")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    done = {}
    if arguments.out and arguments.out.exists():
        lines = arguments.out.read_text(encoding="utf-8").splitlines()
        done = {entry["module"]: entry for entry in map(json.loads, lines)}
    known = set(list_timm())
    for module in arguments.only or list_modules():
        if module in done and done[module]["methods"]:
            continue
        names = [name for name in timm.list_models(module=module) if name in known]
        entry = measure(module, names, arguments.largest, arguments.size, arguments.precision)
        done[module] = entry
        if arguments.out:
            with arguments.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        print(module, entry["model"], entry["methods"], entry["seconds"], entry["why"][:200], flush=True)
    print_tables([*done.values()])


def print_tables(entries: Sequence[Mapping[str, Any]]) -> None:
    """Print how many models were cut how by freeze depth, and which of them were reduced."""
    heads = ("traced", "replayed", "not cut", "failed", "not run", "silent mismatches")
    print(f"\n| freeze depth | {' | '.join(heads)} |\n|{' --- |' * (len(heads) + 1)}")
    for number, depth in enumerate(DEPTHS):
        counts = Counter(entry["methods"][number] if entry["methods"] else "not run" for entry in entries)
        wrong = sum(bool(entry["methods"]) and entry["off"][number] > TOLERANCE for entry in entries)
        cells = [counts[method] for method in ("trace", "replay", "none", "failed", "not run")]
        print(f"| {depth:g} | {' | '.join(map(str, [*cells, wrong]))} |")
    print("\n| reduced module | model | image, px | options |\n| --- | --- | --- | --- |")
    for entry in entries:
        if entry["reduced"]:
            options = ", ".join(f"{name}={value}" for name, value in entry["options"].items())
            print(f"| {entry['module']} | {entry['model']} | {entry['size']} | {options or '-'} |")


def measure(module: str, names: list[str], largest: float, limit: int, precision: str) -> dict[str, Any]:
    """Cut the smallest model of a module at each depth."""
    reduced = REDUCED.get(module)
    options = dict(reduced.options) if reduced else {}
    sizes = {}
    for name in names:
        with torch.device("meta"):
            try:
                model = timm.create_model(name, num_classes=10, **options)
            except Exception:
                continue
        sizes[name] = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    fitting = [name for name, size in sizes.items() if size <= largest]
    entry = {"module": module, "model": "", "reduced": reduced is not None}
    if not fitting:
        return entry | {"methods": [], "off": [], "why": "none is small enough", "seconds": 0}
    name = min(fitting, key=sizes.__getitem__)
    cfg = get_pretrained_cfg(name) or PretrainedCfg()
    size = reduced.size if reduced else max(cfg.input_size[1:])
    if size > limit:
        smaller = options | ({"img_size": limit} if cfg.fixed_input_size else {})
        size, options = (limit, smaller) if runs(name, smaller, limit) else (size, options)
    began = time.process_time()
    tries = [try_cut(name, options, size, depth, precision) for depth in DEPTHS]
    return entry | {
        "model": name,
        "size": size,
        "options": options,
        "millions": round(sizes[name], 1),
        "layout": tries[-1].layout,
        "methods": [tried.method for tried in tries],
        "off": [tried.off for tried in tries],
        "why": "; ".join(f"{depth:g}: {t.why}" for depth, t in zip(DEPTHS, tries, strict=True) if t.why),
        "seconds": round(time.process_time() - began, 1),
    }


def runs(name: str, options: Mapping[str, Any], size: int) -> bool:
    """Tell whether a model can be built so, and takes images of this size."""
    try:
        model = timm.create_model(name, num_classes=10, **options).eval()
        with torch.no_grad():
            model(torch.zeros(2, 3, size, size))
    except Exception:
        return False
    return True


def try_cut(name: str, options: Mapping[str, Any], size: int, depth: float, precision: str) -> Try:
    """Cut a model at a freeze depth and compare it with the whole."""
    try:
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=10, **options)
        lay_out(model, size, torch.device("cpu"))
        head = partial(find_timm_head, name)
        blocks = list_timm_blocks(head, model)
        plan = plan_freeze(model, depth, blocks=blocks, head=head(model), image_size=size)
        apply_freeze(model, plan)
        cut = cut_model(model, plan, size)
        off = largest_difference(model, plan, cut, size, precision)
    except Exception as error:
        return Try(method="failed", why=f"{type(error).__name__}: {error}")
    return Try(method=cut.method, why=cut.why, off=off, layout=name_layout(layout_of(model)))


def largest_difference(model: nn.Module, plan: FreezePlan, cut: Cut, size: int, precision: str) -> float:
    """Compare a cut with the whole model: logits of an evaluation; logits and gradients of a training step.

    Returns:
        The largest difference in a tensor, as a share of its largest value.
    """
    if cut.method == "none":
        return 0.0
    generator = torch.Generator().manual_seed(11)
    images = torch.randn(4, 3, size, size, generator=generator).contiguous(memory_format=layout_of(model))
    off = 0.0
    for training in (False, True):
        half = cut.half(training)
        with undisturbed(model), torch.no_grad(), autocast(precision, images.device):
            if training:
                set_train_mode(model, plan)
            stored = half.boundary.pack(half.bind_prefix(model)(images.clone()))
        whole = step(model, plan, partial(model, images.clone()), training, precision)
        suffix = partial(bind_suffix(model, cut), stored, training)
        parts = step(model, plan, suffix, training, precision)
        for expected, found in zip(whole, parts, strict=True):
            if not torch.equal(expected, found):
                scale = max(float(expected.abs().max()), TOLERANCE)
                off = max(off, float((expected - found).abs().nan_to_num(nan=torch.inf).max()) / scale)
    return off


def step(
    model: nn.Module, plan: FreezePlan, forward: Callable[[], Tensor], training: bool, precision: str
) -> list[Tensor]:
    """Return the logits, and in train mode the gradients of the parameters that train."""
    with undisturbed(model), torch.set_grad_enabled(training):
        if training:
            set_train_mode(model, plan)
        torch.manual_seed(12)
        with autocast(precision, torch.device("cpu")):
            logits = forward().float()
        if not training:
            return [logits]
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        loss = nn.functional.cross_entropy(logits, torch.arange(len(logits)))
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        return [logits.detach(), *gradients]


if __name__ == "__main__":
    main()
