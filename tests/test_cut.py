from __future__ import annotations

import copy
import dataclasses
from functools import partial

import pytest
import timm
import torch
from nets import (
    SIZE,
    Branching,
    Constant,
    Dropping,
    InPlace,
    LateChange,
    Mixed,
    Mixing,
    Normed,
    Permuted,
    Plain,
    ZeroStart,
    differences,
    freeze,
    images,
    shake,
)
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from harness.engine import cut as cutting
from harness.engine.boundary import CutError, Rows
from harness.engine.cut import NO_CUT, Cut, bind_suffix, check_cut, cut_model, find_linear_head
from harness.engine.freeze import apply_freeze, plan_freeze, set_train_mode
from harness.engine.replay import cut_by_replay
from harness.engine.trace import TracedHalf, cut_by_tracing
from harness_builtin.backbones import find_timm_head, list_timm_blocks


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small operations are slower on many threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# What is exact is told by the tests of both methods; here, which one is taken.
CUTS = {
    "permuted boundary": (Permuted, ["first"], "trace"),
    "dropout before the head": (Dropping, ["first", "second"], "trace"),
    "batch norm without parameters": (Normed, ["first", "norm", "second", "late"], "trace"),
    "norms alone train": (Normed, ["first", "second", "head"], "trace"),
    "constants": (Constant, ["first", "table"], "trace"),
    "changes in place": (InPlace, ["first"], "trace"),
    "a layer of zeros": (ZeroStart, ["first"], "trace"),
    "a late change in place": (LateChange, ["first"], "replay"),
    "control flow": (Branching, ["first"], "replay"),
}


@pytest.mark.parametrize(("make", "frozen", "method"), CUTS.values(), ids=CUTS)
def test_a_cut_is_exact_and_found_in_the_best_way(make, frozen, method):
    model = make()
    plan = freeze(model, *frozen)
    cut = cut_model(model, plan, SIZE)
    assert (cut.method, cut.why if method == "trace" else "") == (method, "")
    assert differences(model, plan, cut) == []


@pytest.mark.parametrize("make", [Normed, Constant, LateChange])
def test_cutting_leaves_the_model_as_it_was(make):
    model = make()
    plan = freeze(model, "first")
    model.train()
    model.second.eval()
    model.seen = [1, 2]
    attributes = {module: dict(vars(module)) for module in model.modules()}
    state = {name: (tensor, tensor.clone()) for name, tensor in everything(model).items()}
    asking = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    torch.manual_seed(5)
    random = torch.get_rng_state()
    cut_model(model, plan, SIZE)
    assert torch.equal(torch.get_rng_state(), random)
    assert {module: dict(vars(module)) for module in model.modules()} == attributes
    assert "forward" not in {name for module in model.modules() for name in vars(module)}
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == asking
    for name, tensor in everything(model).items():
        assert tensor is state[name][0]
        assert torch.equal(tensor, state[name][1])
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.backends.mha.get_fastpath_enabled()


def everything(model):
    return dict(model.named_parameters()) | dict(model.named_buffers())


