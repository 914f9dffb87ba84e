from __future__ import annotations

from pathlib import Path

import pytest
import torch
from nets import Plain
from torch import nn

from harness.engine import precision
from harness.engine.precision import autocast, choose_precision, has_amx

CPU = torch.device("cpu")


class Depthwise(Plain):
    """Has a convolution of one channel each."""

    def __init__(self):
        super().__init__()
        self.depthwise = nn.Conv2d(6, 6, 3, groups=6)


@pytest.mark.parametrize(
    ("device", "amx", "make", "expected"),
    [
        ("cuda", False, Plain, "bf16"),
        ("cuda", False, Depthwise, "bf16"),
        ("cpu", False, Plain, "fp32"),
        ("cpu", True, Plain, "bf16"),
        ("cpu", True, Depthwise, "fp32"),
        ("mps", True, Plain, "fp32"),
    ],
)
def test_auto_is_bf16_where_the_device_has_units_for_all_of_the_model(
    monkeypatch, device, amx, make, expected
):
    monkeypatch.setattr(precision, "has_amx", lambda: amx)
    assert choose_precision("auto", torch.device(device), make()) == expected


@pytest.mark.parametrize("asked", ["fp32", "bf16"])
def test_what_is_asked_for_is_taken(monkeypatch, asked):
    for amx in (False, True):
        monkeypatch.setattr(precision, "has_amx", lambda amx=amx: amx)
        for device in ("cpu", "cuda", "mps"):
            for model in (Plain(), Depthwise()):
                assert choose_precision(asked, torch.device(device), model) == asked


def test_groups_of_several_channels_are_no_depthwise_convolution(monkeypatch):
    monkeypatch.setattr(precision, "has_amx", lambda: True)
    for layer in (nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d(1, 8, 3), nn.Linear(4, 4)):
        assert choose_precision("auto", CPU, nn.Sequential(layer)) == "bf16"


def test_products_are_in_the_precision_and_parameters_in_fp32():
    model = nn.Linear(3, 2)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with autocast(name, CPU):
            assert model(torch.ones(1, 3)).dtype == dtype
    assert model.weight.dtype == torch.float32


def test_a_cpu_has_amx_where_its_flags_say_so():
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        pytest.skip("only Linux lists what a CPU can do")
    assert has_amx() == ("amx_bf16" in flags)
