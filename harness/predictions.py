"""Predictions as stored: what a training answered, image by image. Scores are computed from them alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from harness.documents import file_sha256
from harness.errors import StorageError

FILE = "predictions.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """What a training answered for the images of one split, in the order of the split."""

    probabilities: npt.NDArray[np.float32]
    """Of each class: (N, C), rows sum to 1."""
    labels: npt.NDArray[np.int64]
    """True classes: (N,)."""
    images: npt.NDArray[np.uint8]
    """SHA-256 of each image's content: (N, 32)."""

    @property
    def chosen(self) -> npt.NDArray[np.int64]:
        """Return the class answered for each image: (N,)."""
        chosen: npt.NDArray[np.int64] = self.probabilities.argmax(axis=1)
        return chosen


def write_predictions(folder: Path, predictions: Mapping[str, Predictions]) -> dict[str, str]:
    """Store predictions by split and return the name of the file by its SHA-256, as a record holds them."""
    tensors: dict[str, npt.NDArray[Any]] = {}
    for split, part in predictions.items():
        tensors[f"{split}.probabilities"] = part.probabilities
        tensors[f"{split}.labels"] = part.labels
        tensors[f"{split}.images"] = part.images
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    safetensors.numpy.save_file(tensors, str(path))
    return {path.name: file_sha256(path)}


def read_predictions(folder: Path, expected: Mapping[str, str]) -> dict[str, Predictions]:
    """Read the predictions of a training, by split.

    Args:
        folder: Of its record.
        expected: SHA-256 of the file by its name, as the record holds them.

    Raises:
        StorageError: They are missing, or not those of the record.
    """
    path = folder / FILE
    try:
        found = file_sha256(path)
        if found != expected.get(FILE):
            raise StorageError("predictions are not those of their record", where=str(path))
        tensors = safetensors.numpy.load_file(str(path))
        return {
            split: Predictions(
                probabilities=tensors[f"{split}.probabilities"],
                labels=tensors[f"{split}.labels"],
                images=tensors[f"{split}.images"],
            )
            for split in sorted({name.partition(".")[0] for name in tensors})
        }
    except (OSError, KeyError, safetensors.SafetensorError) as error:
        raise StorageError("predictions cannot be read", where=str(path), why=str(error)) from error
