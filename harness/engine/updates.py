"""What linear heads compute in a training step: the loss with its gradient, and the update.

Written for rows of heads, and so that a head's row has the same bits whatever rows lie beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from timm.loss import LabelSmoothingCrossEntropy
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer


def smoothing_of(loss: nn.Module) -> float | None:
    """Return the label smoothing of a mean cross-entropy; None for any other loss."""
    if loss._forward_hooks or loss._forward_pre_hooks or loss._backward_hooks:
        return None
    if type(loss) is nn.CrossEntropyLoss:
        plain = loss.weight is None and loss.reduction == "mean" and loss.ignore_index < 0
        return float(loss.label_smoothing) if plain else None
    return float(loss.smoothing) if type(loss) is LabelSmoothingCrossEntropy else None


def place_labels(labels: Tensor, num_classes: int, width: int) -> Tensor:
    """Return where labels (..., S, B) lie in logits (S, C, W) of S heads: int64 (..., S * B), flat."""
    heads, batch = labels.shape[-2:]
    columns = torch.arange(batch, device=labels.device)
    firsts = torch.arange(heads, device=labels.device)[:, None] * num_classes
    return ((firsts + labels) * width + columns).flatten(-2)


def cross_entropy(logits: Tensor, places: Tensor, smoothing: float, batch: int) -> tuple[Tensor, Tensor]:
    """Return the loss of each image and the gradient of each head's mean loss.

    Args:
        logits: (S, C, W) of S heads.
        places: int64 (S * B,), from `place_labels`.
        smoothing: Share of a label that is spread over all classes (Szegedy et al., CVPR 2016), in [0, 1].
        batch: B, the columns that count; those after them are padding.

    Returns:
        Losses (S, B), and gradients (S, C, W) at the logits, both float32.
    """
    log_shares = torch.log_softmax(logits.float(), dim=1)
    losses = log_shares.flatten().index_select(0, places).view(len(logits), batch).neg_()
    # Not torch's softmax: under several threads its rounding depends on how many heads there are.
    gradients = log_shares.exp()
    gradients.view(-1).index_add_(0, places, gradients.new_full((), smoothing - 1).expand_as(places))
    if smoothing:
        # Head by head, for the same reason; on a GPU all slots are there at all times.
        means = (
            torch.stack([part.mean(0) for part in log_shares.unbind()])
            if log_shares.device.type == "cpu"
            else log_shares.mean(1)
        )
        losses = (1 - smoothing) * losses - smoothing * means[:, :batch]
        gradients -= smoothing / logits.shape[1]
    return losses, gradients.div_(batch)


@dataclass(frozen=True, slots=True)
class UpdateRule:
    """What torch's SGD, Adam or AdamW does with gradients, for rows of parameters with a rate each."""

    kind: Literal["sgd", "adam", "adamw"]
    betas: tuple[float, float]
    """Of the moments; SGD's momentum comes first."""
    nesterov: bool = False
    eps: float = 0.0

    @property
    def moments(self) -> int:
        """Return how many numbers a parameter needs beside itself."""
        return int(self.betas[0] > 0) if self.kind == "sgd" else 2

    def factors(
        self, rates: npt.NDArray[np.float64], decays: npt.NDArray[np.float64], first: int
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return what T steps multiply by, each (T, S): the moves with their sign, and the parameters.

        Args:
            rates: (T, S).
            decays: (S,).
            first: Number of the first of these steps, counted from 0.
        """
        shrinking = 1 - rates * decays if self.kind == "adamw" else np.tile(decays, (len(rates), 1))
        if self.kind == "sgd":
            return -rates, shrinking
        step = np.arange(first + 1, first + len(rates) + 1)[:, None]
        # Both corrections of Adam: that of the squares is taken out of the root, and so is on eps too.
        return -rates * self._root_correction(step) / (1 - self.betas[0] ** step), shrinking

    def _root_correction(self, step: Any) -> Any:
        return (1 - self.betas[1] ** step) ** 0.5

    def update(
        self,
        parameters: Tensor,
        gradients: Tensor,
        moments: Sequence[Tensor],
        *,
        moves: Tensor,
        shrinking: Tensor,
        decayed: int,
        step: int,
    ) -> None:
        """Take a step in place; the gradients are used up.

        Args:
            parameters: (S, P) of S heads.
            gradients: (S, P).
            moments: Each (S, P), zeros at first.
            moves: (S, 1), from `factors`.
            shrinking: (S, 1), likewise: AdamW's parameters become so much of themselves, the others'
                gradients get so much of the parameters.
            decayed: How many of the P parameters, from the first, decay.
            step: Counts from 0.
        """
        if self.kind == "adamw":
            parameters[:, :decayed].mul_(shrinking)
        else:
            gradients[:, :decayed].addcmul_(parameters[:, :decayed], shrinking)
        beta, beta_of_squares = self.betas
        if self.kind == "sgd":
            update = gradients
            if moments:
                moments[0].mul_(beta).add_(gradients)
                update = gradients.add_(moments[0], alpha=beta) if self.nesterov else moments[0]
            parameters.addcmul_(update, moves)
            return
        mean, square = moments
        mean.lerp_(gradients, 1 - beta)
        square.mul_(beta_of_squares).addcmul_(gradients, gradients, value=1 - beta_of_squares)
        root = torch.sqrt(square, out=gradients).add_(self.eps * self._root_correction(step + 1))
        parameters.addcmul_(torch.div(mean, root, out=root), moves)


def rule_of(optimizer: Optimizer, weight: Tensor, bias: Tensor | None) -> tuple[UpdateRule | None, float]:
    """Return the rule of an optimizer of one weight and its bias, and the decay of the weight.

    (None, 0.0) where it is not torch's SGD, Adam or AdamW, has other parameters too, decays the bias, is
    hooked, or has an option that the rule lacks.
    """
    unknown = None, 0.0
    if type(optimizer) not in (SGD, Adam, AdamW) or "step" in vars(optimizer):
        return unknown
    hooked = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    groups = [group for group in optimizer.param_groups if group["params"]]
    trained = {id(parameter): group for group in groups for parameter in group["params"]}
    wanted = {id(parameter) for parameter in (weight, bias) if parameter is not None}
    if hooked or set(trained) != wanted or (bias is not None and trained[id(bias)]["weight_decay"]):
        return unknown
    options: list[dict[str, Any]] = [
        {key: value for key, value in group.items() if key not in ("params", "weight_decay", "initial_lr")}
        for group in groups
    ]
    option = options[0]
    if any(other != option for other in options) or not isinstance(option["lr"], float):
        return unknown
    if any(option.get(key) for key in ("dampening", "maximize", "amsgrad", "differentiable", "capturable")):
        return unknown
    decay = float(trained[id(weight)]["weight_decay"])
    if type(optimizer) is SGD:
        rule = UpdateRule("sgd", (float(option["momentum"]), 0.0), nesterov=bool(option["nesterov"]))
        return rule, decay
    kind: Literal["adam", "adamw"] = "adamw" if option["decoupled_weight_decay"] else "adam"
    return UpdateRule(kind, tuple(option["betas"]), eps=float(option["eps"])), decay
