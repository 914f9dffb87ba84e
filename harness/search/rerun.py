"""Train the runs of a bundle again, as its records say, and compare what comes out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from harness.config import RunConfig, StudyConfig
from harness.data.audit import SPLITS
from harness.data.manifest import Manifest, SplitRules, check_dataset
from harness.documents import write_document
from harness.engine.job import TrialJob
from harness.engine.weights import ResolvedWeights, preflight
from harness.errors import DataError, NoTrialSucceeded, UsageError, WeightsError
from harness.leaderboard.bundle import Bundle, PackedAnswers
from harness.leaderboard.rerun import (
    FILE,
    Comparison,
    RerunRecord,
    Retraining,
    compare,
    join_reruns,
    read_rerun,
    record_digest,
)
from harness.leaderboard.submit import make_bundle
from harness.leaderboard.verify import verify
from harness.predictions import read_predictions
from harness.provenance import package_digests, package_versions
from harness.records import TrialConfig, TrialRecord, folder_of
from harness.registry import Registry
from harness.search.components import check_run_components
from harness.search.executors import Executor, build_executor
from harness.search.folder import StudyFolder
from harness.search.signals import StopSignal
from harness.search.space import COMPONENTS
from harness.specs import Split

_MOST_THREADS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Rerun:
    """What a rerun left behind."""

    folder: Path
    record: RerunRecord
    comparison: Comparison


def rerun(
    bundle: Bundle,
    *,
    registry: Registry,
    folder: Path,
    dataset: str,
    seed: int | None = None,
    run: RunConfig | None = None,
    weights: Mapping[str, Path] | None = None,
    weights_dir: Path | None = None,
    on_training: Callable[[TrialRecord], None] = lambda _: None,
) -> Rerun:
    """Train each final training of a run again, and store what came out with the comparison.

    What came out of other seeds before stays in the document, and is part of the comparison.

    Args:
        bundle: The run.
        registry: The plugins.
        folder: Where the weights, the predictions and the document of the rerun go.
        dataset: A registered name, or the folder or CSV file of the images.
        seed: Only the training with this seed.
        run: How trainings run; device and number of threads are those of the records.
        weights: Backbone name -> checkpoint file.
        weights_dir: A folder with `<backbone>.safetensors`.
        on_training: Called before each training.

    Raises:
        UsageError: The bundle does not hold, has no such seed, or names a component that is not here.
        DataError: The images are missing or not those of the bundle.
        WeightsError: The weights are missing or not those that the run started from.
        NoTrialSucceeded: A training fails.
        StorageError: The document of an earlier rerun is damaged.
    """
    problems = verify(bundle).problems
    if problems:
        raise UsageError("a bundle that does not hold is not run again", why="; ".join(problems[:3]))
    records = [record for record in bundle.records if seed in (None, record.config.seed)]
    if not records:
        known = ", ".join(str(record.config.seed) for record in bundle.records)
        raise UsageError(f"the run has no seed {seed}", why=f"its seeds are {known}")
    earlier = [read_rerun(folder / FILE)] if (folder / FILE).exists() else []
    config = records[0].config
    check_run_components(records[0], registry)
    manifest = _manifest(bundle, dataset, registry)
    resolved = preflight(
        [registry.backbones.get(config.backbone)],
        init=config.init,
        weights=weights or {},
        weights_dir=weights_dir,
    )[config.backbone]
    _check_weights(records[0], resolved)
    stop = StopSignal()
    with stop.installed(), stop.polled():
        executor = build_executor(
            _like(records[0], run or RunConfig()), registry, manifest, log=folder / "worker.log"
        )
        try:
            trainings = []
            for record in records:
                on_training(record)
                stop.check()
                job = TrialJob(
                    kind="final",
                    number=record.number,
                    config=_as_it_ran(record),
                    weights=resolved.path,
                    folder=folder / folder_of("final", record.number, record.config.seed),
                    test=manifest.of("test"),
                )
                trainings.append(_train(job, record, executor, registry, stop))
        finally:
            executor.close()
    made = RerunRecord(
        bundle=bundle.digest,
        trainings=tuple(trainings),
        outcome=compare(bundle, tuple(trainings)).outcome,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    document = join_reruns(bundle, [*earlier, made])
    write_document(folder / FILE, dataclasses.asdict(document))
    return Rerun(folder=folder, record=document, comparison=compare(bundle, document.trainings))


def _train(
    job: TrialJob, record: TrialRecord, executor: Executor, registry: Registry, stop: StopSignal
) -> Retraining:
    outcome = executor.run([job], lambda *_: False, stop)[0]
    if outcome.cost is None or outcome.state != "complete":
        raise NoTrialSucceeded(
            f"the training of seed {record.config.seed} ends otherwise than it did",
            where=str(job.folder),
            why=outcome.reason,
        )
    predictions = read_predictions(job.folder, outcome.predictions)
    return Retraining(
        record=record_digest(record),
        seed=record.config.seed,
        model=outcome.model,
        predictions=outcome.predictions,
        answers={split: PackedAnswers.pack(part) for split, part in predictions.items()},
        seconds=outcome.cost.total_seconds,
        environment={**package_versions(), **outcome.environment},
        packages=package_digests(),
        providers={
            kind: registry.provider(kind, getattr(record.config, field)) for field, kind in COMPONENTS.items()
        },
    )


def _as_it_ran(record: TrialRecord) -> TrialConfig:
    """Return the configuration of a training in the precision that `auto` came to on its machine."""
    bf16 = record.environment.get("precision") == "bf16"
    return dataclasses.replace(record.config, precision="bf16" if bf16 else "fp32")


def _like(record: TrialRecord, run: RunConfig) -> RunConfig:
    """Return how to run a training on what the record's ran on: other threads give other bits.

    Activations that earlier trainings stored are not read: what is wrong with them would come out again.
    """
    threads = record.environment.get("threads", "")
    count = int(threads) if threads.isdecimal() and len(threads) < 6 else 0
    device = "cpu" if record.environment.get("device") == "cpu" else "auto"
    threads_of = count if count <= _MOST_THREADS else 0
    return run.model_copy(update={"device": device, "threads": threads_of, "cache_gb": 0.0})


def _manifest(bundle: Bundle, dataset: str, registry: Registry) -> Manifest:
    """Return the images here, in the splits of the bundle.

    Raises:
        DataError: They are missing, or not those of the bundle.
    """
    record = bundle.records[0]
    # Splits come from the bundle, so nothing of how they were made has to be known.
    check = check_dataset(dataset, registry, rules=SplitRules(), skip_bad=True)
    splits: tuple[Split, ...] = ("val", "test")
    split_of = {id: split for split in splits for id in bundle.samples[split].ids}
    manifest = replace(
        check.manifest,
        dataset=record.dataset.name,
        items=tuple(replace(item, split=split_of.get(item.id, "train")) for item in check.manifest.items),
    )
    found, wanted = manifest.protocol(), record.protocol
    if found.digest != wanted.digest:
        parts = [f"the {split} split" for split in SPLITS if found.splits[split] != wanted.splits.get(split)]
        parts += [
            name
            for name in ("classes", "decode", "metric", "selection")
            if getattr(found, name) != getattr(wanted, name)
        ]
        raise DataError(
            f"the images here are not those of the run: other {', '.join(parts)}",
            where=check.where,
            fixes=["restore the images", "of a bundle, name their folder: --data DIR"],
        )
    return manifest


def _check_weights(record: TrialRecord, resolved: ResolvedWeights) -> None:
    wanted = record.weights.sha256 if record.weights else ""
    if resolved.record.sha256 != wanted:
        raise WeightsError(
            f"the weights of {record.config.backbone} here are not those that the run started from",
            where=str(resolved.path or ""),
            why=f"SHA-256 {resolved.record.sha256[:12]} here, {wanted[:12]} there",
            fixes=["name the folder of the right file: --weights DIR"],
        )


def rerun_of_study(
    study: Path,
    number: int,
    *,
    registry: Registry,
    seed: int | None = None,
    on_training: Callable[[TrialRecord], None] = lambda _: None,
) -> Rerun:
    """Train a run of a study on this machine again, with the data and weights that the study names.

    Args:
        study: Its folder; what comes out goes into `reruns` below it.
        number: Of the trial whose final trainings are the run.
        registry: The plugins.
        seed: Only the training with this seed.
        on_training: Called before each training.

    Raises:
        UsageError, DataError, WeightsError, NoTrialSucceeded: As `rerun`.
        StorageError: Files of the study are missing or damaged.
    """
    bundle = make_bundle(study, number)
    config = StudyConfig.model_validate(StudyFolder.open(study).document["config"])
    return rerun(
        bundle,
        registry=registry,
        folder=study / "reruns" / bundle.digest[:16],
        dataset=config.dataset,
        seed=seed,
        run=config.run,
        weights=config.weights,
        weights_dir=config.weights_dir,
        on_training=on_training,
    )
