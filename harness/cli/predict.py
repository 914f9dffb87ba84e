"""`harness predict`: classify images with a finalist."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import click

from harness import paths
from harness.cli.studies import RUNS, find_study
from harness.errors import DataError, UsageError


@click.command()
@click.argument("run")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(["csv", "json"]), default="csv", show_default=True)
@click.option(
    "--score",
    is_flag=True,
    help="The images lie in folders named by class: print the scores to standard error.",
)
@click.option("--device", default="auto", show_default=True)
@RUNS
@click.pass_context
def command(
    ctx: click.Context,
    run: str,
    images: tuple[Path, ...],
    form: str,
    score: bool,
    device: str,
    runs: Path | None,
) -> None:
    """Classify IMAGES, files or folders, with RUN: a study's name, or the folder of one of its finalists."""
    from harness.registry import load_registry
    from harness.search.card import WEIGHTS, read_card

    folder = find_finalist(run, runs or paths.runs())
    card = read_card(folder)
    files = list_images(images)
    from harness.engine.predict import predict

    probabilities = predict(
        folder / WEIGHTS,
        [path for path, _ in files],
        registry=load_registry(ctx.find_root().obj),
        backbone=card.backbone,
        num_classes=len(card.classes),
        inputs=card.input,
        decode_recipe=card.decode,
        batch_size=card.batch_size,
        precision=card.precision,
        device=device,
    )
    chosen = probabilities.argmax(axis=1)
    if form == "json":
        rows = [
            {
                "file": str(path),
                "class": card.classes[index],
                "probabilities": dict(zip(card.classes, map(float, row), strict=True)),
            }
            for (path, _), index, row in zip(files, chosen, probabilities, strict=True)
        ]
        click.echo(
            json.dumps({"schema": "harness.predictions/1", "model": str(folder), "images": rows}, indent=2)
        )
    else:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(["file", "class", *card.classes])
        for (path, _), index, row in zip(files, chosen, probabilities, strict=True):
            writer.writerow([path, card.classes[index], *(f"{value:.6f}" for value in row)])
    if score:
        _print_scores(files, chosen, card.classes)


def find_finalist(run: str, runs: Path) -> Path:
    """Return a finalist's folder from a study's name (the best on validation) or from its own path.

    Raises:
        UsageError: The study has no finalist.
        UnknownNameError: There is no such study.
    """
    if (Path(run) / "card.json").exists():
        return Path(run)
    study = find_study(run, runs)
    finals = [record for record in study.records if record.kind == "final" and record.state == "complete"]
    if not finals:
        raise UsageError(
            f"study {study.name!r} has no finalist yet",
            where=str(study.folder),
            fixes=[f"harness study finalize {study.name} --finalists 1"],
        )
    # By validation, never by test: picking the best test score would spoil it.
    best = max(finals, key=lambda record: getattr(record.scores["val"], study.metric))
    return study.folder / best.folder


def list_images(paths_: tuple[Path, ...]) -> list[tuple[Path, str]]:
    """Return (file, name of its folder) for files and for all images below folders, sorted.

    Raises:
        DataError: A path does not exist, or a folder holds no image.
    """
    from harness.data.folder import EXTENSIONS

    found: list[tuple[Path, str]] = []
    for path in paths_:
        if path.is_dir():
            inside = sorted(
                file
                for file in path.rglob("*")
                if file.suffix.lower() in EXTENSIONS and file.is_file() and not file.name.startswith(".")
            )
            if not inside:
                raise DataError(f"found 0 images under {path}", fixes=["name a folder that holds images"])
            found += [(file, file.absolute().parent.name) for file in inside]
        elif path.is_file():
            found.append((path, path.absolute().parent.name))
        else:
            raise DataError(
                "no such file or folder",
                where=str(path),
                fixes=["check the path; IMAGES are files, or folders of images"],
            )
    return found


def _print_scores(files: list[tuple[Path, str]], chosen: Any, classes: tuple[str, ...]) -> None:
    import unicodedata

    import numpy as np

    from harness import metrics

    number = {name: index for index, name in enumerate(classes)}
    names = [unicodedata.normalize("NFC", name) for _, name in files]
    unknown = sorted({name for name in names if name not in number})
    if unknown:
        raise DataError(
            f"--score: folder {unknown[0]!r} is no class of the model",
            why=f"its classes are {', '.join(classes[:8])}{' ...' if len(classes) > 8 else ''}",
        )
    scores = metrics.evaluate(np.array([number[name] for name in names]), chosen, len(classes))
    click.echo(
        f"{scores.n} images: macro-F1 {scores.f1!r}, accuracy {scores.accuracy!r}, "
        f"precision {scores.precision:.4f}, recall {scores.recall:.4f}",
        err=True,
    )
