"""Probes: how far the features of a frozen backbone go, for a small part of what training a head takes."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from harness import metrics
from harness.errors import UsageError

ALPHAS = (1e0, 1e1, 1e2, 1e3, 1e4, 1e5)
_ROWS = 4096
"""Images that are in float64, or compared with all others, at a time."""
_LEAST_DEVIATION = 0.1
"""Of a feature, in median ones: the least that weights of a layer are divided by."""
_BLOCK = 128
"""Rows of a Gram matrix that are computed at a time: what lies above the diagonal is left out by blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """What a probe found on the validation split."""

    accuracy: float
    f1: float
    """Macro average over the classes of the split, in [0, 1]."""
    parameter: float
    """The regularisation that was chosen, or the number of neighbours."""
    logits: npt.NDArray[np.float32]
    """(M, C), finite: their argmax is the class, their softmax the probabilities."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RidgeResult(ProbeResult):
    """What ridge regression found, and as a linear layer.

    Features that vary by less than a tenth of what the median one does count for less in the layer: the
    weight of a channel that is dead but for an image or two would be a thousand times those of all others.
    """

    weight: Tensor
    """(C, D) float32: of the features as they are, not standardised."""
    bias: Tensor
    """(C,) float32."""


def ridge_probe(
    features: Tensor,
    labels: Tensor,
    val_features: Tensor,
    val_labels: Tensor,
    num_classes: int,
    *,
    alphas: Sequence[float] = ALPHAS,
) -> RidgeResult:
    """Fit ridge regression to the classes in closed form, and choose its regularisation by macro-F1.

    Features are standardised, targets are 1 for an image's class and -1 for the others, the intercept is
    free: what scikit-learn's `StandardScaler` and `RidgeClassifier` do. All regularisations share one Gram
    matrix, of the features or of the images, whichever are fewer (Saunders et al., ICML 1998). It is in
    float64, for its condition is that of the features squared. The largest regularisation is tried first, and
    the first that makes no error is the last, for none can be chosen before it. A class without training
    images is never predicted.

    Args:
        features: (N, D) of the training split.
        labels: int64 (N,), in [0, C).
        val_features: (M, D).
        val_labels: int64 (M,).
        num_classes: C.
        alphas: Factors of the squared norm of the weights; of equally good ones the largest is chosen.

    Raises:
        UsageError: An alpha is not positive, or all are too small for float64; a split is empty, a feature is
            not finite, or a label is out of range.
    """
    started = time.perf_counter()
    if not alphas or not min(alphas) > 0:
        raise UsageError(f"alphas must be positive (got {tuple(alphas)!r})")
    _check(features, labels, val_features, val_labels, num_classes)
    counts = torch.bincount(labels, minlength=num_classes).double()
    absent = counts == 0
    intercept = 2 * counts / len(labels) - 1
    least_squares = _reduce(features, labels, intercept)
    val_rows = torch.cat([least_squares.standardise(part) for part in val_features.split(_BLOCK)])
    best: RidgeResult | None = None
    truth = val_labels.cpu().numpy()
    # Below it, what is added to the Gram matrix is lost in the rounding of its largest eigenvalue.
    least = float(torch.finfo(torch.float64).eps * least_squares.gram.trace())
    for alpha in sorted(alphas, reverse=True):
        weights = least_squares.solve(alpha) if alpha >= least else None
        if weights is None:
            break
        logits = torch.addmm(intercept.float(), val_rows, weights)
        logits[:, absent] = logits.min() - 1
        scores = logits.cpu().numpy()
        accuracy, f1 = metrics.point_scores(truth, scores.argmax(axis=1), num_classes)
        if best is None or f1 > best.f1:
            weight, bias = least_squares.layer(weights, intercept)
            best = RidgeResult(
                accuracy=accuracy,
                f1=f1,
                parameter=alpha,
                logits=scores,
                weight=weight,
                bias=bias,
                seconds=0.0,
            )
        if accuracy == 1.0:
            break
    if best is None:
        raise UsageError(
            f"every alpha is too small for these features (got {tuple(alphas)!r})",
            fixes=[f"use alphas far above {least:.1e}"],
        )
    return dataclasses.replace(best, seconds=time.perf_counter() - started)


def knn_probe(
    features: Tensor,
    labels: Tensor,
    val_features: Tensor,
    val_labels: Tensor,
    num_classes: int,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> ProbeResult:
    """Let the nearest training images vote, by cosine similarity s with weight exp(s / temperature).

    The protocol of DINO (Caron et al., ICCV 2021). Logits are logarithms of the shares of the votes.

    Args:
        features: (N, D) of the training split.
        labels: int64 (N,), in [0, C).
        val_features: (M, D).
        val_labels: int64 (M,).
        num_classes: C.
        k: Neighbours; all images where there are fewer.
        temperature: Positive.

    Raises:
        UsageError: `k` or `temperature` is not positive; a split is empty, a feature is not finite, or a
            label is out of range.
    """
    started = time.perf_counter()
    if k < 1 or not temperature > 0:
        raise UsageError(f"k and temperature must be positive (got {k} and {temperature})")
    _check(features, labels, val_features, val_labels, num_classes)
    k = min(k, len(features))
    shares = []
    for part in val_features.split(_ROWS):
        similarity, nearest = _find_nearest(torch.nn.functional.normalize(part.float()), features, k)
        # Less the largest, as in a softmax: a low temperature must not overflow.
        votes = ((similarity - similarity[:, :1]) / temperature).exp().cpu()
        share = torch.zeros(len(part), num_classes).scatter_add_(1, labels[nearest].cpu(), votes)
        shares.append(share / votes.sum(dim=1, keepdim=True))
    logits = torch.cat(shares).clamp(min=torch.finfo(torch.float32).tiny).log().numpy()
    accuracy, f1 = metrics.point_scores(val_labels.cpu().numpy(), logits.argmax(axis=1), num_classes)
    seconds = time.perf_counter() - started
    return ProbeResult(accuracy=accuracy, f1=f1, parameter=k, logits=logits, seconds=seconds)


def _find_nearest(rows: Tensor, features: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return similarities and numbers (M, k) of the features that are nearest to some rows of norm 1."""
    best, numbers = rows.new_empty(len(rows), 0), torch.empty(len(rows), 0, dtype=torch.int64)
    numbers = numbers.to(rows.device)
    for start in range(0, len(features), _ROWS):
        part = torch.nn.functional.normalize(features[start : start + _ROWS].float())
        own = torch.arange(start, start + len(part), device=rows.device).expand(len(rows), -1)
        candidates = torch.cat([best, rows @ part.T], dim=1)
        best, places = candidates.topk(min(k, candidates.shape[1]))
        numbers = torch.cat([numbers, own], dim=1).gather(1, places)
    return best, numbers


