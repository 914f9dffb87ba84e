"""A study's Optuna index: a database that is rebuilt from the records whenever it is not what they say."""

from __future__ import annotations

import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from harness.config import StudyConfig
from harness.errors import StorageError
from harness.records import TrialRecord
from harness.search.folder import ImportedTrial, StudyFolder
from harness.search.sampling import FAILED, IMPORTED, build_pruner

if TYPE_CHECKING:
    import optuna


class Index:
    """The trials of a study as Optuna knows them; openable with optuna-dashboard.

    Args:
        folder: Of the study.
        config: Whose pruner it has.
    """

    def __init__(self, folder: StudyFolder, config: StudyConfig) -> None:
        self._folder = folder
        self._config = config
        self._file = folder.path / "study.db"

    @contextmanager
    def errors(self) -> Iterator[None]:
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
                where=str(self._file),
                why=(str(cause).splitlines() or [type(cause).__name__])[0],
                fixes=["free disk space", "run the same command again: it is rebuilt from the records"],
            ) from error

    def open(self, end: int) -> optuna.Study:
        """Open the index with the trials below a number; if it is not exactly those, build it anew.

        A round that a killed process left behind goes this way too: it is asked for again, from the same
        history, so that nothing remains of the first try.
        """
        records = [r for r in self._folder.records() if r.kind == "search" and r.number < end]
        wanted = [*map(self._imported, self._folder.imports), *map(self._recorded, records)]
        # Damage shows in many ways, and the index holds nothing that the records do not.
        with suppress(Exception):
            study, storage = self._connect()
            if [*map(_essence, study.get_trials(deepcopy=False))] == [*map(_essence, wanted)]:
                return study
            # Not everywhere can a file be removed that is open.
            storage.engine.dispose()
        for file in (self._file, self._file.with_name("study.db-journal")):
            file.unlink(missing_ok=True)
        study, _ = self._connect()
        for trial in wanted:
            study.add_trial(trial)
        return study

    def _connect(self) -> tuple[optuna.Study, optuna.storages.RDBStorage]:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            storage = optuna.storages.RDBStorage(
                f"sqlite:///{_quoted(self._file)}?uri=true",
                engine_kwargs={"connect_args": {"timeout": 60, "factory": _Connection}},
                # Where another Optuna's tables do not serve, using them says so.
                skip_compatibility_check=True,
            )
            study = optuna.create_study(
                study_name=self._folder.name,
                storage=storage,
                direction="maximize",
                pruner=build_pruner(
                    self._config.search, self._config.train.epochs, self._config.finalize.top
                ),
                load_if_exists=True,
            )
        return study, storage

    def tell(self, study: optuna.Study, trial: optuna.Trial, record: TrialRecord) -> None:
        """Tell Optuna what a record says.

        A failed trial is a lesson: it counts as pruned, with the worst value in the next epoch. A choice that
        always fails would else stay the one of which least is known, and be tried again and again.
        """
        import optuna

        if record.state == "complete":
            study.tell(trial, record.curve[-1].value(record.metric))
            return
        if record.state == "failed":
            trial.report(FAILED, step=1 + len(record.curve))
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)

    def _recorded(self, record: TrialRecord) -> optuna.trial.FrozenTrial:
        """Return a record as the trial that Optuna would have, had it been told."""
        import optuna

        states = optuna.trial.TrialState
        values = [epoch.value(record.metric) for epoch in record.curve]
        is_complete = record.state == "complete"
        state, value = (states.COMPLETE, values[-1]) if is_complete else (states.PRUNED, None)
        values += [FAILED] if record.state == "failed" else []
        params = dict(record.search.params) if record.search else {}
        distributions = self._folder.space.distributions()
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

        params = self._folder.space.params_of(imported.config) or {}
        is_complete = imported.state == "complete"
        return optuna.trial.create_trial(
            state=optuna.trial.TrialState.COMPLETE if is_complete else optuna.trial.TrialState.PRUNED,
            value=imported.values[-1] if is_complete else None,
            params=params,
            distributions=self._folder.space.distributions(),
            intermediate_values=dict(enumerate(imported.values, start=1)),
            user_attrs={IMPORTED: imported.source},
        )


class _Connection(sqlite3.Connection):
    """A connection whose commits do not wait for the disk.

    They are many. A killed process damages nothing, and what a power cut damages is built anew.
    """

    def __init__(self, *values: Any, **named: Any) -> None:
        super().__init__(*values, **named)
        self.execute("PRAGMA synchronous = OFF")


def _quoted(file: Path) -> str:
    """Return a path as a URI in which no sign means anything to SQLAlchemy or to Optuna's templates."""
    # SQLAlchemy undoes one quoting, and SQLite the other.
    return quote(file.absolute().as_uri(), safe=":/")


def _essence(trial: optuna.trial.FrozenTrial) -> tuple[object, ...]:
    """Return what proposals and pruning depend on."""
    return trial.state, trial.params, trial.intermediate_values
