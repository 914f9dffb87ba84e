"""What a training runs on."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from harness.config import DEVICES
from harness.errors import UsageError


def choose_device(device: str) -> torch.device:
    """Return the device asked for; `auto` takes a GPU where there is one.

    Raises:
        UsageError: There is no such kind of device, or it is not there.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda:0")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if not re.fullmatch(DEVICES, device):
        raise UsageError(
            f"device: must be auto, cpu, mps, cuda or cuda:N (got {device!r})",
            fixes=["write --device cuda for a GPU of NVIDIA or AMD"],
        )
    chosen = torch.device(device)
    missing = (chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count()) or (
        chosen.type == "mps" and not torch.backends.mps.is_available()
    )
    if missing:
        raise UsageError(
            f"device {device!r} is not available",
            why=f"torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices"
            if chosen.type == "cuda"
            else f"torch {torch.__version__} finds no Apple GPU",
            fixes=["use --device auto or --device cpu", "run harness doctor"],
        )
    # Tensors on a GPU name its number, and are compared with this.
    return torch.device("cuda:0") if device == "cuda" else chosen


def prepare_cublas() -> None:
    """Let cuBLAS give the same bits in each run; call before anything of this process runs on a GPU.

    Always: torch looks once in a process, and a later study may want it.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def chosen_kernels(device: torch.device, *, deterministic: bool) -> Iterator[None]:
    """Choose a GPU's kernels: those that give the same bits in each run, or the fastest; the CPU's stay.

    What is in fp32 is so in convolutions too, which on a GPU torch otherwise computes in TF32.

    An operation that has no kernel of the first sort raises a RuntimeError that names it.
    """
    if device.type != "cuda":
        yield
        return
    enabled = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, tf32 = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
    # Setting it imports torch's compiler, which takes seconds.
    is_set = enabled == deterministic and not (enabled and warns)
    if not is_set:
        torch.use_deterministic_algorithms(deterministic)
    # Tries all algorithms of a convolution once for each shape: which one wins differs between runs.
    torch.backends.cudnn.benchmark = not deterministic
    # Else a convolution in "fp32" rounds its inputs to ten bits.
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        if not is_set:
            torch.use_deterministic_algorithms(enabled, warn_only=warns)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = benchmark, tf32


def environment_facts(device: torch.device, precision: str, *, deterministic: bool = False) -> dict[str, str]:
    """Return what a reader needs to repeat a run; nothing that names a user or a machine.

    Args:
        device: Where it ran.
        precision: `fp32` or `bf16`; `auto` where it failed before that was settled.
        deterministic: Whether a GPU gave the same bits in each run.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "device": name,
        "precision": precision,
        "deterministic": "yes" if deterministic or device.type == "cpu" else "no",
        "threads": str(torch.get_num_threads()),
        "processor": _processor(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cuda": str(torch.version.cuda) if device.type == "cuda" else "",
        "cudnn": str(torch.backends.cudnn.version()) if device.type == "cuda" else "",
    }


@cache
def _processor() -> str:
    """Return the model of the CPU and the instructions that torch chose its kernels for."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # only Linux has such a file
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.processor()
    return f"{model} {torch.backends.cpu.get_cpu_capability()}".strip()


def peak_memory(device: torch.device) -> int:
    """Return peak bytes: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows has no such module
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
