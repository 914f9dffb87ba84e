"""Where training gets its batches from: what the trainable part of a model reads.

That is what crosses the model's cut, stored or computed on the spot, and the image where nothing is frozen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from harness.data.bank import Bank
from harness.data.resident import ResidentBank, read_policies
from harness.data.views import Augmentation, eval_batch, normalise, send, train_batch
from harness.documents import digest
from harness.specs import InputSpec

Batch: TypeAlias = tuple[list[Tensor], Tensor]
"""Inputs, images first, and labels; all on the device."""

_COMPARED = 8
"""Images that are made in both ways before batches are made on the device."""


class Images:
    """Images of decoded banks, as the whole model reads them.

    Args:
        banks: Decoded images by split.
        labels: int64 class numbers by split, in the order of the bank's rows.
        augmentation: Of the training images.
        policy_key: Names its policy and who provides it, in which version.
        inputs: Size and normalisation.
        device: Where batches go.
        layout: Of batches in memory.
        keep: Returns the images of a split in the memory of the device, made when they are first wanted; None
            where there is no room for them.
    """

    def __init__(
        self,
        banks: dict[str, Bank],
        labels: dict[str, Tensor],
        *,
        augmentation: Augmentation,
        policy_key: str,
        inputs: InputSpec,
        device: torch.device,
        layout: torch.memory_format = torch.contiguous_format,
        keep: Callable[[str], ResidentBank | None] = lambda split: None,
    ) -> None:
        self.labels = labels
        self.device = device
        self._banks = banks
        self._augmentation = augmentation
        self._policy_key = policy_key
        self._inputs = inputs
        self.layout = layout
        self._keep = keep
        self._resident: dict[str, ResidentBank | None] = {}

    def view(self, epoch: int) -> int:
        """Return which view of the training images an epoch, counted from 0, shows."""
        return epoch % self.views(epoch + 1)

    def views(self, epochs: int) -> int:
        """Return how many views of the training images so many epochs show."""
        return min(epochs, self._augmentation.views or epochs)

    @property
    def views_recur(self) -> bool:
        """Whether there are a few views of the training images, that come in turn."""
        return self._augmentation.views is not None

    def key(self, split: str, view: int) -> str:
        """Name the pixels that `fetch` gives, in the order of the rows."""
        augmentation = self._augmentation
        drawn = [augmentation.name, self._policy_key, augmentation.dataset_key, view]
        made = drawn if split == "train" else []
        return digest([self._banks[split].content, dataclasses.asdict(self._inputs), made])

    @property
    def place(self) -> str:
        """Where batches of training images were made: on the `device`, on the `host`, or not at all."""
        return "" if "train" not in self._resident else "device" if self._resident["train"] else "host"

    def fetch(self, split: str, view: int, rows: Sequence[int]) -> list[Tensor]:
        """Return some images: (N, 3, S, S), augmented in the training split, centre crops in the others."""
        if split not in self._resident:
            self._resident[split] = self._proven(split, view, rows)
        resident = self._resident[split]
        pixels = None if resident is None else self._cut(resident, split, view, rows)
        if pixels is None:
            pixels = send(self._draw(split, view, rows), self.device)
        return [normalise(pixels, self._inputs.mean, self._inputs.std, self.layout)]

    def _proven(self, split: str, view: int, rows: Sequence[int]) -> ResidentBank | None:
        """Return the images of a split on the device, if batches made there have the same pixels."""
        if split == "train" and read_policies(self._augmentation) is None:
            return None
        try:
            resident = self._keep(split)
        except torch.OutOfMemoryError:
            # Others have taken the room meanwhile.
            return None
        if resident is None:
            return None
        some = list(rows)[:_COMPARED]
        found = self._cut(resident, split, view, some)
        same = found is not None and torch.equal(found.cpu(), self._draw(split, view, some))
        return resident if same else None

    def _cut(self, resident: ResidentBank, split: str, view: int, rows: Sequence[int]) -> Tensor | None:
        """Make images on the device; None where the policy cannot be run there."""
        if split != "train":
            return resident.eval_batch(rows, self._inputs.size)
        return resident.train_batch(rows, view, self._augmentation)

    def _draw(self, split: str, view: int, rows: Sequence[int]) -> Tensor:
        """Make images on the CPU, one by one."""
        if split != "train":
            return eval_batch(self._banks[split], rows, self._inputs.size)
        return train_batch(self._banks[split], rows, view, self._augmentation)


class Reader(Protocol):
    """Gives what some rows of a split bring to the trainable part of a model."""

    def fetch(self, split: str, view: int, rows: Sequence[int]) -> list[Tensor]:
        """Return tensors with one entry a row, on the device."""


class Source:
    """Batches of a data set in the order of one training.

    Args:
        images: Says which labels and views there are.
        reader: Gives the inputs: `images`, or what a frozen prefix makes of them.
    """

    def __init__(self, images: Images, reader: Reader) -> None:
        self._images = images
        self._reader = reader
        self.train_size = len(images.labels["train"])

    def train_batches(self, epoch: int, batch_size: int, seed: int) -> Iterator[Batch]:
        """Yield one epoch, counted from 0, in an order drawn from (seed, epoch).

        What is left after the last full batch waits for another epoch.
        """
        order = np.random.default_rng([seed, epoch]).permutation(self.train_size)
        batch_size = min(batch_size, self.train_size)
        for start in range(0, self.train_size - batch_size + 1, batch_size):
            rows = order[start : start + batch_size].tolist()
            yield self._batch("train", self._images.view(epoch), rows)

    def eval_batches(self, split: str, batch_size: int) -> Iterator[Batch]:
        """Yield a split in its fixed order, whole."""
        size = len(self._images.labels[split])
        for start in range(0, size, batch_size):
            yield self._batch(split, 0, range(start, min(start + batch_size, size)))

    def _batch(self, split: str, view: int, rows: Sequence[int]) -> Batch:
        labels = send(self._images.labels[split][list(rows)], self._images.device)
        return self._reader.fetch(split, view, rows), labels
