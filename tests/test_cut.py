from __future__ import annotations

import copy
from functools import partial

import pytest
import timm
import torch
from torch import nn

from harness.engine import cut as cutting
from harness.engine.boundary import CutError
from harness.engine.cut import bind_suffix, cut_model
from harness.engine.freeze import apply_freeze, plan_freeze, set_train_mode
from harness.engine.trace import join_prefixes
from harness_builtin.backbones import find_timm_head, list_timm_blocks

SIDE = 32


class Net(nn.Module):
    """Two convolutions and a head, with what a test puts between them."""

    def __init__(self, between=None, before_head=None):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 6, 3, padding=1)
        self.between = between or nn.Identity()
        self.before_head = before_head or nn.Identity()
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = self.between(self.norm(self.first(x)).relu())
        return self.head(self.before_head(self.second(x).mean((2, 3))))


BLOCKS = [["first.weight", "first.bias", "norm.weight", "norm.bias"], ["second.weight", "second.bias"]]


def freeze(model, depth, blocks=BLOCKS, head=("head",), size=SIDE):
    plan = plan_freeze(model, depth, blocks=blocks, head=head, image_size=size)
    apply_freeze(model, plan)
    return plan


def freeze_timm(name, depth, size=64):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, drop_rate=0.2)
    head = partial(find_timm_head, name)
    return model, freeze(model, depth, list_timm_blocks(head, model), head(model), size)


def step(model, plan, forward):
    """Return logits, gradients and buffers of a training step."""
    torch.manual_seed(3)
    set_train_mode(model, plan)
    model.zero_grad()
    logits = forward()
    logits.square().sum().backward()
    return [
        logits.detach(),
        *(p.grad.clone() for p in model.parameters() if p.grad is not None),
        *(buffer.clone() for buffer in model.buffers()),
    ]


def assert_exact(model, plan, cut, size=SIDE):
    """Compare two copies, one cut and one whole, in eval mode and after a step in train mode."""
    whole, parts = copy.deepcopy(model), copy.deepcopy(model)
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(9))
    run = bind_suffix(parts, cut)
    for training in (False, True):
        half = cut.half(training)
        set_train_mode(parts, plan) if training else parts.eval()
        with torch.no_grad():
            stored = [rows.clone() for rows in half.boundary.pack(half.bind_prefix(parts)(images))]
        # In another order, as shuffled batches read them.
        rows = [2, 0, 3, 1]
        inputs = [tensor[rows] for tensor in stored]
        if training:
            expected = step(whole, plan, partial(whole, images[rows]))
            found = step(parts, plan, partial(run, inputs, True))
            assert len(expected) == len(found)
            assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
        else:
            whole.eval()
            assert torch.equal(whole(images[rows]), run(inputs, False))
        assert all(torch.equal(tensor[rows], given) for tensor, given in zip(stored, inputs, strict=True))


