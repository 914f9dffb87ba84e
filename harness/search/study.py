"""Run a study: check everything it needs, open its folder, and let it run."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from harness import paths
from harness.config import StudyConfig
from harness.data.folder import look_at_folder
from harness.data.manifest import Manifest, SplitRules, load_manifest, resolve
from harness.data.scan import Keep
from harness.engine.backbone import build_backbone
from harness.engine.weights import ResolvedWeights, preflight
from harness.errors import UsageError
from harness.registry import Registry, load_registry
from harness.search.budget import Budget
from harness.search.child import start_child
from harness.search.components import check_study_components
from harness.search.folder import ImportedTrial, StudyFolder, default_name, identity, locked_study
from harness.search.generations import find_study, new_generation, was_asked
from harness.search.result import StudyResult
from harness.search.running import RunningStudy
from harness.search.signals import StopSignal
from harness.search.space import Space, resolve_space
from harness.text import counted

logger = logging.getLogger("harness.study")


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
        UsageError: Unknown names, a device that is not there, images of a size that a backbone cannot take,
            or a study of that name with another space, other settings, data, weights or plugins.
        PluginError: A plugin is broken, or two collide.
        DataError: The data set is missing or unusable; before any training.
        WeightsError: Pretrained weights cannot be had, or are not those of their backbone; before it trains.
        StorageError: The study's folder cannot be used.
        harness.errors.Interrupted: A signal came before the first trial; a KeyboardInterrupt.
        NoTrialSucceeded: All trials failed.
    """
    registry = registry or load_registry()
    runs = runs or paths.runs()
    stop = StopSignal()
    # Its time is that of the whole command: reading the data set and fetching weights are part of it.
    budget = Budget(config.budget, config.finalize)
    with stop.installed(), contextlib.ExitStack() as stack:
        # Names and weights are checked before data are read, unless a study has frozen what they mean.
        _look_at_data(config, registry)
        space = None if was_asked(config, runs) else resolve_space(config, registry, where=where)
        if space is not None:
            _preflight(space, config, registry, fetch=False)
        child = start_child(config.run)
        if child:
            stack.callback(child.close)
        manifest = _load_once(config, registry, space) if space else _load(config, registry)
        protocol = manifest.protocol().digest
        name = config.name or default_name(manifest.dataset, config, protocol)
        wanted = identity(config, protocol)
        folder = find_study(name, runs, wanted)
        imports: list[ImportedTrial] = []
        if folder is None:
            space = space or resolve_space(config, registry, where=where)
            path, imports = new_generation(name, runs, config, space, protocol, extend=extend)
        else:
            path, space = folder.path, folder.space
            check_study_components(folder, registry, command="study run")
        # Downloads take long: another process may have begun the study when they are done.
        weights = _preflight(space, config, registry)
        digests = _digests(weights)
        if folder is None:
            # Checkpoints are read when they are wanted; a size that does not suit is no single trial's.
            _build(_resized(space, registry), space, registry, len(manifest.classes), {})
        with locked_study(path):
            folder = folder or find_study(name, runs, wanted)
            if folder is None:
                if (path / "study.json").exists():
                    new_generation(name, runs, config, space, protocol, extend=False)
                folder = StudyFolder.create(
                    path,
                    config,
                    space,
                    dataset=manifest.dataset,
                    protocol=protocol,
                    weights=digests,
                    imports=imports,
                )
            _check_weights(folder, digests)
            folder.begin_with(digests)
            folder.want(_placed(config, registry))
            return RunningStudy(config, registry, manifest, folder, weights, budget, stop, child).run()


def finalize_study(
    path: Path,
    *,
    finalists: int | None = None,
    seeds: int | None = None,
    registry: Registry | None = None,
) -> StudyResult:
    """Do the finalising step of a study that has ended: train finalists with fresh seeds and test each once.

    What has been tested already is not tested again.

    Args:
        path: The study's folder.
        finalists: How many trials to train again; default: as the study says.
        seeds: Fresh seeds for each; default: as the study says.
        registry: The plugins; default: all that are installed.

    Raises:
        UsageError: There would be no finalist, or the data set, the weights or the plugins are not the
            study's any more.
        DataError, WeightsError: Data or weights are missing.
        NoTrialSucceeded: The study has no complete trial.
        StorageError: The study's folder cannot be used.
    """
    registry = registry or load_registry()
    folder = StudyFolder.open(path)
    stored = StudyConfig.model_validate(folder.document["config"])
    numbers = {"top": finalists, "seeds": seeds}
    given = {name: number for name, number in numbers.items() if number is not None}
    # What was searched within a budget is tested whatever it takes.
    config = stored.model_copy(
        update={
            "finalize": stored.finalize.model_copy(update=given),
            "budget": None,
            "trials": folder.document["trials"],
        }
    )
    if config.finalize.top < 1 or config.finalize.seeds < 1:
        raise UsageError(
            "a finalising step needs at least one finalist and one seed",
            where=str(path),
            fixes=["add --finalists 3"],
        )
    check_study_components(folder, registry, command="study finalize")
    stop = StopSignal()
    with stop.installed():
        manifest = _load(config, registry)
        changes = folder.differences(stored, manifest.protocol().digest)
        if changes:
            raise UsageError(
                f"study {folder.name!r} cannot be finalized",
                where=str(path),
                why="; ".join(f"{key}: {change}" for key, change in changes.items()),
                fixes=["restore the images, labels and splits that the study began with"],
            )
        weights = _preflight(folder.space, config, registry)
        _check_weights(folder, _digests(weights))
        with locked_study(path):
            budget = Budget(None, config.finalize)
            return RunningStudy(config, registry, manifest, folder, weights, budget, stop).run(search=False)


