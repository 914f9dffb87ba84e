"""Compile the training pass of a model that trains whole, where that is worth the wait."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from harness.engine.cut import NO_CUT, Forward, bind_suffix
from harness.engine.fit import backward
from harness.engine.freeze import FreezePlan, set_train_mode
from harness.isolation import describe_error, kept_random_state

LONG = 3e16
"""Floating-point operations of a training that is worth compiling: some five minutes at 1e14 a second.
Compiling takes one or two."""


def is_worth_compiling(*, device: torch.device, frozen: int, flops: float | None, images: int) -> bool:
    """Say whether a training is long enough.

    By its size and never by the clock: a trial that is repeated is run in the same way.

    Args:
        device: Only a GPU's kernels gain.
        frozen: Number of frozen parameters. Each cut would have to be compiled for itself.
        flops: Floating-point operations of a forward pass of one image; None where they cannot be counted.
        images: That the training goes through, over all epochs.
    """
    # A backward pass takes twice what a forward pass takes.
    return device.type == "cuda" and not frozen and flops is not None and 3 * flops * images >= LONG


def keep_compiled(folder: Path) -> None:
    """Keep what is compiled in a folder, for later processes, unless the user named another."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    # Whoever imports torchvision has set the variable: torch writes its own choice there.
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR", default_cache_dir()) == default_cache_dir():
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


def compile_training(
    model: nn.Module,
    plan: FreezePlan,
    loss: nn.Module,
    inputs: Sequence[Tensor],
    labels: Tensor,
    precision: str,
    *,
    backend: str = "inductor",
) -> tuple[Forward, str]:
    """Compile a model's training pass, and try it out with the backward pass on one batch.

    Only batches of that one shape run compiled; others, and all of evaluation, run as the model is written.
    Whatever fails leaves the model as it was.

    Args:
        model: On its device; nothing of it is frozen.
        plan: Says so.
        loss: `(logits, labels) -> scalar`.
        inputs: A batch of images.
        labels: Its labels.
        precision: `fp32` or `bf16`.
        backend: Of `torch.compile`.

    Returns:
        The pass, and what it is: `compiled`, or `eager` and why.
    """
    plain = bind_suffix(model, NO_CUT)
    shape = inputs[0].shape
    # Another model of the same class left its own behind, and their number is limited.
    torch.compiler.reset()
    compiled = torch.compile(model, dynamic=False, backend=backend)

    def run(inputs: Sequence[Tensor], training: bool) -> Tensor:
        if training and inputs[0].shape == shape:
            logits: Tensor = compiled(inputs[0])
            return logits
        return plain(inputs, training)

    modules = (model, loss)
    buffers = [(buffer, buffer.clone()) for module in modules for buffer in module.buffers()]
    set_train_mode(model, plan)
    try:
        with kept_random_state():
            backward(run, loss, inputs, labels, 1, precision)
    except Exception as error:
        # A compiler fails in any way; the model trains all the same.
        torch.compiler.reset()
        return plain, f"eager: {describe_error(error)}"
    finally:
        with torch.no_grad():
            for buffer, saved in buffers:
                buffer.copy_(saved)
        for module in modules:
            module.zero_grad(set_to_none=True)
    return run, "compiled"
