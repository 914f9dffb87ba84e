"""The difference of two runs, and whether it is more than chance: images and seeds both could be others.

A run is some trainings of one configuration, which differ by their seed; its score is their mean. What the
difference of two runs would be on other images of the same kind is drawn by the paired bootstrap: images are
resampled once for both, so that an image that is hard for all says nothing. What it would be with other seeds
is drawn around it from the spread of the seeds' scores.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harness.documents import digest
from harness.metrics import macro_f1, point_scores, resample_scores, sum_by_class
from harness.records import Metric

RESAMPLES = 2000
_CELLS = 50_000_000
"""Weights of images held at most: beyond 25,000 images there are fewer resamples."""

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """What is known of a run on one split; trainings that failed are the last, as the floor."""

    scores: Mapping[Metric, FloatArray]
    """Of each training: (S,)."""
    confusions: tuple[IntArray, ...]
    """Of each training: (C, C)."""
    labels: IntArray | None = None
    """True class of each image, (N,); None where some training has no predictions."""
    chosen: tuple[IntArray, ...] = ()
    """Answered class of each image, (N,), by training."""
    failed: int = 0

    @property
    def seeds(self) -> int:
        """Return the number of trainings that did not fail: their seeds might have been others."""
        return len(self.confusions) - self.failed

    def variance(self, metric: Metric) -> float:
        """Return the sample variance of a score over seeds; that one failed makes nothing less certain."""
        return float(self.scores[metric][: self.seeds].var(ddof=1)) if self.seeds > 1 else 0.0

    def is_paired_with(self, other: Sample) -> bool:
        """Return whether both answered the same images, as far as their labels tell."""
        if self.labels is None or other.labels is None:
            return False
        return np.array_equal(self.labels, other.labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How far one run is above another."""

    estimate: float
    """Of the mean scores, in [-1, 1]."""
    interval: tuple[float, float]
    """95 %."""
    p: float
    """Two-sided."""
    paired: bool
    """Whether the answers were compared image by image; else two confusion matrices were."""

    @property
    def is_clear(self) -> bool:
        """Return whether the interval leaves 0 out."""
        return not self.interval[0] <= 0 <= self.interval[1]


