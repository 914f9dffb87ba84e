"""Simulate leaderboards: how often intervals cover the truth, and how often equal models are ranked apart.

Prints Markdown. Scale all counts of repetitions with the argument.

usage: board_statistics.py [SCALE]
"""

from __future__ import annotations

import math
import sys
import time

import numpy as np

from harness.leaderboard.statistics import Bootstrap, Sample
from harness.metrics import bootstrap_intervals, confusion_matrix, point_scores

RESAMPLES = 600
SETTINGS = (  # classes, images, accuracy, images of the largest class for one of the smallest
    (2, 100, 0.95, 1),
    (3, 60, 0.90, 1),
    (3, 300, 0.95, 10),
    (10, 200, 0.80, 10),
    (10, 1000, 0.90, 1),
    (37, 370, 0.90, 1),
    (102, 1020, 0.60, 1),
    (102, 1020, 0.90, 1),
    (102, 6149, 0.90, 10),
)


def population(classes, images, accuracy, imbalance, generator):
    """Images of each class, and shares of true and answered class."""
    share = np.exp(-np.linspace(0, math.log(imbalance), classes))
    support = np.maximum(2, np.round(images * share / share.sum())).astype(int)
    right = generator.beta(20 * accuracy, 20 * (1 - accuracy), classes)
    right = np.clip(right + accuracy - (support * right).sum() / support.sum(), 0.02, 0.998)
    shares = np.stack([(1 - part) * generator.dirichlet(np.full(classes, 0.3)) for part in right])
    np.fill_diagonal(shares, 0)
    shares *= ((1 - right) / shares.sum(axis=1))[:, None]
    np.fill_diagonal(shares, right)
    return support, shares * (support / support.sum())[:, None]


def plain(matrix, generator):
    """Percentiles of resampled cells, without corrections, as a baseline."""
    total, classes = matrix.sum(), len(matrix)
    cells = np.flatnonzero(matrix)
    drawn = generator.multinomial(total, matrix.ravel()[cells] / total, size=RESAMPLES).astype(float)
    rows, columns = (np.eye(classes)[index] for index in np.divmod(cells, classes))
    support = drawn @ rows
    f1 = 2 * (drawn @ (rows * columns)) / np.maximum(1, support + drawn @ columns)
    return np.percentile(f1.sum(axis=1) / (support > 0).sum(axis=1), [2.5, 97.5])