class Hoarding(Plain):
    """Keeps values on itself, and puts another tensor in the place of a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("level", torch.zeros(()))

    def forward(self, x):
        self.seen = self.first(x)
        if self.training:
            self.level = 0.9 * self.level + 0.1
        return self.finish(self.second(self.seen) + self.level)


class Levelled(Plain):
    """Makes what it adds from a buffer alone, which a graph holds as a constant."""

    def __init__(self):
        super().__init__()
        self.register_buffer("level", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.level += 0.1
        return self.finish(self.second(self.first(x)) + self.level.exp())


@pytest.mark.parametrize("make", [Hoarding, Levelled])
def test_a_buffer_that_training_changes_is_no_constant_of_a_graph(make):
    model = make()
    plan = freeze(model, "first")
    level = model.level
    cut = cut_model(model, plan, SIZE)
    assert (cut.method, "trace: " in cut.why) == ("replay", True)
    assert differences(model, plan, cut) == []
    assert not hasattr(model, "seen")
    assert model.level is level and float(level) == 0


def test_a_bound_model_can_be_copied_and_has_the_keys_that_it_had():
    model = Normed()
    plan = freeze(model, "first", "norm")
    keys = list(model.state_dict())
    cut = cut_model(model, plan, SIZE)
    run = bind_suffix(model, cut)
    assert list(model.state_dict()) == keys
    twin = copy.deepcopy(model)
    assert list(twin.state_dict()) == keys
    assert differences(twin, plan, cut) == []
    del run


def test_where_nothing_is_frozen_nothing_is_cut():
    model = Plain()
    assert cut_model(model, freeze(model, "no such layer"), SIZE) is NO_CUT
    logits = bind_suffix(model.eval(), NO_CUT)([images(3)], False)
    assert torch.equal(logits, model(images(3)))


class Glancing(Plain):
    """Looks at the image itself with a layer that trains."""

    def __init__(self):
        super().__init__(glance=nn.Conv2d(3, 6, 1))

    def forward(self, x):
        return self.finish(self.second(self.first(x)) + self.glance(x))


class FirstOnly(nn.Module):
    """Knows the first image of a batch from the others."""

    def forward(self, x):
        return torch.cat([x[:1] * 2, x[1:]])


class Counted(Plain):
    """Divides by half the number of images, rounded."""

    def forward(self, x):
        x = self.first(x)
        return self.finish(self.second(x) / (1 + x.shape[0] // 2))


@pytest.mark.parametrize(
    ("make", "frozen", "why"),
    [
        (Glancing, ["first"], "training reaches the image itself"),
        (Plain, ["second"], "training reaches the image itself"),
        (Mixed, ["first"], "images of a batch reach each other before the cut"),
    ],
)
def test_where_a_model_cannot_be_cut_it_is_said_why(make, frozen, why):
    model = make()
    cut = cut_model(model, freeze(model, *frozen), SIZE)
    assert (cut.method, cut.train, cut.eval) == ("none", None, None)
    trace, replay = cut.why.split("; ")
    assert trace.startswith("trace: ") and why in trace
    assert replay.startswith("replay: ")


@pytest.mark.parametrize("mixing", [Mixing(), FirstOnly(), nn.BatchNorm2d(6, track_running_stats=False)])
def test_images_that_reach_each_other_before_the_cut_are_found_out(mixing):
    model = Mixed()
    model.mixing = mixing
    plan = freeze(model, "first", "mixing")
    assert cut_model(model, plan, SIZE).method == "none"


def test_a_number_that_does_not_grow_with_the_batch_as_it_seems_to_is_found_out():
    model = Counted()
    plan = freeze(model, "first")
    cut = cut_model(model, plan, SIZE)
    assert cut.method == "replay"
    assert "trace: output: off by" in cut.why
    assert differences(model, plan, cut) == []


# --- wrong cuts -------------------------------------------------------------------------------------------


def without(half, wrong):
    """Return a half whose suffix lacks an operation: its input takes its place."""
    graph = copy.deepcopy(half.suffix_graph)
    node = next(node for node in graph.nodes if node.name == wrong)
    node.replace_all_uses_with(node.args[0])
    graph.erase_node(node)
    return dataclasses.replace(half, suffix_graph=graph)


def in_eval_mode(half):
    """Return a half that draws nothing."""
    graph = copy.deepcopy(half.suffix_graph)
    for node in graph.nodes:
        if "dropout" in str(node.target):
            node.args = (*node.args[:2], False)
    return dataclasses.replace(half, suffix_graph=graph)


def contiguous(half):
    """Return a half that stores its tensors in another memory layout."""
    (rows,) = half.boundary.parts
    other = dataclasses.replace(rows, order=tuple(range(len(rows.order))))
    shape = (1, SIZE, SIZE, 6)
    return dataclasses.replace(half, boundary=type(half.boundary)((dataclasses.replace(other, shape=shape),)))


WRONG = {
    "an operation is missing": (Plain, lambda half: without(half, "gelu_1")),
    "an edge of zeros is wrong": (ZeroStart, lambda half: without(half, "add")),
    "nothing is drawn": (Permuted, in_eval_mode),
    "another memory layout": (Permuted, contiguous),
    "too many rows": (
        Plain,
        lambda half: dataclasses.replace(half, boundary=type(half.boundary)(half.boundary.parts * 2)),
    ),
}


@pytest.mark.parametrize(("make", "spoil"), WRONG.values(), ids=WRONG)
def test_a_wrong_cut_is_passed_over(monkeypatch, make, spoil):
    model = make()
    plan = freeze(model, "first")
    assert cut_model(model, plan, SIZE).method == "trace"

    def wrong(model, images, others, changing):
        return spoil(cut_by_tracing(model, images, others, changing))

    monkeypatch.setattr(cutting, "cut_by_tracing", wrong)
    cut = cut_model(model, plan, SIZE)
    assert cut.method == "replay"
    assert cut.why.startswith("trace: ")
    assert differences(model, plan, cut) == []


def test_where_both_ways_are_wrong_nothing_is_cut(monkeypatch):
    def wrong(model, images, others, changing):
        return without(cut_by_tracing(model, images, others, changing), "gelu_1")

    monkeypatch.setattr(cutting, "cut_by_tracing", wrong)
    monkeypatch.setattr(cutting, "cut_by_replay", wrong)
    model = Plain()
    cut = cut_model(model, freeze(model, "first"), SIZE)
    assert cut.method == "none"
    assert cut.why.count("off by") == 2


def test_an_error_of_any_type_is_a_reason_and_no_failure(monkeypatch):
    def fail(*values):
        raise ZeroDivisionError("out of order")

    monkeypatch.setattr(cutting, "cut_by_tracing", fail)
    model = Plain()
    cut = cut_model(model, freeze(model, "first"), SIZE)
    assert (cut.method, cut.why) == ("replay", "trace: ZeroDivisionError: out of order")


def test_too_little_memory_is_no_reason_to_train_without_a_cut(monkeypatch):
    def fail(*values):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(cutting, "cut_by_tracing", fail)
    model = Plain()
    with pytest.raises(torch.OutOfMemoryError):
        cut_model(model, freeze(model, "first"), SIZE)


def test_a_gradient_that_is_off_is_found_out_though_the_outputs_agree():
    model = Plain()
    plan = freeze(model, "first")
    cut = cut_model(model, plan, SIZE)

    class Detached(TracedHalf):
        def bind_suffix(self, model):
            run = super().bind_suffix(model)

            def suffix(values, images):
                logits = run(values, images)
                return logits + (model.second.bias.sum() - model.second.bias.sum().detach())

            return suffix

    fields = {field.name: getattr(cut.train, field.name) for field in dataclasses.fields(TracedHalf)}
    with pytest.raises(CutError, match=r"gradient of second\.bias: off by"):
        check_cut(model, plan, dataclasses.replace(cut, train=Detached(**fields)), SIZE)


def test_a_prefix_that_reads_what_training_changes_is_found_out():
    model = Normed()
    plan = freeze(model, "first", "norm")
    halves = {}
    for training in (True, False):
        set_train_mode(model, plan) if training else model.eval()
        halves[training] = cut_by_tracing(model, images(2), images(3), [])  # not told what changes
    naive = Cut(method="trace", train=halves[True], eval=halves[False])
    with pytest.raises(CutError, match="output: off by"):
        check_cut(model, plan, naive, SIZE)


def test_a_check_passes_what_is_right(monkeypatch):
    model = Dropping()
    plan = freeze(model, "first", "second")
    for make in (cut_by_tracing, cut_by_replay):
        halves = {}
        for training in (True, False):
            set_train_mode(model, plan) if training else model.eval()
            halves[training] = make(model, images(2), images(3), [])
        check_cut(model, plan, Cut(method="trace", train=halves[True], eval=halves[False]), SIZE)


# --- timm's networks --------------------------------------------------------------------------------------


def load_timm(name, **options):
    torch.manual_seed(0)
    model = shake(timm.create_model(name, num_classes=5, **options))
    head = partial(find_timm_head, name)
    return model, list_timm_blocks(head, model), head(model)


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_efficientnet", "test_byobnet", "test_convnext", "test_vit"]
)
def test_a_network_of_timm_is_cut_exactly_at_each_depth(name):
    options = {"img_size": 64} if name == "test_vit" else {}
    model, blocks, head = load_timm(name, drop_rate=0.1, drop_path_rate=0.1, **options)
    for depth in (0.5, 1.0):
        plan = plan_freeze(model, depth, blocks=blocks, head=head, image_size=64)
        apply_freeze(model, plan)
        cut = cut_model(model, plan, 64)
        assert (cut.method, cut.why) == ("trace", "")
        assert all(isinstance(part, Rows) for part in cut.half(True).boundary.parts)
        assert differences(model, plan, cut, 64) == []


def count_step(model, plan, cut, batch):
    """Return the operations of one training step from what crosses the cut, and of one pass forward."""
    set_train_mode(model, plan)
    inputs = [batch]
    if cut.method != "none":
        half = cut.half(True)
        with torch.no_grad():
            inputs = [row.clone() for row in half.boundary.pack(half.bind_prefix(model)(batch))]
    run = bind_suffix(model, cut)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        run(inputs, True)
    with FlopCounterMode(display=False) as step:
        run(inputs, True).sum().backward()
    return step.get_total_flops(), forward.get_total_flops()


# Not of grouped convolutions, whose backward pass torch counts as if they had no groups.
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("depth", [0.25, 0.5, 0.75, 1.0])
def test_a_step_behind_the_cut_takes_at_most_some_four_passes_of_what_trains(name, depth):
    model, blocks, head = load_timm(name, **({"img_size": 64} if name == "test_vit" else {}))
    plan = plan_freeze(model, depth, blocks=blocks, head=head, image_size=64)
    apply_freeze(model, plan)
    step, forward = count_step(model, plan, cut_model(model, plan, 64), images(4, 64))
    whole, _ = count_step(model, plan, NO_CUT, images(4, 64))
    assert 0 < step <= 4.2 * forward
    assert step < whole


@pytest.mark.parametrize("name", ["test_resnet", "test_byobnet", "test_vit"])
def test_a_network_that_lies_channels_last_gets_its_boundary_back_so(name):
    options = {"img_size": 64} if name == "test_vit" else {}
    model, blocks, head = load_timm(name, **options)
    model.to(memory_format=torch.channels_last)
    plan = plan_freeze(model, 0.5, blocks=blocks, head=head, image_size=64)
    apply_freeze(model, plan)
    cut = cut_model(model, plan, 64)
    assert cut.method == "trace"
    model.eval()
    half, batch = cut.half(False), torch.randn(4, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        values = half.bind_prefix(model)(batch)
        stored = half.boundary.pack(values)
        assert torch.equal(bind_suffix(model, cut)(stored, False), model(batch))
    for value, given in zip(values, half.boundary.unpack(stored, 4, batch.device), strict=True):
        assert given.stride() == value.stride()
        assert value.ndim < 4 or given.is_contiguous(memory_format=torch.channels_last)


def test_a_vision_transformer_that_works_its_positions_out_is_cut_exactly():
    model, blocks, head = load_timm("test_vit2", img_size=64, dynamic_img_size=True)
    plan = plan_freeze(model, 0.5, blocks=blocks, head=head, image_size=64)
    apply_freeze(model, plan)
    cut = cut_model(model, plan, 64)
    assert cut.method != "none"
    assert differences(model, plan, cut, 64) == []


def test_an_error_of_the_comparison_names_what_differs():
    with pytest.raises(CutError, match=r"gradient of head: off by 1 of 2"):
        cutting._same("gradient of head", torch.tensor([2.0]), torch.tensor([1.0]))


def test_a_head_whose_answers_are_rounded_afterwards_is_no_linear_head():
    class Rounding(Plain):
        def forward(self, images):
            return super().forward(images).bfloat16()

    for make, found in ((Plain, True), (Rounding, False)):
        model = shake(make())
        last = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
        plan = freeze(model, *(name for name, _ in model.named_parameters() if not name.startswith(last)))
        cut = cut_model(model, plan, SIZE)
        assert (find_linear_head(model, plan, cut) == last) == found
