from __future__ import annotations

import pytest
import torch
from nets import Plain
from torch import Tensor, nn

from harness.engine.layout import lay_out, layout_of, name_layout, preferred_layout

CPU = torch.device("cpu")


class Viewing(Plain):
    """Views what a convolution gave as if it lay channels first."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x).view(len(x), -1).view(len(x), 6, -1).mean(2))


@pytest.mark.parametrize(("device", "layout"), [("cpu", "last"), ("cuda", "last"), ("mps", "first")])
def test_convolutions_want_channels_last_where_that_was_tried(device, layout):
    assert name_layout(preferred_layout(Plain(), torch.device(device))) == f"channels-{layout}"


@pytest.mark.parametrize(
    ("stem", "layout"),
    [
        (nn.Conv2d(3, 48, 1, stride=2), "first"),
        (nn.Conv2d(32, 32, 1, stride=(1, 2), groups=4), "first"),
        (nn.Conv2d(16, 48, 1, stride=2), "last"),
        (nn.Conv2d(3, 48, 1), "last"),
        (nn.Conv2d(3, 48, 3, stride=2), "last"),
    ],
)
def test_a_layer_whose_gradient_would_be_written_beyond_its_memory_keeps_a_network_channels_first(
    stem, layout
):
    model = nn.Sequential(stem, nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    assert name_layout(preferred_layout(model, CPU)) == f"channels-{layout}"
    # A GPU has kernels of its own.
    assert name_layout(preferred_layout(model, torch.device("cuda"))) == "channels-last"


def test_the_stem_of_a_repvgg_has_the_gradients_that_it_should_have():
    # Laid out channels last this ends the process, or it is wrong.
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 48, 1, stride=2, bias=False)
    model = nn.Sequential(stem, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    lay_out(model, 128, CPU)
    images = torch.randn(4, 3, 128, 128).contiguous(memory_format=layout_of(model))
    model(images).sum().backward()
    expected = images[:, :, ::2, ::2].mean((2, 3)).sum(0).expand(48, 3)
    assert torch.allclose(stem.weight.grad.flatten(1), expected, atol=1e-5)


def test_a_model_is_laid_out_and_keeps_its_values_and_modes():
    model = Plain(drop=nn.Dropout())
    model.first.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    lay_out(model, 16, CPU)
    assert layout_of(model) == torch.channels_last
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (model.training, model.first.training, model.drop.training) == (True, False, True)


def test_a_model_that_views_what_it_computes_stays_as_it_was():
    model = Viewing()
    images = torch.randn(2, 3, 16, 16)
    expected = model(images)
    lay_out(model, 16, CPU)
    assert layout_of(model) == torch.contiguous_format
    assert torch.equal(model(images), expected)


def test_a_model_with_weights_of_five_dimensions_stays_as_it_was():
    model = Plain()
    model.volume = nn.Conv3d(1, 1, 3)
    lay_out(model, 16, CPU)
    assert layout_of(model) == torch.contiguous_format
    assert all(weight.is_contiguous() for weight in model.parameters())


def test_a_model_without_convolutions_takes_images_as_they_come():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2))
    lay_out(model, 16, CPU)
    assert layout_of(model) == torch.contiguous_format
