"""Use a finalist: classify images exactly as its test split was classified."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import Tensor

from harness.data.bank import centre_crop, prepare, short_side
from harness.data.decode import DECODE, decode
from harness.data.views import normalise, send
from harness.engine.backbone import build_backbone
from harness.engine.device import choose_device, chosen_kernels
from harness.engine.layout import lay_out, layout_of
from harness.engine.precision import autocast
from harness.errors import DataError, PluginError, StorageError
from harness.registry import Registry
from harness.specs import InputSpec

Answer: TypeAlias = npt.NDArray[np.float32] | DataError
"""Probabilities of an image's classes, shape (C,), or why it is no image."""


def predict(
    weights: Path,
    images: Sequence[Path],
    *,
    registry: Registry,
    backbone: str,
    num_classes: int,
    inputs: InputSpec,
    decode_recipe: str,
    batch_size: int,
    precision: str,
    device: str = "auto",
) -> Iterator[Answer]:
    """Return an iterator over the answers to image files, in their order, as their batches are through.

    A file that is no image is in no batch: the others are answered as if it had not been there.

    Args:
        weights: A finalist's `model.safetensors`.
        images: Files.
        registry: Provides the backbone.
        backbone: Its name.
        num_classes: C.
        inputs: Size and normalisation it was trained with.
        decode_recipe: How its images were decoded.
        batch_size: That of its training: another one changes the last bits.
        precision: That of its training.
        device: Where to run.

    Raises:
        StorageError: The weights do not fit the backbone.
        PluginError: This version decodes images in another way, or the backbone cannot be built.
    """
    if decode_recipe != DECODE:
        raise PluginError(
            f"the model wants images decoded by {decode_recipe!r}, this version decodes by {DECODE!r}",
            fixes=["use the version of transfer-harness that its card names"],
        )
    target = choose_device(device)
    model = build_backbone(registry.backbones.get(backbone), num_classes, None, inputs.size)
    try:
        safetensors.torch.load_model(model, str(weights), strict=True)
    except (RuntimeError, safetensors.SafetensorError) as error:
        raise StorageError(
            f"the weights do not fit backbone {backbone!r}",
            where=str(weights),
            why=str(error).splitlines()[0],
            fixes=["install the versions that the card names"],
        ) from error
    lay_out(model.eval(), inputs.size, target)
    model.to(target)
    layout = layout_of(model)
    resize = short_side(inputs.size, inputs.crop)

    def read(path: Path) -> Tensor | DataError:
        try:
            pixels = prepare(decode(path, str(path)), resize, inputs.interpolation)
        except DataError as error:
            return error
        return centre_crop(pixels, inputs.size)

    def classify(batch: list[Tensor]) -> npt.NDArray[np.float32]:
        images = send(torch.stack(batch), target)
        with (
            torch.inference_mode(),
            chosen_kernels(target, deterministic=False),
            autocast(precision, target),
        ):
            logits = model(normalise(images, inputs.mean, inputs.std, layout))
            return torch.softmax(logits.float(), dim=1).cpu().numpy()

    return _answer(_read_ahead(read, images, 2 * batch_size), classify, batch_size)


def _answer(
    images: Iterator[Tensor | DataError],
    classify: Callable[[list[Tensor]], npt.NDArray[np.float32]],
    batch_size: int,
) -> Iterator[Answer]:
    """Classify images in whole batches, and answer them and what lies between them in order."""
    batch: list[Tensor] = []
    errors: dict[int, DataError] = {}

    def answers() -> Iterator[Answer]:
        rows = iter(classify(batch) if batch else ())
        for place in range(len(batch) + len(errors)):
            yield errors[place] if place in errors else next(rows)
        batch.clear()
        errors.clear()

    for image in images:
        if isinstance(image, DataError):
            errors[len(batch) + len(errors)] = image
        else:
            batch.append(image)
        if len(batch) == batch_size:
            yield from answers()
    yield from answers()


def _read_ahead(
    read: Callable[[Path], Tensor | DataError], paths: Sequence[Path], ahead: int
) -> Iterator[Tensor | DataError]:
    """Read files in threads, in order, and no more than some of them ahead of their use."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reading: deque[Future[Tensor | DataError]] = deque()
        for path in paths:
            reading.append(pool.submit(read, path))
            if len(reading) == ahead:
                yield reading.popleft().result()
        while reading:
            yield reading.popleft().result()
