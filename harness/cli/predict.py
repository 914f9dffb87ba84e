"""`harness predict`: classify images with a finalist."""

from __future__ import annotations

import csv
import json
import os
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import click

from harness import paths
from harness.cli.studies import RUNS, find_study
from harness.errors import DataError, UsageError
from harness.records import Scores
from harness.text import listed, safe_text

Row: TypeAlias = tuple[Path, str, list[float]]
"""An image, its most probable class, and the probabilities of all."""


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
    from harness.search.card import WEIGHTS, read_card

    folder = find_finalist(run, runs or paths.runs())
    card = read_card(folder)
    found = list_images(images)
    files = [file for file, _ in found]
    labels = _labels(found, card.classes) if score else []
    # Torch takes seconds: what is wrong with the command is said before.
    import numpy as np

    from harness import metrics
    from harness.engine.predict import predict
    from harness.registry import load_registry

    answers = predict(
        folder / WEIGHTS,
        files,
        registry=load_registry(ctx.find_root().obj),
        backbone=card.backbone,
        num_classes=len(card.classes),
        inputs=card.input,
        decode_recipe=card.decode,
        batch_size=card.batch_size,
        precision=card.precision,
        device=device,
    )
    chosen: dict[int, int] = {}
    problems: list[str] = []

    def rows() -> Iterator[Row]:
        for place, answer in enumerate(answers):
            if isinstance(answer, DataError):
                problems.append(f"{safe_text(answer.where)}: {safe_text(answer.why)}")
            else:
                chosen[place] = int(answer.argmax())
                yield files[place], card.classes[chosen[place]], answer.tolist()
        if not chosen:
            raise DataError(listed("unreadable images", problems), fixes=["name images that can be read"])

    if form == "json":
        _write_json(rows(), card.classes, folder)
    else:
        _write_csv(rows(), card.classes)
    if score:
        pairs = np.array([(labels[place], index) for place, index in chosen.items()])
        _print_scores(metrics.evaluate(pairs[:, 0], pairs[:, 1], len(card.classes)))
    if problems:
        click.echo(listed("left out unreadable images", problems), err=True)
        ctx.exit(3)


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
            fixes=[f"harness study finalize {paths.study_arguments(study.folder)} --finalists 1"],
        )
    # By validation, never by test: picking the best test score would spoil it.
    best = max(finals, key=lambda record: getattr(record.scores["val"], study.metric))
    return study.folder / best.folder


def list_images(paths_: tuple[Path, ...]) -> list[tuple[Path, Path]]:
    """Return files, and all images below folders, sorted, as far as a data set would not pass them over.

    Each comes with the outermost folder that may name its class: the one that was given, or a file's own.
    Symbolic links to images are taken too: nothing is copied from here.

    Raises:
        DataError: A path does not exist, or a folder holds no image.
    """
    from harness.data.folder import is_hidden, is_image

    found: list[tuple[Path, Path]] = []
    for path in paths_:
        if path.is_dir():
            inside = sorted(
                file
                for file in path.rglob("*")
                if is_image(file.name)
                and file.is_file()
                and not any(is_hidden(part) for part in file.relative_to(path).parts)
            )
            if not inside:
                raise DataError(f"found 0 images under {path}", fixes=["name a folder that holds images"])
            found += [(file, path) for file in inside]
        elif path.is_file():
            found.append((path, path.parent))
        else:
            raise DataError(
                "no such file or folder",
                where=str(path),
                fixes=["check the path; IMAGES are files, or folders of images"],
            )
    return found


def _labels(found: list[tuple[Path, Path]], classes: tuple[str, ...]) -> list[int]:
    """Return the classes that files have by the innermost of their folders that is named after one."""
    number = {name: index for index, name in enumerate(classes)}
    labels = []
    for file, outermost in found:
        # What lies further out says where the images are, not what they show.
        depth = len(Path(os.path.normpath(outermost.absolute())).parents)
        parts = Path(os.path.normpath(file.absolute())).parts[depth:-1]
        folders = [unicodedata.normalize("NFC", part) for part in reversed(parts)]
        label = next((number[name] for name in folders if name in number), None)
        if label is None:
            raise DataError(
                f"--score: folder {folders[0]!r} is no class of the model",
                where=str(file),
                why=f"its classes are {', '.join(classes[:8])}{' ...' if len(classes) > 8 else ''}",
                fixes=["name the folder of a class, or the one that holds those of all"],
            )
        labels.append(label)
    return labels


def _write_csv(rows: Iterator[Row], classes: tuple[str, ...]) -> None:
    """Write images as they come, and nothing where there are none."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    for place, (path, name, probabilities) in enumerate(rows):
        if not place:
            writer.writerow(["file", "class", *classes])
        writer.writerow([path, name, *(f"{value:.6f}" for value in probabilities)])


def _write_json(rows: Iterator[Row], classes: tuple[str, ...], folder: Path) -> None:
    images = [
        {"file": str(path), "class": name, "probabilities": dict(zip(classes, probabilities, strict=True))}
        for path, name, probabilities in rows
    ]
    body = {"schema": "harness.predictions/1", "model": str(folder), "images": images}
    click.echo(json.dumps(body, indent=2))


def _print_scores(scores: Scores) -> None:
    click.echo(
        f"{scores.n} images: macro-F1 {scores.f1!r}, accuracy {scores.accuracy!r}, "
        f"precision {scores.precision:.4f}, recall {scores.recall:.4f}",
        err=True,
    )
