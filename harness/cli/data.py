"""`harness data`: which data sets there are, which are here, and whether one can be trained on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness import paths
from harness.data.fetch import fetch, folder_of, is_present
from harness.data.folder import read_folder
from harness.data.manifest import DatasetCheck, Manifest, SplitRules, check_dataset, display_name, resolve
from harness.errors import UsageError
from harness.registry import Component, Registry, load_registry
from harness.specs import DatasetSpec
from harness.text import safe_text

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = "harness.data/1"
_DATA_ERROR = 5


@click.group()
def command() -> None:
    """List, fetch and check data sets."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_data(as_json: bool) -> None:
    """List the named data sets and whether they are on this machine."""
    catalog = _registry().datasets
    rows = [_described(component) for component in catalog.specs()]
    if as_json:
        _print_json({"datasets": rows, "families": catalog.families()})
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in ("name", "here", "size", "images' licence", "summary"):
        table.add_column(title, overflow="fold", no_wrap=title in ("name", "here", "size"))
    for row in rows:
        cells = (row["name"], "yes" if row["present"] else "no", row["size"] or "-", row["licence"])
        table.add_row(*(Text(safe_text(cell)) for cell in (*cells, row["summary"])))
    console = _console()
    console.print(table)
    for family in catalog.families():
        console.print(Text(safe_text(f"and the family {family}: name one as {family}:NAME")))


@command.command("get")
@click.argument("name")
def get_data(name: str) -> None:
    """Download a named data set, unless it is here."""
    found = resolve(name, _registry())
    if isinstance(found, Path):
        raise UsageError(
            f"{name!r} is a path, and only named data sets are downloaded",
            fixes=["list the names: harness data list", f"check a folder: harness data check {name}"],
        )
    samples = fetch(found, paths.home(), download=True)
    folder = folder_of(found.name, paths.home())
    where = folder if folder.is_dir() else "generated when it is used"
    _say([f"{found.name}: {len(samples):,} images ({where})", f"next: harness data check {found.name}"])


