"""Cut the smallest model of each of timm's model modules at five freeze depths, and say how each was cut.

Every cut is compared with the whole model by the engine itself (outputs, gradients, buffers); a model counts
as traced or replayed only when that comparison holds.

usage: cut_coverage.py [--largest 30] [--only MODULE ...] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from functools import partial
from pathlib import Path

import timm
import torch
from timm.models import list_modules

from harness.engine.cut import cut_model
from harness.engine.freeze import apply_freeze, plan_freeze
from harness_builtin.backbones import find_timm_head, list_timm, list_timm_blocks

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--largest", type=float, default=30, help="of the models, in millions of parameters")
    parser.add_argument("--only", nargs="*", help="timm model modules; default: all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON lines; models that are in it are left out")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    done = {}
    if arguments.out and arguments.out.exists():
        lines = arguments.out.read_text(encoding="utf-8").splitlines()
        done = {entry["module"]: entry for entry in map(json.loads, lines)}
    known = set(list_timm())
    for module in arguments.only or list_modules():
        if module in done:
            continue
        names = [name for name in timm.list_models(module=module) if name in known]
        entry = measure(module, names, arguments.largest)
        done[module] = entry
        if arguments.out:
            with arguments.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        print(module, entry["model"], entry["methods"], entry["why"][:200], flush=True)
    print("\n| freeze depth | traced | replayed | not cut | not run |\n| --- | --- | --- | --- | --- |")
    for number, depth in enumerate(DEPTHS):
        counts = Counter(
            entry["methods"][number] if entry["methods"] else "not run" for entry in done.values()
        )
        cells = [counts["trace"], counts["replay"], counts["none"], counts["not run"]]
        print(f"| {depth:g} | {' | '.join(map(str, cells))} |")


def measure(module: str, names: list[str], largest: float) -> dict[str, object]:
    """Cut the smallest model of a module at each depth."""
    sizes = {}
    for name in names:
        with torch.device("meta"):
            try:
                model = timm.create_model(name, num_classes=10)
            except Exception:
                continue
        sizes[name] = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    fitting = [name for name, size in sizes.items() if size <= largest]
    if not fitting:
        return {"module": module, "model": "", "methods": [], "why": "none is small enough", "seconds": 0}
    name = min(fitting, key=sizes.__getitem__)
    began, methods, why = time.process_time(), [], []
    for depth in DEPTHS:
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=10)
        size = max(timm.get_pretrained_cfg(name).input_size[1:]) if timm.get_pretrained_cfg(name) else 224
        head = partial(find_timm_head, name)
        blocks = list_timm_blocks(head, model)
        plan = plan_freeze(model, depth, blocks=blocks, head=head(model), image_size=size)
        apply_freeze(model, plan)
        cut = cut_model(model, plan, size)
        methods.append(cut.method)
        if cut.why:
            why.append(f"{depth:g}: {cut.why}")
    seconds = round(time.process_time() - began, 1)
    return {"module": module, "model": name, "methods": methods, "why": "; ".join(why), "seconds": seconds}


if __name__ == "__main__":
    main()
