"""Run a study: check everything it needs, open its folder, and let it run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from harness import paths
from harness.config import StudyConfig
from harness.data.manifest import Manifest, SplitRules, load_manifest
from harness.engine.weights import ResolvedWeights, preflight
from harness.errors import UsageError
from harness.registry import Registry, load_registry
from harness.search.folder import StudyFolder, default_name, identity
from harness.search.result import StudyResult
from harness.search.running import RunningStudy
from harness.search.space import Space, resolve_space


def run_study(
    config: StudyConfig,
    *,
    registry: Registry | None = None,
    runs: Path | None = None,
    extend: bool = False,
    where: str = "study",
) -> StudyResult:
    """Run a study, or go on with it where it was interrupted.

    Args:
        config: What is asked for.
        registry: The plugins; default: all that are installed.
        runs: Folder of studies; default `HARNESS_RUNS` or `runs` in the current folder.
        extend: If the named study exists with another space, open a new generation that imports its trials.
        where: Named in errors: the study file.

    Returns:
        The study's records, after its last trial or after a signal.

    Raises:
        UsageError: Unknown names, or a study of that name with another space.
        DataError: The data set is missing or unusable; before any training.
        WeightsError: Pretrained weights cannot be had; before any training.
        StorageError: The study's folder cannot be used.
        NoTrialSucceeded: All trials failed.
    """
    registry = registry or load_registry()
    runs = runs or paths.runs()
    space = resolve_space(config, registry, where=where)
    manifest = load_manifest(
        config.dataset,
        registry,
        rules=SplitRules(val=config.split.val, test=config.split.test, seed=config.split.seed),
        skip_bad=config.skip_bad,
    )
    weights = _preflight(space, config, registry)
    folder = _open_folder(config, space, manifest, weights, runs, extend=extend)
    with folder.lock():
        folder.want(config.trials)
        return RunningStudy(config, registry, manifest, folder, weights, runs).run()


def _preflight(space: Space, config: StudyConfig, registry: Registry) -> dict[str, ResolvedWeights]:
    backbones = next(axis.choices for axis in space.axes if axis.name == "backbone")
    return preflight(
        [registry.backbones.get(str(name)) for name in backbones],
        init=config.init,
        weights=config.weights,
        weights_dir=config.weights_dir,
    )


def _open_folder(
    config: StudyConfig,
    space: Space,
    manifest: Manifest,
    weights: Mapping[str, ResolvedWeights],
    runs: Path,
    *,
    extend: bool,
) -> StudyFolder:
    """Open the study that a configuration means, or create it."""
    protocol = manifest.protocol().digest
    digests = {name: resolved.record.sha256 for name, resolved in weights.items()}
    name = config.name or default_name(manifest.dataset, config, protocol)

    def create(name: str, previous: str = "") -> StudyFolder:
        return StudyFolder.create(
            runs / name,
            config,
            space,
            dataset=manifest.dataset,
            protocol=protocol,
            weights=digests,
            previous=previous,
        )

    if not (runs / name / "study.json").exists():
        return create(name)
    generations = [StudyFolder.open(runs / name)]
    while (runs / f"{name}@{len(generations) + 1}" / "study.json").exists():
        generations.append(StudyFolder.open(runs / f"{name}@{len(generations) + 1}"))
    for folder in reversed(generations):
        if folder.document["identity"] == identity(config, protocol):
            _check_weights(folder, digests)
            return folder
    last = generations[-1]
    changes = last.differences(config, protocol)
    if extend and last.document["protocol"] == protocol:
        return create(f"{name}@{len(generations) + 1}", previous=last.name)
    raise UsageError(
        f"study {last.name!r} exists and is another study\n" + "\n".join(f"  {line}" for line in changes),
        where=str(last.path),
        fixes=[
            "choose another --name",
            *(["add --extend to open a new generation that imports its trials"] if not extend else []),
        ],
    )


def _check_weights(folder: StudyFolder, digests: Mapping[str, str]) -> None:
    stored: dict[str, str] = folder.document["weights"]
    changed = sorted(name for name, digest in stored.items() if digests.get(name, digest) != digest)
    if changed:
        raise UsageError(
            f"the weights of {', '.join(changed)} are not those that study {folder.name!r} began with",
            where=str(folder.path),
            fixes=["restore the files", "choose another --name"],
        )
