"""Where training gets its batches from.

A source yields what the trainable part of a model reads. Here that is the image itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from harness.data.bank import Bank
from harness.data.views import eval_batch, normalise, train_batch
from harness.specs import InputSpec


class Source(Protocol):
    """Yields batches of (inputs, labels), both on the device."""

    train_size: int

    def train_batches(self, epoch: int, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one epoch, counted from 0, in an order drawn from (seed, epoch)."""

    def eval_batches(self, split: str, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield a split in its fixed order, whole."""


class ImageSource:
    """Batches of images from decoded banks.

    Args:
        banks: Decoded images by split.
        labels: int64 class numbers by split, in the order of the bank's rows.
        policy: Augmentation of one uint8 image.
        policy_name: Enters the hash that draws a view, with `dataset_key`, so that all trials share views.
        dataset_key: The data set's fingerprint.
        inputs: Size and normalisation.
        device: Where batches go.
    """

    def __init__(
        self,
        banks: dict[str, Bank],
        labels: dict[str, torch.Tensor],
        *,
        policy: Callable[[Tensor], Tensor],
        policy_name: str,
        dataset_key: str,
        inputs: InputSpec,
        device: torch.device,
    ) -> None:
        self._banks = banks
        self._labels = labels
        self._policy = policy
        self._policy_name = policy_name
        self._dataset_key = dataset_key
        self._inputs = inputs
        self._device = device
        self.train_size = len(labels["train"])

    def train_batches(self, epoch: int, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield augmented batches; what is left after the last full batch waits for another epoch."""
        order = np.random.default_rng([seed, epoch]).permutation(self.train_size)
        batch_size = min(batch_size, self.train_size)
        for start in range(0, self.train_size - batch_size + 1, batch_size):
            rows = order[start : start + batch_size].tolist()
            images = train_batch(
                self._banks["train"],
                rows,
                view=epoch,
                policy=self._policy,
                policy_name=self._policy_name,
                dataset_key=self._dataset_key,
            )
            yield self._finish(images), self._labels["train"][rows].to(self._device)

    def eval_batches(self, split: str, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield centre crops of a split."""
        labels = self._labels[split]
        for start in range(0, len(labels), batch_size):
            rows = list(range(start, min(start + batch_size, len(labels))))
            images = eval_batch(self._banks[split], rows, self._inputs.size)
            yield self._finish(images), labels[rows].to(self._device)

    def _finish(self, images: Tensor) -> Tensor:
        return normalise(images, self._inputs.mean, self._inputs.std, self._device)
