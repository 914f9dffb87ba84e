from __future__ import annotations

import pytest
import torch
from torch import nn

from harness.engine.heads import init_head, place_ridge
from harness.errors import UsageError


def model():
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "body": nn.Linear(8, 8),
            "head": nn.Linear(64, 50),
            "conv": nn.Conv2d(16, 40, 3, groups=2),
            "mlp": nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 5)),
            "norm": nn.LayerNorm(8),
        }
    )


def state(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def changed(net, before):
    return {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("how", ["timm", "ridge"])
def test_a_head_that_is_not_drawn_here_stays_as_it_is_built(how):
    net = model()
    before = state(net)
    init_head(net, ["head", "norm"], how, seed=1)
    assert changed(net, before) == set()


@pytest.mark.parametrize("bias", [True, False])
def test_ridge_gives_a_head_its_direction_and_the_norm_of_a_new_layer(bias):
    layer = nn.Linear(64, 50, bias=bias)
    new = layer.weight.norm().item()
    weight, offset = 30 * torch.randn(50, 64), torch.randn(50)
    place_ridge(layer, weight, offset)
    features = torch.randn(9, 64)
    expected = features @ weight.T + (offset if bias else 0)
    logits = layer(features)
    scale = (logits / expected).mean()
    torch.testing.assert_close(logits, scale * expected)
    assert layer.weight.norm().item() == pytest.approx(new, rel=0.05)


@pytest.mark.parametrize("how", ["xavier", "kaiming"])
def test_weights_are_drawn_and_biases_are_zero_in_the_head_alone(how):
    net = model()
    before = state(net)
    init_head(net, ["head", "mlp"], how, seed=1)
    layers = [f"{layer}.{kind}" for layer in ("head", "mlp.0", "mlp.3") for kind in ("weight", "bias")]
    assert changed(net, before) == set(layers)
    for name in layers[1::2]:
        assert not net.state_dict()[name].any()


def test_xavier_is_uniform_within_its_bound():
    net = model()
    init_head(net, ["head"], "xavier", seed=1)
    bound = (6 / (64 + 50)) ** 0.5
    assert net["head"].weight.abs().max() <= bound
    assert net["head"].weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_kaiming_counts_the_fan_in_of_a_grouped_convolution():
    net = model()
    init_head(net, ["head", "conv"], "kaiming", seed=1)
    assert net["head"].weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.05)
    assert net["conv"].weight.std().item() == pytest.approx((2 / (8 * 9)) ** 0.5, rel=0.05)


def test_zero_gives_equal_logits_and_a_head_that_learns():
    net = model()
    init_head(net, ["mlp"], "zero", seed=1)
    logits = net["mlp"](torch.randn(4, 8))
    assert not logits.any()
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 3])).backward()
    assert net["mlp"][3].weight.grad.any()


def test_zero_reaches_each_of_several_heads():
    net = model()
    init_head(net, ["head", "body"], "zero", seed=1)
    assert not any(parameter.any() for name in ("head", "body") for parameter in net[name].parameters())


@pytest.mark.parametrize("how", ["xavier", "kaiming"])
def test_a_seed_decides_and_the_global_generator_does_not_move(how):
    drawn = []
    for seed in (1, 1, 2):
        net = model()
        torch.manual_seed(len(drawn))
        before = torch.get_rng_state()
        init_head(net, ["head"], how, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        drawn.append(net["head"].weight)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_values_do_not_depend_on_the_precision():
    net, half = model(), model().to(torch.bfloat16)
    init_head(net, ["head"], "xavier", seed=1)
    init_head(half, ["head"], "xavier", seed=1)
    assert torch.equal(net["head"].weight.to(torch.bfloat16), half["head"].weight)


def test_two_heads_start_apart_and_a_shared_one_is_drawn_once():
    net = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    init_head(net, ["a", "b"], "xavier", seed=1)
    assert not torch.equal(net["a"].weight, net["b"].weight)
    first = net["a"].weight.clone()
    init_head(net, ["a", "a"], "xavier", seed=1)
    assert torch.equal(net["a"].weight, first)


def test_a_head_without_a_layer_to_initialise_is_refused():
    with pytest.raises(UsageError, match="no linear or convolutional layer"):
        init_head(model(), ["norm"], "xavier", seed=1)


def test_an_unknown_way_is_refused():
    with pytest.raises(UsageError, match="must be one of"):
        init_head(model(), ["head"], "orthogonal", seed=1)  # type: ignore[arg-type]
