"""`harness doctor`: check this machine, each line with its fix."""

from __future__ import annotations

import json
import platform
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import click

from harness import __version__, paths
from harness.registry import Registry, load_registry
from harness.text import safe_text

Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One checked thing."""

    check: str
    verdict: Verdict
    text: str
    fix: str = ""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Check Python, torch, the device, storage, disk, plugins and the hub. Exits with 1 on a failure."""
    registry = load_registry(ctx.find_root().obj)
    findings = [_guarded(name, check) for name, check in _checks(registry).items()]
    if as_json:
        click.echo(
            json.dumps(
                {"schema": "harness.doctor/1", "findings": [asdict(item) for item in findings]}, indent=2
            )
        )
    else:
        for item in findings:
            click.echo(f"{item.verdict:<5} {item.check:<9} {safe_text(item.text)}")
            if item.fix:
                click.echo(f"{'':<5} {'':<9} fix: {safe_text(item.fix)}")
    ctx.exit(1 if any(item.verdict == "fail" for item in findings) else 0)


def _checks(registry: Registry) -> dict[str, Callable[[str], Finding]]:
    return {
        "python": _python,
        "torch": _torch,
        "device": _device,
        "training": _training,
        "storage": _storage,
        "disk": _disk,
        "plugins": lambda name: _plugins(name, registry),
        "hub": _hub,
    }


def _guarded(name: str, check: Callable[[str], Finding]) -> Finding:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return check(name)
    except Exception as error:
        text = str(error).splitlines()
        return Finding(check=name, verdict="fail", text=f"{type(error).__name__}: {text[0] if text else ''}")


def _python(name: str) -> Finding:
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}, harness {__version__}"
    return Finding(check=name, verdict="ok", text=text)


def _torch(name: str) -> Finding:
    import torch

    try:
        import torchvision

        # A mismatched pair imports far enough to fail only when its operators are used.
        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
        import timm
    except (ImportError, RuntimeError, AttributeError) as error:
        return Finding(
            check=name,
            verdict="fail",
            text=f"torch {torch.__version__} and torchvision do not work together: {error}",
            fix="install both in one command: pip install --upgrade --force-reinstall torch torchvision",
        )
    return Finding(
        check=name,
        verdict="ok",
        text=f"torch {torch.__version__}, torchvision {torchvision.__version__}, timm {timm.__version__}",
    )


def _device(name: str) -> Finding:
    import torch

    from harness.engine.device import choose_device
    from harness.engine.precision import has_amx

    device = choose_device("auto")
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        text = f"{torch.cuda.get_device_name(device)}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
        return Finding(check=name, verdict="ok", text=text)
    amx = ", and AMX for bf16" if device.type == "cpu" and has_amx() else ""
    return Finding(
        check=name,
        verdict="warn",
        text=f"no GPU: trials run on {device.type} with {torch.get_num_threads()} threads{amx}",
        fix="small backbones, small --image-size and few images train well on a CPU",
    )


def _training(name: str) -> Finding:
    import torch

    from harness.engine.device import choose_device

    device = choose_device("auto")
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.LazyLinear(2)).to(
        device
    )
    loss = torch.nn.functional.cross_entropy(
        model(torch.rand(4, 3, 16, 16, device=device)), torch.tensor([0, 1, 0, 1], device=device)
    )
    loss.backward()
    return Finding(check=name, verdict="ok", text=f"one step on {device.type}, loss {float(loss):.2f}")


def _storage(name: str) -> Finding:
    import optuna

    with tempfile.TemporaryDirectory() as folder:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(storage=f"sqlite:///{folder}/probe.db")
        study.tell(study.ask(), 1.0)
    runs = paths.runs()
    with tempfile.TemporaryFile(dir=_existing(runs)):
        pass
    return Finding(
        check=name, verdict="ok", text=f"optuna {optuna.__version__} stores trials; {runs} can be written"
    )


def _disk(name: str) -> Finding:
    home = paths.home()
    free = shutil.disk_usage(_existing(home)).free / 2**30
    low = free < 5
    return Finding(
        check=name,
        verdict="warn" if low else "ok",
        text=f"{free:.0f} GiB free for data and decoded images in {home}",
        fix="free space, or set HARNESS_HOME to a larger disk" if low else "",
    )


def _plugins(name: str, registry: Registry) -> Finding:
    broken = [plugin for plugin in registry.plugins if plugin.status == "broken"]
    if broken:
        return Finding(
            check=name,
            verdict="warn",
            text="; ".join(f"{plugin.name} ({plugin.distribution}): {plugin.reason}" for plugin in broken),
            fix=f"repair or uninstall it, or block it: -p no:{broken[0].name}",
        )
    return Finding(
        check=name, verdict="ok", text=f"{len(registry.plugins)} loaded, none broken; {sys.executable}"
    )


def _hub(name: str) -> Finding:
    from harness.engine.weights import probe

    address = "https://huggingface.co"
    try:
        from huggingface_hub import constants

        address = constants.ENDPOINT
    except ImportError:
        pass
    problem = probe(address)
    return Finding(
        check=name,
        verdict="warn" if problem else "ok",
        text=f"{address} cannot be reached: {problem}" if problem else f"{address} answers",
        fix="weights from --weights DIR, a cache in HF_HOME, or HF_ENDPOINT=<mirror> work without it"
        if problem
        else "",
    )


def _existing(path: Path) -> Path:
    """Return the nearest existing folder at or above a path."""
    return next(parent for parent in (path, *path.parents) if parent.exists())
