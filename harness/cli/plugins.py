"""`harness plugins`: what is installed, what it provides, and whether it conforms."""

from __future__ import annotations

import json
import shlex
import sys
from typing import TYPE_CHECKING, Any

import click

from harness.catalog import KINDS, plural
from harness.errors import PluginError, UnknownNameError, UsageError
from harness.registry import PluginInfo, Registry, load_registry
from harness.text import safe_text

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = "harness.plugins/1"
_COLOURS = {"ok": "green", "blocked": "yellow", "broken": "red"}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """List plugins, show what they provide, and check them.

    A plugin is code that runs with your rights: install only what you trust.
    """


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def list_plugins(ctx: click.Context, as_json: bool) -> None:
    """List all plugins: where each comes from, its hooks, its components, and what is wrong with it."""
    registry = load_registry(ctx.obj or ())
    if as_json:
        plugins = [_to_json(registry, info) for info in registry.plugins]
        _print_json({"python": sys.executable, "plugins": plugins})
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    console = _console()
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in ("Plugin", "Package", "Status", "Provides"):
        table.add_column(title, overflow="fold")
    for info in registry.plugins:
        table.add_row(
            Text(safe_text(info.name)),
            Text(safe_text(f"{info.distribution} {info.version}".strip())),
            Text(info.status, style=_COLOURS[info.status]),
            Text("\n".join(safe_text(line) for line in _provisions(info))),
        )
    console.print(table)
    python = shlex.quote(safe_text(sys.executable))
    for line in (
        f"Python   {python}",
        f"install  {python} -m pip install NAME   (installing a plugin is trusting it)",
    ):
        console.print(Text(line), soft_wrap=True)


@command.command("info")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def show_plugin(ctx: click.Context, name: str, as_json: bool) -> None:
    """Show everything about one plugin."""
    registry = load_registry(ctx.obj or ())
    info = _find(registry, name)
    described = _to_json(registry, info)
    if as_json:
        _print_json({"plugin": described})
        return
    from rich.text import Text

    console = _console()
    lines = [
        ("plugin", info.name),
        ("package", f"{info.distribution} {info.version}".strip()),
        ("status", info.status + (f": {info.reason}" if info.reason else "")),
        ("hooks", ", ".join(info.hooks) or "none"),
    ]
    for label, value in lines:
        console.print(Text.assemble((f"{label:<9}", "bold"), safe_text(value)), soft_wrap=True)
    for component in described["components"]:
        kind = f"{component['kind']} family" if component["family"] else component["kind"]
        title = Text.assemble((f"{kind} ", "dim"), (safe_text(component["name"]), "bold"))
        console.print()
        console.print(title, soft_wrap=True)
        console.print(Text(f"  {safe_text(component['summary'])}"), soft_wrap=True)


@command.command("check")
@click.argument("name")
@click.option(
    "--member",
    "members",
    multiple=True,
    metavar="FAMILY:NAME",
    help="Check this member of a family, in place of its first and its middle one. Repeatable.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def check_plugin(ctx: click.Context, name: str, members: tuple[str, ...], as_json: bool) -> None:
    """Run the conformance kit on one plugin. Exits with 7 when a check fails."""
    registry = load_registry(ctx.obj or ())
    _find(registry, name)
    plugin = registry.plugin(name)
    chosen = _members(registry, name, members)
    # torch: imported only once the arguments are known to be good.
    from rich.text import Text

    from harness.testing import plugin_checks

    console = _console()
    results = []
    for check in plugin_checks(plugin, members=chosen):
        message = ""
        try:
            check()
        except AssertionError as error:
            message = str(error)
        results.append({"id": check.id, "status": "failed" if message else "passed", "message": message})
        if not as_json:
            mark = ("FAIL  ", "red") if message else ("ok    ", "green")
            console.print(Text.assemble(mark, safe_text(check.id)), soft_wrap=True)
            if message:
                console.print(Text(f"      {safe_text(message)}"), soft_wrap=True)
    failed = sum(result["status"] == "failed" for result in results)
    if as_json:
        _print_json({"name": name, "passed": len(results) - failed, "failed": failed, "checks": results})
    else:
        console.print(f"{len(results) - failed} checks passed, {failed} failed")
    if failed:
        ctx.exit(PluginError.exit_code)


def _find(registry: Registry, name: str) -> PluginInfo:
    for info in registry.plugins:
        if info.name == name:
            return info
    known = [info.name for info in registry.plugins]
    raise UnknownNameError("plugin", name, known, more="run `harness plugins list`")


def _members(registry: Registry, plugin: str, values: tuple[str, ...]) -> dict[str, list[str]]:
    owned = [name for _, name, _ in _find(registry, plugin).components]
    members: dict[str, list[str]] = {}
    for value in values:
        family, colon, member = value.partition(":")
        if not colon or not member or family not in owned:
            raise UsageError(
                f"{value!r} is no member of a family of plugin {plugin!r}",
                where="--member",
                fixes=["write FAMILY:NAME, with a family that `harness plugins info` shows"],
            )
        members.setdefault(family, []).append(member)
    return members


def _provisions(info: PluginInfo) -> list[str]:
    """Say what a plugin provides, one line for each kind, or why it provides nothing."""
    if info.status != "ok":
        return [info.reason] if info.reason else []
    by_kind: dict[str, list[str]] = {}
    for kind, name, _ in info.components:
        by_kind.setdefault(kind, []).append(name)
    lines = [f"{plural(kind)}: {', '.join(names)}" for kind, names in by_kind.items()]
    registering = {f"harness_{plural(kind)}" for kind in KINDS}
    observed = [hook.removeprefix("harness_") for hook in info.hooks if hook not in registering]
    if observed:
        lines.append(f"observes: {', '.join(observed)}")
    return lines or ["nothing yet"]


def _to_json(registry: Registry, info: PluginInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "distribution": info.distribution,
        "version": info.version,
        "status": info.status,
        "reason": info.reason,
        "hooks": list(info.hooks),
        "components": [
            {
                "kind": kind,
                "name": name,
                "summary": summary,
                "family": name in registry.catalog(kind).families(),
            }
            for kind, name, summary in info.components
        ],
    }


def _print_json(values: dict[str, Any]) -> None:
    click.echo(json.dumps({"schema": SCHEMA, **values}, indent=2))


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False)
