"""Accuracy, precision, recall and F1, computed from a confusion matrix, and their intervals.

Rows of a confusion matrix are true classes, columns predicted ones. Macro averages run over the classes
with support in the evaluated split; a class that is never predicted has precision 0 and F1 0. This equals
scikit-learn's macro averages over those classes with `zero_division=0`.
"""

from __future__ import annotations

import math
from typing import Any

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
    # Counts of classes are enough: of a thousand classes the matrix has a million cells.
    right = labels[labels == predictions]
    hits, support, predicted = (
        np.bincount(part, minlength=num_classes) for part in (right, labels, predictions)
    )
    present = support > 0
    f1 = 2.0 * hits[present] / (support + predicted)[present]
    return len(right) / len(labels), float(f1.mean())


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
    """Return 95 % bootstrap intervals of accuracy and macro-F1; the point value always lies within."""
    accuracy, f1 = resample_scores(confusion, resamples=resamples, seed=seed)
    _, _, each, point = _scores_of(confusion[None])
    macro = each[0][confusion.sum(axis=1) > 0].mean()
    return {"accuracy": _percentiles(accuracy, float(point[0])), "f1": _percentiles(f1, float(macro))}


def resample_scores(
    confusion: IntArray, *, resamples: int = 2000, seed: int = 0
) -> tuple[FloatArray, FloatArray]:
    """Draw accuracy and macro-F1, each (resamples,), as other images of the same kind would give them.

    Each image counts as often as a Poisson variable of mean 1 says (Hanley and MacGibbon 2006), which on
    many images is resampling with replacement. Anything computed from the confusion matrix then needs one
    Poisson variable for each of its cells, and no image is touched. Two things are put right:

    * Four images are added, two of them right and two wrong, as Agresti and Coull (1998) do for a share:
      else a model without an error in fifty images would have an interval without width.
    * Resampled macro-F1 is too low on average, with ten images a class by more than the width of the
      interval. It is moved to where it would be without. To move it twice, as if macro-F1 of the split were
      as far below that of all images, goes too far: a split has the class counts that it was given, and most
      of the shift comes from counts that vary.
    """
    num_classes = len(confusion)
    total = int(confusion.sum())
    support = confusion.sum(axis=1)
    mass = confusion.astype(np.float64)
    np.fill_diagonal(mass, mass.diagonal() + 2 * support / total)
    cells = np.flatnonzero(mass)
    wrong = 2.0 if num_classes > 1 else 0.0
    generator = np.random.default_rng(seed)
    rows, columns = np.divmod(cells, num_classes)
    right = rows == columns
    by_column = np.argsort(columns, kind="stable")
    # In slices, so that 2,000 draws of 1,000 classes never stand in memory together.
    step = max(1, 4_000_000 // len(cells))
    accuracies, macros = [], []
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn = _draw_poisson(mass.ravel()[cells], count, generator)
        hits = sum_by_class(drawn[right], rows[right], num_classes)
        actual = sum_by_class(drawn, rows, num_classes)
        answered = sum_by_class(drawn[by_column], columns[by_column], num_classes)
        # The added errors: the true class is that of some image, the answered one is any other.
        which = np.repeat(np.arange(count), generator.poisson(wrong, count))
        true = generator.choice(num_classes, size=len(which), p=support / total)
        np.add.at(actual, (true, which), 1)
        other = (true + generator.integers(1, max(2, num_classes), size=len(which))) % num_classes
        np.add.at(answered, (other, which), 1)
        # Of one or two images, none may be drawn.
        accuracies.append(hits.sum(axis=0) / np.maximum(1, actual.sum(axis=0)))
        macros.append(macro_f1(hits, actual, answered))
    accuracy, f1 = np.concatenate(accuracies), np.concatenate(macros)
    # Of the matrix that was drawn from, with the two errors spread as they fall on average.
    spread = wrong * support / total
    among_others = (spread.sum() - spread) / max(1, num_classes - 1)
    expected = macro_f1(
        mass.diagonal()[:, None],
        (mass.sum(axis=1) + spread)[:, None],
        (mass.sum(axis=0) + among_others)[:, None],
    )
    return accuracy, f1 - (f1.mean() - expected[0])


def _draw_poisson(means: FloatArray, count: int, generator: np.random.Generator) -> IntArray:
    """Draw Poisson variables of means (K,) above 0: (K, count).

    Most cells of a confusion matrix hold one of a few small numbers. A table for each number, looked up by
    what is drawn evenly, takes half the time of drawing one variable after the other.
    """
    drawn = np.empty((len(means), count), dtype=np.int64)
    for mean in np.unique(means):
        values = np.arange(int(mean + 10 * math.sqrt(mean) + 20))
        log_factorial = np.cumsum(np.log(np.maximum(1, values)))
        cumulative = np.cumsum(np.exp(values * math.log(mean) - mean - log_factorial))
        which = np.flatnonzero(means == mean)
        drawn[which] = np.searchsorted(cumulative, generator.random((len(which), count)), side="right")
    return drawn


def sum_by_class(rows: npt.NDArray[Any], classes: IntArray, num_classes: int) -> IntArray:
    """Add the rows of (K, B) that belong to one class, which stand together: (C, B).

    They are added in their own type, which has to hold the sums.
    """
    sums = np.zeros((num_classes, rows.shape[1]), dtype=np.int64)
    found, starts = np.unique(classes, return_index=True)
    # `np.add.reduceat` says the same, and takes ten times as long along this axis.
    for number, start, end in zip(found, starts, np.append(starts, len(rows))[1:], strict=True):
        sums[number] = np.add.reduce(rows[start:end], axis=0, dtype=rows.dtype)
    return sums


def macro_f1(
    hits: IntArray | FloatArray, actual: IntArray | FloatArray, answered: IntArray | FloatArray
) -> FloatArray:
    """Macro-F1, (B,), over the classes with support, of counts (C, B); 0 where there is none."""
    present = actual > 0
    f1 = np.divide(2.0 * hits, actual + answered, out=np.zeros(hits.shape), where=present)
    macro: FloatArray = f1.sum(axis=0) / np.maximum(1, present.sum(axis=0))
    return macro


def _percentiles(values: FloatArray, point: float) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return max(0.0, min(float(low), point)), min(1.0, max(float(high), point))


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
