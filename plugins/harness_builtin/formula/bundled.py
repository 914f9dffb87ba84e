"""The backbones that are part of this package: timm's smallest networks, pretrained on formula images."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from harness import BackboneSpec, InputSpec, WeightsSpec, hookimpl
from harness_builtin.backbones import build_timm, find_timm_head, list_timm_blocks

FOLDER = Path(__file__).parent
LICENCE = "Apache-2.0"
INPUT = InputSpec(size=64, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bilinear", crop=1.0)
"""What the weights were trained with."""


def read_manifest() -> dict[str, Any]:
    """Return what is known of each backbone: its recipe, digests, source accuracy and transfer table."""
    manifest: dict[str, Any] = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
    return manifest


def describe_bundled(name: str, entry: dict[str, Any]) -> BackboneSpec:
    """Describe one bundled backbone, `<timm's architecture>.formula<version>`."""
    architecture, file = entry["recipe"]["backbone"], FOLDER / "weights" / f"{name}.safetensors"
    head = partial(find_timm_head, architecture)
    seen = entry["samples"] / 1e6
    return BackboneSpec(
        name=name,
        summary=f"timm's {architecture}, pretrained on {seen:.1f} M views of images drawn from formulas",
        build=partial(build_timm, architecture),
        input=INPUT,
        weights=WeightsSpec(
            source="part of transfer-harness; trained by harness_builtin.formula.pretrain, no photographs",
            licence=LICENCE,
            cached=lambda: file,
            fetch=lambda: file,
        ),
        blocks=partial(list_timm_blocks, head),
        head=head,
    )


@hookimpl
def harness_backbones() -> Iterable[BackboneSpec]:
    """Yield the bundled backbones."""
    for name, entry in read_manifest()["backbones"].items():
        yield describe_bundled(name, entry)
