"""`harness cache`: what the caches of this machine take, and how to get the space back."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

import click

from harness import paths
from harness.engine.store import ActivationStore, default_budget
from harness.errors import StorageError
from harness.text import safe_text

SCHEMA = "harness.cache/1"


@click.group()
def command() -> None:
    """Show and clear what is kept to save time."""


@command.command("info")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show_cache(as_json: bool) -> None:
    """Show how much activations and decoded images take."""
    store, bank = _store(), _bank()
    info, banks = store.info(), _banks(bank)
    taken = _bytes(bank)
    if as_json:
        activations = {
            "folder": str(store.folder),
            "entries": info.entries,
            "bytes": info.bytes,
            "budget": info.budget,
            "parts": info.parts,
            "pinned": info.pinned,
        }
        images = {"folder": str(bank), "entries": len(banks), "bytes": taken}
        click.echo(json.dumps({"schema": SCHEMA, "activations": activations, "images": images}, indent=2))
        return
    _say(
        [
            f"activations  {_count(info.entries, 'entry', 'entries')}, {_size(info.bytes)}; "
            f"new ones are kept up to {_size(info.budget)}",
            f"in use       {info.pinned}; being written {info.parts}",
            f"folder       {store.folder}",
            f"images       {_count(len(banks), 'decoded set', 'decoded sets')}, {_size(taken)}",
            f"folder       {bank}",
        ]
    )


@command.command("clear")
@click.option("--bank", "with_bank", is_flag=True, help="Remove decoded images and scans as well.")
def clear_cache(with_bank: bool) -> None:
    """Remove the activations that no running study uses.

    What is removed is computed again when a study needs it.
    """
    store = _store()
    lines = [f"removed      {_size(store.clear())} of activations"]
    left = store.info()
    if left.entries or left.parts:
        lines.append(
            f"kept         {_count(left.entries, 'entry', 'entries')} in use, {left.parts} being written, "
            f"{_size(left.bytes)}: clear again when no study runs"
        )
    if with_bank:
        lines.append(f"removed      {_size(_clear_bank(_bank()))} of decoded images")
        lines.append(f"removed      {_size(_clear_scans(paths.home() / 'scan'))} of scans")
    _say(lines)


def _store() -> ActivationStore:
    folder = paths.home() / "activations"
    return ActivationStore(folder, default_budget(folder))


def _bank() -> Path:
    return paths.home() / "bank"


def _banks(bank: Path) -> list[Path]:
    return [folder for folder in bank.glob("*") if folder.is_dir() and not folder.name.startswith(".")]


def _clear_bank(bank: Path) -> int:
    """Remove decoded images, except those that are being decoded; return the bytes freed."""
    from filelock import FileLock, Timeout

    before = _bytes(bank)
    for folder in bank.glob("*"):
        if not folder.is_dir():
            continue
        # Of a folder, or of the part that becomes it.
        name = folder.name.removeprefix(".").removesuffix(".part")
        try:
            with FileLock(bank / f".{name}.lock").acquire(timeout=0):
                shutil.rmtree(folder)
        except (Timeout, FileNotFoundError):  # being made, or just become a bank
            continue
        except OSError as error:
            raise StorageError(
                "decoded images cannot be removed", where=str(folder), why=error.strerror or str(error)
            ) from error
    return before - _bytes(bank)


def _clear_scans(folder: Path) -> int:
    """Remove what is known of images, so that the next study reads them anew; return the bytes freed."""
    before = _bytes(folder)
    shutil.rmtree(folder, ignore_errors=True)
    return before - _bytes(folder)


def _bytes(folder: Path) -> int:
    total = 0
    for current, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # gone meanwhile
                total += Path(current, name).stat().st_size
    return total


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _size(value: int) -> str:
    """Write a number of bytes: `14.2 GB`, `3 kB`, `640 B`."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value} B"


def _say(lines: list[str]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, markup=False, emoji=False)
    for line in lines:
        console.print(Text(safe_text(line)), soft_wrap=True)
