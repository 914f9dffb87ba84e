"""What becomes of a training: scores from the predictions that are saved, or the reason of its failure."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Mapping, Sequence

import numpy as np
import safetensors
import torch

from harness import metrics
from harness.data.manifest import Item
from harness.engine.fit import DivergedError, Prediction, is_out_of_memory
from harness.engine.job import TrialJob, TrialOutcome
from harness.errors import DataError, HarnessError, StorageError, WeightsError
from harness.isolation import component_of
from harness.predictions import Predictions, write_predictions
from harness.records import CostRecord, EpochRecord

_DISK_ERRORS = {errno.ENOSPC, errno.EROFS, errno.EIO, getattr(errno, "EDQUOT", errno.ENOSPC)}


def succeed(
    job: TrialJob,
    predictions: Mapping[str, Prediction],
    items: Mapping[str, Sequence[Item]],
    *,
    curve: Sequence[EpochRecord],
    pruned: bool,
    cost: CostRecord,
    num_classes: int,
    environment: Mapping[str, str],
    model: str,
) -> TrialOutcome:
    """Save the predictions of each split, and score each from what is saved."""
    answers = {}
    for split, (probabilities, labels) in predictions.items():
        digests = [list(bytes.fromhex(item.sha256)) for item in items[split]]
        images = np.array(digests, dtype=np.uint8)
        answers[split] = Predictions(probabilities=probabilities, labels=labels, images=images)
    return TrialOutcome(
        state="pruned" if pruned else "complete",
        reason=f"pruned at epoch {len(curve)} of {job.config.epochs}" if pruned else "",
        scores={
            split: metrics.evaluate(part.labels, part.chosen, num_classes) for split, part in answers.items()
        },
        curve=tuple(curve),
        cost=cost,
        predictions=write_predictions(job.folder, answers),
        model=model,
        environment=environment,
    )


def fail(
    error: Exception, job: TrialJob, *, curve: Sequence[EpochRecord], environment: Mapping[str, str]
) -> TrialOutcome:
    """Return what an error makes of a training.

    Raises:
        StorageError, DataError, WeightsError: The machine or its files failed, not the training.
    """
    raise_if_machine_failed(error, job)
    detail = ""
    if isinstance(error, DivergedError):
        reason = f"nan: {error}"
    elif is_out_of_memory(error):
        reason = f"oom: batch {job.config.batch_size} at {job.config.image_size} px: {say_in_a_line(error)}"
    else:
        reason = f"error: {say_in_a_line(error)}"
        detail = "".join(traceback.format_exception(error))
    return TrialOutcome(
        state="failed",
        reason=reason,
        detail=_encodable(detail),
        curve=tuple(curve),
        environment=environment,
    )


def raise_if_machine_failed(error: Exception, job: TrialJob) -> None:
    """Raise what is worth trying again once the machine is repaired, or in another process.

    Raises:
        StorageError, DataError, WeightsError: The error itself, or what an error of the disk means.
        torch.AcceleratorError: The error itself.
    """
    if isinstance(error, StorageError | DataError | WeightsError | torch.AcceleratorError):
        # A checkpoint that does not fit fits no other trial. After an error of a GPU its process can do
        # nothing more; the next trial needs another.
        raise error
    disk = isinstance(error, OSError) and error.errno in _DISK_ERRORS
    if disk or isinstance(error, safetensors.SafetensorError):
        raise StorageError(
            "a trial's files cannot be read or written",
            where=str(job.folder),
            why=say_in_a_line(error),
            fixes=["free disk space", "repair the disk, then run the same command again"],
        ) from error


def say_in_a_line(error: Exception) -> str:
    """Return what an error says, and why; before it the component that raised it, where that is known."""
    if isinstance(error, HarnessError):
        said = [error.what, *error.why.splitlines()[:1]]
    else:
        said = [type(error).__name__, *str(error).strip().splitlines()[:1]]
    return _encodable(": ".join(part for part in (component_of(error), *said) if part))


def _encodable(text: str) -> str:
    """Return text that a file can hold: an error's message may carry half of a character."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
