"""A study's folder: the frozen study, its lock, and its Optuna index rebuilt from the records."""

from __future__ import annotations

import math
import sqlite3
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from harness import __version__
from harness.config import SearchConfig, StudyConfig
from harness.documents import canonical, digest, read_document, write_document
from harness.errors import StorageError
from harness.records import EpochRecord, TrialConfig, TrialRecord, read_records
from harness.search.sampling import build_pruner
from harness.search.space import Axis, Space, Value

if TYPE_CHECKING:
    import optuna

SCHEMA = "harness.study-record/1"
_WITHOUT_IDENTITY = ("name", "trials", "timeout", "run", "weights", "weights_dir")


def identity(config: StudyConfig, protocol: str) -> str:
    """Name what a study is: everything that shapes its trials, but not how many or where they run."""
    return digest({"config": _identifying(config), "protocol": protocol})


def default_name(dataset: str, config: StudyConfig, protocol: str) -> str:
    """Return the study's name when the user gives none."""
    plain = "".join(sign if sign.isalnum() or sign in "._-" else "-" for sign in dataset).strip("-._")
    return f"{plain[:60] or 'study'}-{identity(config, protocol)[:8]}"


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
        self.space = Space.from_json(document["space"])

    @staticmethod
    def open(path: Path) -> StudyFolder:
        """Read an existing study.

        Raises:
            StorageError: `study.json` is missing or damaged.
        """
        return StudyFolder(path, read_document(path / "study.json", SCHEMA, "a study"))

    @staticmethod
    def create(
        path: Path,
        config: StudyConfig,
        space: Space,
        *,
        dataset: str,
        protocol: str,
        weights: Mapping[str, str],
        previous: str = "",
    ) -> StudyFolder:
        """Freeze a new study on disk."""
        document = {
            "schema": SCHEMA,
            "name": path.name,
            "dataset": dataset,
            "metric": config.metric,
            "trials": config.trials,
            "identity": identity(config, protocol),
            "protocol": protocol,
            "weights": dict(weights),
            "previous": previous,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "harness": __version__,
            "config": config.model_dump(mode="json", by_alias=True),
            "space": space.to_json(),
        }
        folder = StudyFolder(path, document)
        folder._save()
        return folder

    def want(self, trials: int) -> None:
        """Store how many trials are wanted in total."""
        if self.document["trials"] != trials:
            self.document["trials"] = trials
            self._save()

    def records(self) -> list[TrialRecord]:
        """Read the study's records."""
        return read_records(self.path)

    def differences(self, config: StudyConfig, protocol: str) -> list[str]:
        """Say in words what keeps a configuration from being this study."""
        old = _flatten(_identifying(StudyConfig.model_validate(self.document["config"])))
        new = _flatten(_identifying(config))
        lines = [
            f"{key}: {old.get(key, 'absent')} there, {new.get(key, 'absent')} now"
            for key in sorted({*old, *new})
            if old.get(key) != new.get(key)
        ]
        if self.document["protocol"] != protocol:
            lines.append("the data set: its images, labels or splits changed")
        return lines

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from running this study at the same time.

        Raises:
            StorageError: Another process runs it.
        """
        lock = filelock.FileLock(self.path / ".lock", timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise StorageError(
                f"study {self.name!r} is being run by another process",
                where=str(self.path),
                fixes=["wait for it, or run this one under another --name"],
            ) from None
        try:
            yield
        finally:
            lock.release()

    def optuna_study(self, search: SearchConfig, epochs: int, runs: Path) -> optuna.Study:
        """Open the Optuna index and bring it into line with the records.

        Raises:
            StorageError: The database cannot be opened.
        """
        import optuna
        import sqlalchemy.exc

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        database = self.path / "study.db"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self._storage = optuna.storages.RDBStorage(
                    f"sqlite:///{database.absolute()}", engine_kwargs={"connect_args": {"timeout": 60}}
                )
                study = optuna.create_study(
                    study_name=self.name,
                    storage=self._storage,
                    direction="maximize",
                    pruner=build_pruner(search, epochs),
                    load_if_exists=True,
                )
            self._reconcile(study, runs)
        except (
            sqlalchemy.exc.SQLAlchemyError,
            sqlite3.Error,
            optuna.exceptions.StorageInternalError,
        ) as error:
            raise StorageError(
                "a study's database cannot be opened",
                where=str(database),
                why=str(error).splitlines()[0],
                fixes=["delete study.db: it is rebuilt from the records"],
            ) from error
        return study

    def _reconcile(self, study: optuna.Study, runs: Path) -> None:
        """Make Optuna know what the records know: a record is written before Optuna is told."""
        known = study.get_trials(deepcopy=False)
        if not known and self.document["previous"]:
            self._import(study, runs / self.document["previous"])
            known = study.get_trials(deepcopy=False)
        for record in self.records():
            if record.kind != "search":
                continue
            if record.number >= len(known):
                study.add_trial(self.frozen_trial(record))
            elif not known[record.number].state.is_finished():
                self.tell(study, record.number, record)

    def _import(self, study: optuna.Study, previous: Path) -> None:
        """Give a new generation the trials of the one before, as far as they lie in its space."""
        for record in read_records(previous):
            if record.kind == "search" and record.state in ("complete", "pruned"):
                trial = self.frozen_trial(record, imported_from=previous.name)
                if trial is not None:
                    study.add_trial(trial)

    def frozen_trial(self, record: TrialRecord, imported_from: str = "") -> Any:
        """Return a record as a finished Optuna trial, or None when it lies outside the space."""
        import optuna

        params = _params_of(self.space, record.config)
        if params is None:
            return None
        reported = {epoch.epoch: value_of(record, epoch) for epoch in record.curve}
        states = optuna.trial.TrialState
        if record.state == "complete":
            state, value = states.COMPLETE, reported[max(reported)]
        elif _is_lesson(record):
            state, value = states.PRUNED, None
            reported = reported if record.state == "pruned" else {**reported, 1 + len(reported): 0.0}
        else:
            state, value = states.FAIL, None
        return optuna.trial.create_trial(
            state=state,
            value=value,
            params=params,
            distributions={axis: _distributions(self.space)[axis] for axis in params},
            intermediate_values=reported,
            user_attrs={"imported_from": imported_from} if imported_from else {},
        )

    def tell(self, study: optuna.Study, number: int, record: TrialRecord) -> None:
        """Tell Optuna what a record says.

        A diverged or too large trial is a lesson: it counts as pruned with the worst value. A crash teaches
        nothing.
        """
        import optuna

        states = optuna.trial.TrialState
        if record.state == "complete":
            study.tell(number, value_of(record, record.curve[-1]))
        elif _is_lesson(record):
            if record.state == "failed":
                self.live_trial(study, number).report(0.0, step=1 + len(record.curve))
            study.tell(number, state=states.PRUNED)
        else:
            study.tell(number, state=states.FAIL)

    def live_trial(self, study: optuna.Study, number: int) -> optuna.Trial:
        """Return the handle of a trial that was asked for, by this process or by a killed one."""
        import optuna

        study_id = self._storage.get_study_id_from_name(self.name)
        return optuna.Trial(study, self._storage.get_trial_id_from_study_id_trial_number(study_id, number))

    def _save(self) -> None:
        write_document(self.path / "study.json", self.document)


def _is_lesson(record: TrialRecord) -> bool:
    return record.state == "pruned" or record.reason.startswith(("nan:", "oom:"))


def value_of(record: TrialRecord, epoch: EpochRecord) -> float:
    """Return the study's metric at an epoch."""
    return epoch.val_f1 if record.metric == "f1" else epoch.val_accuracy


