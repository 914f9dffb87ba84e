"""How the new head starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from harness.errors import UsageError

Layer: TypeAlias = nn.Linear | nn.Conv1d | nn.Conv2d
HeadInit: TypeAlias = Literal["ridge", "timm", "xavier", "kaiming", "zero"]


def init_head(model: nn.Module, head: Sequence[str], how: HeadInit, *, seed: int) -> None:
    """Initialise the linear and convolutional layers of the head in place.

    A seed gives the same values on every device, and no global random state moves.

    Args:
        model: Holds the head.
        head: Names of the head's modules, as in `FreezePlan.head`.
        how: `timm` leaves what the backbone's own library set. `xavier`: uniform weights (Glorot and Bengio,
            AISTATS 2010), `kaiming`: normal weights for ReLU, by fan-in (He et al., ICCV 2015), both with
            zero biases. `zero`: the last layer of each module is all zeros, so that training starts at equal
            logits; a hidden layer before it keeps its values, for two layers of zeros would never learn.
            `ridge` leaves it too: features of images have a say in that (`place_ridge`).
        seed: Of the weights.

    Raises:
        UsageError: `how` is unknown, or a module of the head has no layer to initialise.
    """
    if how not in get_args(HeadInit):
        raise UsageError(f"head_init must be one of {', '.join(get_args(HeadInit))} (got {how!r})")
    if how in ("timm", "ridge"):
        return
    generator = torch.Generator().manual_seed(seed)
    for layer in _layers(model, head, how):
        _init_layer(layer, how, generator)


def sets_all(model: nn.Module, head: Sequence[str], how: HeadInit) -> bool:
    """Say whether a start leaves no parameter of a head as it was built.

    That of `ridge` is known to: only a single linear layer gets it.
    """
    if how == "ridge":
        return True
    chosen = [] if how == "timm" else _layers(model, head, how)
    own = {value for layer in chosen for value in layer.parameters(recurse=False)}
    return all(value in own for name in head for value in model.get_submodule(name).parameters())


def place_ridge(layer: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    """Start a linear head in the direction that ridge regression found, at the size of a new layer.

    Heads that know the classes spare the backbone the steps in which random ones distort what it has learned
    (Kumar et al., ICLR 2022). But one that is sure of them from the start leaves the backbone nothing to
    learn (Ren et al., ICLR 2023), and its weights are many times as large as an optimizer's steps are meant
    for: so its norm becomes that which torch gives a new layer of this shape, sqrt(C / 3).

    Args:
        layer: (C, D), changed in place.
        weight: (C, D), not all zeros.
        bias: (C,).
    """
    scale = (len(weight) / 3) ** 0.5 / weight.norm()
    with torch.no_grad():
        layer.weight.copy_(scale * weight)
        own: Tensor | None = layer.bias
        if own is not None:
            own.copy_(scale * bias)


def _layers(model: nn.Module, head: Sequence[str], how: HeadInit) -> list[Layer]:
    """Return the layers that `xavier`, `kaiming` or `zero` sets, each once."""
    chosen: dict[Layer, None] = {}
    for name in head:
        layers = [layer for layer in model.get_submodule(name).modules() if isinstance(layer, Layer)]
        if not layers:
            raise UsageError(
                f"the head {name!r} has no linear or convolutional layer",
                where=f"head_init = {how!r}",
                fixes=["use head_init = 'timm', which leaves the head as it is built"],
            )
        chosen |= dict.fromkeys(layers[-1:] if how == "zero" else layers)
    return list(chosen)


def _init_layer(layer: Layer, how: HeadInit, generator: torch.Generator) -> None:
    # Drawn on the CPU in float32: the values depend neither on the device nor on the precision.
    weight = torch.zeros(layer.weight.shape)
    if how == "xavier":
        nn.init.xavier_uniform_(weight, generator=generator)
    elif how == "kaiming":
        nn.init.kaiming_normal_(weight, mode="fan_in", nonlinearity="relu", generator=generator)
    with torch.no_grad():
        layer.weight.copy_(weight)
        bias: Tensor | None = layer.bias
        if bias is not None:
            bias.zero_()
