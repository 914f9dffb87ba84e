from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from nets import (
    SIZE,
    Branching,
    Constant,
    Dropping,
    InPlace,
    LateChange,
    Normed,
    Options,
    Permuted,
    Plain,
    Pooled,
    Shared,
    Skipping,
    Streams,
    Windowed,
    ZeroStart,
    differences,
    freeze,
    images,
    shake,
)
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from harness.engine.boundary import Count, CutError
from harness.engine.cut import Cut
from harness.engine.freeze import set_train_mode
from harness.engine.trace import cut_by_tracing, join_prefixes


def trace(model, plan, *, training=True):
    """Cut a model in one mode, and leave it as it was."""
    changing = changing_buffers(model, plan)
    model = copy.deepcopy(model)
    set_train_mode(model, plan) if training else model.eval()
    return cut_by_tracing(model, images(2), images(3), changing)


def changing_buffers(model, plan):
    before, model = dict(model.named_buffers()), copy.deepcopy(model)
    set_train_mode(model, plan)
    model(images(4))
    return [name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])]


def traced(model, plan):
    halves = [trace(model, plan, training=training) for training in (True, False)]
    return Cut(method="trace", train=halves[0], eval=halves[1])


def names(graph):
    return [node.name for node in graph.nodes if node.op == "call_module"]


FROZEN = {
    "two layers": (Plain, ["first"]),
    "head alone": (Plain, ["first", "second"]),
    "permuted boundary": (Permuted, ["first"]),
    "dropout before the head": (Dropping, ["first", "second"]),
    "dropout between the layers": (Dropping, ["first"]),
    "batch norm frozen": (Normed, ["first", "norm"]),
    "batch norm that trains": (Normed, ["first"]),
    "batch norm frozen in part": (Normed, ["first", "norm.weight"]),
    "batch norm without parameters": (Normed, ["first", "norm", "second", "late"]),
    "windows": (Windowed, ["first"]),
    "constants": (Constant, ["first", "table"]),
    "constants that train": (Constant, ["first"]),
    "a tuple with whole numbers": (Pooled, ["first"]),
    "changes in place": (InPlace, ["first"]),
    "a shared layer": (Shared, ["first", "loop"]),
    "a shared layer that trains": (Shared, ["first"]),
    "two streams": (Streams, ["stem", "first", "second"]),
    "two streams, one frozen halfway": (Streams, ["stem", "first"]),
    "two streams, the other frozen": (Streams, ["stem", "other"]),
    "a skip over the cut": (Skipping, ["first"]),
    "more arguments": (Options, ["first"]),
    "a layer of zeros": (ZeroStart, ["first"]),
}


@pytest.mark.parametrize(("make", "frozen"), FROZEN.values(), ids=FROZEN)
def test_the_parts_are_bit_equal_to_the_whole(make, frozen):
    model = make()
    plan = freeze(model, *frozen)
    assert differences(model, plan, traced(model, plan)) == []


@pytest.mark.parametrize(
    "frozen",
    [
        ["first.weight", "second.weight", "norm", "late"],  # BitFit: only biases train
        ["first", "second.weight", "second.bias", "norm.bias"],  # norms train, in part
        ["second", "late", "norm"],  # the first layer trains
    ],
)
def test_a_frozen_set_that_is_no_start_of_the_network_is_exact_or_refused(frozen):
    model = Normed()
    plan = freeze(model, *frozen)
    if any(name.startswith("first") for name in plan.trainable):
        with pytest.raises(CutError, match="the image itself"):
            traced(model, plan)
    else:
        assert differences(model, plan, traced(model, plan)) == []


def test_biases_that_train_leave_what_comes_before_them_to_the_prefix():
    model = shake(nn.Sequential(Plain().first, nn.Conv2d(6, 6, 1), nn.Flatten(), nn.Linear(384, 3)))
    plan = freeze(model, "0", "1.weight", "3.weight")
    half = trace(model, plan)
    assert names(half.prefix_graph) == ["_0"]
    assert names(half.suffix_graph) == ["_1", "_2", "_3"]
    assert differences(model, plan, traced(model, plan)) == []


def test_dropout_just_before_the_head_is_drawn_anew_in_each_step():
    model = Dropping()
    plan = freeze(model, "first", "second")
    assert {"start", "middle"} <= set(plan.eval_modules)
    half = trace(model, plan)
    assert "end" in names(half.suffix_graph)
    set_train_mode(model, plan)
    suffix, values = half.bind_suffix(model), half.bind_prefix(model)(images(4))
    assert not torch.equal(suffix(values, 4), suffix(values, 4))
    # Nothing is drawn in eval mode: there the cut lies behind it.
    assert "end" not in names(trace(model, plan, training=False).suffix_graph)


