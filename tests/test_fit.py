from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

from harness.engine.fit import build_optimizer, predict_split, warmed_up
from harness.errors import PluginError
from harness.isolation import component_of
from harness.search.space import resolve_space
from harness.specs import OptimizerSpec, ScheduleSpec


@pytest.mark.parametrize("name", ["constant", "cosine", "step", "exponential"])
def test_a_schedule_rises_in_the_warm_up_and_never_exceeds_one(registry, name):
    factor = warmed_up(registry.schedules.get(name).spec, steps=100, warmup=0.1)
    factors = [factor(step) for step in range(100)]
    assert factors[:10] == sorted(factors[:10])
    assert factors[0] < 0.2
    assert factors[10] == pytest.approx(1.0)
    assert all(0 <= value <= 1 for value in factors)
    assert factors[10:] == sorted(factors[10:], reverse=True)


def test_cosine_ends_near_zero_and_step_ends_at_a_hundredth(registry):
    assert warmed_up(registry.schedules.get("cosine").spec, 1000, 0.0)(999) < 1e-4
    assert math.isclose(warmed_up(registry.schedules.get("step").spec, 1000, 0.0)(999), 0.01)


def test_norms_and_biases_get_no_weight_decay_and_frozen_parameters_are_left_out(registry, tiny):
    from harness.search.space import resolve_space

    study = tiny(space={"weight_decay": 0.1})
    space = resolve_space(study, registry)
    point = {axis.name: axis.choices[0] if axis.choices else axis.low for axis in space.axes}
    config = space.trial_config(study, {**point, "optimizer": "adamw"}, seed=0)
    model = registry.backbones.get("tiny-net").spec.build(3, None, 24)
    model[0].weight.requires_grad_(False)
    optimizer = build_optimizer(
        model, torch.nn.CrossEntropyLoss(), config, registry.optimizers.get("adamw").spec
    )
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert id(model[0].weight) not in decay
    assert decay[id(model[3].weight)] == 0.1
    assert decay[id(model[1].weight)] == decay[id(model[3].bias)] == 0.0
    assert all(group["lr"] == config.lr for group in optimizer.param_groups)


def test_a_focal_loss_is_cross_entropy_where_gamma_does_not_bite(registry):
    from harness import ClassInfo

    classes = ClassInfo(num_classes=3, counts=(1, 1, 1))
    focal = registry.losses.get("focal").spec.build(classes)
    logits = torch.tensor([[2.0, -1.0, 0.5]], dtype=torch.float64)
    labels = torch.tensor([0])
    true = torch.softmax(logits, dim=1)[0, 0]
    assert focal(logits, labels).item() == pytest.approx((-((1 - true) ** 2) * true.log()).item())


@pytest.mark.slow
def test_averaged_weights_are_evaluated_when_asked_for(tiny, registry, tmp_path):
    from harness import run_study

    plain = run_study(tiny(trials=1), registry=registry, runs=tmp_path)
    averaged = run_study(tiny(trials=1, train={"ema": 0.9}), registry=registry, runs=tmp_path)
    assert plain.records[0].config.lr == averaged.records[0].config.lr
    assert plain.records[0].predictions != averaged.records[0].predictions


class Narrow(torch.nn.Linear):
    """A layer that runs out of memory on more than a few images."""

    limit = 100
    error: Exception = torch.OutOfMemoryError("too many (injected)")

    def forward(self, images):
        if self.training and len(images) > self.limit:
            raise self.error
        return super().forward(images)


class Rows:
    train_size = 24

    def __init__(self):
        generator = torch.Generator().manual_seed(1)
        self.rows = torch.randn(24, 6, generator=generator)
        self.labels = self.rows[:, :3].argmax(dim=1)

    def train_batches(self, epoch, batch_size, seed):
        for start in range(0, 24, batch_size):
            yield [self.rows[start : start + batch_size]], self.labels[start : start + batch_size]

    def eval_batches(self, split, batch_size):
        yield [self.rows], self.labels


@pytest.fixture
def fit_rows(registry, tiny):
    from harness.engine.cut import NO_CUT
    from harness.engine.fit import fit
    from harness.engine.freeze import FreezePlan
    from harness.search.space import resolve_space

    study = tiny(
        space={"lr": 1e-2, "optimizer": "adamw", "freeze_depth": 0.0},
        train={"batch_size": 12, "precision": "fp32"},
    )
    config = resolve_space(study, registry).probe_config(study, "tiny-net")

    def run(limit=100, model=None, eval_modules=(), forward=None, make_room=lambda: False, **components):
        if model is None:
            torch.manual_seed(0)
            model = Narrow(6, 3)
            model.limit = limit
        plan = FreezePlan(
            depth=0.0,
            frozen=(),
            trainable=tuple(name for name, _ in model.named_parameters()),
            frozen_modules=(),
            eval_modules=eval_modules,
            head=("",),
            n_blocks=0,
            n_frozen=0,
            param_share=0.0,
        )
        fitted = fit(
            model,
            Rows(),
            config,
            plan=plan,
            cut=NO_CUT,
            loss=components.get("loss", torch.nn.CrossEntropyLoss()),
            optimizer=components.get("optimizer", registry.optimizers.get("adamw").spec),
            schedule=components.get("schedule", registry.schedules.get("cosine").spec),
            num_classes=3,
            device=torch.device("cpu"),
            on_step=lambda: None,
            on_epoch=lambda record: False,
            forward=forward,
            make_room=make_room,
        )
        return fitted, next(model.parameters()).detach()

    return run


