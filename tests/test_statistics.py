import numpy as np
import pytest
from records_factory import answer
from sklearn.metrics import f1_score

from harness.leaderboard import statistics
from harness.leaderboard.statistics import Bootstrap, Sample
from harness.metrics import confusion_matrix, point_scores

LABELS = np.arange(300) % 3


def sample(*chosen, labels=LABELS, classes=3, with_answers=True):
    points = [point_scores(labels, one, classes) for one in chosen]
    return Sample(
        scores={"accuracy": np.array([a for a, _ in points]), "f1": np.array([f for _, f in points])},
        confusions=tuple(confusion_matrix(labels, one, classes) for one in chosen),
        labels=labels if with_answers else None,
        chosen=chosen if with_answers else (),
    )


def runs(accuracy, seeds, first=0):
    return sample(*(answer(LABELS, accuracy, seed) for seed in range(first, first + seeds)))


@pytest.mark.parametrize("metric", ["f1", "accuracy"])
def test_a_run_does_not_differ_from_itself(metric):
    one = runs(0.8, 1)
    found = Bootstrap("key", metric).difference(one, one)
    assert found.estimate == 0
    assert found.interval[0] < 0 < found.interval[1]
    assert not found.is_clear
    assert found.p > 0.5


@pytest.mark.parametrize("metric", ["f1", "accuracy"])
def test_the_other_way_round_is_the_opposite(metric):
    one, other = runs(0.9, 3), runs(0.7, 3, first=5)
    bootstrap = Bootstrap("key", metric)
    there, back = bootstrap.difference(one, other), bootstrap.difference(other, one)
    assert there.estimate == -back.estimate
    assert there.interval == (-back.interval[1], -back.interval[0])
    assert there.p == back.p
    assert there.is_clear
    assert back.is_clear
    assert there.p < 0.01


def test_intervals_are_those_of_resampled_images():
    labels = np.arange(400) % 4
    one, other = answer(labels, 0.85, 1, 4), answer(labels, 0.75, 2, 4)
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(600):
        index = generator.integers(0, 400, 400)
        first, second = (point_scores(labels[index], chosen[index], 4)[1] for chosen in (one, other))
        drawn.append(first - second)
    bootstrap = Bootstrap("key", "f1")
    found = bootstrap.difference(*(sample(x, labels=labels, classes=4) for x in (one, other)))
    assert found.interval == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.015)
    assert found.estimate == pytest.approx(
        f1_score(labels, one, average="macro") - f1_score(labels, other, average="macro")
    )


@pytest.mark.parametrize(("more", "clear"), [(3, False), (4, False), (5, False), (8, True)])
def test_a_few_images_more_are_no_difference_as_in_an_exact_test(more, clear):
    # McNemar's exact test: 5 to 0 has p 0.06, 8 to 0 has p 0.008.
    weak = answer(LABELS, 0.8, 3)
    strong = weak.copy()
    gained = np.flatnonzero(weak != LABELS)[:more]
    strong[gained] = LABELS[gained]
    assert Bootstrap("key", "accuracy").difference(sample(strong), sample(weak)).is_clear is clear


def test_seeds_that_spread_widen_the_interval():
    def width(*accuracies):
        one = sample(*(answer(LABELS, accuracy, seed) for seed, accuracy in enumerate(accuracies)))
        low, high = Bootstrap("key", "f1").difference(one, runs(0.8, 3, first=20)).interval
        return high - low

    assert width(0.7, 0.8, 0.9) > 1.5 * width(0.8, 0.8, 0.8)


def test_without_answers_confusion_matrices_are_compared():
    one, other = sample(answer(LABELS, 0.9, 1), with_answers=False), runs(0.6, 1, first=2)
    bootstrap = Bootstrap("key", "f1")
    found = bootstrap.difference(one, other)
    assert not found.paired
    assert found.is_clear
    assert bootstrap.difference(other, runs(0.9, 1)).paired


def test_answers_for_other_images_are_not_paired():
    other = sample(answer(LABELS[::-1].copy(), 0.8, 1), labels=LABELS[::-1].copy())
    assert not Bootstrap("key", "f1").difference(runs(0.8, 1), other).paired


@pytest.mark.parametrize("with_answers", [True, False])
def test_what_was_compared_before_changes_nothing(with_answers):
    one, other, third = (
        sample(answer(LABELS, accuracy, seed), with_answers=with_answers)
        for seed, accuracy in enumerate((0.9, 0.8, 0.7))
    )
    bootstrap = Bootstrap("key", "f1")
    bootstrap.difference(third, other)
    assert bootstrap.difference(one, other) == Bootstrap("key", "f1").difference(one, other)
    assert bootstrap.difference(one, other) != Bootstrap("another", "f1").difference(one, other)


def test_a_class_without_images_and_an_answer_never_right_are_no_error():
    labels = np.array([0, 0, 1, 1, 1])
    wrong, right = sample(np.full(5, 3), labels=labels, classes=4), sample(labels, labels=labels, classes=4)
    for metric in ("f1", "accuracy"):
        found = Bootstrap("key", metric).difference(right, wrong)
        assert found.estimate == 1
        assert np.isfinite(found.interval).all()


def test_a_large_split_has_fewer_resamples(monkeypatch):
    monkeypatch.setattr(statistics, "_CELLS", 300 * 250)
    found = Bootstrap("key", "f1").difference(runs(0.9, 2), runs(0.5, 3, first=4))
    assert found.is_clear
    assert found.p == pytest.approx(2 / 251)


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_equal_recipes_are_seldom_told_apart(seeds):
    # The simulation in benchmarks/ is the measurement; this guards it.
    apart = 0
    for trial in range(40):
        one, other = (runs(0.85, seeds, first=1000 * trial + start) for start in (0, 500))
        apart += Bootstrap(str(trial), "f1", resamples=400).difference(one, other).is_clear
    assert apart <= 6
