from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn import functional

from harness.engine import batched, linear
from harness.engine.batched import HeadJob, fit_heads
from harness.engine.fit import DivergedError, build_optimizer, warmed_up
from harness.engine.linear import predict_heads
from harness.engine.updates import cross_entropy, place_labels, rule_of, smoothing_of
from harness.errors import UsageError
from harness.isolation import component_of, seed_all
from harness.records import TrialConfig
from harness.specs import ClassInfo, OptimizerSpec, ScheduleSpec

CPU = torch.device("cpu")
SIZES = [(3, 7, 45), (10, 33, 70)]


class Features:
    """Separable features; each epoch sees a view of its own."""

    def __init__(self, num_classes: int, dim: int, train_size: int):
        generator = torch.Generator().manual_seed(5)
        self.centres = torch.randn(num_classes, dim, generator=generator)
        self.train_size = train_size
        self.drawn = {}
        for split, size in (("train", train_size), ("val", 31)):
            labels = torch.randint(num_classes, (size,), generator=generator)
            self.drawn[split] = self.centres[labels] + torch.randn(size, dim, generator=generator), labels

    def train(self, epoch):
        return self.drawn["train"][0] * (1 + 0.1 * epoch)

    def split(self, name):
        return self.drawn[name][0]

    def labels(self, name):
        return self.drawn[name][1]