def _distributions(space: Space) -> dict[str, optuna.distributions.BaseDistribution]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    return {
        axis.name: CategoricalDistribution(list(axis.choices))
        if axis.choices
        else FloatDistribution(axis.low, axis.high, step=axis.step, log=axis.log)
        for axis in space.axes
    }


def _params_of(space: Space, config: TrialConfig) -> dict[str, Any] | None:
    """Return a configuration as Optuna parameters of a space, or None when it lies outside."""
    params: dict[str, Any] = {}
    for axis in space.axes:
        if axis.name == "lr_position":
            low, high = space.lr_bounds.get(config.optimizer, (0.0, 0.0))
            if not low <= config.lr <= high:
                return None
            value: Any = math.log(config.lr / low) / math.log(high / low)
            value = min(max(value, axis.low), axis.high)
        else:
            value = getattr(config, axis.name)
        if not _contains(axis, value):
            return None
        if len(axis.choices) != 1:
            params[axis.name] = value
    return params


def _contains(axis: Axis, value: Value) -> bool:
    if axis.choices:
        return value in axis.choices
    value = float(value)
    if not axis.low <= value <= axis.high:
        return False
    steps = (value - axis.low) / axis.step if axis.step else 0.0
    return abs(steps - round(steps)) < 1e-6


def _identifying(config: StudyConfig) -> dict[str, Any]:
    values = config.model_dump(mode="json", by_alias=True)
    # The data set's content is in the protocol; where its folder lies makes no other study.
    return {key: value for key, value in values.items() if key not in (*_WITHOUT_IDENTITY, "dataset")}


def _flatten(value: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(value, dict) and value:
        return {
            key: text
            for name, item in value.items()
            for key, text in _flatten(item, f"{prefix}.{name}" if prefix else name).items()
        }
    return {prefix: canonical(value)}
