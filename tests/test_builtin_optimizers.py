from __future__ import annotations

import pytest
import torch

from harness import Family
from harness_builtin import optimizers


def components():
    found = list(optimizers.harness_optimizers())
    own = {item.name: item for item in found if not isinstance(item, Family)}
    (family,) = (item for item in found if isinstance(item, Family))
    return own, family


def a_step(spec, *, lr=1e-2, weight_decay=0.0):
    """Return the parameters of two groups, the second at learning rate 0, after one step."""
    trained, still = torch.ones(3, 3, requires_grad=True), torch.ones(3, requires_grad=True)
    trained.grad, still.grad = torch.ones(3, 3), torch.ones(3)
    optimizer = spec.build(
        [
            {"params": [trained], "lr": lr, "weight_decay": weight_decay},
            {"params": [still], "lr": 0.0, "weight_decay": 0.0},
        ]
    )
    optimizer.step()
    return trained, still, optimizer


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_an_optimizer_takes_the_learning_rate_of_each_group(name):
    own, _ = components()

    trained, still, _ = a_step(own[name])

    assert (trained < 1).all()
    assert (still == 1).all()


def test_sgd_has_nesterov_momentum():
    own, _ = components()
    _, _, optimizer = a_step(own["sgd"])

    assert all(group["momentum"] == 0.9 and group["nesterov"] for group in optimizer.param_groups)


def test_adamw_decays_weights_apart_from_the_gradient_and_adam_does_not():
    own, _ = components()
    moved = {}
    for name in ("adam", "adamw"):
        plain, _, _ = a_step(own[name])
        decayed, _, _ = a_step(own[name], weight_decay=0.5)
        moved[name] = (plain - decayed).mean().item()

    assert moved["adamw"] == pytest.approx(1e-2 * 0.5, rel=1e-3)
    assert moved["adam"] == pytest.approx(0, abs=1e-6)


def test_bounds_are_ordered_and_those_of_sgd_are_higher():
    own, family = components()
    for spec in (*own.values(), family.spec("lion")):
        low, high = spec.lr
        assert 0 < low < high
    assert own["sgd"].lr[0] > own["adamw"].lr[0]
    assert family.spec("lion").lr == (1e-5, 1e-2)


def test_the_family_lists_what_runs_here_and_nothing_that_has_a_spec_of_its_own():
    own, family = components()
    names = set(family.members())

    assert {"lion", "lamb", "muon", "nadamw", "sgdp"} <= names
    assert not names & set(own)
    assert not [name for name in names if name.startswith(("bnb", "fused", "kron"))]
    assert "adahessian" not in names


def test_listing_the_family_leaves_the_random_numbers_alone():
    _, family = components()
    torch.manual_seed(3)
    expected = torch.rand(1)

    torch.manual_seed(3)
    list(family.members())

    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("name", ["lion", "lamb", "muon", "adan", "nadamw"])
def test_a_member_takes_the_learning_rate_of_each_group(name):
    _, family = components()

    trained, still, optimizer = a_step(family.spec(name), weight_decay=0.1)

    assert (trained < 1).all()
    assert (still == 1).all()
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


def test_each_member_describes_itself_in_one_line():
    _, family = components()
    for name in family.members():
        summary = family.spec(name).summary
        assert summary and "\n" not in summary
