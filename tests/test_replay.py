from __future__ import annotations

import copy

import pytest
import torch
from nets import (
    SIZE,
    Branching,
    Dropping,
    InPlace,
    LateChange,
    Normed,
    Permuted,
    Plain,
    Pooled,
    Shared,
    Skipping,
    Streams,
    Windowed,
    differences,
    freeze,
    images,
    shake,
)
from torch import nn
from torch.nn import functional

from harness.engine.boundary import CutError
from harness.engine.cut import Cut
from harness.engine.freeze import set_train_mode
from harness.engine.replay import cut_by_replay


def record(model, plan, *, training=True, changing=()):
    """Cut a model in one mode, and leave it as it was."""
    model = copy.deepcopy(model)
    set_train_mode(model, plan) if training else model.eval()
    return cut_by_replay(model, images(2), images(3), changing)


def recorded(model, plan, changing=()):
    halves = [record(model, plan, training=training, changing=changing) for training in (True, False)]
    return Cut(method="replay", train=halves[0], eval=halves[1])


def live(half):
    return [half.stubs[number] for number in half.live]


class Dicts(nn.Module):
    """Gives tensors in a dict, with None and a number."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 6, 3, padding=1)

    def forward(self, x):
        return {"value": self.layer(x), "mask": None, "shape": (x.shape[0], x.shape[2])}


class Untraceable(Plain):
    """Gives more than tensors across the cut, and looks at them."""

    def __init__(self):
        super().__init__()
        self.first = Dicts()
        shake(self)

    def forward(self, x):
        found = self.first(x)
        if found["mask"] is not None or found["shape"] != (len(x), SIZE):
            raise ValueError("never so")
        x = self.second(found["value"])
        return self.finish(x if bool(torch.isfinite(x).all()) else x * 0)


class Functional(Plain):
    """Works on a frozen value between two calls of modules."""

    def forward(self, x):
        x = functional.gelu(self.first(x))
        x = x - x.mean(0)
        return self.finish(self.second(x))


RECORDED = {
    "two layers": (Plain, ["first"]),
    "head alone": (Plain, ["first", "second"]),
    "permuted boundary": (Permuted, ["first"]),
    "dropout before the head": (Dropping, ["first", "second"]),
    "dropout between the layers": (Dropping, ["first"]),
    "windows": (Windowed, ["first"]),
    "a tuple with whole numbers": (Pooled, ["first"]),
    "a dict, none and numbers": (Untraceable, ["first"]),
    "changes in place": (InPlace, ["first"]),
    "a late change in place": (LateChange, ["first"]),
    "a shared layer that trains": (Shared, ["first"]),
    "a shared layer": (Shared, ["first", "loop"]),
    "a frozen stream halfway": (Streams, ["stem", "first"]),
    "a frozen stream": (Streams, ["stem", "first", "second"]),
    "a skip over the cut": (Skipping, ["first"]),
    "control flow": (Branching, ["first"]),
    "work between modules": (Functional, ["first"]),
}


@pytest.mark.parametrize(("make", "frozen"), RECORDED.values(), ids=RECORDED)
def test_the_parts_are_bit_equal_to_the_whole(make, frozen):
    model = make()
    plan = freeze(model, *frozen)
    assert differences(model, plan, recorded(model, plan)) == []


def test_batch_norm_is_exact_where_training_changes_its_statistics():
    model = Normed()
    plan = freeze(model, "first", "norm")
    changing = [name for name, _ in model.named_buffers() if not name.startswith("norm")]
    cut = recorded(model, plan, changing)
    assert live(cut.half(False)) == [("norm", 0)]
    assert differences(model, plan, cut) == []


def test_the_outermost_frozen_call_is_answered():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 6, 1), nn.Sequential(nn.ReLU(), nn.Conv2d(6, 6, 1))))
    model.append(nn.Flatten()).append(nn.Linear(6 * SIZE * SIZE, 3))
    half = record(model, freeze(model, "0"))
    assert half.stubs == (("0", 0), ("1", 0))
    assert live(half) == [("1", 0)]


def test_a_module_after_a_random_one_is_not_answered():
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.Flatten(), nn.Dropout(0.5), nn.ReLU(), nn.Linear(6 * SIZE * SIZE, 3)
    )
    plan = freeze(shake(model), "0")
    half = record(model, plan)
    assert live(half) == [("1", 0)]
    assert live(record(model, plan, training=False)) == [("3", 0)]
    assert differences(model, plan, recorded(model, plan)) == []


def test_calls_of_one_module_are_told_apart():
    model = Shared()
    half = record(model, freeze(model, "first", "loop"))
    assert half.stubs == (("first", 0), ("loop", 0), ("loop", 1))
    assert live(half) == [("loop", 1)]


def test_a_recorded_value_is_not_what_a_later_operation_makes_of_it():
    model = LateChange()
    plan = freeze(model, "first")
    half = record(model, plan)
    (value, *_) = half.bind_prefix(model)(images(4))
    assert torch.equal(value, functional.relu(model.first(images(4))))


def test_the_replay_leaves_what_it_is_given_as_it_was():
    model = InPlace()
    half = record(model, freeze(model, "first"))
    batch = images(4)
    values = half.bind_prefix(model)(batch)
    assert torch.equal(batch, images(4))
    assert all(torch.isfinite(value).all() for value in values)


def test_the_pass_ends_after_the_last_value_that_is_wanted():
    class Counting(nn.Conv2d):
        calls = 0

        def forward(self, x):
            Counting.calls += 1
            return super().forward(x)

    model = Plain()
    model.second = Counting(6, 6, 1)
    half = record(model, freeze(model, "first"))
    Counting.calls = 0
    half.bind_prefix(model)(images(2))
    assert Counting.calls == 0


def test_modules_keep_their_own_forward_also_after_an_error():
    model = Untraceable()
    half = record(model, freeze(model, "first"))

    def patched(x):
        return type(model.first).forward(model.first, x)

    model.first.forward = patched
    values = half.bind_prefix(model)(images(2))
    assert model.first.forward is patched
    with pytest.raises(RuntimeError):
        half.bind_suffix(model)([{**values[0], "value": torch.zeros(2, 5, 1, 1)}], 2)
    assert model.first.forward is patched
    assert "forward" not in vars(model.second)
    assert torch.isfinite(model(images(2))).all()


def test_half_of_one_model_fits_another():
    first, second = Branching(), shake(Branching(), seed=3)
    plan = freeze(first, "first")
    freeze(second, "first")
    assert differences(second, plan, recorded(first, plan)) == []


def test_where_the_image_itself_is_read_by_what_trains_there_is_no_cut():
    class Both(Plain):
        def forward(self, x):
            return self.head(self.second(self.first(x)).mean((2, 3)) + x.mean())

    model = Both()
    with pytest.raises(CutError, match="the image itself"):
        record(model, freeze(model, "first"))
    with pytest.raises(CutError, match="no call of a module is out of training's reach"):
        record(model, freeze(model, "second"))


def test_a_model_that_cannot_run_is_refused():
    class Broken(Plain):
        def forward(self, x):
            if torch.is_grad_enabled():
                raise RuntimeError("out of order")
            return super().forward(x)

    model = Broken()
    with pytest.raises(CutError, match="cannot be replayed: RuntimeError: out of order"):
        record(model, freeze(model, "first"))


def test_the_prefix_reads_what_is_frozen_and_is_named_after_the_code_too(monkeypatch):
    import inspect

    model = Branching()
    half = record(model, freeze(model, "first"))
    assert sorted(half.reads(model)) == ["first.bias", "first.weight"]
    described = half.describe(model)
    assert "class Branching" in described
    assert "0x" not in described.replace(inspect.getsource(inspect.getmodule(Branching)), "")
    monkeypatch.setattr(inspect, "getsource", lambda module: "another version")
    assert half.describe(model) != described
