"""A study's folder: the frozen study, its lock, and the files of its search."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock

from harness import __version__
from harness.config import StudyConfig
from harness.documents import canonical, digest, from_json, read_document, write_document
from harness.errors import StorageError
from harness.records import Metric, ProbeRecord, State, TrialConfig, TrialRecord, read_records
from harness.search.space import Space

SCHEMA = "harness.study-record/1"
PROBES_SCHEMA = "harness.probes/1"
_WITHOUT_IDENTITY = ("name", "trials", "budget", "run", "weights", "weights_dir", "dataset")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImportedTrial:
    """What a generation of a study learns from the one before."""

    source: str
    """Name of the study it was run in."""
    config: TrialConfig
    state: State
    values: tuple[float, ...]
    """The study's metric on the validation split, by epoch."""


def asked(config: StudyConfig) -> str:
    """Name what a user asks for, whatever data and plugins are there."""
    return digest([_identifying(config), config.dataset])


def identity(config: StudyConfig, protocol: str) -> str:
    """Name what a study is: all that shapes its trials, but not how many or where they run."""
    return digest({"config": _identifying(config), "protocol": protocol})


def default_name(dataset: str, config: StudyConfig, protocol: str) -> str:
    """Return the study's name when the user gives none."""
    plain = "".join(sign if sign.isascii() and (sign.isalnum() or sign in "._-") else "-" for sign in dataset)
    return f"{plain.strip('-._')[:60] or 'study'}-{identity(config, protocol)[:8]}"


def unwritable(path: Path, error: OSError) -> StorageError:
    """Return what an error of the disk means for a study's folder."""
    return StorageError(
        "a study's folder cannot be written",
        where=str(path),
        why=error.strerror or str(error),
        fixes=["choose another folder with --runs"],
    )


@contextmanager
def locked_study(path: Path) -> Iterator[None]:
    """Keep other processes from beginning or running the study of a folder at the same time.

    Raises:
        StorageError: Another process runs it, or the folder cannot be written.
    """
    lock = filelock.FileLock(path / ".lock", timeout=0)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout:
        raise StorageError(
            f"study {path.name!r} is being run by another process",
            where=str(path),
            fixes=["wait for it, or run this one under another --name"],
        ) from None
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        yield
    finally:
        lock.release()


class StudyFolder:
    """One study on disk.

    Args:
        path: The folder.
        document: The content of `study.json`.
    """

    def __init__(self, path: Path, document: Mapping[str, Any]) -> None:
        self.path = path
        self.document = dict(document)
        # Users go by what they see: a folder that was renamed or copied is called as it is now.
        self.name: str = path.absolute().name
        self.metric: Metric = document["metric"]
        self.space = Space.from_json(document["space"])
        self.imports = tuple(from_json(ImportedTrial, item) for item in document["imports"])

    @staticmethod
    def open(path: Path) -> StudyFolder:
        """Read an existing study.

        Raises:
            StorageError: `study.json` is missing or damaged.
        """
        file = path / "study.json"
        document = read_document(file, SCHEMA, "a study")
        try:
            return StudyFolder(path, document)
        except (KeyError, TypeError, ValueError) as error:
            raise StorageError(
                "a study has not the form of its schema", where=str(file), why=repr(error)
            ) from error

    @staticmethod
    def create(
        path: Path,
        config: StudyConfig,
        space: Space,
        *,
        dataset: str,
        protocol: str,
        weights: Mapping[str, str],
        imports: Sequence[ImportedTrial] = (),
    ) -> StudyFolder:
        """Freeze a new study on disk."""
        document = {
            "schema": SCHEMA,
            "name": path.name,
            "dataset": dataset,
            "metric": config.metric,
            "trials": config.trials,
            "asked": asked(config),
            "identity": identity(config, protocol),
            "protocol": protocol,
            "weights": dict(weights),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "harness": __version__,
            "config": config.model_dump(mode="json", by_alias=True),
            "space": space.to_json(),
            "imports": [dataclasses.asdict(trial) for trial in imports],
        }
        folder = StudyFolder(path, document)
        folder._save()
        return folder

    def want(self, config: StudyConfig) -> None:
        """Store how many trials are wanted in total, and where the study's files are now."""
        given = config.model_dump(mode="json", by_alias=True)
        places = {key: given[key] for key in ("dataset", "weights", "weights_dir")}
        wanted = {"trials": config.trials, "config": {**self.document["config"], **places}}
        if wanted != {key: self.document[key] for key in wanted}:
            self.document |= wanted
            self._save()

    def begin_with(self, weights: Mapping[str, str]) -> None:
        """Store the digests of other weights, where nothing has come of those there were."""
        if weights != self.document["weights"]:
            (self.path / "probes.json").unlink(missing_ok=True)
            self.document["weights"] = dict(weights)
            self._save()

    def records(self) -> list[TrialRecord]:
        """Read the study's records."""
        return read_records(self.path)

    def probes(self) -> tuple[ProbeRecord, ...]:
        """Read what was found out about the backbones before the first trial; nothing where it was not."""
        file = self.path / "probes.json"
        if not file.exists():
            return ()
        document = read_document(file, PROBES_SCHEMA, "the probes of a study")
        return tuple(from_json(ProbeRecord, probe) for probe in document["probes"])

    def keep_probes(self, probes: Sequence[ProbeRecord]) -> None:
        """Store the probes."""
        document = {"schema": PROBES_SCHEMA, "probes": [dataclasses.asdict(probe) for probe in probes]}
        write_document(self.path / "probes.json", document)

    def exports(self) -> list[ImportedTrial]:
        """Return all that a next generation can learn from: what this one imported, and its own trials."""
        own = [
            ImportedTrial(
                source=self.name,
                config=record.config,
                state=record.state,
                values=tuple(epoch.value(record.metric) for epoch in record.curve),
            )
            for record in self.records()
            if record.kind == "search" and record.state in ("complete", "pruned")
        ]
        return [*self.imports, *own]

    def differences(self, config: StudyConfig, protocol: str) -> dict[str, str]:
        """Say, by key, what keeps a configuration from being this study."""
        old = _flatten(_identifying(StudyConfig.model_validate(self.document["config"])))
        new = _flatten(_identifying(config))
        found = {
            key: f"{old.get(key, 'absent')} there, {new.get(key, 'absent')} now"
            for key in sorted({*old, *new})
            if old.get(key) != new.get(key)
        }
        if self.document["protocol"] != protocol:
            found["the data set"] = "its images, labels or splits changed"
        return found

    def check_numbers(self, numbers: Collection[int], end: int) -> None:
        """Check that no trial below a number is missing.

        Raises:
            StorageError: One is.
        """
        missing = set(range(len(self.imports), end)) - set(numbers)
        if missing:
            first = min(missing)
            raise StorageError(
                f"the record of trial {first} is missing, later ones are there",
                where=str(self.path / "trials"),
                fixes=[
                    "restore it from a copy",
                    f"move the folders from {first:04d} on away: these trials are run again",
                ],
            )

    def _save(self) -> None:
        write_document(self.path / "study.json", self.document)


def _identifying(config: StudyConfig) -> dict[str, Any]:
    values = config.model_dump(mode="json", by_alias=True)
    # The data set's content is in the protocol; where its folder lies makes no other study.
    return {key: value for key, value in values.items() if key not in _WITHOUT_IDENTITY}


def _flatten(value: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(value, dict) and value:
        return {
            key: text
            for name, item in value.items()
            for key, text in _flatten(item, f"{prefix}.{name}" if prefix else name).items()
        }
    return {prefix: canonical(value)}