def coverage(scale, generator):
    print("## Intervals\n")
    print(
        "Share of test sets whose 95 % interval holds the score on all images of the kind. A new model and a"
    )
    print("new test set each time; the images of each class are as many as the split has.\n")
    print("| classes | images | accuracy | imbalance | accuracy | macro-F1 | plain percentiles | test sets |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for classes, images, accuracy, imbalance in SETTINGS:
        repetitions = int(scale * 1000)
        covered = {"accuracy": 0, "f1": 0, "plain": 0}
        for seed in range(repetitions):
            support, shares = population(classes, images, accuracy, imbalance, generator)
            hits = shares.diagonal()
            truth = {
                "accuracy": hits.sum(),
                "f1": (2 * hits / (shares.sum(axis=0) + shares.sum(axis=1))).mean(),
            }
            matrix = np.stack(
                [
                    generator.multinomial(count, part / part.sum())
                    for count, part in zip(support, shares, strict=True)
                ]
            )
            intervals = bootstrap_intervals(matrix, resamples=RESAMPLES, seed=seed)
            if seed % 2 == 0:
                intervals["plain"] = plain(matrix, generator)
            truth["plain"] = truth["f1"]
            for name, (low, high) in intervals.items():
                covered[name] += low <= truth[name] <= high
        accurate, macro = (covered[name] / repetitions for name in ("accuracy", "f1"))
        plainly = covered["plain"] / len(range(0, repetitions, 2))
        print(
            f"| {classes} | {images} | {accuracy:.2f} | {imbalance} | {accurate:.1%} | {macro:.1%} |"
            f" {plainly:.1%} | {repetitions} |",
            flush=True,
        )
    print()


def answers(labels, hard, accuracy, classes, generator):
    """Answer images of which some are harder than others for every model."""
    noise = math.sqrt(0.7) * hard + math.sqrt(0.3) * generator.standard_normal(len(labels))
    # The quantile of the normal distribution, by bisection of its distribution function.
    low, high = -6.0, 6.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if math.erf(middle / math.sqrt(2)) < 2 * accuracy - 1 else (low, middle)
    other = (labels + generator.integers(1, classes, len(labels))) % classes
    return np.where(noise < low, labels, other)


def run(labels, hard, accuracy, seeds, spread, classes, generator):
    chosen = []
    for _ in range(seeds):
        real = float(np.clip(accuracy + spread * generator.standard_normal(), 0.02, 0.995))
        chosen.append(answers(labels, hard, real, classes, generator))
    points = [point_scores(labels, one, classes) for one in chosen]
    return Sample(
        scores={"accuracy": np.array([a for a, _ in points]), "f1": np.array([f for _, f in points])},
        confusions=tuple(confusion_matrix(labels, one, classes) for one in chosen),
        labels=labels,
        chosen=tuple(chosen),
    )


def without_answers(sample):
    return Sample(scores=sample.scores, confusions=sample.confusions)


def two_level(images, one, other, generator):
    """Tell runs apart by resampling images and, S - 1 out of S, seeds, as a baseline."""

    def drawn(sample):
        each = np.stack([images.scores(chosen, "f1") for chosen in sample.chosen])
        if len(each) == 1:
            return each[0]
        which = generator.integers(0, len(each), (len(each) - 1, each.shape[1]))
        return np.take_along_axis(each, which, axis=0).mean(axis=0)

    low, high = np.percentile(drawn(one) - drawn(other), [2.5, 97.5])
    return not low <= 0 <= high


def apart(scale, generator):
    print("## Equal models\n")
    print(
        "Share of boards of two equal recipes that are ranked apart by macro-F1, and of those on which one is"
    )
    print(
        "six points better. Seeds move the accuracy of a training by the spread; the images are the same for"
    )
    print("both, and 70 % of what makes an image hard is common to all models.\n")
    print(
        "| images | classes | seeds | spread | equal, apart | unpaired | two-level | better, apart | boards |"
    )
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    repetitions = int(300 * scale)
    for size, classes, accuracy in ((200, 3, 0.9), (1000, 10, 0.85)):
        for seeds, spread in ((1, 0), (2, 0), (3, 0), (1, 0.01), (2, 0.01), (3, 0.01), (2, 0.03), (3, 0.03)):
            counts = dict.fromkeys(("equal", "unpaired", "two-level", "better"), 0)
            for number in range(repetitions):
                labels = generator.integers(0, classes, size)
                hard = generator.standard_normal(size)
                one, other, worse = (
                    run(labels, hard, accuracy - minus, seeds, spread, classes, generator)
                    for minus in (0, 0, 0.06)
                )
                bootstrap = Bootstrap(str(number), "f1", resamples=RESAMPLES)
                counts["equal"] += bootstrap.difference(one, other).is_clear
                counts["better"] += bootstrap.difference(one, worse).is_clear
                images = bootstrap._images_of(one)
                counts["two-level"] += two_level(images, one, other, generator)
                pair = (without_answers(one), without_answers(other))
                counts["unpaired"] += bootstrap.difference(*pair).is_clear
            shown = " | ".join(f"{count / repetitions:.1%}" for count in counts.values())
            print(f"| {size} | {classes} | {seeds} | {spread:.2f} | {shown} | {repetitions} |", flush=True)
    print()


def timing(generator):
    print("## Time\n")
    print("| what | CPU seconds |\n| --- | ---: |")
    classes, size = 102, 6149
    labels = generator.integers(0, classes, size)
    hard = generator.standard_normal(size)
    matrix = confusion_matrix(labels, answers(labels, hard, 0.85, classes, generator), classes)
    started = time.process_time()
    bootstrap_intervals(matrix)
    seconds = time.process_time() - started
    print(f"| both intervals, 102 classes, 6,149 images, 2,000 resamples | {seconds:.2f} |")
    for rows, seeds, count in ((2, 1, size), (20, 3, size), (200, 1, 1020)):
        labels = np.sort(generator.integers(0, classes, count))
        hard = generator.standard_normal(count)
        samples = [run(labels, hard, 0.85, seeds, 0.02, classes, generator) for _ in range(rows)]
        started = time.process_time()
        bootstrap = Bootstrap("timing", "f1")
        for sample in samples[1:]:
            bootstrap.difference(samples[0], sample)
        seconds = time.process_time() - started
        print(
            f"| {rows} rows of {seeds} seed{'s' * (seeds > 1)} against their leader, 102 classes, "
            f"{count:,} images, 2,000 resamples | {seconds:.2f} |"
        )


def main() -> None:
    scale = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    generator = np.random.default_rng(0)
    print("# The statistics of a leaderboard, simulated\n")
    timing(generator)
    print()
    coverage(scale, generator)
    apart(scale, generator)


if __name__ == "__main__":
    main()
