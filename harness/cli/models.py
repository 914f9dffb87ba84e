"""`harness models`: list and describe backbones."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import TYPE_CHECKING, Any

import click

from harness.engine.backbone import blamed, build_backbone, find_cached
from harness.errors import PluginError
from harness.registry import Component, Registry, load_registry
from harness.specs import BackboneSpec
from harness.text import safe_text

if TYPE_CHECKING:
    from torch import nn

SCHEMA = "harness.models/1"
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
# Parameters are counted as papers do: with the head of ImageNet.
CLASSES = 1000


def read_count(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Read a number such as 30M: digits with an optional K, M or G."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]?)", value.strip().lower())
    if not match:
        raise click.BadParameter(f"{value!r} is no number such as 500K, 30M or 1.5G.", ctx, param)
    return int(float(match[1]) * {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}[match[2]])


@click.group()
def command() -> None:
    """List backbones and describe one."""


@command.command("list")
@click.argument("patterns", metavar="[GLOB]...", nargs=-1)
@click.option(
    "--max-params",
    callback=read_count,
    metavar="N",
    help="Only those of at most N parameters, such as 30M. Builds each: give a GLOB too.",
)
@click.option("--cached", is_flag=True, help="Only those whose weights are on this machine.")
@click.option(
    "--pretrained/--all",
    default=True,
    show_default=True,
    help="Only those with pretrained weights, or all.",
)
@click.option("--licence", metavar="TEXT", help="Only those whose weights' licence contains TEXT.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def list_models(
    plugins: tuple[str, ...],
    patterns: tuple[str, ...],
    max_params: int | None,
    cached: bool,
    pretrained: bool,
    licence: str | None,
    as_json: bool,
) -> None:
    """List backbones: name, input size, licence and source of the weights, and whether they are cached.

    A ? stands where a plugin fails to say so: `harness models info NAME` tells why.
    """
    catalog = load_registry(plugins or ()).backbones
    names = catalog.names()
    if patterns:
        names = sorted({name for pattern in patterns for name in catalog.expand(pattern, where="GLOB")})
    rows, without = [], 0
    for name in names:
        component = catalog.get(name)
        row = describe(component, cached=_is_cached(component))
        if pretrained and not row["pretrained"]:
            without += 1
            continue
        if (cached and not row["cached"]) or (licence and licence.lower() not in row["licence"].lower()):
            continue
        if max_params is not None:
            row["params"] = count_params(component)
            if row["params"] > max_params:
                continue
        rows.append(row)
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "models": rows}, indent=2))
        return
    counted = ["params"] if max_params is not None else []
    columns = ["name", "input", *counted, "licence", "cached", "source"]
    print_table(columns, [[_cell(row, column) for column in columns] for row in rows])
    if len(rows) < len(names):
        hint = f"; --all shows {without} without pretrained weights" if without else ""
        click.echo(f"{len(rows)} of {len(names)} backbones{hint}", err=True)


@command.command("info")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def info(plugins: tuple[str, ...], name: str, as_json: bool) -> None:
    """Describe one backbone: its input, weights, parameters, and what each freeze depth freezes."""
    registry: Registry = load_registry(plugins or ())
    component = registry.backbones.get(name)
    spec = component.spec
    model = build_backbone(component, CLASSES, None, spec.input.size)
    row = describe(component, cached=find_cached(component) is not None)
    row["summary"] = spec.summary
    row["provider"] = dataclasses.asdict(component.provider)
    row["input_spec"] = dataclasses.asdict(spec.input)
    row["params"] = sum(parameter.numel() for parameter in model.parameters())
    row["freeze"] = freeze_ladder(component, model)
    row["blocks"] = row["freeze"][0]["blocks"]
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "model": row}, indent=2))
        return
    given, provider = spec.input, component.provider
    pairs = [
        ("name", row["name"]),
        ("summary", row["summary"]),
        ("provider", f"{provider.plugin} ({provider.distribution} {provider.version})"),
        ("input", f"{given.size} px{' only' if spec.fixed_size else ''}"),
        ("resize", f"{given.interpolation}, centre crop {given.crop:g}"),
        ("mean, std", f"{given.mean}, {given.std}"),
        ("weights", row["source"] or "none"),
        ("licence", row["licence"] or "-"),
        ("cached", _cell(row, "cached")),
        ("params", f"{row['params']:,} with {CLASSES} classes"),
        ("blocks", str(row["blocks"])),
    ]
    for label, text in pairs:
        click.echo(f"{label:<10} {safe_text(text)}")
    click.echo()
    print_table(
        ["freeze depth", "frozen blocks", "frozen parameters", "last frozen"],
        [
            [
                f"{step['depth']:g}",
                f"{step['frozen_blocks']} of {step['blocks']}",
                f"{step['frozen_param_share']:.1%}",
                step["last_frozen"] or "-",
            ]
            for step in row["freeze"]
        ],
    )


def describe(component: Component[BackboneSpec], *, cached: bool | None) -> dict[str, Any]:
    """Return one row of the list; builds nothing."""
    spec, weights = component.spec, component.spec.weights
    return {
        "name": component.provider.name,
        "input": spec.input.size,
        "fixed_size": spec.fixed_size,
        "pretrained": weights is not None,
        "licence": weights.licence if weights else "",
        "source": weights.source if weights else "",
        "cached": cached,
    }


def _is_cached(component: Component[BackboneSpec]) -> bool | None:
    """Say whether a backbone's weights are here; None where its plugin fails, which is one row's concern."""
    try:
        return find_cached(component) is not None
    except PluginError:
        return None


def count_params(component: Component[BackboneSpec]) -> int:
    """Return the number of parameters with a head of 1000 classes; takes no memory where that is possible."""
    import torch

    spec = component.spec
    try:
        with torch.device("meta"):
            model = spec.build(CLASSES, None, spec.input.size)
    # Some constructors compute with tensors, which have no values on that device.
    except Exception:
        model = build_backbone(component, CLASSES, None, spec.input.size)
    return sum(parameter.numel() for parameter in model.parameters())


def freeze_ladder(component: Component[BackboneSpec], model: nn.Module) -> list[dict[str, Any]]:
    """Return what some freeze depths freeze."""
    from harness.engine.freeze import plan_freeze

    spec = component.spec
    with blamed(component, "cannot name its blocks and its head"):
        blocks = spec.blocks(model) if spec.blocks else None
        head = spec.head(model) if spec.head else None
    ladder = []
    for depth in DEPTHS:
        plan = plan_freeze(model, depth, blocks=blocks, head=head, image_size=spec.input.size)
        ladder.append(
            {
                "depth": depth,
                "blocks": plan.n_blocks,
                "frozen_blocks": plan.n_frozen,
                "frozen_param_share": plan.param_share,
                "last_frozen": plan.frozen_modules[-1] if plan.frozen_modules else "",
            }
        )
    return ladder


def print_table(columns: list[str], rows: list[list[str]]) -> None:
    """Print columns that are as wide as their content: a name is never cut."""
    cells = [columns, *([safe_text(text) for text in row] for row in rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    for row in cells:
        padded = (text.ljust(width) for text, width in zip(row, widths, strict=True))
        click.echo("  ".join(padded).rstrip())


def _cell(row: dict[str, Any], column: str) -> str:
    value = row[column]
    if value is None:
        return "?"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if column == "params":
        return f"{value / 1e6:.2f}M"
    return str(value) if value != "" else "-"
