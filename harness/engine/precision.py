"""The precision that a model computes in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, TypeAlias

import torch
from torch import nn

Precision: TypeAlias = Literal["fp32", "bf16"]


def choose_precision(
    asked: Literal["auto", "fp32", "bf16"], device: torch.device, model: nn.Module
) -> Precision:
    """Return what to compute a model in; `auto` is bf16 where the device has matrix units for all of it.

    That is a GPU, or a CPU with AMX, whose training steps are then up to 2.6 times as fast. Depthwise
    convolutions are the exception: AMX is of no use to them, and backwards they take longer in bf16.
    """
    if asked != "auto":
        return asked
    if device.type == "cuda" or (device.type == "cpu" and has_amx() and not has_depthwise(model)):
        return "bf16"
    return "fp32"


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which a model computes in `fp32` or `bf16`."""
    dtype = dtype_of(precision)
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)


def dtype_of(precision: str) -> torch.dtype:
    """Return what products are computed in, in `fp32` or `bf16`."""
    assert precision != "auto", "what `auto` comes to depends on the model"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def has_amx() -> bool:
    """Say whether this CPU has units for matrices of bf16, and torch has kernels for them."""
    return torch.backends.mkldnn.is_available() and bool(torch.cpu.get_capabilities().get("amx_bf16"))


def has_depthwise(model: nn.Module) -> bool:
    """Say whether a model has convolutions of one channel each."""
    convolutions = nn.Conv1d, nn.Conv2d, nn.Conv3d
    return any(
        isinstance(module, convolutions) and module.groups == module.in_channels > 1
        for module in model.modules()
    )