def test_what_follows_a_random_module_is_no_prefix_although_it_is_frozen():
    model = Dropping()
    plan = freeze(model, "first", "second", still=("first", "second"))
    with pytest.raises(CutError, match="the image itself"):
        trace(model, plan)
    plan = freeze(model, "first", "second", still=("start", "first", "second"))
    half = trace(model, plan)
    assert names(half.prefix_graph) == ["start", "first"]
    assert names(half.suffix_graph) == ["middle", "second", "end", "head"]


def test_batch_norm_that_keeps_statistics_is_no_prefix_although_it_has_no_parameters():
    model = Normed()
    plan = freeze(model, "first", "norm", still=("first", "norm"))
    half = trace(model, plan)
    assert names(half.prefix_graph) == ["first", "norm"]
    assert names(half.suffix_graph)[0] == "bare"


def test_a_layer_that_is_frozen_in_part_is_no_prefix():
    model = Normed()
    half = trace(model, freeze(model, "first", "norm.weight"))
    assert names(half.prefix_graph) == ["first"]


def test_constants_are_not_stored_for_each_image():
    model = Constant()
    plan = freeze(model, "first", "table")
    half = trace(model, plan)
    assert [rows.shape for rows in half.boundary.rows] == [(1, 6, SIZE, SIZE)]
    assert half.holds_tensors
    # Literals, not what the model has as parameters, buffers and attributes.
    assert sorted(value.numel() for value in half.constants.values()) == [1, 1]


def test_windows_are_one_row_and_the_number_of_images_is_no_constant():
    model = Windowed()
    half = trace(model, freeze(model, "first"))
    (rows,) = half.boundary.rows
    assert rows.times == 4
    assert {part for part in half.boundary.parts if isinstance(part, Count)} >= {Count(each=1, more=0)}


def test_a_graph_does_not_show_when_a_value_is_changed_in_place():
    """The reason why each cut is checked: the trainable part would read the changed value."""
    model = LateChange()
    plan = freeze(model, "first")
    assert differences(model, plan, traced(model, plan)) != []


def test_buffers_that_training_changes_are_read_by_no_prefix():
    model = Normed()
    freeze(model, "first", "norm")
    changing = [name for name, _ in model.named_buffers() if not name.startswith("norm")]
    model.eval()
    half = cut_by_tracing(model, images(2), images(3), changing)
    assert names(half.prefix_graph) == ["first", "norm"]
    assert "bare" in names(cut_by_tracing(model, images(2), images(3), []).prefix_graph)


def test_a_model_that_looks_at_its_values_cannot_be_traced():
    model = Branching()
    plan = freeze(model, "first")
    with pytest.raises(CutError, match="it cannot be traced: TraceError"):
        trace(model, plan)


def test_where_no_image_changes_what_is_frozen_there_is_nothing_to_store():
    class Blind(Plain):
        def forward(self, x):
            return self.finish(self.second(self.first(torch.ones(1, 3, x.shape[2], x.shape[3]))))

    model = Blind()
    plan = freeze(model, "first")
    with pytest.raises(CutError, match="no image changes what crosses the cut"):
        trace(model, plan)


def test_half_of_one_model_fits_another_and_no_model_is_changed():
    first, second = Normed(), shake(Normed(), seed=1)
    plan = freeze(first, "first", "norm")
    freeze(second, "first", "norm")
    before = {name: list(vars(module)) for name, module in first.named_modules()}
    keys = list(first.state_dict())
    cut = traced(first, plan)
    assert differences(second, plan, cut) == []
    half = cut.half(True)
    half.bind_prefix(first), half.bind_suffix(first)
    assert {name: list(vars(module)) for name, module in first.named_modules()} == before
    assert list(first.state_dict()) == keys
    twin = copy.deepcopy(first).eval()
    assert torch.equal(twin(images(3)), first.eval()(images(3)))


def test_a_bound_half_trains_the_parameters_of_its_model():
    model = Plain()
    plan = freeze(model, "first")
    half = trace(model, plan)
    suffix, values = half.bind_suffix(model), half.bind_prefix(model)(images(4))
    before = suffix(values, 4)
    with torch.no_grad():
        model.head.bias.add_(1)
    assert torch.allclose(suffix(values, 4), before + 1)


