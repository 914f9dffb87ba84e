"""Put pretrained backbones into the package: `python -m harness_builtin.formula.ship pretrained/`."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import click

from harness_builtin.formula.bundled import FOLDER, LICENCE
from harness_builtin.formula.classes import VERSION

SCHEMA = "harness.bundled/1"
LARGEST = 1_000_000
"""Bytes that one file may have, so that the repository stays light."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("pretrained", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--transfer",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="JSON that benchmarks/transfer_table.py wrote; kept in the manifest.",
)
def main(pretrained: Path, transfer: Path | None) -> None:
    """Copy the backbones that `pretrain` wrote to PRETRAINED into the package, and write its manifest."""
    manifest = ship(pretrained, json.loads(transfer.read_text(encoding="utf-8")) if transfer else {})
    for name, entry in manifest["backbones"].items():
        click.echo(f"{name}  {entry['bytes']:,} bytes  source accuracy {entry['source_accuracy']:.1%}")


def ship(pretrained: Path, transfer: dict[str, Any], folder: Path = FOLDER) -> dict[str, Any]:
    """Copy weights and write the manifest; returns it.

    What `transfer` does not hold is kept from the old manifest where the weights are the same. Backbones that
    `pretrained` does not hold are removed.

    Raises:
        ClickException: There is no backbone, one has no report, or a file is too large to ship.
    """
    found = {f"{file.stem}.formula{VERSION}": file for file in sorted(pretrained.glob("*.safetensors"))}
    if not found:
        raise click.ClickException(f"{pretrained} holds no *.safetensors")
    for file in found.values():
        if file.stat().st_size > LARGEST:
            size = f"{file.stat().st_size:,} bytes"
            raise click.ClickException(f"{file} has {size}, and {LARGEST:,} are allowed")
        if not file.with_suffix(".json").is_file():
            raise click.ClickException(f"{file} has no report beside it: {file.stem}.json")
    manifest_file = folder / "manifest.json"
    before = json.loads(manifest_file.read_text("utf-8"))["backbones"] if manifest_file.is_file() else {}
    shutil.rmtree(folder / "weights", ignore_errors=True)
    (folder / "weights").mkdir(parents=True)
    backbones = {}
    for name, file in found.items():
        content = file.read_bytes()
        (folder / "weights" / f"{name}.safetensors").write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        report = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
        old = before.get(name, {})
        known = old.get("transfer", []) if old.get("sha256") == digest else []
        backbones[name] = {"sha256": digest, **report, "transfer": transfer.get(name, known)}
    manifest = {"schema": SCHEMA, "licence": LICENCE, "formula": VERSION, "backbones": backbones}
    manifest_file.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


if __name__ == "__main__":
    main()