@pytest.mark.parametrize(("limit", "micro_batch"), [(6, 6), (5, 3), (1, 1)])
def test_a_batch_that_does_not_fit_goes_through_in_parts_with_the_same_gradients(
    fit_rows, limit, micro_batch
):
    whole, expected = fit_rows(100)
    parts, found = fit_rows(limit)
    assert whole.micro_batch == 12
    assert parts.micro_batch == micro_batch
    assert not parts.norm_in_parts
    assert torch.allclose(found, expected, atol=1e-5)
    assert [epoch.train_loss for epoch in parts.curve] == pytest.approx(
        [epoch.train_loss for epoch in whole.curve], rel=1e-4
    )


class Normed(torch.nn.Module):
    """A layer whose batch norm sees what its memory holds."""

    def __init__(self):
        super().__init__()
        self.norm, self.layer = torch.nn.BatchNorm1d(6), Narrow(6, 3)
        self.layer.limit = 6

    def forward(self, rows):
        return self.layer(self.norm(rows))


@pytest.mark.parametrize(("frozen", "flagged"), [((), True), (("norm",), False)])
def test_a_batch_norm_that_trains_on_parts_of_a_batch_is_flagged(fit_rows, frozen, flagged):
    fitted, _ = fit_rows(model=Normed(), eval_modules=frozen)
    assert fitted.micro_batch == 6
    assert fitted.norm_in_parts is flagged


@pytest.mark.parametrize(
    ("error", "halves"),
    [
        ("FIND was unable to find an engine to execute this computation", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("shapes do not fit", False),
    ],
)
def test_a_shortage_of_memory_has_several_names(fit_rows, monkeypatch, error, halves):
    monkeypatch.setattr(Narrow, "error", RuntimeError(error))
    if halves:
        assert fit_rows(6)[0].micro_batch == 6
    else:
        with pytest.raises(RuntimeError, match=error):
            fit_rows(6)


def refuse(*values):
    raise ValueError("not like this")


class Refusing(torch.nn.Module):
    forward = refuse


class Stuck(torch.optim.SGD):
    step = refuse


def optimizer_of(build):
    return OptimizerSpec(name="own", summary="", build=build, lr=(1e-3, 1))


def schedule_of(build):
    return ScheduleSpec(name="own", summary="", build=build)


@pytest.mark.parametrize(
    ("components", "blamed"),
    [
        ({"loss": Refusing()}, "loss 'cross-entropy'"),
        ({"optimizer": optimizer_of(refuse)}, "optimizer 'adamw'"),
        ({"optimizer": optimizer_of(Stuck)}, "optimizer 'adamw'"),
        ({"schedule": schedule_of(refuse)}, "schedule 'own'"),
        ({"schedule": schedule_of(lambda steps: refuse)}, "schedule 'own'"),
    ],
)
def test_an_error_of_a_component_says_which_it_was(fit_rows, components, blamed):
    with pytest.raises(ValueError, match="not like this") as caught:
        fit_rows(**components)
    assert component_of(caught.value) == blamed


def test_a_batch_goes_through_whole_where_others_make_room_for_it(fit_rows, monkeypatch):
    asked = []

    def make_room():
        asked.append(1)
        monkeypatch.setattr(Narrow, "limit", 100)
        return True

    whole, expected = fit_rows(100)
    torch.manual_seed(0)
    monkeypatch.setattr(Narrow, "limit", 6)
    fitted, found = fit_rows(model=Narrow(6, 3), make_room=make_room)
    assert asked == [1]
    assert fitted.micro_batch == whole.micro_batch == 12
    assert torch.equal(found, expected)


def test_one_image_that_does_not_fit_fails(fit_rows):
    with pytest.raises(torch.OutOfMemoryError, match="injected"):
        fit_rows(0)


def test_a_pass_of_its_own_trains_and_the_model_itself_is_evaluated(fit_rows):
    calls = []
    torch.manual_seed(0)
    model = Narrow(6, 3)

    def forward(inputs, training):
        calls.append(training)
        return model(inputs[0])

    found, weight = fit_rows(model=model, forward=forward)
    expected, plain = fit_rows(100)
    assert torch.equal(weight, plain)
    assert calls == [True] * (2 * len(found.curve))
    assert (found.val[0] == expected.val[0]).all()


def test_the_factor_of_a_schedule_is_a_number_whatever_the_schedule_returns():
    spec = ScheduleSpec(name="tensors", summary="", build=lambda steps: lambda step: torch.tensor(0.5))
    assert [type(warmed_up(spec, 10, 0.2)(step)) for step in (0, 5)] == [float, float]


def test_a_model_with_more_answers_than_classes_is_named(fit_rows):
    with pytest.raises(PluginError, match="answers with 4 classes where there are 3"):
        fit_rows(model=torch.nn.Linear(6, 4))


def test_an_average_is_evaluated_as_it_is_now_though_its_model_keeps_what_it_computed(registry, tiny):
    class Keeping(torch.nn.Linear):
        kept = None

        def train(self, mode=True):
            self.kept = None if mode else self.kept
            return super().train(mode)

        def forward(self, rows):
            if self.training:
                return super().forward(rows)
            self.kept = self.weight.clone() if self.kept is None else self.kept
            return torch.nn.functional.linear(rows, self.kept, self.bias)

    study = tiny(train={"precision": "fp32"})
    config = resolve_space(study, registry).probe_config(study, "tiny-net")
    model = Keeping(6, 3)
    answers = []
    for _ in range(2):
        run = partial(lambda model, inputs, training: model(*inputs), model)
        answers.append(predict_split(model, run, Rows(), "val", config, torch.device("cpu"))[0])
        torch.nn.init.normal_(model.weight)
    assert not np.allclose(*answers)