def test_literals_bound_to_a_model_do_not_stay_on_it():
    model = Constant()
    plan = freeze(model, "first", "table")
    half = trace(model, plan)
    before = list(vars(model))
    half.bind_suffix(model)
    assert list(vars(model)) == before


def test_a_cut_keeps_no_model_alive():
    model = Plain()
    cut = traced(model, freeze(model, "first"))
    for training in (True, False):
        cut.half(training).bind_prefix(model)
        cut.half(training).bind_suffix(model)
    gone = weakref.ref(model.head)
    del model
    gc.collect()
    assert gone() is None


def test_the_prefix_reads_its_own_tensors_and_no_others():
    model = Constant()
    half = trace(model, freeze(model, "first", "table"))
    reads = half.reads(model)
    literals = {name: value for name, value in reads.items() if name in half.constants}
    assert [value.tolist() for value in literals.values()] == [[[[1.5]]]]
    assert sorted(reads.keys() - literals) == ["first.bias", "first.weight", "scale"]
    assert reads["first.weight"] is model.first.weight


def test_what_a_prefix_is_named_after_tells_its_operations_and_not_its_values():
    def described(model, *frozen):
        return trace(model, freeze(model, *frozen)).describe(model)

    plain = described(Plain(), "first")
    assert described(shake(Plain(), seed=5), "first") == plain
    assert "0x" not in plain

    class Wider(Plain):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(6, 11)

    assert described(Wider(), "first") == plain
    strided = Plain()
    strided.first.stride = (2, 2)
    assert described(strided, "first") != plain
    assert described(Plain(), "first", "second") != plain
    assert described(ZeroStart(), "first") == plain  # the same until there


def test_one_pass_gives_what_all_depths_need():
    model = Dropping()
    depths = [["first"], ["first", "second"]]
    plans = [freeze(model, *frozen) for frozen in depths]
    halves = [trace(model, freeze(model, *frozen)) for frozen in depths]
    numbers, joined = join_prefixes(halves)
    assert numbers == [0, 1]
    set_train_mode(model, plans[1])
    together = joined.bind_prefix(model)(images(4))
    for plan, half, values in zip(plans, halves, together, strict=True):
        set_train_mode(model, plan)
        alone = half.bind_prefix(model)(images(4))
        assert len(alone) == len(values) == 1
        assert torch.equal(alone[0], values[0])


def test_prefixes_of_different_models_are_not_joined():
    plain, skipping = Plain(), Permuted()
    halves = [
        trace(plain, freeze(plain, "first", "second")),
        trace(skipping, freeze(skipping, "first")),
    ]
    numbers, _ = join_prefixes(halves)
    assert numbers == [0]


def test_prefixes_with_other_literals_are_not_joined():
    class Literal(Plain):
        def __init__(self, value):
            super().__init__()
            self.value = value

        def forward(self, x):
            return self.finish(self.second(self.first(x) * torch.tensor(self.value)))

    one, two = Literal(1.0), Literal(2.0)
    halves = [
        trace(one, freeze(one, "first", "second")),
        trace(two, freeze(two, "first")),
        trace(one, freeze(one, "first")),
    ]
    numbers, _ = join_prefixes(halves)
    assert numbers == [0, 2]


class Gridded(Plain):
    """Asks one of its parameters where to put another, as rotary embeddings do."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x):
        device = next(self.parameters()).device
        grid = torch.arange(6, device=device) / self.scale.to(device)
        return self.head(self.second(self.first(x) + grid[:, None, None]).mean((2, 3)))


def test_a_cut_makes_its_tensors_where_the_model_lies_by_now():
    model = shake(Gridded())
    plan = freeze(model, "first", "second", "scale")
    half = trace(model, plan, training=False)
    # Devices are looked at, nothing is computed: no GPU is needed.
    with FakeTensorMode(allow_non_fake_inputs=True):
        gpu = torch.device("cuda", 0)
        there = copy.deepcopy(model).eval()
        for module in there.modules():
            for name, value in list(module.named_parameters(recurse=False)):
                module._parameters[name] = nn.Parameter(torch.empty(value.shape, device=gpu))
        values = half.bind_prefix(there)(torch.empty(2, 3, SIZE, SIZE, device=gpu))
        assert half.bind_suffix(there)(values, 2).device == gpu
    assert differences(model, plan, traced(model, plan)) == []