@dataclass(frozen=True, slots=True)
class _LeastSquares:
    """Ridge regression on standardised features, up to its regularisation; in float64, but for `rows`."""

    mean: Tensor
    """(D,)."""
    scale: Tensor
    """(D,), positive; infinite for a constant feature, which says nothing."""
    gram: Tensor
    """(n, n), n the smaller of D and N; only the lower triangle counts."""
    targets: Tensor
    """(n, C)."""
    rows: Tensor | None
    """Standardised float32 (N, D) where the Gram matrix is that of the images: weights are sums of them."""

    def standardise(self, part: Tensor) -> Tensor:
        """Return float32 (M, D) of features."""
        return part.double().sub_(self.mean).div_(self.scale).float()

    def solve(self, alpha: float) -> Tensor | None:
        """Return float32 weights (D, C), or None if rounding leaves the Gram matrix no Cholesky factor."""
        regularised = self.gram.clone()
        regularised.diagonal().add_(alpha)
        factor, failed = torch.linalg.cholesky_ex(regularised)
        if failed:
            return None
        # Not `cholesky_solve`, which copies the factor.
        half = torch.linalg.solve_triangular(factor, self.targets, upper=False)
        solution = torch.linalg.solve_triangular(factor.mT, half, upper=True)
        weights: Tensor = solution.float()
        return weights if self.rows is None else self.rows.T @ weights

    def layer(self, weights: Tensor, intercept: Tensor) -> tuple[Tensor, Tensor]:
        """Return float32 weight (C, D) and bias (C,) for features that are not standardised."""
        varying = self.scale[self.scale.isfinite()]
        least = _LEAST_DEVIATION * float(varying.median()) if len(varying) else 1.0
        whole = weights.double() / self.scale.clamp(min=least).unsqueeze(1)
        return whole.T.float().contiguous(), (intercept - self.mean @ whole).float()


