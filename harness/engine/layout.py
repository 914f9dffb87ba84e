"""How images and the weights of convolutions lie in memory: channels last, where kernels are faster so."""

from __future__ import annotations

import torch
from torch import nn

_BLOCK = 16
"""Channels that oneDNN's kernels take at a time, at most."""


def lay_out(model: nn.Module, image_size: int, device: torch.device) -> None:
    """Lay out a model's weights as suits a device, unless it then fails.

    Some networks view what they compute as it lies, and some have weights of five dimensions.

    Args:
        model: On the CPU; maps (N, 3, image_size, image_size) to logits.
        image_size: In pixels.
        device: That it is going to run on.
    """
    layout = preferred_layout(model, device)
    if layout == torch.contiguous_format:
        model.to(memory_format=layout)
        return
    modes = {module: module.training for module in model.modules()}
    like = next(model.parameters())
    model.eval()
    try:
        model.to(memory_format=layout)
        with torch.no_grad():
            model(like.new_zeros(2, 3, image_size, image_size).contiguous(memory_format=layout))
    except RuntimeError:
        model.to(memory_format=torch.contiguous_format)
    finally:
        for module, training in modes.items():
            module.training = training


def preferred_layout(model: nn.Module, device: torch.device) -> torch.memory_format:
    """Return channels last, where convolutions are fastest, except where it is untried or unsafe."""
    unsafe = device.type == "cpu" and any(_is_unsafe(module) for module in model.modules())
    return torch.contiguous_format if device.type == "mps" or unsafe else torch.channels_last


def _is_unsafe(module: nn.Module) -> bool:
    """Say whether, channels last, the gradient of a layer's weights is written beyond its memory.

    So it is by oneDNN where a convolution of one pixel takes steps over fewer channels than a block, as in
    the stem of a RepVGG (uxlfoundation/oneDNN#6035; in torch 2.14).
    """
    return (
        isinstance(module, nn.Conv2d)
        and set(module.kernel_size) == {1}
        and set(module.stride) != {1}
        and module.in_channels // module.groups < _BLOCK
    )


def layout_of(model: nn.Module) -> torch.memory_format:
    """Return how a model's convolutions lie, and so its images should."""
    # A convolution of one pixel lies both ways.
    weights = [weight for weight in model.parameters() if weight.ndim == 4 and not weight.is_contiguous()]
    last = any(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    return torch.channels_last if last else torch.contiguous_format


def name_layout(layout: torch.memory_format) -> str:
    """Return the word for a layout."""
    return "channels-last" if layout == torch.channels_last else "channels-first"
