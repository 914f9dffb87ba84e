from __future__ import annotations

import os

import pytest
import torch

from harness.engine.device import (
    choose_device,
    chosen_kernels,
    environment_facts,
    prepare_cublas,
)
from harness.errors import UsageError

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


def test_a_gpu_is_always_named_with_its_number(monkeypatch):
    # Tensors say cuda:0, and cuda alone would equal none of them.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == choose_device("cuda") == GPU
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UsageError, match="cuda:2"):
        choose_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "xpu", "cuda:0\n", ""])
def test_an_unknown_kind_of_device_is_refused_with_those_there_are(name):
    with pytest.raises(UsageError, match="must be auto, cpu, mps, cuda or cuda:N"):
        choose_device(name)


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_choice_of_kernels_ends_with_the_trial(deterministic):
    with pytest.raises(RuntimeError, match="in the trial"), chosen_kernels(GPU, deterministic=deterministic):
        assert torch.are_deterministic_algorithms_enabled() is deterministic
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.backends.cudnn.benchmark is not deterministic
        assert not torch.backends.cudnn.allow_tf32
        raise RuntimeError("in the trial")
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.allow_tf32


def test_a_cpu_has_no_choice_of_kernels():
    with chosen_kernels(CPU, deterministic=True):
        assert not torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark


@pytest.mark.parametrize("given", [None, ":16:8"])
def test_a_workspace_that_the_user_has_chosen_stays(monkeypatch, given):
    # So that it is put back in any case.
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", given or "")
    if given is None:
        del os.environ["CUBLAS_WORKSPACE_CONFIG"]
    prepare_cublas()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == (given or ":4096:8")


def test_the_facts_say_how_it_ran():
    facts = environment_facts(CPU, "auto")
    assert facts["deterministic"] == "yes"
    # All that a CPU does is the same each time, asked for or not: its activations are shared.
    assert environment_facts(CPU, "auto", deterministic=True) == facts
