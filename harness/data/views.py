"""What a network sees of a bank: seeded augmented views for training, centre crops for evaluation."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from harness.data.bank import Bank, centre_crop
from harness.data.manifest import Item
from harness.errors import PluginError
from harness.specs import Policy

_PINNED = 2**26
"""Bytes of a tensor, at most, that goes to a GPU through memory that cannot be swapped: torch keeps that
memory, rounded up to a power of two."""


class Augmentation:
    """What a policy makes of the images of a data set.

    Random numbers are drawn from (policy, data set, image, view) and nothing else, so a view is the same in
    any batch, order, process and trial.

    Where the views can be counted, an image gets them in turn and begins with one that is drawn for it: of
    two, an image and its mirror image, each epoch shows a half of the images mirrored, and the next one the
    other half (the alternating flip of Jordan, 2024, arXiv:2404.00498, section 3.6). So each is seen equally
    often, and a frozen prefix has two views to run over, not one an epoch.

    Args:
        name: Of the policy.
        built: What its `AugmentationSpec.build` returned.
        dataset_key: Fingerprint of the data set.

    Raises:
        PluginError: It is neither a function nor a tuple of some.
    """

    def __init__(self, name: str, built: Policy | tuple[Policy, ...], dataset_key: str) -> None:
        self.name = name
        self.dataset_key = dataset_key
        self._draws = not isinstance(built, tuple)
        self.policies: tuple[Policy, ...] = built if isinstance(built, tuple) else (built,)
        if not self.policies or not all(map(callable, self.policies)):
            raise PluginError(
                f"augmentation {name!r} cannot be used",
                why=f"build returned {built!r}"[:200],
                fixes=["return a function of an image, or a tuple of at least one"],
            )

    @property
    def views(self) -> int | None:
        """How many views of an image there are; None if each epoch has its own."""
        return None if self._draws else len(self.policies)

    def choose(self, item: Item, view: int) -> int:
        """Return which of the `policies` makes a view of an image; seed what it draws from."""
        if self._draws:
            seed = self._hash(item, view)
            # Not torch.manual_seed: it also reaches for every GPU.
            torch.default_generator.manual_seed(seed)
            np.random.seed(seed & 0xFFFFFFFF)
            random.seed(seed)
            return 0
        count = len(self.policies)
        return (self._hash(item, 0) + view) % count if count > 1 else 0

    def _hash(self, item: Item, view: int) -> int:
        parts = self.name, self.dataset_key, item.id, item.sha256, view
        text = "\0".join(str(part) for part in parts)
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def train_batch(bank: Bank, rows: Sequence[int], view: int, augmentation: Augmentation) -> Tensor:
    """Augment some images of a bank; the global generators are left as they were.

    Args:
        bank: Decoded images.
        rows: Which of them.
        view: Number of the view; the epoch, say.
        augmentation: Of these images.

    Returns:
        uint8 (N, 3, S, S), contiguous.

    Raises:
        PluginError: The policy fails, or returns another type or shape.
    """
    views: list[Tensor] = []
    with kept_generators():
        for row in rows:
            item = bank.items[row]
            policy = augmentation.policies[augmentation.choose(item, view)]
            image = bank.image(row)
            try:
                result = policy(image)
            except Exception as error:
                text = str(error).partition("\n")[0]
                raise PluginError(
                    f"augmentation {augmentation.name!r} fails on an image of shape {tuple(image.shape)}",
                    where=item.id,
                    why=f"{type(error).__name__}: {text}",
                ) from error
            _check(result, views[0] if views else None, augmentation.name, item.id)
            views.append(result)
    return torch.stack(views)


def eval_batch(bank: Bank, rows: Sequence[int], size: int) -> Tensor:
    """Return centre crops of some images of a bank: uint8 (N, 3, size, size), contiguous."""
    return torch.stack([centre_crop(bank.image(row), size).contiguous() for row in rows])


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; on a GPU before the copy has ended, which its later work waits for."""
    if device.type == "cuda" and tensor.device.type == "cpu" and tensor.nbytes <= _PINNED:
        # From memory that can be swapped the copy would wait for all that the GPU still has to do.
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def normalise(
    batch: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    layout: torch.memory_format = torch.preserve_format,
) -> Tensor:
    """Return `(batch / 255 - mean) / std`, computed in float32 on the batch's device.

    Args:
        batch: uint8 (N, 3, S, S).
        mean: Of each channel, in [0, 1].
        std: Of each channel, above 0.
        layout: Of the result in memory.

    Returns:
        float32 (N, 3, S, S).
    """
    values = batch.to(torch.float32, memory_format=layout)
    shift = send(torch.tensor(mean).view(3, 1, 1), batch.device)
    scale = send(torch.tensor(std).view(3, 1, 1), batch.device)
    return values.div_(255).sub_(shift).div_(scale)


@contextmanager
def kept_generators() -> Iterator[None]:
    """Leave the global generators of a CPU as they were."""
    of_torch, of_numpy, of_python = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(of_torch)
        np.random.set_state(of_numpy)
        random.setstate(of_python)


def _check(result: object, first: Tensor | None, policy_name: str, where: str) -> None:
    if not isinstance(result, Tensor):
        found = f"returns {type(result).__name__}"
    elif result.dtype != torch.uint8:
        found = f"returns {result.dtype}"
    elif result.ndim != 3 or result.shape[0] != 3 or result.shape[1] != result.shape[2]:
        found = f"returns shape {tuple(result.shape)}"
    elif first is not None and result.shape != first.shape:
        found = f"returns shape {tuple(result.shape)} after {tuple(first.shape)}"
    else:
        return
    raise PluginError(
        f"augmentation {policy_name!r} {found}", where=where, why="it must return uint8 (3, size, size)"
    )
