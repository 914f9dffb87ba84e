"""Use a finalist: classify images exactly as its test split was classified."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch

from harness.data.bank import centre_crop, prepare, short_side
from harness.data.decode import DECODE, decode
from harness.data.views import normalise, send
from harness.engine.device import choose_device, chosen_kernels
from harness.engine.layout import lay_out, layout_of
from harness.engine.precision import autocast
from harness.errors import PluginError, StorageError
from harness.registry import Registry
from harness.specs import InputSpec


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
) -> npt.NDArray[np.float32]:
    """Return class probabilities, shape (N, C), of image files.

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
        DataError: A file is no image.
        StorageError: The weights do not fit the backbone.
        PluginError: This version decodes images in another way.
    """
    if decode_recipe != DECODE:
        raise PluginError(
            f"the model wants images decoded by {decode_recipe!r}, this version decodes by {DECODE!r}",
            fixes=["use the version of transfer-harness that its card names"],
        )
    target = choose_device(device)
    model = registry.backbones.get(backbone).spec.build(num_classes, None, inputs.size)
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
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = torch.stack(
                [
                    centre_crop(prepare(decode(path, str(path)), resize, inputs.interpolation), inputs.size)
                    for path in images[start : start + batch_size]
                ]
            )
            with chosen_kernels(target, deterministic=False), autocast(precision, target):
                logits = model(normalise(send(batch, target), inputs.mean, inputs.std, layout))
            parts.append(torch.softmax(logits.float(), dim=1).cpu().numpy())
    return np.concatenate(parts)