@pytest.mark.parametrize("depth", [0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize(
    "name", ["test_resnet", "test_efficientnet", "test_byobnet", "test_convnext", "test_vit"]
)
def test_a_cut_network_trains_to_the_same_bits_as_a_whole_one(name, depth):
    model, plan = freeze_timm(name, depth)
    cut = cut_model(model, plan, 64)
    assert cut.method == "trace", cut.why
    assert_exact(model, plan, cut, 64)


def test_without_frozen_layers_there_is_nothing_to_cut():
    model = Net()
    assert cut_model(model, freeze(model, 0.0), SIDE).method == "none"


def test_dropout_before_the_head_stays_on_and_is_not_stored():
    model = Net(before_head=nn.Dropout(0.5))
    plan = freeze(model, 1.0)
    cut = cut_model(model, plan, SIDE)
    assert cut.method == "trace"
    assert_exact(model, plan, cut)
    stored = [torch.ones(8, *cut.train.boundary.rows[0].shape)]
    assert stored[0].numel() == 8 * 6
    set_train_mode(model, plan)
    run = bind_suffix(model, cut)
    assert not torch.equal(run(stored, True), run(stored, True))


def test_a_batchnorm_that_trains_keeps_its_statistics():
    model = Net()
    plan = freeze(model, 0.5, [["first.weight", "first.bias"], ["norm.weight", "norm.bias"]])
    cut = cut_model(model, plan, SIDE)
    assert cut.method == "trace"
    before = model.norm.running_mean.clone()
    assert_exact(model, plan, cut)
    assert torch.equal(model.norm.running_mean, before)


class Streams(nn.Module):
    """A frozen and a training stream that meet, and a skip over the cut."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.left, self.right = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        stem = self.stem(x)
        batch, _, height, width = stem.shape
        both = self.left(stem).relu() + self.right(stem) + stem
        tokens = both.flatten(2).transpose(1, 2)
        # Windows: the first dimension is a multiple of the batch.
        windows = tokens.reshape(batch * height, width, -1).mean(1)
        return self.head(windows.view(batch, height, -1).mean(1))


@pytest.mark.parametrize("trained", [{"left"}, {"right"}, {"left", "right"}, {"stem"}, set()])
def test_any_set_of_frozen_layers_is_cut_by_the_same_rule(trained):
    model = Streams()
    layers = [name for name in ("stem", "left", "right") if name not in trained]
    blocks = [[f"{name}.weight", f"{name}.bias"] for name in (*layers, *sorted(trained))]
    plan = freeze(model, len(layers) / 3, blocks)
    assert set(plan.trainable) == {f"{n}.{part}" for n in {*trained, "head"} for part in ("weight", "bias")}
    cut = cut_model(model, plan, SIDE)
    if "stem" in trained:
        # Nothing but the image lies before what trains.
        assert cut.method == "none"
        assert "image itself" in cut.why
    else:
        assert cut.method == "trace", cut.why
        assert_exact(model, plan, cut)


class Deciding(Net):
    """Cannot be traced: what it does depends on values."""

    def forward(self, x):
        x = self.norm(self.first(x)).relu()
        if float(x.detach().abs().sum()) < 0:
            x = -x
        return self.head(self.second(x).mean((2, 3)))


@pytest.mark.parametrize("depth", [0.5, 1.0])
def test_what_cannot_be_traced_is_replayed(depth):
    model = Deciding()
    plan = freeze(model, depth)
    cut = cut_model(model, plan, SIDE)
    assert cut.method == "replay"
    assert "cannot be traced" in cut.why
    assert_exact(model, plan, cut)
    assert "forward" not in vars(model.first)


class Mixing(nn.Module):
    def forward(self, x):
        return x - x.mean(0, keepdim=True)


def test_images_that_reach_each_other_before_the_cut_keep_a_model_whole():
    model = Net(between=Mixing())
    cut = cut_model(model, freeze(model, 1.0), SIDE)
    assert cut.method == "none"
    assert "reach each other" in cut.why


def test_a_wrong_cut_gives_way_to_the_next_method(monkeypatch):
    def wrong(model, images, others):
        half = right(model, images, others)
        # Forgets what the suffix adds to the head's output.
        node = next(node for node in half.suffix_graph.nodes if node.op == "output")
        with half.suffix_graph.inserting_before(node):
            node.args = (half.suffix_graph.call_function(torch.mul, (node.args[0], 1.01)),)
        return half

    right = cutting.cut_by_tracing
    monkeypatch.setattr(cutting, "cut_by_tracing", wrong)
    model = Net()
    cut = cut_model(model, freeze(model, 0.5), SIDE)
    assert cut.method == "replay"
    assert "output: off by" in cut.why


def test_a_block_that_starts_at_zero_hides_no_wrong_edge(monkeypatch):
    model = Net()
    nn.init.zeros_(model.head.weight)
    plan = freeze(model, 0.5)

    def blind(model, images, others):
        half = right(model, images, others)
        node = next(node for node in half.suffix_graph.nodes if node.target == "second")
        with half.suffix_graph.inserting_after(node):
            wrong = half.suffix_graph.call_function(torch.neg, (node,))
        node.replace_all_uses_with(wrong, delete_user_cb=lambda user: user is not wrong)
        return half

    right = cutting.cut_by_tracing
    monkeypatch.setattr(cutting, "cut_by_tracing", blind)
    assert cut_model(model, plan, SIDE).method == "replay"


def test_cutting_leaves_a_model_as_it_was():
    model, plan = freeze_timm("test_resnet", 0.5)
    set_train_mode(model, plan)
    state = copy.deepcopy(model.state_dict())
    flags = [(module.training, set(vars(module))) for module in model.modules()]
    grads = [parameter.requires_grad for parameter in model.parameters()]
    torch.manual_seed(5)
    cut_model(model, plan, 64)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert flags == [(module.training, set(vars(module))) for module in model.modules()]
    assert grads == [parameter.requires_grad for parameter in model.parameters()]


def test_a_cut_fits_another_model_of_the_same_architecture():
    model, plan = freeze_timm("test_efficientnet", 0.5)
    cut = cut_model(model, plan, 64)
    torch.manual_seed(8)
    other = timm.create_model("test_efficientnet", num_classes=5, drop_rate=0.2)
    apply_freeze(other, plan)
    assert_exact(other, plan, cut, 64)


def test_the_prefixes_of_several_depths_are_run_as_one():
    cuts = []
    for depth in (0.25, 0.5, 1.0):
        model, plan = freeze_timm("test_resnet", depth)
        cuts.append(cut_model(model, plan, 64))
    images = torch.randn(2, 3, 64, 64)
    model.eval()
    numbers, joined = join_prefixes([cut.eval for cut in cuts])
    assert numbers == [0, 1, 2]
    with torch.no_grad():
        values = joined.bind_prefix(model)(images)
        for cut, own in zip(cuts, values, strict=True):
            alone = cut.eval.bind_prefix(model)(images)
            assert all(torch.equal(a, b) for a, b in zip(alone, own, strict=True))


def test_an_error_of_the_comparison_names_what_differs():
    with pytest.raises(CutError, match=r"gradient of head: off by 1 of 2"):
        cutting._same("gradient of head", torch.tensor([2.0]), torch.tensor([1.0]))
