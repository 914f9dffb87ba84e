from __future__ import annotations

import pytest
import torch
from nets import Dropping, Normed, Plain, images
from torch import fx, nn

from harness.engine import effects
from harness.engine.boundary import CutError
from harness.engine.effects import run_and_watch


def unstable(model):
    traced = fx.symbolic_trace(model)
    return run_and_watch(traced, traced.graph, model, images(2))


def test_layers_that_draw_random_numbers_are_seen_in_train_mode_alone():
    assert unstable(Dropping()) == {"start", "middle", "end"}
    assert unstable(Dropping().eval()) == set()


def test_layers_that_keep_statistics_are_seen_in_train_mode_alone():
    assert unstable(Normed()) == {"norm", "bare", "late", "last"}
    assert unstable(Normed().eval()) == set()


class Counting(Plain):
    """Changes a buffer through a view, outside of any layer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(2, 2))

    def forward(self, x):
        self.passes[0].add_(x.shape[0])
        return super().forward(x)


def test_a_buffer_that_is_changed_through_a_view_is_seen():
    model = Counting()
    assert unstable(model) == {"add_"}
    assert model.passes.tolist() == [[2, 2], [0, 0]]


def test_a_layer_that_changes_the_buffer_of_another_one_is_refused():
    model = Normed().eval()

    def change(*_):
        model.late.running_mean.add_(1)

    model.first.register_forward_hook(change)
    with pytest.raises(CutError, match="changes a buffer of another one"):
        unstable(model)


def test_as_many_buffers_are_looked_at_for_each_layer_of_a_large_model_as_of_a_small_one(monkeypatch):
    looked = []
    watch = effects.watch_effects

    def counting(model):
        look = watch(model)

        def counted(buffers):
            looked.append(len(buffers))
            return look(buffers)

        return counted

    monkeypatch.setattr(effects, "watch_effects", counting)
    for layers in (2, 20):
        looked.clear()
        unstable(nn.Sequential(*(nn.BatchNorm2d(3) for _ in range(layers))))
        assert max(looked) == 3
