"""Backbones: all of timm, and what torchvision has beyond it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import (
    BackboneSpec,
    Family,
    InputSpec,
    PluginError,
    UsageError,
    WeightsError,
    WeightsSpec,
    hookimpl,
)
from harness_builtin.checkpoints import (
    below,
    first_line,
    hub_weights,
    load_proven,
    read_checkpoint,
    url_weights,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

# Any other, such as Lanczos or timm's `random`, is nearest to bicubic.
_INTERPOLATIONS: dict[str, Any] = {
    "nearest": "nearest",
    "bilinear": "bilinear",
    "box": "bilinear",
    "hamming": "bilinear",
}
_REPLACING = threading.Lock()


def list_timm() -> Iterable[str]:
    """Return timm's architectures, and each with each of its pretrained tags (`resnet50.a1_in1k`)."""
    import timm

    names = dict.fromkeys([*timm.list_models(), *timm.list_pretrained()])
    # Vision encoders cut out of larger models: timm gives them no classifier.
    return [name for name in names if not name.partition(".")[0].endswith("_enc")]


def describe_timm(name: str) -> BackboneSpec:
    """Describe one of timm's models (Wightman, 2019) without building it."""
    cfg = _timm_cfg(name)
    head = partial(find_timm_head, name)
    tag = f" with weights {cfg.tag}" if cfg.tag and cfg.has_weights else ""
    return BackboneSpec(
        name=name,
        summary=f"timm's {cfg.architecture or name}{tag}",
        build=partial(build_timm, name),
        input=InputSpec(
            size=max(cfg.input_size[1:]),
            mean=tuple(cfg.mean),
            std=tuple(cfg.std),
            interpolation=_INTERPOLATIONS.get(cfg.interpolation, "bicubic"),
            # The host resizes to no less than what is cropped: a share above 1, which VOLO has, is 1 to it.
            crop=min(cfg.crop_pct, 1.0),
        ),
        weights=_timm_weights(cfg),
        blocks=partial(list_timm_blocks, head),
        head=head,
        # Those of a fixed size are built for the size that is asked for.
        fixed_size=False,
    )


def build_timm(name: str, num_classes: int, weights: Path | None, image_size: int) -> nn.Module:
    """Build one of timm's models with a new head; position embeddings are resized to the image.

    Raises:
        WeightsError: The checkpoint cannot be read, is of another architecture, or is incomplete.
        UsageError: The architecture does not work with images of this size.
    """
    import timm
    import torch

    cfg = _timm_cfg(name)
    sized = cfg.fixed_input_size and tuple(cfg.input_size[1:]) != (image_size, image_size)
    options: dict[str, Any] = {"img_size": image_size} if sized else {}
    create = partial(timm.create_model, name, num_classes=num_classes, **options)
    try:
        model = create(pretrained=False) if weights is None else _load_timm(name, create, weights)
        if sized:
            # Not every size can be divided into patches and windows; some networks notice when they run.
            with torch.no_grad():
                model.eval()(torch.zeros(1, 3, image_size, image_size))
        return model.train()
    except (AssertionError, ArithmeticError, LookupError, ValueError, RuntimeError, WeightsError) as error:
        if not sized:
            raise
        reason = first_line(error).rstrip(".")
        if isinstance(error, WeightsError):
            # Raises where the checkpoint does not fit the size that it is for, either.
            build_timm(name, num_classes, weights, max(cfg.input_size[1:]))
            reason = f"its weights do not fit: {error.why}"
        raise UsageError(
            # All in one line: a trial that fails keeps no more of it in its record.
            f"backbone {name!r} does not work with images of {image_size} px: "
            f"{reason}; use {max(cfg.input_size[1:])} px, its own size",
            fixes=["leave the backbone out"],
        ) from error


def find_timm_head(name: str, model: nn.Module) -> tuple[str, ...]:
    """Return the names of the classifier modules: two for a distilled network, else mostly one.

    Raises:
        PluginError: There is none.
    """
    classifier = _timm_cfg(name).classifier
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    modules = dict(model.named_modules())
    found = tuple(name for name in names if name in modules and list(modules[name].parameters()))
    if found:
        return found
    layers = model.get_classifier()  # type: ignore[operator]
    layers = layers if isinstance(layers, tuple | list) else (layers,)
    found = tuple(name for name, module in modules.items() if any(module is layer for layer in layers))
    if not found:
        raise PluginError(f"timm's {name} has no classifier to train")
    return found


def list_timm_blocks(head: Callable[[nn.Module], Sequence[str]], model: nn.Module) -> list[list[str]] | None:
    """Return parameter names by timm's own groups, from input to output, without the head.

    None where the architecture names no groups.
    """
    from timm.models import group_parameters

    matcher = getattr(model, "group_matcher", None)
    if matcher is None:
        return None
    is_head = below(head(model))
    groups = group_parameters(model, matcher(coarse=False)).values()
    blocks = [[name for name in names if not is_head(name)] for names in groups]
    return [block for block in blocks if block]


def _timm_cfg(name: str) -> Any:
    from timm.models import PretrainedCfg, get_pretrained_cfg

    return get_pretrained_cfg(name) or PretrainedCfg()


