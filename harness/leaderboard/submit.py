"""Make bundles of the runs of a study, and put them among others'."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from harness.errors import StorageError, UnknownNameError, UsageError
from harness.leaderboard.bundle import Bundle, PackedAnswers, read_bundle, write_bundle
from harness.leaderboard.rerun import FILE as RERUN
from harness.leaderboard.rerun import SCHEMA as RERUN_SCHEMA
from harness.leaderboard.rerun import (
    RerunRecord,
    check_rerun,
    join_reruns,
    read_rerun,
    repeats_any,
    write_rerun,
)
from harness.leaderboard.verify import verify
from harness.paths import runs_flag, study_arguments
from harness.predictions import Predictions, read_predictions
from harness.records import TrialRecord, read_records, study_folders
from harness.samples import SampleList, Samples, protocol_digest, read_samples, split_digest

SPLITS = ("val", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What was written for one run."""

    bundle: Path
    reruns: tuple[Path, ...]


def make_bundle(study_folder: Path, number: int) -> Bundle:
    """Put all the evidence of a run into a bundle; the same run gives the same bundle.

    Args:
        study_folder: The study.
        number: Of the trial whose final trainings are the run.

    Raises:
        UsageError: The trial has no final training that is complete.
        StorageError: Records, manifest or predictions are missing, damaged, or not of each other.
    """
    records = read_records(study_folder)
    own = [record for record in records if record.kind == "final" and record.number == number]
    finals, failed = ([r for r in own if r.state == state] for state in ("complete", "failed"))
    if not finals:
        raise UsageError(
            f"trial {number} of study {study_folder.name!r} has no final training",
            where=str(study_folder),
            fixes=["harness study show tells which are final", "harness study finalize trains finalists"],
        )
    manifest = read_samples(study_folder)
    _check_manifest(study_folder, manifest, finals[0])
    samples = {split: manifest.splits[split] for split in SPLITS}
    return Bundle(
        records=tuple(finals),
        samples=samples,
        answers=tuple(_answers(study_folder / record.folder, record, samples) for record in finals),
        trials=dict(Counter(record.state for record in records if record.kind == "search")),
        # What an error says after its kind may name paths of this machine.
        failed=tuple(replace(record, reason=record.reason.partition(":")[0]) for record in failed),
    )


def submit(run: str, to: Path, runs: Path) -> list[Submission]:
    """Write the bundles of runs into a folder of records, with their reruns beside it.

    Args:
        run: A study's name or folder for all its runs, STUDY/NUMBER for one, a bundle of another's, or the
            document of a rerun.
        to: The folder of records; reruns go into `reruns` beside it.
        runs: Folder of studies.

    Raises:
        UnknownNameError: There is no such study.
        UsageError: The study has no run, or the bundle of a rerun is not in the folder.
        StorageError: A file is missing or damaged, or what is in it does not hold.
    """
    reruns = to.parent / "reruns"
    if run.endswith(".json") and Path(run).is_file():
        if f'"schema":"{RERUN_SCHEMA}"'.encode() in Path(run).read_bytes():
            return [_submit_rerun(read_rerun(Path(run)), to, Path(run))]
        bundle = read_bundle(Path(run))
        _check(bundle, run)
        return [Submission(bundle=write_bundle(to, bundle), reruns=())]
    made = []
    for folder, number in find_runs(run, runs):
        bundle = make_bundle(folder, number)
        _check(bundle, f"{folder.name}/{number}")
        # A rerun names the bundle of its time: more trials since then, or seeds, make another.
        found = [one for one in _own_reruns(folder) if repeats_any(bundle, one)]
        own = (write_rerun(reruns, join_reruns(bundle, found)),) if found else ()
        made.append(Submission(bundle=write_bundle(to, bundle), reruns=own))
    return made


def _own_reruns(folder: Path) -> Iterator[RerunRecord]:
    for path in sorted(folder.glob(f"reruns/*/{RERUN}")):
        # A damaged one speaks for nothing, and against no run.
        with suppress(StorageError):
            yield read_rerun(path)


def find_runs(run: str, runs: Path) -> list[tuple[Path, int]]:
    """Return the study's folder and the number of each run that `run` names.

    Raises:
        UnknownNameError: There is no such study.
        UsageError: It has no final training.
        StorageError: It is a file that there is not.
    """
    folders = {folder.name: folder for folder in study_folders(runs)}
    found = re.fullmatch(r"(.+)/(\d{1,9})", run)
    for name, number in ((run, None), (found[1], int(found[2])) if found else (run, None)):
        path = folders.get(name, Path(name))
        if not (path / "study.json").is_file():
            continue
        finals = {r.number for r in read_records(path) if r.kind == "final" and r.state == "complete"}
        if not finals or number not in {None, *finals}:
            numbers = ", ".join(map(str, sorted(finals)))
            raise UsageError(
                f"study {path.name!r} has no final training" + (f" of trial {number}" if finals else ""),
                where=str(path),
                why=f"there are those of trial {numbers}" if finals else "",
                fixes=[f"harness study finalize {study_arguments(path)} --finalists 1"],
            )
        return [(path, one) for one in (sorted(finals) if number is None else [number])]
    if run.endswith(".json"):
        raise StorageError("no such file", where=run, fixes=["check the path of the bundle or rerun.json"])
    more = f"list them: harness study list{runs_flag(runs)}"
    raise UnknownNameError("study", found[1] if found else run, folders, where=str(runs), more=more)


def _check_manifest(study_folder: Path, manifest: SampleList, record: TrialRecord) -> None:
    """Check that the stored images are those that a record was scored on.

    Raises:
        StorageError: They are not.
    """
    try:
        found = {name: split_digest(manifest.classes, part) for name, part in manifest.splits.items()}
    except (IndexError, TypeError, ValueError):
        found = {}
    is_own = found == dict(record.protocol.splits) and manifest.classes == record.dataset.classes
    if not is_own or protocol_digest(record.protocol) != record.protocol.digest:
        raise StorageError(
            "a study's manifest is not that of its records",
            where=str(study_folder / "manifest.json"),
            fixes=["restore it from a copy", "harness study finalize writes it anew, from the images"],
        )


def _answers(folder: Path, record: TrialRecord, samples: dict[str, Samples]) -> dict[str, PackedAnswers]:
    predictions = read_predictions(folder, record.predictions)
    for split, part in samples.items():
        if split not in predictions or not _is_of(predictions[split], part):
            raise StorageError(f"predictions are not for the images of the {split} split", where=str(folder))
    return {split: PackedAnswers.pack(predictions[split]) for split in samples}


def _is_of(predictions: Predictions, samples: Samples) -> bool:
    digests = [bytes(row).hex() for row in predictions.images]
    return digests == list(samples.sha256) and predictions.labels.tolist() == list(samples.labels)


def _check(bundle: Bundle, where: str) -> None:
    problems = verify(bundle).problems
    if problems:
        raise StorageError("what does not hold is not submitted", where=where, why="; ".join(problems[:3]))


def _submit_rerun(rerun: RerunRecord, to: Path, path: Path) -> Submission:
    known = sorted(to.glob(f"*/{rerun.bundle[:16]}.json"))
    if not known:
        raise UsageError(
            "the bundle that a rerun repeats is not in the folder",
            where=str(to),
            why=f"there is no */{rerun.bundle[:16]}.json",
            fixes=["submit the bundle first"],
        )
    problem = check_rerun(read_bundle(known[0]), rerun)
    if problem:
        raise StorageError("what does not hold is not submitted", where=str(path), why=problem)
    return Submission(bundle=known[0], reruns=(write_rerun(to.parent / "reruns", rerun),))
