from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from harness.engine.mould import Mould


def holds(model):
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def assert_equal_and_apart(copied, model):
    mine, other = holds(copied), holds(model)
    assert mine.keys() == other.keys()
    for name, value in mine.items():
        assert torch.equal(value, other[name])
        assert value.stride() == other[name].stride()
        assert value.requires_grad == other[name].requires_grad
        assert value.data_ptr() != other[name].data_ptr()
    assert [type(module) for module in copied.modules()] == [type(module) for module in model.modules()]
    assert not {id(module) for module in copied.modules()} & {id(module) for module in model.modules()}


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit", "mobilenetv3_small_050"])
def test_a_copy_is_equal_and_shares_nothing(name):
    model = timm.create_model(name, num_classes=5).to(memory_format=torch.channels_last).eval()
    next(model.parameters()).requires_grad_(False)
    copied = Mould(model).copy()
    assert_equal_and_apart(copied, model)
    images = torch.randn(2, 3, *model.default_cfg["input_size"][1:])
    assert torch.equal(copied(images), model(images))
    copied.train()
    assert not any(module.training for module in model.modules())


def test_a_copy_is_of_the_numbers_that_the_model_has_by_then():
    model = nn.Linear(2, 2)
    mould = Mould(model)
    with torch.no_grad():
        model.weight.fill_(7)
    model.bias.requires_grad_(False)
    copied = mould.copy()
    assert (copied.weight == 7).all()
    assert not copied.bias.requires_grad
    with torch.no_grad():
        copied.weight.fill_(1)
    assert (mould.copy().weight == 7).all()


def test_what_is_tied_stays_tied():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    model.append(model[1])
    copied = Mould(model).copy()
    assert copied[2].weight is copied[0].weight
    assert copied[3] is copied[1]
    assert_equal_and_apart(copied, model)


class Views(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("whole", torch.arange(4.0))
        self.register_buffer("part", self.whole[:2])


class Lambda(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.scale = lambda x: 2 * x


class SaysItself(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.shared = []

    def __deepcopy__(self, memo):
        other = type(self)()
        other.load_state_dict(self.state_dict())
        other.shared = self.shared
        return other


class BoundToItself(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.run = self.layer.forward

    def forward(self, x):
        return self.run(x)


def test_what_pickle_would_not_copy_alike_is_copied_as_ever():
    copied = Mould(Views()).copy()
    copied.whole[0] = 9
    assert copied.part[0] == 9
    model = Lambda()
    assert_equal_and_apart(Mould(model).copy(), model)
    model = SaysItself()
    assert Mould(nn.Sequential(model)).copy()[0].shared is model.shared
    traced = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2)))
    assert isinstance(Mould(traced).copy(), torch.fx.GraphModule)


def test_a_method_that_is_an_attribute_is_that_of_the_copy():
    model = BoundToItself()
    copied = Mould(model).copy()
    with torch.no_grad():
        copied.layer.weight.zero_()
        copied.layer.bias.zero_()
    images = torch.ones(1, 2)
    assert not copied(images).any()
    assert model(images).any()
