"""Accuracy, precision, recall and F1, computed from a confusion matrix, and their intervals.

Rows of a confusion matrix are true classes, columns predicted ones. Macro averages run over the classes
with support in the evaluated split; a class that is never predicted has precision 0 and F1 0. This equals
scikit-learn's macro averages over those classes with `zero_division=0`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from harness.records import ClassScores, Scores

DEFINITION = "macro-over-supported/1"
"""Names the definitions above in a record's protocol: a change of meaning changes this."""

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


def confusion_matrix(labels: IntArray, predictions: IntArray, num_classes: int) -> IntArray:
    """Count pairs of true and predicted class as an int64 array of shape (C, C)."""
    flat = labels.astype(np.int64) * num_classes + predictions.astype(np.int64)
    return np.bincount(flat, minlength=num_classes**2).reshape(num_classes, num_classes)


def point_scores(labels: IntArray, predictions: IntArray, num_classes: int) -> tuple[float, float]:
    """Return accuracy and macro-F1 without intervals, for a learning curve."""
    confusion = confusion_matrix(labels, predictions, num_classes)
    _, _, f1, accuracy = _scores_of(confusion[None])
    return float(accuracy[0]), float(f1[0][confusion.sum(axis=1) > 0].mean())


def evaluate(labels: IntArray, predictions: IntArray, num_classes: int, *, seed: int = 0) -> Scores:
    """Compute all scores of one split.

    Args:
        labels: True classes, shape (N,), values in [0, num_classes).
        predictions: Predicted classes, same shape and range.
        num_classes: C.
        seed: Seeds the bootstrap.

    Returns:
        Point values and 95 % intervals, all in [0, 1].
    """
    confusion = confusion_matrix(labels, predictions, num_classes)
    precision, recall, f1, accuracy = (part[0] for part in _scores_of(confusion[None]))
    support = confusion.sum(axis=1)
    present = support > 0
    intervals = bootstrap_intervals(confusion, seed=seed)
    return Scores(
        n=int(confusion.sum()),
        accuracy=float(accuracy),
        precision=float(precision[present].mean()),
        recall=float(recall[present].mean()),
        f1=float(f1[present].mean()),
        accuracy_interval=intervals["accuracy"],
        f1_interval=intervals["f1"],
        per_class=ClassScores(
            precision=tuple(precision.tolist()),
            recall=tuple(recall.tolist()),
            f1=tuple(f1.tolist()),
            support=tuple(support.tolist()),
        ),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
    )


def bootstrap_intervals(
    confusion: IntArray, *, resamples: int = 2000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Return 95 % percentile intervals of accuracy and macro-F1.

    Resampling images with replacement is, for anything computed from the confusion matrix, the same as
    drawing its cells from a multinomial; so no image is touched.
    """
    num_classes = len(confusion)
    total = int(confusion.sum())
    cells = np.flatnonzero(confusion)
    share = confusion.ravel()[cells] / total
    drawn = np.random.default_rng(seed).multinomial(total, share, size=resamples)
    accuracies, macros = [], []
    # In slices, so that 2,000 matrices of 1,000 classes never stand in memory together.
    step = max(1, 4_000_000 // num_classes**2)
    for start in range(0, resamples, step):
        part = drawn[start : start + step]
        flat = np.zeros((len(part), num_classes * num_classes), dtype=np.int64)
        flat[:, cells] = part
        matrices = flat.reshape(-1, num_classes, num_classes)
        _, _, f1, accuracy = _scores_of(matrices)
        present = matrices.sum(axis=2) > 0
        accuracies.append(accuracy)
        macros.append((f1 * present).sum(axis=1) / present.sum(axis=1))
    return {
        "accuracy": _percentiles(np.concatenate(accuracies)),
        "f1": _percentiles(np.concatenate(macros)),
    }


def _percentiles(values: FloatArray) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _scores_of(confusion: IntArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Precision, recall, F1 of shape (B, C) and accuracy of shape (B,) for matrices (B, C, C)."""
    hits = np.diagonal(confusion, axis1=1, axis2=2).astype(np.float64)
    support = confusion.sum(axis=2)
    predicted = confusion.sum(axis=1)
    precision = np.divide(hits, predicted, out=np.zeros_like(hits), where=predicted > 0)
    recall = np.divide(hits, support, out=np.zeros_like(hits), where=support > 0)
    both = support + predicted
    f1 = np.divide(2 * hits, both, out=np.zeros_like(hits), where=both > 0)
    return precision, recall, f1, hits.sum(axis=1) / confusion.sum(axis=(1, 2))
