"""How images and the weights of convolutions lie in memory: channels last, where kernels are faster so."""

from __future__ import annotations

import torch
from torch import nn


def preferred_layout(device: torch.device) -> torch.memory_format:
    """Return what a device's convolutions are fastest in: channels last, except where it is untried."""
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def lay_out(model: nn.Module, image_size: int, layout: torch.memory_format) -> None:
    """Lay out a model's weights, unless it then fails: some networks view what they compute as it lies."""
    model.to(memory_format=layout)
    if layout == torch.contiguous_format:
        return
    modes = {module: module.training for module in model.modules()}
    like = next(model.parameters())
    model.eval()
    try:
        with torch.no_grad():
            model(like.new_zeros(2, 3, image_size, image_size).contiguous(memory_format=layout))
    except RuntimeError:
        model.to(memory_format=torch.contiguous_format)
    finally:
        for module, training in modes.items():
            module.training = training


def layout_of(model: nn.Module) -> torch.memory_format:
    """Return how a model's convolutions lie, and so its images should."""
    # A convolution of one pixel lies both ways.
    weights = [weight for weight in model.parameters() if weight.ndim == 4 and not weight.is_contiguous()]
    last = any(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    return torch.channels_last if last else torch.contiguous_format


def name_layout(layout: torch.memory_format) -> str:
    """Return the word for a layout."""
    return "channels-last" if layout == torch.channels_last else "channels-first"
