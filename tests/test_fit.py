from __future__ import annotations

import math

import pytest
import torch

from harness.engine.fit import build_optimizer, warmed_up


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