def _reduce(features: Tensor, labels: Tensor, intercept: Tensor) -> _LeastSquares:
    size, dim = features.shape
    mean = features.new_zeros(dim, dtype=torch.float64)
    for part in features.split(_ROWS):
        mean += part.sum(dim=0, dtype=torch.float64) / size

    def aim(label: Tensor) -> Tensor:
        return 2.0 * torch.nn.functional.one_hot(label, len(intercept)) - 1 - intercept

    if size < dim:
        rows = features.double().sub_(mean)
        squares = sum((part.square().sum(dim=0) for part in rows.split(_BLOCK)), torch.zeros_like(mean))
        scale = _scale(mean, squares, size)
        rows /= scale
        gram = rows.new_zeros(size, size)
        _add_gram(gram, rows.T)
        return _LeastSquares(mean, scale, gram, aim(labels), rows.float())
    gram, products = mean.new_zeros(dim, dim), mean.new_zeros(dim, len(intercept))
    for part, label in zip(features.split(_ROWS), labels.split(_ROWS), strict=True):
        rows = part.double().sub_(mean)
        _add_gram(gram, rows)
        products.addmm_(rows.T, aim(label))
    # What is a multiple of the feature's scale is rounded alike before and after it is divided by it.
    scale = _scale(mean, gram.diagonal(), size)
    gram.div_(scale).div_(scale[:, None])
    return _LeastSquares(mean, scale, gram, products.div_(scale[:, None]), None)


def _scale(mean: Tensor, squares: Tensor, size: int) -> Tensor:
    """Return standard deviations (D,) from sums of squared deviations, infinity for a constant feature."""
    eps = torch.finfo(torch.float64).eps
    variance = squares / size
    # What rounding leaves of the variance of a constant feature would make noise of it.
    constant = variance <= size * eps * variance + (size * mean * eps) ** 2
    return variance.sqrt().masked_fill(constant, math.inf)


def _add_gram(gram: Tensor, rows: Tensor) -> None:
    """Add the products of the columns of (N, n) to (n, n), as far as a factorisation reads it."""
    for start in range(0, len(gram), _BLOCK):
        end = start + _BLOCK
        gram[start:end, :end].addmm_(rows[:, start:end].T, rows[:, :end])


def _check(
    features: Tensor, labels: Tensor, val_features: Tensor, val_labels: Tensor, num_classes: int
) -> None:
    for split, x, y in (("train", features, labels), ("val", val_features, val_labels)):
        if not len(y) or len(x) != len(y):
            raise UsageError(f"the {split} split has {len(x)} features and {len(y)} labels")
        # A sum takes a small part of the time, and is finite only if all are; large ones may overflow.
        parts = x.split(_ROWS)
        if not all(part.sum().isfinite() or part.isfinite().all() for part in parts):
            raise UsageError(f"features of the {split} split are not finite")
        if y.min() < 0 or y.max() >= num_classes:
            raise UsageError(f"labels of the {split} split are not in [0, {num_classes})")
