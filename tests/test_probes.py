from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.engine import probes
from harness.engine.probes import knn_probe, ridge_probe
from harness.errors import UsageError


def draw(num_classes=4, dim=6, size=40, val_size=30, seed=0, spread=1.0):
    """Return correlated features of classes that differ in number, and labels, of two splits."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_classes, dim, generator=generator)
    mixing = torch.randn(dim, dim, generator=generator)
    splits = []
    for count in (size, val_size):
        labels = (num_classes * torch.rand(count, generator=generator) ** 2).long()
        noise = spread * torch.randn(count, dim, generator=generator)
        splits += [3 + (centres[labels] + noise) @ mixing, labels]
    return splits


def sklearn_decisions(x, y, x_val, alpha):
    from sklearn.linear_model import RidgeClassifier
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(x.double())
    model = RidgeClassifier(alpha=alpha, solver="cholesky")
    model.fit(scaler.transform(x.double()), y)
    return model.decision_function(scaler.transform(x_val.double()))


@pytest.mark.parametrize("dim", [6, 90])
@pytest.mark.parametrize("alpha", [0.1, 10.0, 3000.0])
def test_ridge_decides_as_scikit_learn_does(dim, alpha):
    x, y, x_val, y_val = draw(dim=dim)
    result = ridge_probe(x, y, x_val, y_val, 4, alphas=[alpha])
    np.testing.assert_allclose(result.logits, sklearn_decisions(x, y, x_val, alpha), rtol=1e-4, atol=1e-5)
    assert result.parameter == alpha
    assert result.accuracy == (result.logits.argmax(axis=1) == y_val.numpy()).mean()


@pytest.mark.parametrize("dim", [6, 90])
def test_what_ridge_finds_is_a_linear_layer(dim):
    x, y, x_val, y_val = draw(dim=dim)
    # With columns of another size, and one that says nothing.
    x, x_val = (torch.cat([100 * p[:, :3], p, torch.full((len(p), 1), 7.0)], dim=1) for p in (x, x_val))
    result = ridge_probe(x, y, x_val, y_val, 5)
    logits = torch.nn.functional.linear(x_val, result.weight, result.bias)
    # The fifth class has no training images, and is marked down.
    np.testing.assert_allclose(logits[:, :4], result.logits[:, :4], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(logits[:, 4], -1.0, atol=1e-6)
    assert not result.weight[:, -1].any()


def test_two_classes_are_two_opposite_logits():
    x, y, x_val, y_val = draw(num_classes=2)
    result = ridge_probe(x, y, x_val, y_val, 2, alphas=[1.0])
    np.testing.assert_allclose(result.logits[:, 1], sklearn_decisions(x, y, x_val, 1.0), rtol=1e-4)
    np.testing.assert_allclose(result.logits[:, 0], -result.logits[:, 1], atol=1e-5)


@pytest.mark.parametrize("dim", [6, 90])
def test_the_chosen_alpha_has_the_best_macro_f1_and_of_equals_is_the_largest(dim):
    data = draw(dim=dim, spread=2.0)
    alphas = [1e4, 1e-1, 1e1, 1e2]
    each = {alpha: ridge_probe(*data, 4, alphas=[alpha]).f1 for alpha in alphas}
    chosen = ridge_probe(*data, 4, alphas=alphas)
    assert chosen.f1 == max(each.values())
    assert chosen.parameter == max(alpha for alpha, f1 in each.items() if f1 == chosen.f1)


def test_the_largest_alpha_without_an_error_is_chosen_and_no_smaller_one_is_tried(monkeypatch):
    data, tried = draw(spread=0.05), []
    solve = probes._LeastSquares.solve
    monkeypatch.setattr(
        probes._LeastSquares, "solve", lambda self, alpha: tried.append(alpha) or solve(self, alpha)
    )
    result = ridge_probe(*data, 4, alphas=[1e-2, 1e5, 1.0, 1e-1])
    assert result.f1 == 1.0
    assert tried[0] == 1e5
    assert tried[-1] == result.parameter > 1e-2


@pytest.mark.parametrize("dim", [6, 90])
def test_scale_and_offset_of_features_change_nothing(dim):
    x, y, x_val, y_val = draw(dim=dim)
    scale, offset = torch.logspace(-30, 30, dim), torch.linspace(-5, 5, dim).double()
    scaled, scaled_val = ((part.double() + offset) * scale for part in (x, x_val))
    expected = ridge_probe(x, y, x_val, y_val, 4, alphas=[10.0])
    found = ridge_probe(scaled, y, scaled_val, y_val, 4, alphas=[10.0])
    np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dim", "size"), [(30, 200), (60, 40)])
def test_collinear_features_and_many_classes_are_those_of_scikit_learn(dim, size):
    x, y, x_val, y_val = draw(num_classes=90, dim=dim, size=size)
    wide, wide_val = (torch.cat([part, part[:, :7], -3 * part], dim=1) for part in (x, x_val))
    result = ridge_probe(wide, y, wide_val, y_val, 90, alphas=[1.0])
    decisions = sklearn_decisions(wide, y, wide_val, 1.0)
    np.testing.assert_allclose(result.logits[:, y.unique()], decisions, rtol=1e-3, atol=1e-4)


def test_features_that_barely_differ_are_told_apart():
    # As float32 keeps them, around a large mean.
    x, y, x_val, y_val = draw()
    near, near_val = ((part * 0.01 + 1000).float() for part in (x, x_val))
    result = ridge_probe(near, y, near_val, y_val, 4, alphas=[10.0])
    np.testing.assert_allclose(
        result.logits, sklearn_decisions(near, y, near_val, 10.0), rtol=1e-4, atol=1e-5
    )


def test_features_whose_sum_overflows_are_finite():
    _, y, x_val, y_val = draw()
    result = ridge_probe(torch.full((40, 6), 3e38), y, x_val, y_val, 4)
    assert np.isfinite(result.logits).all()


def test_rows_beyond_one_part_change_nothing(monkeypatch):
    data = draw(size=50)
    whole = ridge_probe(*data, 4), knn_probe(*data, 4)
    monkeypatch.setattr(probes, "_ROWS", 7)
    parts = ridge_probe(*data, 4), knn_probe(*data, 4)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one.logits, other.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("probe", [ridge_probe, knn_probe])
def test_a_probe_repeats_bit_for_bit_and_leaves_its_arguments(probe):
    data = draw(size=60)
    copies = [part.clone() for part in data]
    first, second = probe(*data, 4), probe(*data, 4)
    assert np.array_equal(first.logits, second.logits)
    assert (first.accuracy, first.f1, first.parameter) == (second.accuracy, second.f1, second.parameter)
    assert all(map(torch.equal, data, copies))
    assert first.seconds > 0
    assert first.logits.dtype == np.float32


@pytest.mark.parametrize("dim", [6, 90])
def test_constant_features_change_nothing(dim):
    x, y, x_val, y_val = draw(dim=dim)
    constant = torch.tensor([0.0, 0.1, 1e6])
    wide, wide_val = (torch.cat([part, constant.expand(len(part), 3)], dim=1) for part in (x, x_val))
    wider = ridge_probe(wide, y, wide_val, y_val, 4)
    np.testing.assert_allclose(wider.logits, ridge_probe(x, y, x_val, y_val, 4).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("probe", [ridge_probe, knn_probe])
def test_features_that_say_nothing_still_give_a_legal_answer(probe):
    _, y, _, y_val = draw()
    result = probe(torch.zeros(40, 5), y, torch.zeros(30, 5), y_val, 4)
    assert np.isfinite(result.logits).all()
    assert 0 <= result.f1 <= result.accuracy <= 1


@pytest.mark.parametrize("probe", [ridge_probe, knn_probe])
@pytest.mark.parametrize("dim", [6, 90])
def test_a_class_without_training_images_is_never_predicted(probe, dim):
    x, y, x_val, y_val = draw(dim=dim)
    kept = y != 2
    result = probe(x[kept], y[kept], x_val, y_val, 7)
    assert result.logits.shape == (30, 7)
    assert set(result.logits.argmax(axis=1).tolist()) <= {0, 1, 3}
    assert np.isfinite(result.logits).all()


@pytest.mark.parametrize("probe", [ridge_probe, knn_probe])
def test_splits_of_one_class_are_scored(probe):
    x, _, x_val, _ = draw()
    ones, val_ones = torch.ones(40, dtype=torch.int64), torch.ones(30, dtype=torch.int64)
    result = probe(x, ones, x_val, val_ones, 4)
    assert result.accuracy == result.f1 == 1.0
    one_image = probe(x[:1], ones[:1], x_val, val_ones, 4)
    assert one_image.accuracy == 1.0


def test_neighbours_vote_by_the_exponential_of_their_cosine():
    generator = torch.Generator().manual_seed(0)
    x, x_val = torch.randn(12, 3, generator=generator), torch.randn(5, 3, generator=generator)
    y, y_val = torch.arange(12) % 3, torch.arange(5) % 3
    result = knn_probe(x, y, x_val, y_val, 3, k=4)
    for row, logits in zip(x_val, result.logits, strict=True):
        cosines = torch.nn.functional.cosine_similarity(row[None], x).tolist()
        votes = np.zeros(3)
        for i in sorted(range(12), key=lambda i: -cosines[i])[:4]:
            votes[y[i]] += np.exp(cosines[i] / 0.07)
        np.testing.assert_allclose(np.exp(logits), votes / votes.sum(), rtol=1e-4, atol=1e-6)
    assert result.parameter == 4


def test_few_images_all_vote_and_a_low_temperature_does_not_overflow():
    x, y, x_val, y_val = draw(size=9)
    result = knn_probe(x, y, x_val, y_val, 4, temperature=1e-4)
    assert result.parameter == 9
    assert np.isfinite(result.logits).all()


def test_probes_find_what_is_there():
    x, y, x_val, y_val = draw(spread=0.05)
    assert ridge_probe(x, y, x_val, y_val, 4).f1 > 0.95
    assert knn_probe(x, y, x_val, y_val, 4, k=3).f1 > 0.95


@pytest.mark.parametrize("probe", [ridge_probe, knn_probe])
def test_bad_data_is_refused(probe):
    x, y, x_val, y_val = draw()
    broken = x.clone()
    broken[3, 2] = torch.nan
    with pytest.raises(UsageError, match="train split are not finite"):
        probe(broken, y, x_val, y_val, 4)
    with pytest.raises(UsageError, match="val split has 0 features"):
        probe(x, y, x_val[:0], y_val[:0], 4)
    with pytest.raises(UsageError, match="train split has 39 features and 40 labels"):
        probe(x[1:], y, x_val, y_val, 4)
    with pytest.raises(UsageError, match="not in"):
        probe(x, y, x_val, y_val, 3)


def test_bad_settings_are_refused():
    data = draw(dim=90)
    for alphas in ([], [0.0], [-1.0, 1.0], [float("nan")]):
        with pytest.raises(UsageError, match="alphas must be positive"):
            ridge_probe(*data, 4, alphas=alphas)
    with pytest.raises(UsageError, match="positive"):
        knn_probe(*data, 4, k=0)
    with pytest.raises(UsageError, match="positive"):
        knn_probe(*data, 4, temperature=0.0)


def test_an_alpha_below_the_features_precision_is_passed_over():
    data = draw(size=90, dim=40)
    doubled = [torch.cat([part, part], 1) if part.ndim == 2 else part for part in data]
    assert ridge_probe(*doubled, 4, alphas=[1e-300, 1.0]).parameter == 1.0
    with pytest.raises(UsageError, match="too small"):
        ridge_probe(*doubled, 4, alphas=[1e-300])


@pytest.mark.parametrize("dim", [6, 90])
def test_a_feature_that_hardly_varies_does_not_outweigh_all_others(dim):
    x, y, x_val, y_val = draw(dim=dim)
    # As a channel is that is dead but for one image.
    dead = torch.zeros(len(x), 1)
    dead[3] = 1e-5
    x, x_val = torch.cat([x, dead], dim=1), torch.cat([x_val, torch.zeros(len(x_val), 1)], dim=1)
    result = ridge_probe(x, y, x_val, y_val, 4, alphas=[10.0])
    assert result.weight[:, -1].abs().max() < 10 * result.weight[:, :-1].abs().max()
    # The probe itself is what scikit-learn would find.
    np.testing.assert_allclose(result.logits, sklearn_decisions(x, y, x_val, 10.0), rtol=1e-4, atol=1e-5)