@command.command("check")
@click.argument("dataset", metavar="NAME|DIR")
@click.option("--skip-bad", is_flag=True, help="Leave unreadable images out instead of refusing them.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def check_data(ctx: click.Context, dataset: str, skip_bad: bool, as_json: bool) -> None:
    """Read every image and tell whether the data set can be trained on; exit 5 if it cannot.

    Downloads nothing, except what is still missing of a named data set some files of which are here.
    """
    registry = _registry()
    download = _has_files(dataset, registry)
    check = check_dataset(dataset, registry, rules=SplitRules(), download=download, skip_bad=skip_bad)
    if as_json:
        _print_json(_check_as_json(check))
    else:
        _say(_check_as_lines(check))
    if check.problems:
        ctx.exit(_DATA_ERROR)


@command.command("info")
@click.argument("dataset", metavar="NAME|DIR")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show_data(dataset: str, as_json: bool) -> None:
    """Show what is known of a data set, without reading its images."""
    registry = _registry()
    found = resolve(dataset, registry)
    if isinstance(found, Path):
        samples = read_folder(found)
        labels = sorted({sample.label for sample in samples})
        splits = sorted({sample.split for sample in samples if sample.split})
        facts: dict[str, Any] = {
            "name": display_name(found),
            "folder": str(found.absolute()),
            "images": len(samples),
            "classes": labels,
            "splits": splits,
        }
    else:
        facts = _described(registry.datasets.get(dataset))
    if as_json:
        _print_json(facts)
        return
    width = max(len(key) for key in facts) + 2
    lines = []
    for key, value in facts.items():
        shown = ", ".join(value) if isinstance(value, list) else value
        shown = {True: "yes", False: "no"}[shown] if isinstance(shown, bool) else shown
        lines.append(f"{key:{width}}{shown or '-'}")
    _say(lines)


def _registry() -> Registry:
    return load_registry(click.get_current_context().find_root().obj or ())


def _has_files(dataset: str, registry: Registry) -> bool:
    """Tell whether somebody put files into the folder of a named data set: they may only want unpacking."""
    found = resolve(dataset, registry)
    if isinstance(found, Path):
        return False
    folder = folder_of(found.name, paths.home())
    return folder.is_dir() and any(folder.iterdir())


def _described(component: Component[DatasetSpec]) -> dict[str, Any]:
    spec, provider = component.spec, component.provider
    return {
        "name": spec.name,
        "summary": spec.summary,
        "licence": spec.licence,
        "size": spec.size,
        "present": is_present(spec, paths.home()),
        "folder": str(folder_of(spec.name, paths.home())),
        "url": spec.url,
        "citation": spec.citation,
        "plugin": f"{provider.plugin} ({provider.distribution} {provider.version})".replace(" )", ")"),
    }


def _check_as_json(check: DatasetCheck) -> dict[str, Any]:
    manifest = check.manifest
    return {
        "name": manifest.dataset,
        "where": check.where,
        "licence": manifest.licence,
        "split": manifest.split_rule,
        "classes": list(manifest.classes),
        "counts": {split: list(counts) for split, counts in manifest.counts().items()},
        "skipped": manifest.skipped,
        "audit": {
            "counts": dataclasses.asdict(manifest.audit.record()),
            "groups": dataclasses.asdict(manifest.audit),
        },
        "protocol": manifest.protocol().digest,
        "warnings": list(manifest.warnings),
        "problems": list(check.problems),
    }


def _check_as_lines(check: DatasetCheck) -> list[str]:
    manifest = check.manifest
    counts = manifest.counts()
    totals = [sum(of_class) for of_class in zip(*counts.values(), strict=True)]
    shown = ", ".join(manifest.classes[:20])
    more = f" and {len(manifest.classes) - 20} more" if len(manifest.classes) > 20 else ""
    images = ", ".join(f"{split} {sum(of_split):,}" for split, of_split in counts.items())
    lines = [
        f"data set   {manifest.dataset}",
        f"where      {check.where}",
        f"licence    {manifest.licence}",
        f"classes    {len(manifest.classes)}: {shown}{more}",
        f"images     {sum(totals):,}: {images}",
    ]
    if totals:
        smallest = min(range(len(totals)), key=lambda label: totals[label])
        of_smallest = ", ".join(f"{split} {of_split[smallest]}" for split, of_split in counts.items())
        lines.append(f"smallest   {manifest.classes[smallest]}: {totals[smallest]} ({of_smallest})")
    lines.append(f"split      {manifest.split_rule}")
    lines.append(f"audit      {_audit_in_words(manifest)}")
    lines += [f"warning    {line}" for line in manifest.warnings]
    lines += [f"problem    {line}" for line in check.problems]
    if check.problems:
        lines.append("it cannot be used: repair what is listed as a problem")
    else:
        lines.append(f"protocol   {manifest.protocol().digest[:16]}; it can be trained on")
    return lines


def _audit_in_words(manifest: Manifest) -> str:
    found = manifest.audit.record()
    parts = [
        f"{found.leaked_test:,} of {len(manifest.of('test')):,} test images are in another split too",
        f"across splits {found.exact_across_splits:,} copies, {found.near_across_splits:,} near duplicates",
        f"under two labels {found.exact_two_labels:,} and {found.near_two_labels:,}",
        f"copies within a split {found.exact_within_split:,}",
    ]
    if found.featureless:
        parts.append(f"{found.featureless:,} without structure, compared by content only")
    return "; ".join(parts)


def _say(lines: list[str]) -> None:
    from rich.text import Text

    console = _console()
    for line in lines:
        for part in line.split("\n"):
            console.print(Text(safe_text(part)), soft_wrap=True)


def _print_json(values: dict[str, Any]) -> None:
    click.echo(json.dumps({"schema": SCHEMA, **values}, indent=2))


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False)
