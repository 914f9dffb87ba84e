"""What a component of each kind has to do: the checks that `harness.testing` hands out."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.engine.freeze import FreezePlan, apply_freeze, plan_freeze, set_train_mode
from harness.errors import HarnessError
from harness.isolation import describe_error, seed_all
from harness.kit.component import require
from harness.kit.images import (
    keeps_the_form_of_images,
    reads_or_says_why,
    repeats_itself_from_a_seed,
    states_its_terms,
)
from harness.specs import BackboneSpec, ClassInfo, LossSpec, OptimizerSpec, ScheduleSpec

# --- backbones --------------------------------------------------------------------------------------------


def _model(spec: BackboneSpec, num_classes: int, weights: Path | None = None) -> nn.Module:
    model = spec.build(num_classes, weights, spec.input.size)
    require(isinstance(model, nn.Module), f"build returned a {type(model).__name__}, not an nn.Module")
    return model


def _images(spec: BackboneSpec, count: int) -> Tensor:
    return torch.randn(count, 3, spec.input.size, spec.input.size)


def _logits(spec: BackboneSpec, model: nn.Module, images: Tensor, num_classes: int) -> Tensor:
    logits = model(images)
    require(isinstance(logits, Tensor), f"the model returned a {type(logits).__name__}, not a tensor")
    shape = (len(images), num_classes)
    require(tuple(logits.shape) == shape, f"logits have shape {tuple(logits.shape)}, not {shape}")
    require(logits.is_floating_point() and bool(logits.isfinite().all()), "logits are not finite floats")
    return logits  # type: ignore[no-any-return]


def _gives_logits(spec: BackboneSpec) -> None:
    for num_classes in (2, 7):
        with torch.inference_mode():
            _logits(spec, _model(spec, num_classes).eval(), _images(spec, 3), num_classes)


def _takes_other_sizes(spec: BackboneSpec) -> None:
    if spec.fixed_size:
        return
    # A multiple: patches and windows divide it too.
    size = 2 * spec.input.size
    try:
        with torch.inference_mode():
            model = spec.build(2, None, size).eval()
            _logits(spec, model, torch.randn(1, 3, size, size), 2)
    except HarnessError:
        # It says so itself, before the first trial.
        return
    except Exception as error:
        reason = describe_error(error)
        raise AssertionError(f"images of {size} px fail, and fixed_size is not set: {reason}") from error


def _repeats_itself_in_eval(spec: BackboneSpec) -> None:
    model, images = _model(spec, 2).eval(), _images(spec, 2)
    with torch.inference_mode():
        first, second = (_logits(spec, model, images, 2) for _ in range(2))
    require(torch.equal(first, second), "in eval mode two passes differ")


def _initialises_from_the_seed(spec: BackboneSpec) -> None:
    states = []
    for _ in range(2):
        seed_all(1)
        states.append(_model(spec, 2).state_dict())
    differing = [name for name, value in states[0].items() if not torch.equal(value, states[1][name])]
    require(not differing, f"with one seed, two builds differ in {differing[:1]}")


def _is_copied_whole(spec: BackboneSpec) -> None:
    model, images = _model(spec, 2).eval(), _images(spec, 2)
    twin = copy.deepcopy(model)
    with torch.inference_mode():
        expected = _logits(spec, model, images, 2)
        for parameter in model.parameters():
            parameter.zero_()
        found = _logits(spec, twin, images, 2)
    require(torch.equal(expected, found), "a deep copy of it computes with the parameters of the original")


def _plan(spec: BackboneSpec, model: nn.Module, depth: float) -> FreezePlan:
    # Refuses names that do not exist or are in two blocks, and a head without parameters.
    return plan_freeze(
        model,
        depth,
        blocks=spec.blocks(model) if spec.blocks else None,
        head=spec.head(model) if spec.head else None,
        image_size=spec.input.size,
    )


def _outside_head(model: nn.Module, plan: FreezePlan) -> list[str]:
    head = {id(p) for name in plan.head for p in model.get_submodule(name).parameters()}
    return [name for name, parameter in model.named_parameters() if id(parameter) not in head]


def _has_blocks(spec: BackboneSpec) -> None:
    model = _model(spec, 2)
    plan = _plan(spec, model, 0.0)
    require(plan.n_blocks, "it has no block in front of its head")
    blocks = spec.blocks(model) if spec.blocks else None
    if blocks is not None:
        listed = {name for block in blocks for name in block}
        missing = [name for name in _outside_head(model, plan) if name not in listed]
        require(not missing, f"blocks leave out the parameter {missing[:1]}")


def _freezes_down_to_its_head(spec: BackboneSpec) -> None:
    model = _model(spec, 2)
    plan = _plan(spec, model, 1.0)
    apply_freeze(model, plan)
    set_train_mode(model, plan)
    logits = _logits(spec, model, _images(spec, 4), 2)
    require(logits.requires_grad, "with all blocks frozen nothing trains")
    torch.autograd.backward(logits.logsumexp(1).sum())
    moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    outside = sorted(moved.intersection(_outside_head(model, plan)))
    require(moved, "with all blocks frozen nothing gets a gradient")
    require(not outside, f"with all blocks frozen {outside[:1]} gets a gradient")


def _takes_its_weights(spec: BackboneSpec) -> None:
    if spec.weights is None:
        return
    require(spec.weights.source and spec.weights.licence, "its weights state no source or no licence")
    file = spec.weights.cached()
    at_hand = isinstance(file, Path) and file.exists()
    require(file is None or at_hand, f"cached() returned {file!r}, which is no file")
    if file is None:
        return
    bodies = []
    for seed in (1, 2):
        seed_all(seed)
        model = _model(spec, 3, file).eval()
        with torch.inference_mode():
            _logits(spec, model, _images(spec, 2), 3)
        state = dict(model.named_parameters())
        bodies.append({name: state[name] for name in _outside_head(model, _plan(spec, model, 1.0))})
    differing = [name for name, value in bodies[0].items() if not torch.equal(value, bodies[1][name])]
    require(not differing, f"{differing[:1]} does not come from its weights: two builds differ in it")


# --- losses -----------------------------------------------------------------------------------------------

_COUNTS = (10, 20, 30, 40, 50)


def _value(spec: LossSpec, logits: Tensor, labels: Tensor, counts: tuple[int, ...] = _COUNTS) -> Tensor:
    loss = spec.build(ClassInfo(num_classes=len(counts), counts=counts))
    require(isinstance(loss, nn.Module), f"it built a {type(loss).__name__}, not a torch.nn.Module")
    value = loss(logits, labels)
    require(isinstance(value, Tensor), f"it returned a {type(value).__name__}, not a tensor")
    require(value.shape == (), f"a loss is a scalar, not of shape {tuple(value.shape)}")
    require(bool(value.isfinite()), f"it is {value.item()}")
    return value  # type: ignore[no-any-return]


def _is_a_scalar_with_a_gradient(spec: LossSpec) -> None:
    labels = torch.arange(20) % 5
    # Confident and wrong, beyond what exp() can hold.
    for logits in (torch.randn(20, 5), 200 * nn.functional.one_hot((labels + 1) % 5, 5).float()):
        logits.requires_grad_()
        value = _value(spec, logits, labels)
        require(value.requires_grad, "it has no gradient")
        torch.autograd.backward(value)
        gradient = logits.grad
        require(gradient is not None, "its gradient does not reach the logits")
        require(gradient is not None and bool(gradient.isfinite().all()), "its gradient is not finite")


def _prefers_the_right_answer(spec: LossSpec) -> None:
    labels = torch.arange(20) % 5
    right, wrong = (5 * nn.functional.one_hot(answer, 5).float() for answer in (labels, (labels + 1) % 5))
    low, high = _value(spec, right, labels), _value(spec, wrong, labels)
    require(low < high, f"a right answer costs {low.item():.3g} and a wrong one {high.item():.3g}")


def _ignores_the_order_of_classes(spec: LossSpec) -> None:
    order = torch.tensor([2, 0, 4, 1, 3])
    logits, labels = torch.randn(20, 5), torch.arange(20) % 5
    renamed = torch.empty_like(logits)
    renamed[:, order] = logits
    counts = tuple(_COUNTS[int((order == place).nonzero())] for place in range(5))
    seed_all(2)
    before = _value(spec, logits, labels).item()
    seed_all(2)
    after = _value(spec, renamed, order[labels], counts).item()
    same = math.isclose(before, after, rel_tol=1e-4, abs_tol=1e-6)
    require(same, f"with the classes in another order it is {after:.6g}, not {before:.6g}")


def _goes_to_its_device(spec: LossSpec) -> None:
    # A device that computes nothing stands for a GPU.
    device = torch.device("meta")
    loss = spec.build(ClassInfo(num_classes=len(_COUNTS), counts=_COUNTS)).to(device)
    try:
        loss(torch.zeros(20, 5, device=device), torch.zeros(20, dtype=torch.int64, device=device))
    except Exception as error:
        # What looks at values cannot run there, which says nothing.
        stays = "not on the expected device meta" in str(error)
        require(not stays, "on a GPU a tensor of it stays on the CPU: make it a parameter or a buffer")


# --- optimizers -------------------------------------------------------------------------------------------


def _middle(spec: OptimizerSpec) -> float:
    low, high = spec.lr
    return math.sqrt(low * high)


def _keeps_its_groups(spec: OptimizerSpec) -> None:
    lr = _middle(spec)
    groups = [
        {"params": [nn.Parameter(torch.ones(2, 3))], "lr": lr, "weight_decay": 0.1},
        {"params": [nn.Parameter(torch.ones(3))], "lr": lr / 2, "weight_decay": 0.0},
    ]
    optimizer = spec.build([dict(group) for group in groups])
    require(isinstance(optimizer, torch.optim.Optimizer), f"build returned a {type(optimizer).__name__}")
    require(len(optimizer.param_groups) == 2, f"2 groups became {len(optimizer.param_groups)}")
    for given, kept in zip(groups, optimizer.param_groups, strict=True):
        for key in ("lr", "weight_decay"):
            require(kept.get(key) == given[key], f"a group's {key} {given[key]} became {kept.get(key)}")


def _moves_what_trains(spec: OptimizerSpec) -> None:
    lr = _middle(spec)
    moving, still = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(2, 3), requires_grad=False)
    optimizer = spec.build([{"params": [moving, still], "lr": lr, "weight_decay": 0.1}])
    for _ in range(2):
        optimizer.zero_grad()
        torch.autograd.backward((moving * torch.arange(1.0, 7.0).reshape(2, 3)).sum())
        optimizer.step()
    require(not torch.equal(moving, torch.ones(2, 3)), "two steps move nothing")
    require(torch.equal(still, torch.ones(2, 3)), "it moves a frozen parameter")


def _goes_down_a_quadratic(spec: OptimizerSpec) -> None:
    weights = nn.Parameter(torch.linspace(-1, 2, 12).reshape(3, 4))
    optimizer = spec.build([{"params": [weights], "lr": _middle(spec), "weight_decay": 0.0}])
    losses = []
    for _ in range(51):
        optimizer.zero_grad()
        loss = ((weights - 0.5) ** 2).mean()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    went = f"{losses[0]:.3g} -> {losses[-1]:.3g}"
    require(losses[-1] < losses[0], f"at lr {_middle(spec):.3g}, inside its bounds, a quadratic went {went}")


# --- schedules ------------------------------------------------------------------------------------------


def _gives_factors(spec: ScheduleSpec) -> None:
    for steps in (1, 10, 1000):
        factor = spec.build(steps)
        forward = [float(factor(step)) for step in range(steps)]
        wrong = [step for step, value in enumerate(forward) if not -1e-9 <= value <= 1 + 1e-6]
        require(not wrong, f"of {steps} steps, step {wrong[:1]} has a factor outside [0, 1]")
        require(max(forward) > 0, f"of {steps} steps none learns: every factor is 0")
        backward = [float(factor(step)) for step in reversed(range(steps))]
        require(forward == backward[::-1], "a factor depends on earlier calls, so no study could be resumed")


CHECKS: dict[str, dict[str, Callable[[Any], None]]] = {
    "dataset": {"states-its-terms": states_its_terms, "reads-or-says-why": reads_or_says_why},
    "backbone": {
        "gives-logits": _gives_logits,
        "takes-other-sizes": _takes_other_sizes,
        "repeats-itself-in-eval": _repeats_itself_in_eval,
        "initialises-from-the-seed": _initialises_from_the_seed,
        "is-copied-whole": _is_copied_whole,
        "has-blocks": _has_blocks,
        "freezes-down-to-its-head": _freezes_down_to_its_head,
        "takes-its-weights": _takes_its_weights,
    },
    "augmentation": {
        "keeps-the-form-of-images": keeps_the_form_of_images,
        "repeats-itself-from-a-seed": repeats_itself_from_a_seed,
    },
    "loss": {
        "is-a-scalar-with-a-gradient": _is_a_scalar_with_a_gradient,
        "prefers-the-right-answer": _prefers_the_right_answer,
        "ignores-the-order-of-classes": _ignores_the_order_of_classes,
        "goes-to-its-device": _goes_to_its_device,
    },
    "optimizer": {
        "keeps-its-groups": _keeps_its_groups,
        "moves-what-trains": _moves_what_trains,
        "goes-down-a-quadratic": _goes_down_a_quadratic,
    },
    "schedule": {"gives-factors": _gives_factors},
}