class Bootstrap:
    """Compares runs on one split; what it draws depends on its key and the two runs compared, on no other.

    Args:
        key: Names the protocol and the split; seeds all that is drawn.
        metric: What is compared.
        resamples: How often.
    """

    def __init__(self, key: str, metric: Metric, *, resamples: int = RESAMPLES) -> None:
        self._metric = metric
        self._key = key
        self._resamples = resamples
        self._images: dict[bytes, _Images] = {}
        self._drawn: dict[Sample, tuple[FloatArray, float]] = {}
        self._alone: dict[Sample, FloatArray] = {}
        generator = np.random.default_rng(int(digest([key, "seeds"])[:16], 16))
        self._normal = generator.standard_normal(resamples)
        self._chi_square = functools.cache(lambda freedom: self._draw_chi_square(freedom))

    def difference(self, one: Sample, other: Sample) -> Difference:
        """Return by how much `one` is above `other`.

        Scores of seeds spread for two reasons: seeds give models of unlike quality, and models of like
        quality err on unlike images. The second is in the resampled images already. The first, the variance
        s2 beyond it, is pooled over both runs and known from few seeds only; so it is drawn too, as a
        generalised pivotal quantity (Weerahandi 1993): max(0, total * f / chi2_f - images). With one seed
        each nothing is known of it: the difference is that of two trained models, not of their recipes.
        """
        if one.scores[self._metric].mean() < other.scores[self._metric].mean():
            # The same draws for both ways round, so that neither is clear alone.
            turned = self.difference(other, one)
            low, high = turned.interval
            return dataclasses.replace(turned, estimate=-turned.estimate, interval=(-high, -low))
        paired = one.is_paired_with(other)
        (drawn_one, idle_one), (drawn_other, idle_other) = (
            (self._by_images(sample) if paired else (self._by_confusion(sample), 0.0))
            for sample in (one, other)
        )
        drawn = drawn_one - drawn_other
        if paired:
            drawn = drawn + self._images_of(one).chance(self._metric)
        freedom = one.seeds + other.seeds - 2
        if freedom:
            total, images = (
                ((one.seeds - 1) * first + (other.seeds - 1) * second) / freedom
                for first, second in (
                    (one.variance(self._metric), other.variance(self._metric)),
                    (idle_one, idle_other),
                )
            )
            of_seeds = np.maximum(0, total * freedom / self._chi_square(freedom)[: len(drawn)] - images)
            share = sum(run.seeds / len(run.confusions) ** 2 for run in (one, other))
            drawn = drawn + np.sqrt(of_seeds * share) * self._normal[: len(drawn)]
        # Accuracies are steps of 1 / N: a draw of no difference shall not miss 0 by a rounding.
        drawn = np.round(drawn, 12)
        low, high = np.percentile(drawn, [2.5, 97.5])
        beyond = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
        return Difference(
            estimate=float(one.scores[self._metric].mean() - other.scores[self._metric].mean()),
            interval=(float(low), float(high)),
            p=min(1.0, 2 * (beyond + 1) / (len(drawn) + 1)),
            paired=paired,
        )

    def _draw_chi_square(self, freedom: int) -> FloatArray:
        generator = np.random.default_rng([int(digest([self._key, "spread"])[:16], 16), freedom])
        return generator.chisquare(freedom, self._resamples)

    def _images_of(self, sample: Sample) -> _Images:
        assert sample.labels is not None
        key = sample.labels.tobytes()
        if key not in self._images:
            seed = int(digest([self._key, "images"])[:16], 16)
            self._images[key] = _Images(
                sample.labels,
                len(sample.confusions[0]),
                min(self._resamples, _CELLS // len(sample.labels)),
                seed,
            )
        return self._images[key]

    def _by_images(self, sample: Sample) -> tuple[FloatArray, float]:
        """Return mean scores of the seeds on resampled images, and the variance of a seed's around them."""
        if sample not in self._drawn:
            images = self._images_of(sample)
            each = np.stack([images.scores(chosen, self._metric) for chosen in sample.chosen])
            away = each - each.mean(axis=1, keepdims=True)
            idle = float(away[: sample.seeds].var(axis=0, ddof=1).mean()) if sample.seeds > 1 else 0.0
            self._drawn[sample] = each.mean(axis=0), idle
        return self._drawn[sample]

    def _by_confusion(self, sample: Sample) -> FloatArray:
        """Return mean scores of the seeds as if drawn from their confusion matrices.

        Nothing tells how the seeds' errors go together; that they do as far as can be is the safe side.
        """
        if sample not in self._alone:
            seed = int(digest([self._key, [matrix.tolist() for matrix in sample.confusions]])[:16], 16)
            index = 0 if self._metric == "accuracy" else 1
            each = [
                np.sort(resample_scores(matrix, resamples=self._resamples, seed=seed)[index])
                for matrix in sample.confusions
            ]
            order = np.random.default_rng(seed).permutation(self._resamples)
            self._alone[sample] = np.mean(each, axis=0)[order]
        return self._alone[sample]


class _Images:
    """Images of a split, resampled with replacement, the same for all runs.

    Args:
        labels: (N,).
        num_classes: C.
        resamples: B.
        seed: Of the generator.
    """

    def __init__(self, labels: IntArray, num_classes: int, resamples: int, seed: int) -> None:
        self._labels = labels
        self._num_classes = num_classes
        size = len(labels)
        generator = np.random.default_rng(seed)
        # (N, B): how often an image is drawn. A sum over images never exceeds N.
        self._weights = np.empty((size, resamples), dtype=np.uint16 if size < 2**16 else np.uint32)
        for index in range(resamples):
            self._weights[:, index] = np.bincount(generator.integers(0, size, size), minlength=size)
        self._support = self._sums(np.arange(size), labels)
        counts = np.bincount(labels, minlength=num_classes)
        # What one image is worth: a share of all, or of its class.
        worth = 1 / ((counts > 0).sum() * counts[labels])
        extra = generator.poisson(1, (2, resamples))
        images = generator.integers(0, size, int(extra.sum()))
        sign = np.where(np.arange(len(images)) < extra[0].sum(), 1.0, -1.0)
        which = np.concatenate(
            [np.repeat(np.arange(resamples), extra[0]), np.repeat(np.arange(resamples), extra[1])]
        )
        self._chance: dict[Metric, FloatArray] = {
            "f1": np.bincount(which, sign * worth[images], minlength=resamples).astype(np.float64),
            "accuracy": np.bincount(which, sign / size, minlength=resamples).astype(np.float64),
        }

    def chance(self, metric: Metric) -> FloatArray:
        """Return the difference, (B,), that one image more for each of two runs makes.

        It stands for the images on which they might have differed and did not happen to (Bonett and Price
        2012 add the same two): a run that is right on three images more, and wrong on none, is no better yet.
        """
        return self._chance[metric]

    def scores(self, chosen: IntArray, metric: Metric) -> FloatArray:
        """Return a training's scores, (B,), less what resampling itself changes on average."""
        wrong = np.flatnonzero(chosen != self._labels)
        size = len(self._labels)
        if metric == "accuracy":
            missed = self._weights[wrong].sum(axis=0, dtype=np.int64)
            return np.asarray(1 - missed / size)
        missed = self._sums(wrong, self._labels[wrong])
        falsely = self._sums(wrong, chosen[wrong])
        hits = self._support - missed
        drawn = macro_f1(hits, self._support, hits + falsely)
        _, point = point_scores(self._labels, chosen, self._num_classes)
        return drawn - (float(drawn.mean()) - point)

    def _sums(self, images: IntArray, classes: IntArray) -> IntArray:
        """Add up how often some images are drawn, by class: (C, B)."""
        order = np.argsort(classes, kind="stable")
        return sum_by_class(self._weights[images[order]], classes[order], self._num_classes)
