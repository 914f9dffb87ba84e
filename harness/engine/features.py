"""Feature vectors of images, for what needs no more of a frozen backbone: linear heads and probes."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from harness.data.views import send
from harness.engine.prefix import Prefix
from harness.engine.source import Images


class Features:
    """What crosses the cut of a model of which only a linear head trains.

    Args:
        images: Says which labels and views there are.
        prefix: Computes the features, or reads them from the store.
        claim: Says whether so many bytes may stay on the device for the length of the training.
    """

    def __init__(self, images: Images, prefix: Prefix, claim: Callable[[int], bool]) -> None:
        self._images = images
        self._prefix = prefix
        self._train: dict[int, Tensor] = {}
        self._splits: dict[str, Tensor] = {}
        self._claim = claim
        self._keeps_views = images.views_recur
        self._claimed: dict[tuple[str, int], bool] = {}
        self.train_size = len(images.labels["train"])

    def train(self, epoch: int) -> Tensor:
        """Return features (N, D) of the training images as augmented in an epoch, counted from 0."""
        view = self._images.view(epoch)
        if view not in self._train:
            if not self._keeps_views:
                # Not two at a time.
                self._train.clear()
            self._train[view] = self._read("train", view)
        return self._train[view]

    def split(self, name: str) -> Tensor:
        """Return features (N, D) of a split that is not augmented."""
        if name not in self._splits:
            self._splits[name] = self._read(name, 0)
        return self._splits[name]

    def labels(self, name: str) -> Tensor:
        """Return int64 class numbers (N,) of a split."""
        return self._images.labels[name]

    def _read(self, split: str, view: int) -> Tensor:
        (rows,) = self._prefix.fetch_all(split, view)
        rows = rows.flatten(1)
        if rows.device == self._images.device:
            # Nothing has been set aside for what was computed there.
            if split == "train" and self._keeps_views and rows.device.type != "cpu":
                self._keeps_views = self._claim(rows.nbytes)
            return rows
        # What does not fit stays a mapped file, of which each epoch sends a copy.
        place = split, view if self._images.views_recur else 0
        if place not in self._claimed:
            self._claimed[place] = self._claim(rows.nbytes)
        return send(rows, self._images.device) if self._claimed[place] else rows
