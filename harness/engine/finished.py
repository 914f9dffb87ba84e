"""What a finished training is turned into: its cost, its weights where they are kept, and its outcome."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import safetensors.torch
import torch
from torch import nn

from harness.data.manifest import Manifest
from harness.documents import file_sha256
from harness.engine.device import peak_memory
from harness.engine.fit import Prediction
from harness.engine.job import TrialJob, TrialOutcome
from harness.engine.layout import name_layout
from harness.engine.outcome import succeed
from harness.engine.probing import HeadStart
from harness.engine.setup import Opened
from harness.records import CostRecord, EpochRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A training that came to its end."""

    model: nn.Module
    """The weights that made the predictions."""
    start: HeadStart
    """Of its head."""
    predictions: dict[str, Prediction]
    """By split."""
    curve: Sequence[EpochRecord]
    pruned: bool
    seconds: float
    """Of its epochs, without validation."""
    images: int
    """That it trained on in these."""
    micro_batch: int
    norm_in_parts: bool = False
    execution: str = "eager"
    total_seconds: float
    """From the beginning of its set-up."""
    together: int = 1
    """How many trained side by side: each is given its share of the time of the passes."""
    counts_passes: bool = True
    """Whether it is the one of them with which the passes are counted."""


def conclude(
    finished: Finished,
    job: TrialJob,
    opened: Opened,
    *,
    manifest: Manifest,
    device: torch.device,
    environment: dict[str, str],
) -> TrialOutcome:
    """Save what a training leaves behind, and score it.

    Args:
        finished: The training.
        job: What it was asked to do.
        opened: What it was set up with.
        manifest: Of the splits that every trial reads.
        device: That it ran on.
        environment: What else it ran on.
    """
    part, start = opened.part, finished.start
    counts = [start.counts, *([opened.prefix.counts] if opened.prefix else [])]
    cost = CostRecord(
        seconds=finished.seconds,
        total_seconds=finished.total_seconds,
        images_per_second=finished.images / finished.seconds,
        params=sum(parameter.numel() for parameter in opened.model.parameters()),
        trainable=sum(p.numel() for p in opened.model.parameters() if p.requires_grad),
        frozen_param_share=part.plan.param_share,
        flops=part.flops.image if part.flops else None,
        frozen_flop_share=part.flops.frozen_share if part.flops else None,
        micro_batch=finished.micro_batch,
        norm_in_parts=finished.norm_in_parts,
        execution=finished.execution,
        cut=part.cut.method,
        prefix_passes=sum(count.passes for count in counts) if finished.counts_passes else 0,
        prefix_seconds=sum(count.seconds for count in counts) / finished.together,
        peak_memory=peak_memory(device),
    )
    weights = ""
    if job.kind == "final":
        job.folder.mkdir(parents=True, exist_ok=True)
        path = job.folder / "model.safetensors"
        safetensors.torch.save_model(finished.model, str(path))
        weights = file_sha256(path)
    return succeed(
        job,
        finished.predictions,
        {"val": manifest.of("val"), "test": job.test},
        curve=finished.curve,
        pruned=finished.pruned,
        cost=cost,
        num_classes=len(manifest.classes),
        environment={
            **environment,
            "images": opened.images.place,
            "layout": name_layout(opened.images.layout),
            "head": start.how,
        },
        model=weights,
    )