def check_study(config: StudyConfig, registry: Registry, *, where: str = "study") -> Space:
    """Check all that a study needs, fetching no data and training nothing; return its resolved space.

    Raises:
        UsageError: Unknown names, a device that is not there, or images of a size that a backbone cannot
            take.
        PluginError: A backbone cannot be built.
        DataError: The data set is missing or unusable.
        WeightsError: Pretrained weights cannot be had, or are not those of their backbone.
    """
    _look_at_data(config, registry)
    space = resolve_space(config, registry, where=where)
    weights = _preflight(space, config, registry, fetch=False)
    manifest = _load(config, registry, download=False)
    _build(space.backbones, space, registry, len(manifest.classes), weights)
    return space


def _resized(space: Space, registry: Registry) -> list[str]:
    """Return the backbones that are to take images of another size than their own."""
    own = {name: registry.backbones.get(name).spec.input.size for name in space.backbones}
    return [name for name, size in own.items() if space.image_sizes[name] != size]


def _build(
    names: Iterable[str],
    space: Space,
    registry: Registry,
    num_classes: int,
    weights: Mapping[str, ResolvedWeights],
) -> None:
    """Build backbones as trials do: what cannot be built with its image size or its checkpoint shows here."""
    for name in names:
        path = weights[name].path if name in weights else None
        build_backbone(registry.backbones.get(name), num_classes, path, space.image_sizes[name])


def _look_at_data(config: StudyConfig, registry: Registry) -> None:
    """Check, at no cost, that the data set has a name, or is a folder with images."""
    found = resolve(config.dataset, registry)
    if isinstance(found, Path):
        look_at_folder(found)


def _placed(config: StudyConfig, registry: Registry) -> StudyConfig:
    """Return the study with files that are found from any folder."""
    found = resolve(config.dataset, registry)
    folder = config.weights_dir
    return config.model_copy(
        update={
            "dataset": str(found.absolute()) if isinstance(found, Path) else config.dataset,
            "weights": {name: paths.expand(file).absolute() for name, file in config.weights.items()},
            "weights_dir": paths.expand(folder).absolute() if folder else None,
        }
    )


def _load_once(config: StudyConfig, registry: Registry, space: Space) -> Manifest:
    """Read, check and split the data set; keep what is decoded for that as the backbones want it."""
    from harness.data.bank import recipe_of
    from harness.data.harvest import Harvest

    recipes = [
        recipe_of(replace(registry.backbones.get(name).spec.input, size=space.image_sizes[name]))
        for name in space.backbones
    ]
    with Harvest(config.dataset, recipes, paths.home()) as harvest:
        manifest = _load(config, registry, keep=harvest.add)
        harvest.fill(manifest)
    return manifest


def _load(
    config: StudyConfig, registry: Registry, *, download: bool = True, keep: Keep | None = None
) -> Manifest:
    rules = SplitRules(val=config.split.val, test=config.split.test, seed=config.split.seed)
    manifest = load_manifest(
        config.dataset, registry, rules=rules, skip_bad=config.skip_bad, download=download, keep=keep
    )
    if manifest.skipped:
        logger.warning("%s left out: unreadable", counted(manifest.skipped, "image"))
    leaked = manifest.audit.record().leaked_test
    if leaked:
        logger.warning(
            "%s in train or val too: scores come out too high; harness data check names them",
            counted(leaked, "test image"),
        )
    return manifest


def _preflight(
    space: Space, config: StudyConfig, registry: Registry, *, fetch: bool = True
) -> dict[str, ResolvedWeights]:
    """Check the device and have the weights, before anything of the study is written."""
    if config.run.device not in ("auto", "cpu"):
        from harness.engine.device import choose_device

        choose_device(config.run.device)
    return preflight(
        [registry.backbones.get(name) for name in space.backbones],
        init=config.init,
        weights=config.weights,
        weights_dir=config.weights_dir,
        fetch=fetch,
    )


def _digests(weights: Mapping[str, ResolvedWeights]) -> dict[str, str]:
    return {name: resolved.record.sha256 for name, resolved in weights.items()}


def _check_weights(folder: StudyFolder, digests: Mapping[str, str]) -> None:
    """Check that the weights are those that the study began with, unless nothing has come of those."""
    stored: dict[str, str] = folder.document["weights"]
    changed = sorted(name for name, digest in stored.items() if digests.get(name, digest) != digest)
    if changed and any(record.state in ("complete", "pruned") for record in folder.records()):
        raise UsageError(
            f"the weights of {', '.join(changed)} are not those that study {folder.name!r} began with",
            where=str(folder.path),
            fixes=["restore the files", "choose another --name"],
        )
