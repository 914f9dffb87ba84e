from __future__ import annotations

import pytest
import torch
from nets import Plain
from torch import Tensor, nn

from harness.engine.layout import lay_out, layout_of, name_layout, preferred_layout


class Viewing(Plain):
    """Views what a convolution gave as if it lay channels first."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x).view(len(x), -1).view(len(x), 6, -1).mean(2))


@pytest.mark.parametrize(("device", "layout"), [("cpu", "last"), ("cuda", "last"), ("mps", "first")])
def test_convolutions_want_channels_last_where_that_was_tried(device, layout):
    assert name_layout(preferred_layout(torch.device(device))) == f"channels-{layout}"


def test_a_model_is_laid_out_and_keeps_its_values_and_modes():
    model = Plain(drop=nn.Dropout())
    model.first.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    lay_out(model, 16, torch.channels_last)
    assert layout_of(model) == torch.channels_last
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (model.training, model.first.training, model.drop.training) == (True, False, True)


def test_a_model_that_views_what_it_computes_stays_as_it_was():
    model = Viewing()
    images = torch.randn(2, 3, 16, 16)
    expected = model(images)
    lay_out(model, 16, torch.channels_last)
    assert layout_of(model) == torch.contiguous_format
    assert torch.equal(model(images), expected)


def test_a_model_without_convolutions_takes_images_as_they_come():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2))
    lay_out(model, 16, torch.channels_last)
    assert layout_of(model) == torch.contiguous_format