class Scaled(nn.Module):
    """A loss with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, logits, labels):
        return functional.cross_entropy(self.scale * logits, labels)


class Noisy(nn.Module):
    """A loss that draws from all three global generators."""

    def forward(self, logits, labels):
        factor = 1 + 0.1 * (random.random() + np.random.rand() + float(torch.rand(())))
        return factor * functional.cross_entropy(logits + torch.rand(logits.shape), labels)


class Failing(nn.Module):
    """A loss that gives up after some steps."""

    def __init__(self, steps: int):
        super().__init__()
        self.left = steps

    def forward(self, logits, labels):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("no more")
        return functional.cross_entropy(logits, labels)


class RandomSteps(torch.optim.SGD):
    """An optimizer that draws, and that replaces the storage of what it updates."""

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data = parameter.data - group["lr"] * torch.rand(()) * parameter.grad


def spec_of(build):
    return OptimizerSpec(name="x", summary="", build=build, lr=(1e-3, 1))


def schedule_of(build):
    return ScheduleSpec(name="x", summary="", build=build)


RANDOM_STEPS = spec_of(RandomSteps)


@pytest.fixture
def make(registry):
    def make_job(number=0, *, size=SIZES[0], bias=True, **settings):
        num_classes, dim, _ = size
        loss = settings.pop("loss", "cross-entropy")
        optimizer = settings.pop("optimizer", "sgd")
        schedule = settings.pop("schedule", "cosine")
        values = {
            "lr": 0.1, "weight_decay": 0.05, "epochs": 3, "batch_size": 8, "warmup": 0.2, "ema": 0.0,
            "clip_grad": 0.0, "precision": "fp32", "seed": number,
        } | settings  # fmt: skip
        config = TrialConfig(
            backbone="features", freeze_depth=1.0, optimizer="named", augmentation="none", loss="named",
            schedule="named", head_init="timm", init="pretrained", image_size=24, **values,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(number)
        classes = ClassInfo(num_classes=num_classes, counts=(1,) * num_classes)
        return HeadJob(
            config=config,
            weight=torch.randn(num_classes, dim, generator=generator),
            bias=torch.randn(num_classes, generator=generator) if bias else None,
            loss=registry.losses.get(loss).spec.build(classes) if isinstance(loss, str) else loss(),
            optimizer=registry.optimizers.get(optimizer).spec if isinstance(optimizer, str) else optimizer,
            schedule=registry.schedules.get(schedule).spec if isinstance(schedule, str) else schedule,
        )

    return make_job


MIXTURE = [
    {"optimizer": "sgd", "lr": 0.2},
    {"optimizer": "sgd", "lr": 0.01, "clip_grad": 0.5},
    {"optimizer": "adamw", "lr": 0.01, "loss": "label-smoothing"},
    {"optimizer": "adamw", "lr": 0.03, "ema": 0.9},
    {"optimizer": "adam", "lr": 0.01, "weight_decay": 0.0, "loss": "focal"},
    {"optimizer": "sgd", "lr": 0.05, "batch_size": 10, "bias": False},
    {"optimizer": "lamb", "lr": 0.01, "clip_grad": 1.0, "ema": 0.5},
    {"optimizer": RANDOM_STEPS, "lr": 0.1, "loss": Noisy},
    {"optimizer": "adamw", "lr": 0.02, "loss": Noisy, "epochs": 2},
    {"optimizer": "adamw", "lr": 0.02, "loss": Scaled},
    {"optimizer": "sgd", "lr": 0.02, "schedule": "step", "batch_size": 500},
    {"optimizer": "adam", "lr": 0.02, "precision": "bf16"},
    {"optimizer": "adam", "lr": 0.002, "precision": "bf16", "loss": "focal"},
]


def train(jobs, size=SIZES[0], on_epoch=lambda number, record: False):
    return fit_heads(
        jobs, Features(*size), num_classes=size[0], device=CPU, on_step=lambda: None, on_epoch=on_epoch
    )


def curve_of(result):
    return [dataclasses.replace(record, seconds=0.0) for record in result.curve]


def assert_same_bits(first, second):
    for one, other in zip(first.head, second.head, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)
    assert curve_of(first) == curve_of(second)
    assert all(np.array_equal(one, other) for one, other in zip(first.val, second.val, strict=True))
    assert (first.pruned, first.images) == (second.pruned, second.images)


@pytest.mark.parametrize("size", SIZES)
def test_a_head_has_the_same_bits_in_any_company(make, size):
    def group(numbers):
        jobs = [make(number, size=size, **MIXTURE[number % len(MIXTURE)]) for number in numbers]
        return dict(zip(numbers, train(jobs, size), strict=True))

    everyone = list(range(len(MIXTURE) + 4))
    together = group(everyone)
    shuffled = random.Random(0).sample(everyone, len(everyone))
    for count in (1, 3, 8):
        for start in range(0, len(shuffled), count):
            for number, result in group(shuffled[start : start + count]).items():
                assert result.error is None
                assert_same_bits(result, together[number])


@pytest.fixture(params=[2, 3])
def several_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


# Large enough for torch and BLAS to use several threads.
@pytest.mark.parametrize("loss", ["cross-entropy", "label-smoothing"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("size", [(5, 384, 128), (300, 20, 128)])
@pytest.mark.usefixtures("several_threads")
def test_several_threads_do_not_round_by_the_number_of_heads(make, size, optimizer, loss):
    settings = {"size": size, "loss": loss, "epochs": 1, "batch_size": 128, "optimizer": optimizer}
    together = train([make(number, **settings) for number in range(8)], size)
    for number in (0, 5):
        assert_same_bits(train([make(number, **settings)], size)[0], together[number])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_classes", "dim"), [(3, 200), (300, 20)])
@pytest.mark.usefixtures("several_threads")
def test_heads_are_evaluated_to_the_same_bits_in_any_company(num_classes, dim, dtype):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(linear._EVAL_ROWS + 45, dim, generator=generator)
    heads = [
        (torch.randn(num_classes, dim, generator=generator) / dim**0.5, torch.randn(num_classes))
        for _ in range(9)
    ]
    together = predict_heads(heads, features, dtype)
    for start, end in ((0, 1), (5, 6), (1, 9)):
        assert all(map(torch.equal, predict_heads(heads[start:end], features, dtype), together[start:end]))
    weight, bias = heads[4]
    expected = torch.softmax(features @ weight.t() + bias, dim=1)
    torch.testing.assert_close(together[4], expected, rtol=1e-4, atol=1e-5 if dtype.itemsize == 4 else 0.02)


def train_plainly(job, size):
    """Train one head as `fit` trains a model."""
    source, config = Features(*size), job.config
    model = nn.Linear(*reversed(job.weight.shape), bias=job.bias is not None)
    model.load_state_dict({"weight": job.weight} | ({} if job.bias is None else {"bias": job.bias}))
    updater = build_optimizer(model, job.loss, config, job.optimizer)
    batch = min(config.batch_size, source.train_size)
    factor = warmed_up(job.schedule, config.epochs * (source.train_size // batch), config.warmup)
    average = ModelEmaV3(model, decay=config.ema, use_warmup=True) if config.ema else None
    step, losses = 0, []
    seed_all(config.seed)
    for epoch in range(config.epochs):
        order = np.random.default_rng([config.seed, epoch]).permutation(source.train_size)
        for start in range(0, source.train_size - batch + 1, batch):
            rows = order[start : start + batch].tolist()
            for group in updater.param_groups:
                group["lr"] = config.lr * factor(step)
            loss = job.loss(model(source.train(epoch)[rows]), source.labels("train")[rows])
            updater.zero_grad()
            loss.backward()
            if config.clip_grad:
                nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad)
            updater.step()
            if average:
                average.update(model, step=step)
            losses.append(loss.item())
            step += 1
    evaluated = average.module if average else model
    with torch.no_grad():
        probabilities = torch.softmax(evaluated(source.split("val")), dim=1)
    steps = step // config.epochs
    return evaluated, probabilities, [np.mean(losses[i : i + steps]) for i in range(0, step, steps)]


@pytest.mark.parametrize("settings", [case for case in MIXTURE if "precision" not in case])
@pytest.mark.parametrize("size", SIZES)
def test_a_head_is_trained_as_the_loop_for_models_trains_it(make, size, settings):
    result = train([make(3, size=size, **settings)], size)[0]
    model, probabilities, losses = train_plainly(make(3, size=size, **settings), size)
    torch.testing.assert_close(result.head[0], model.weight.detach(), rtol=1e-4, atol=1e-5)
    if model.bias is not None:
        torch.testing.assert_close(result.head[1], model.bias.detach(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result.val[0], probabilities, atol=1e-5)
    np.testing.assert_allclose([record.train_loss for record in result.curve], losses, rtol=1e-4)
    assert [record.epoch for record in result.curve] == list(range(1, len(losses) + 1))


def test_the_global_generators_stay_where_they_are(make):
    torch.manual_seed(11)
    np.random.seed(11)
    random.seed(11)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    train([make(0, loss=Noisy, optimizer=RANDOM_STEPS), make(1)])
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert random.getstate() == states[2]


def refuse(*_):
    raise ValueError("not like this")


class Stuck(torch.optim.SGD):
    def step(self, closure=None):
        refuse(self)


@pytest.mark.parametrize(
    ("settings", "error", "component"),
    [
        ({"lr": 1e38}, DivergedError, ""),
        ({"lr": 1e38, "optimizer": "lamb", "loss": "focal"}, DivergedError, ""),
        ({"loss": lambda: Failing(7)}, RuntimeError, "loss 'named'"),
        ({"optimizer": spec_of(refuse)}, ValueError, "optimizer 'named'"),
        ({"optimizer": spec_of(Stuck)}, ValueError, "optimizer 'named'"),
        ({"schedule": schedule_of(refuse)}, ValueError, "schedule 'x'"),
        ({"schedule": schedule_of(lambda steps: refuse)}, ValueError, "schedule 'x'"),
    ],
)
def test_a_head_that_fails_disturbs_no_other(make, settings, error, component):
    def others():
        return [make(1), make(2, loss="focal"), make(3, optimizer="lamb")]

    expected = train(others())
    found = train([make(0, **settings), *others()])
    assert isinstance(found[0].error, error)
    assert component_of(found[0].error) == component
    assert not found[0].pruned
    for one, other in zip(found[1:], expected, strict=True):
        assert one.error is None
        assert_same_bits(one, other)


def test_a_head_that_fails_later_keeps_the_epochs_before(make):
    result = train([make(0, loss=lambda: Failing(12)), make(1)])[0]
    assert len(result.curve) == 2
    assert str(result.error) == "no more"


def test_outputs_that_are_not_finite_are_a_divergence_though_every_loss_was_finite(make):
    class Last(nn.Module):
        def forward(self, logits, labels):
            return 0.0 * logits.sum()

    def build(groups):
        optimizer = torch.optim.SGD(groups)
        optimizer.register_step_post_hook(
            lambda *_: [parameter.data.fill_(torch.inf) for group in groups for parameter in group["params"]]
        )
        return optimizer

    result = train([make(0, loss=Last, optimizer=spec_of(build), batch_size=45)])[0]
    assert isinstance(result.error, DivergedError)
    assert "val split" in str(result.error)
    assert result.curve == ()
    assert result.val is None


@pytest.mark.parametrize(("num_classes", "dim"), [(12, 96), (10, 192), (102, 512)])
def test_heads_in_bf16_answer_as_the_layer_does_in_the_whole_model(num_classes, dim):
    torch.manual_seed(0)
    layer = torch.nn.Linear(dim, num_classes)
    layer.weight.data *= 4
    features = torch.randn(1000, dim).bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = torch.cat([layer(part) for part in features.split(32)])
    (found,) = predict_heads([(layer.weight.detach(), layer.bias.detach())], features, torch.bfloat16)
    expected = logits.float().softmax(dim=1)
    # Rounded twice, some five of a thousand are another class.
    assert (found.argmax(dim=1) != expected.argmax(dim=1)).sum() <= 1
    assert (found - expected).abs().mean() < 1e-4


def test_a_pruned_head_stops_and_the_others_keep_their_bits(make):
    asked = []

    def prune_the_second(number, record):
        asked.append((number, record.epoch))
        return number == 1

    jobs = [make(number, epochs=4, **settings) for number, settings in enumerate(MIXTURE[:4])]
    found, expected = train(jobs, on_epoch=prune_the_second), train(jobs)
    assert (found[1].pruned, len(found[1].curve)) == (True, 1)
    assert found[1].images == 40
    assert asked == [(0, 1), (1, 1), (2, 1), (3, 1)] + [(n, e) for e in (2, 3, 4) for n in (0, 2, 3)]
    for number in (0, 2, 3):
        assert_same_bits(found[number], expected[number])


def test_the_last_epochs_verdict_changes_nothing(make):
    result = train([make(0)], on_epoch=lambda number, record: record.epoch == 3)[0]
    assert not result.pruned
    assert len(result.curve) == 3


def test_the_probabilities_are_those_of_the_head_that_is_left(make):
    job = make(0, ema=0.9)
    before = job.weight.clone()
    result = train([job])[0]
    (probabilities,) = predict_heads([result.head], Features(*SIZES[0]).split("val"))
    assert np.array_equal(probabilities.numpy(), result.val[0])
    assert torch.equal(job.weight, before)
    assert result.images == 3 * 40
    assert result.seconds > 0


def test_a_weight_of_other_classes_is_refused(make):
    with pytest.raises(UsageError, match="3 outputs does not fit 4 classes"):
        fit_heads(
            [make(0)],
            Features(*SIZES[0]),
            num_classes=4,
            device=CPU,
            on_step=lambda: None,
            on_epoch=lambda number, record: False,
        )


def test_no_jobs_are_no_results():
    assert train([]) == []


@pytest.mark.parametrize("settings", MIXTURE)
def test_stacked_products_agree_with_those_of_one_head(make, settings, monkeypatch):
    apart = train([make(number, **settings) for number in (1, 2)])
    monkeypatch.setattr(batched, "_is_stacked", lambda device: True)
    stacked = train([make(number, **settings) for number in (1, 2)])
    alone = train([make(2, **settings)])
    tolerance = 0.05 if "precision" in settings else 1e-4
    for one, other in zip(apart, stacked, strict=True):
        np.testing.assert_allclose(one.val[0], other.val[0], atol=tolerance)
    assert_same_bits(stacked[1], alone[0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_closed_gradient_is_autograds(smoothing):
    logits = torch.randn(2, 5, 12, dtype=torch.float32, generator=torch.Generator().manual_seed(0)) * 4
    labels = torch.randint(5, (2, 12), generator=torch.Generator().manual_seed(1))
    losses, gradients = cross_entropy(logits, place_labels(labels[:, :9], 5, 12), smoothing, 9)
    for head in range(2):
        leaf = logits[head, :, :9].t().clone().requires_grad_()
        value = functional.cross_entropy(leaf, labels[head, :9], label_smoothing=smoothing)
        value.backward()
        torch.testing.assert_close(losses[head].mean(), value.detach())
        torch.testing.assert_close(gradients[head, :, :9], leaf.grad.t())


def test_only_a_plain_mean_cross_entropy_has_a_closed_gradient(registry):
    from timm.loss import LabelSmoothingCrossEntropy

    class Other(nn.CrossEntropyLoss):
        pass

    hooked = nn.CrossEntropyLoss()
    hooked.register_forward_hook(lambda *_: None)
    assert smoothing_of(nn.CrossEntropyLoss()) == 0
    assert smoothing_of(nn.CrossEntropyLoss(label_smoothing=0.2)) == 0.2
    assert smoothing_of(LabelSmoothingCrossEntropy(0.3)) == 0.3
    others = (
        nn.CrossEntropyLoss(weight=torch.ones(3)),
        nn.CrossEntropyLoss(reduction="sum"),
        nn.CrossEntropyLoss(ignore_index=1),
        Other(),
        Scaled(),
        hooked,
    )
    assert all(smoothing_of(loss) is None for loss in others)


@pytest.mark.parametrize(
    ("build", "options", "known"),
    [
        (torch.optim.SGD, {}, True),
        (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}, True),
        (torch.optim.SGD, {"momentum": 0.5}, True),
        (torch.optim.Adam, {"betas": (0.8, 0.99)}, True),
        (torch.optim.AdamW, {"eps": 1e-6}, True),
        (torch.optim.SGD, {"momentum": 0.9, "dampening": 0.1}, False),
        (torch.optim.AdamW, {"amsgrad": True}, False),
        (torch.optim.AdamW, {"maximize": True}, False),
        (torch.optim.RMSprop, {}, False),
        (RandomSteps, {}, False),
    ],
    ids=str,
)
def test_a_known_optimizers_rule_does_what_the_optimizer_does(build, options, known):
    generator = torch.Generator().manual_seed(0)
    weight, bias = (nn.Parameter(torch.randn(size, generator=generator)) for size in ((4, 6), (4,)))
    groups = [{"params": [bias], "weight_decay": 0.0}, {"params": [weight], "weight_decay": 0.3}]
    optimizer = build(groups, lr=0.1, **options)
    rule, decay = rule_of(optimizer, weight, bias)
    assert (rule is not None) == known
    if rule is None:
        return
    row = torch.cat([weight.detach().flatten(), bias.detach()])[None]
    moments = torch.zeros(rule.moments, *row.shape).unbind()
    rates = np.array([[0.1], [0.05], [0.02]])
    moves, shrinking = rule.factors(rates, np.array([decay]), 0)
    for step in range(3):
        gradient = torch.randn(row.shape, generator=generator)
        weight.grad, bias.grad = gradient[0, :24].view(4, 6).clone(), gradient[0, 24:].clone()
        for group in optimizer.param_groups:
            group["lr"] = float(rates[step, 0])
        optimizer.step()
        rule.update(
            row,
            gradient,
            moments,
            moves=torch.tensor(moves[step : step + 1], dtype=torch.float32),
            shrinking=torch.tensor(shrinking[step : step + 1], dtype=torch.float32),
            decayed=24,
            step=step,
        )
    torch.testing.assert_close(row[0, :24].view(4, 6), weight.detach())
    torch.testing.assert_close(row[0, 24:], bias.detach())


def test_an_optimizer_with_a_hook_is_asked_itself(make):
    calls = []

    def build(groups):
        optimizer = torch.optim.SGD(groups)
        optimizer.register_step_post_hook(lambda *_: calls.append(1))
        return optimizer

    train([make(0, optimizer=spec_of(build))])
    assert len(calls) == 3 * 5
