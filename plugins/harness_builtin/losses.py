"""Training losses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from harness import ClassInfo, LossSpec, hookimpl

if TYPE_CHECKING:
    from torch import nn


def build_cross_entropy(classes: ClassInfo) -> nn.Module:
    """Return torch's cross-entropy."""
    from torch import nn

    return nn.CrossEntropyLoss()


def build_label_smoothing(classes: ClassInfo) -> nn.Module:
    """Return cross-entropy with 0.1 label smoothing (Szegedy et al., CVPR 2016)."""
    from timm.loss import LabelSmoothingCrossEntropy

    loss: nn.Module = LabelSmoothingCrossEntropy(smoothing=0.1)
    return loss


def build_focal(classes: ClassInfo) -> nn.Module:
    """Return the softmax focal loss with gamma 2 (Lin et al., ICCV 2017)."""
    import torch
    from torch import Tensor, nn
    from torch.nn import functional

    class FocalLoss(nn.Module):
        def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
            log_true = functional.log_softmax(logits, dim=1).gather(1, labels[:, None]).squeeze(1)
            return -((1 - torch.exp(log_true)) ** 2 * log_true).mean()

    return FocalLoss()


@hookimpl
def harness_losses() -> Iterable[LossSpec]:
    """Yield the losses."""
    yield LossSpec(name="cross-entropy", summary="softmax cross-entropy", build=build_cross_entropy)
    yield LossSpec(
        name="label-smoothing", summary="cross-entropy, 0.1 of each label spread", build=build_label_smoothing
    )
    yield LossSpec(name="focal", summary="focal loss, gamma 2: easy images weigh less", build=build_focal)
