"""What a training runs on."""

from __future__ import annotations

import platform
import sys
from functools import cache
from pathlib import Path

import torch

from harness.engine.fit import is_bf16
from harness.errors import UsageError


def choose_device(device: str) -> torch.device:
    """Return the device asked for; `auto` takes a GPU where there is one.

    Raises:
        UsageError: The device is not there.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
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
    return chosen


def environment_facts(device: torch.device, precision: str) -> dict[str, str]:
    """Return what a reader needs to repeat a run; nothing that names a user or a machine."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "device": name,
        "precision": "bf16" if is_bf16(precision, device) else "fp32",
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
