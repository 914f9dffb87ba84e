"""Optimizers: three of torch's, and those of timm that run on this machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from harness import Family, OptimizerSpec, ParamGroup, hookimpl

if TYPE_CHECKING:
    from torch.optim import Optimizer

# Registered below under the same names, with bounds of their own.
OWN = frozenset({"sgd", "adam", "adamw"})


def build_sgd(groups: Sequence[ParamGroup]) -> Optimizer:
    """Return torch's SGD with Nesterov momentum 0.9 (Sutskever et al., ICML 2013)."""
    import torch

    return torch.optim.SGD(list(groups), momentum=0.9, nesterov=True, fused=True)


def build_adam(groups: Sequence[ParamGroup]) -> Optimizer:
    """Return torch's Adam; weight decay is part of the gradient (Kingma and Ba, ICLR 2015)."""
    import torch

    return torch.optim.Adam(list(groups), fused=True)


def build_adamw(groups: Sequence[ParamGroup]) -> Optimizer:
    """Return torch's AdamW; weight decay is decoupled (Loshchilov and Hutter, ICLR 2019)."""
    import torch

    return torch.optim.AdamW(list(groups), fused=True)


def list_timm() -> Iterable[str]:
    """Return timm's optimizers that take a step here, without torch's three."""
    import torch

    # Some draw random numbers; listing names must not shift anyone's.
    with torch.random.fork_rng(devices=[]):
        return [name for name in _timm().list_optimizers() if name not in OWN and _takes_a_step(name)]


def describe_timm(name: str) -> OptimizerSpec:
    """Describe one of timm's optimizers. Its bounds are generic: they suit Adam's kin better than SGD's."""
    info = _timm().get_optimizer_info(name)
    described = info.description.strip().splitlines()
    return OptimizerSpec(
        name=name,
        summary=described[0] if described else f"timm's {name}",
        build=partial(build_timm, name),
        lr=(1e-5, 1e-2),
    )


def build_timm(name: str, groups: Sequence[ParamGroup]) -> Optimizer:
    """Return one of timm's optimizers with timm's defaults."""
    # Each group carries its own lr and weight decay; some constructors want a default all the same.
    optimizer: Optimizer = _timm().create_optimizer_v2(
        list(groups), opt=name, lr=groups[0]["lr"], weight_decay=0.0
    )
    return optimizer


def _takes_a_step(name: str) -> bool:
    """Tell whether an optimizer can be built and used by a training loop that only calls `step`."""
    import torch

    info = _timm().get_optimizer_info(name)
    # bitsandbytes and APEX are named by a string, need CUDA, and are no dependency of ours.
    # Kron compiles at its first step; second-order ones need a graph of the gradient.
    if isinstance(info.opt_class, str) or info.second_order or info.opt_class.__name__ == "Kron":
        return False
    matrix, bias = torch.ones(2, 2, requires_grad=True), torch.ones(2, requires_grad=True)
    matrix.grad, bias.grad = torch.ones_like(matrix), torch.ones_like(bias)
    try:
        build_timm(
            name,
            [
                {"params": [matrix], "lr": 1e-3, "weight_decay": 0.01},
                {"params": [bias], "lr": 1e-3, "weight_decay": 0.0},
            ],
        ).step()
    except Exception:
        return False
    return bool(matrix.isfinite().all() and bias.isfinite().all())


def _timm() -> Any:
    import timm.optim

    return timm.optim


@hookimpl
def harness_optimizers() -> Iterable[OptimizerSpec | Family[OptimizerSpec]]:
    """Yield the optimizers."""
    yield OptimizerSpec(name="sgd", summary="SGD, Nesterov momentum 0.9", build=build_sgd, lr=(1e-3, 3e-1))
    yield OptimizerSpec(name="adam", summary="Adam", build=build_adam, lr=(1e-5, 3e-3))
    yield OptimizerSpec(
        name="adamw", summary="Adam with decoupled weight decay", build=build_adamw, lr=(1e-5, 3e-3)
    )
    yield Family(
        name="timm",
        summary="timm's optimizers that run on this machine",
        members=list_timm,
        spec=describe_timm,
    )
