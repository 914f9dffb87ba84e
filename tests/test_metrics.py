import numpy as np
import pytest
from sklearn import metrics as oracle

from harness.metrics import bootstrap_intervals, confusion_matrix, evaluate, point_scores


def random_case(seed, classes, size):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, size)
    wrong = generator.random(size) < 0.4
    return labels, np.where(wrong, generator.integers(0, classes, size), labels)


def expected(labels, predictions):
    present = np.unique(labels)
    precision, recall, f1, _ = oracle.precision_recall_fscore_support(
        labels, predictions, labels=present, average="macro", zero_division=0
    )
    return oracle.accuracy_score(labels, predictions), precision, recall, f1


def assert_equals_oracle(labels, predictions, classes):
    scores = evaluate(labels, predictions, classes)
    values = (scores.accuracy, scores.precision, scores.recall, scores.f1)
    assert values == pytest.approx(expected(labels, predictions), abs=1e-12)
    points = point_scores(labels, predictions, classes)
    assert points == pytest.approx((scores.accuracy, scores.f1), abs=1e-15)
    return scores


@pytest.mark.parametrize(("classes", "size"), [(2, 10), (3, 40), (7, 300), (30, 90)])
@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_scikit_learn(seed, classes, size):
    scores = assert_equals_oracle(*random_case(seed, classes, size), classes)
    assert scores.n == size
    assert sum(map(sum, scores.confusion)) == size


def test_a_class_without_images_does_not_lower_the_average():
    labels = np.array([0, 0, 1, 1])
    scores = assert_equals_oracle(labels, labels, 4)
    assert scores.f1 == 1.0
    assert scores.per_class.support == (2, 2, 0, 0)


def test_predicting_an_absent_class_costs_recall_and_stays_out_of_the_average():
    labels, predictions = np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1])
    scores = assert_equals_oracle(labels, predictions, 3)
    assert scores.f1 == pytest.approx((2 / 3 + 1) / 2)


def test_one_predicted_class_scores_zero_for_the_others():
    labels = np.array([0] * 6 + [1] * 3 + [2])
    scores = assert_equals_oracle(labels, np.zeros(10, dtype=np.int64), 3)
    assert scores.per_class.f1 == pytest.approx((12 / 16, 0, 0))
    assert scores.f1 == pytest.approx(0.25)


def test_scores_of_each_class_equal_scikit_learn():
    labels, predictions = random_case(3, 6, 200)
    scores = evaluate(labels, predictions, 6).per_class
    precision, recall, f1, support = oracle.precision_recall_fscore_support(
        labels, predictions, labels=range(6), zero_division=0
    )
    assert scores.precision == pytest.approx(precision, abs=1e-12)
    assert scores.recall == pytest.approx(recall, abs=1e-12)
    assert scores.f1 == pytest.approx(f1, abs=1e-12)
    assert scores.support == tuple(support)


def test_rows_of_the_confusion_matrix_are_true_classes():
    matrix = confusion_matrix(np.array([0, 0, 1]), np.array([1, 1, 1]), 2)
    assert matrix.tolist() == [[0, 2], [0, 1]]
    labels, predictions = random_case(1, 5, 100)
    assert (confusion_matrix(labels, predictions, 5) == oracle.confusion_matrix(labels, predictions)).all()


def test_small_integer_types_do_not_overflow():
    labels = np.full(3, 199, dtype=np.uint8)
    assert confusion_matrix(labels, labels, 200)[199, 199] == 3


def test_scores_are_plain_numbers():
    scores = evaluate(*random_case(0, 3, 30), 3)
    assert type(scores.accuracy) is float
    assert type(scores.per_class.f1[0]) is float
    assert type(scores.per_class.support[0]) is int
    assert type(scores.confusion[0][0]) is int


def test_intervals_repeat_with_their_seed():
    matrix = confusion_matrix(*random_case(0, 4, 80), 4)
    assert bootstrap_intervals(matrix, seed=1) == bootstrap_intervals(matrix, seed=1)
    assert bootstrap_intervals(matrix, seed=1) != bootstrap_intervals(matrix, seed=2)


def test_intervals_enclose_the_point_and_shrink_with_more_images():
    widths = []
    for size in (50, 5000):
        scores = evaluate(*random_case(2, 4, size), 4)
        pairs = ((scores.f1, scores.f1_interval), (scores.accuracy, scores.accuracy_interval))
        for value, (low, high) in pairs:
            assert 0 <= low < value < high <= 1
        widths.append(scores.f1_interval[1] - scores.f1_interval[0])
    assert widths[1] < widths[0] / 5


@pytest.mark.parametrize(("size", "least"), [(12, 0.6), (100, 0.94), (3000, 0.997)])
def test_a_perfect_score_on_few_images_is_not_certain(size, least):
    labels = np.arange(size) % 3
    scores = evaluate(labels, labels, 3)
    for low, high in (scores.accuracy_interval, scores.f1_interval):
        # By the rule of three 1 - 3 / size is the 95 % bound below.
        assert least < low < 1 - 2 / size
        assert high == 1


def test_a_score_of_zero_on_few_images_is_not_certain():
    labels = np.arange(12) % 3
    low, high = evaluate(labels, (labels + 1) % 3, 3).accuracy_interval
    assert (low, high > 0.1) == (0, True)


def test_one_class_has_an_interval_too():
    labels = np.zeros(5, dtype=np.int64)
    assert evaluate(labels, labels, 1).f1_interval == (1.0, 1.0)


def test_intervals_equal_those_of_resampled_images():
    labels, predictions = random_case(5, 3, 60)
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(1500):
        chosen = generator.integers(0, 60, 60)
        drawn.append(point_scores(labels[chosen], predictions[chosen], 3)[1])
    ours = bootstrap_intervals(confusion_matrix(labels, predictions, 3), seed=0)["f1"]
    assert ours == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.02)


def test_intervals_cover_the_true_value_about_95_times_in_a_hundred():
    shares = np.array([[0.30, 0.06, 0.04], [0.05, 0.22, 0.03], [0.06, 0.04, 0.20]])
    hits, rows, columns = np.diag(shares), shares.sum(axis=1), shares.sum(axis=0)
    truth = {"accuracy": hits.sum(), "f1": (2 * hits / (rows + columns)).mean()}
    generator = np.random.default_rng(0)
    covered = {"accuracy": 0, "f1": 0}
    for _ in range(300):
        matrix = generator.multinomial(200, shares.ravel()).reshape(3, 3)
        for name, (low, high) in bootstrap_intervals(matrix, resamples=300).items():
            covered[name] += low <= truth[name] <= high
    assert all(0.90 <= count / 300 <= 0.99 for count in covered.values()), covered


def test_a_large_number_of_classes_is_taken_in_slices():
    labels = np.arange(600) % 300
    wrong = np.where(labels % 5, labels, labels + 1)
    low, high = bootstrap_intervals(confusion_matrix(labels, wrong, 300), resamples=300)["f1"]
    assert low < point_scores(labels, wrong, 300)[1] < high


@pytest.mark.parametrize("seed", range(3))
def test_macro_f1_of_many_small_classes_is_covered(seed):
    # Plain percentiles lie below it: with ten images a class resampling lowers macro-F1 by much.
    generator = np.random.default_rng(seed)
    shares = np.full((60, 60), 0.25 / 59)
    np.fill_diagonal(shares, 0.75)
    covered = 0
    for _ in range(60):
        low, high = bootstrap_intervals(generator.multinomial(10, shares), resamples=300)["f1"]
        covered += low <= 0.75 <= high
    assert covered >= 54