def _timm_weights(cfg: Any) -> WeightsSpec | None:
    licence = cfg.license or "unknown"
    if cfg.hf_hub_id:
        return hub_weights(cfg.hf_hub_id, cfg.hf_hub_filename, licence)
    if cfg.url and not cfg.custom_load:
        url, file = (cfg.url, "") if isinstance(cfg.url, str) else cfg.url
        return url_weights(url, file, licence)
    return None


def _load_timm(name: str, create: Callable[..., nn.Module], weights: Path) -> nn.Module:
    from timm.models import _builder

    original = _builder.load_pretrained
    loaded: list[nn.Module] = []

    def load(model: nn.Module, pretrained_cfg: dict[str, Any], **options: Any) -> None:
        heads = find_timm_head(name, model)
        # A class count that no checkpoint has makes timm drop the classifier whatever its size.
        cfg = {**pretrained_cfg, "classifier": heads, "num_classes": -1}
        load_proven(
            model,
            heads,
            state,
            lambda entries: original(model, pretrained_cfg={**cfg, "state_dict": entries}, **options),
            name,
            weights,
            takes_part=not options.get("strict", True),
        )
        loaded.append(model)

    state = read_checkpoint(weights)
    with _timm_loads_with(load):
        model = create(pretrained=True, pretrained_cfg_overlay={"file": str(weights), "custom_load": False})
    if not loaded:
        raise WeightsError(
            f"timm did not load the weights of {name!r}",
            where=str(weights),
            why="the installed timm loads checkpoints in a way that harness does not know",
            fixes=["install a timm that transfer-harness has been tested with"],
        )
    return model


@contextmanager
def _timm_loads_with(load: Callable[..., None]) -> Iterator[None]:
    """Let `load` stand in for timm's own loader while a model is created.

    Each architecture has a filter that renames and resizes a checkpoint's entries. timm hands it to its
    loader inside `create_model` and to nobody else: there is no other moment between building and loading.
    """
    from timm.models import _builder

    logger = logging.getLogger(_builder.__name__)
    with _REPLACING:
        original, level = _builder.load_pretrained, logger.level
        _builder.load_pretrained = load
        # It warns of what is refused here.
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            _builder.load_pretrained = original
            logger.setLevel(level)


def list_torchvision() -> Iterable[str]:
    """Return torchvision's classifiers whose names timm does not have."""
    import timm
    import torchvision

    known = set(timm.list_models())
    return [name for name in torchvision.models.list_models(module=torchvision.models) if name not in known]


def describe_torchvision(name: str) -> BackboneSpec:
    """Describe one of torchvision's models without building it."""
    import torchvision

    weights = torchvision.models.get_model_weights(name).DEFAULT
    preset = weights.transforms()
    size = preset.crop_size[0]
    fixed = name.startswith(("vit_", "maxvit_"))
    return BackboneSpec(
        name=name,
        summary=f"torchvision's {name} with weights {weights.name}",
        build=partial(build_torchvision, name, size if fixed else None),
        input=InputSpec(
            size=size,
            mean=tuple(preset.mean),
            std=tuple(preset.std),
            interpolation=_INTERPOLATIONS.get(preset.interpolation.value, "bicubic"),
            crop=size / preset.resize_size[0],
        ),
        weights=url_weights(weights.url, "", "bsd-3-clause"),
        head=find_torchvision_head,
        fixed_size=fixed,
    )


def build_torchvision(
    name: str, only_size: int | None, num_classes: int, weights: Path | None, image_size: int
) -> nn.Module:
    """Build one of torchvision's models with a new head.

    Raises:
        WeightsError: The checkpoint cannot be read, is of another architecture, or is incomplete.
        UsageError: The architecture takes images of one size, and not of this one.
    """
    import torchvision

    if only_size and image_size != only_size:
        raise UsageError(f"backbone {name!r} takes images of {only_size} px only, not {image_size}")
    options: dict[str, Any] = {}
    if name.startswith("vit_"):
        # Its own default is 224, whatever size the weights are for.
        options = {"image_size": image_size}
    if name == "googlenet":
        # Its weights expect inputs that it renormalises. The auxiliary classifiers only help from scratch.
        options = {"aux_logits": False, "transform_input": True, "init_weights": weights is None}
    model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    if weights is None:
        return model
    heads = find_torchvision_head(model)
    is_head, state = below((*heads, "aux1", "aux2")), model.state_dict()

    def load(entries: dict[str, Tensor]) -> None:
        # Refilled, not made anew, because some layers read the version that torch's own mapping carries.
        state.clear()
        state.update((key, value) for key, value in entries.items() if not is_head(key))
        model.load_state_dict(state, strict=False)

    load_proven(model, heads, read_checkpoint(weights), load, name, weights)
    return model


def find_torchvision_head(model: nn.Module) -> tuple[str, ...]:
    """Return the name of the last linear or convolutional layer."""
    from torch import nn

    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return (layers[-1],)


@hookimpl
def harness_backbones() -> Iterable[Family[BackboneSpec]]:
    """Yield the families."""
    yield Family(
        name="timm",
        summary="PyTorch Image Models: every architecture with every set of weights",
        members=list_timm,
        spec=describe_timm,
    )
    yield Family(
        name="torchvision",
        summary="torchvision's classifiers that timm does not have",
        members=list_torchvision,
        spec=describe_torchvision,
    )
