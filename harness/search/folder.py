"""A study's folder: the frozen study, its lock, and its Optuna index, rebuilt from the records."""

from __future__ import annotations

import dataclasses
import sqlite3
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from harness import __version__
from harness.config import StudyConfig
from harness.documents import canonical, digest, from_json, read_document, write_document
from harness.errors import StorageError
from harness.records import Metric, ProbeRecord, State, TrialConfig, TrialRecord, read_records
from harness.search.sampling import build_pruner
from harness.search.space import Space

if TYPE_CHECKING:
    import optuna

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
        self.name: str = document["name"]
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

    @contextmanager
    def database_errors(self) -> Iterator[None]:
        """Turn what the database raises into an error that a user can act on."""
        import optuna
        import sqlalchemy.exc

        try:
            yield
        except (
            sqlalchemy.exc.SQLAlchemyError,
            sqlite3.Error,
            optuna.exceptions.StorageInternalError,
        ) as error:
            # Optuna's own words hide the reason, such as a full disk.
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            raise StorageError(
                "a study's database cannot be used",
                where=str(self.path / "study.db"),
                why=(str(cause).splitlines() or [type(cause).__name__])[0],
                fixes=["free disk space", "run the same command again: it is rebuilt from the records"],
            ) from error

    def optuna_study(self, config: StudyConfig, end: int) -> optuna.Study:
        """Open the Optuna index with the trials below a number; if it is not exactly those, build it anew.

        A round that a killed process left behind goes this way too: it is asked for again, from the same
        history, so that nothing remains of the first try.
        """
        records = [r for r in self.records() if r.kind == "search" and r.number < end]
        wanted = [*map(self._imported, self.imports), *map(self._recorded, records)]
        # Damage shows in many ways, and the index holds nothing that the records do not.
        with suppress(Exception):
            study, storage = self._open_index(config)
            if [*map(_essence, study.get_trials(deepcopy=False))] == [*map(_essence, wanted)]:
                return study
            # Not everywhere can a file be removed that is open.
            storage.engine.dispose()
        for name in ("study.db", "study.db-journal"):
            (self.path / name).unlink(missing_ok=True)
        study, _ = self._open_index(config)
        for trial in wanted:
            study.add_trial(trial)
        return study

    def _open_index(self, config: StudyConfig) -> tuple[optuna.Study, optuna.storages.RDBStorage]:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            storage = optuna.storages.RDBStorage(
                f"sqlite:///{(self.path / 'study.db').absolute()}",
                engine_kwargs={"connect_args": {"timeout": 60, "factory": _Index}},
                # Where another Optuna's tables do not serve, using them says so.
                skip_compatibility_check=True,
            )
            study = optuna.create_study(
                study_name=self.name,
                storage=storage,
                direction="maximize",
                pruner=build_pruner(config.search, config.train.epochs),
                load_if_exists=True,
            )
        return study, storage

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

    def tell(self, study: optuna.Study, trial: optuna.Trial, record: TrialRecord) -> None:
        """Tell Optuna what a record says.

        A diverged or too large trial is a lesson: it counts as pruned, with the worst value in the next
        epoch. A crash teaches nothing.
        """
        import optuna

        states = optuna.trial.TrialState
        if record.state == "complete":
            study.tell(trial, record.curve[-1].value(record.metric))
        elif _is_lesson(record):
            if record.state == "failed":
                trial.report(0.0, step=1 + len(record.curve))
            study.tell(trial, state=states.PRUNED)
        else:
            study.tell(trial, state=states.FAIL)

    def _recorded(self, record: TrialRecord) -> optuna.trial.FrozenTrial:
        """Return a record as the trial that Optuna would have, had it been told."""
        import optuna

        states = optuna.trial.TrialState
        values = [epoch.value(record.metric) for epoch in record.curve]
        state, value = states.FAIL, None
        if record.state == "complete":
            state, value = states.COMPLETE, values[-1]
        elif _is_lesson(record):
            state = states.PRUNED
            values += [0.0] if record.state == "failed" else []
        params = dict(record.search.params) if record.search else {}
        distributions = self.space.distributions()
        return optuna.trial.create_trial(
            state=state,
            value=value,
            params=params,
            distributions={name: distributions[name] for name in params},
            intermediate_values=dict(enumerate(values, start=1)),
            system_attrs=dict(record.search.attributes) if record.search else {},
        )

    def _imported(self, imported: ImportedTrial) -> optuna.trial.FrozenTrial:
        import optuna

        params = self.space.params_of(imported.config) or {}
        is_complete = imported.state == "complete"
        return optuna.trial.create_trial(
            state=optuna.trial.TrialState.COMPLETE if is_complete else optuna.trial.TrialState.PRUNED,
            value=imported.values[-1] if is_complete else None,
            params=params,
            distributions=self.space.distributions(),
            intermediate_values=dict(enumerate(imported.values, start=1)),
            user_attrs={"imported_from": imported.source},
        )

    def _save(self) -> None:
        write_document(self.path / "study.json", self.document)


class _Index(sqlite3.Connection):
    """A connection whose commits do not wait for the disk.

    They are many. A killed process damages nothing, and what a power cut damages is built anew.
    """

    def __init__(self, *values: Any, **named: Any) -> None:
        super().__init__(*values, **named)
        self.execute("PRAGMA synchronous = OFF")


def _essence(trial: optuna.trial.FrozenTrial) -> tuple[object, ...]:
    """Return what proposals and pruning depend on."""
    return trial.state, trial.params, trial.intermediate_values


def _is_lesson(record: TrialRecord) -> bool:
    return record.state == "pruned" or record.reason.startswith(("nan:", "oom:"))


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
