"""Trials, from configurations to saved predictions."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor, nn

from harness.engine.batched import HeadJob, HeadResult, fit_heads
from harness.engine.cut import bind_suffix
from harness.engine.features import Features
from harness.engine.finished import Finished, conclude
from harness.engine.fit import DivergedError, fit, predict_split
from harness.engine.job import EngineSettings, ProbeJob, TrialJob, TrialOutcome, report_as
from harness.engine.linear import predict_heads
from harness.engine.outcome import fail, raise_if_machine_failed
from harness.engine.precision import dtype_of
from harness.engine.probing import HeadStart, Prober
from harness.engine.setup import Opened, Setup
from harness.engine.source import Source
from harness.isolation import naming, seed_all
from harness.records import EpochRecord, ProbeRecord, TrialConfig
from harness.registry import Registry
from harness.specs import ClassInfo


class Engine:
    """Runs trials of one study on one device.

    Args:
        registry: Where components come from.
        settings: Data set, device and cache.

    Raises:
        UsageError: The device is not there.
    """

    def __init__(self, registry: Registry, settings: EngineSettings) -> None:
        self._registry = registry
        self._manifest = settings.manifest
        self._setup = Setup(registry, settings)
        self._num_classes = len(settings.manifest.classes)
        self._prober = Prober(self._setup, self._num_classes, settings.home)
        self.device = self._setup.device

    def run(
        self,
        jobs: Sequence[TrialJob],
        *,
        on_step: Callable[[], None],
        on_epoch: Callable[[int, EpochRecord], bool],
    ) -> list[TrialOutcome]:
        """Train and evaluate; whatever goes wrong with a trial is its outcome, not an error.

        Args:
            jobs: One, or several of one backbone and augmentation in which only the head trains. Linear
                heads train side by side, which changes no bit of what comes out.
            on_step: Called after each step.
            on_epoch: Called with a job's position and its record after each epoch; true ends that training.

        Raises:
            StorageError, DataError, WeightsError: The machine or its files failed, not a trial: it is worth
                trying again when they are repaired.
        """
        curve: list[EpochRecord] = []

        def keep(record: EpochRecord) -> bool:
            curve.append(record)
            return on_epoch(0, record)

        try:
            with self._setup.tidied():
                outcomes = self._train_heads(jobs, on_step, on_epoch)
                if outcomes is None and len(jobs) == 1:
                    outcomes = [self._train(jobs[0], on_step, keep)]
        except Exception as error:
            if len(jobs) == 1:
                facts = self._setup.facts(jobs[0].config)
                return [fail(error, jobs[0], curve=curve, environment=facts)]
            raise_if_machine_failed(error, jobs[0])
            # Whose failure it is comes out when each trains alone.
            outcomes = None
        if outcomes is None:
            outcomes = [
                self.run([job], on_step=on_step, on_epoch=report_as(number, on_epoch))[0]
                for number, job in enumerate(jobs)
            ]
        return outcomes

    def probe(self, job: ProbeJob, *, on_step: Callable[[], None]) -> ProbeRecord:
        """Say how well a backbone's features tell the classes apart; what goes wrong is part of the answer.

        Raises:
            StorageError, DataError, WeightsError: The machine or its files failed, not the backbone.
        """
        return self._prober.probe(job, on_step=on_step)

    def _train(
        self, job: TrialJob, on_step: Callable[[], None], on_epoch: Callable[[EpochRecord], bool]
    ) -> TrialOutcome:
        """Train what lies behind the cut, alone."""
        began = time.perf_counter()
        (start,) = self._prober.find_starts([job], on_step)
        opened = self._setup.open(job, self._setup.build(job, reuse=not start.is_built), on_step)
        start.place(opened.model)
        config, model, part = opened.config, opened.model.to(self.device), opened.part
        source = Source(opened.images, opened.prefix or opened.images)
        loss = self._loss(config)
        forward, execution = self._setup.compile(model, part, source, loss, config)
        on_step()
        # After everything that may draw, so that dropout depends on the seed alone.
        seed_all(config.seed)
        fitted = fit(
            model,
            source,
            config,
            plan=part.plan,
            cut=part.cut,
            loss=loss,
            optimizer=self._registry.optimizers.get(config.optimizer).spec,
            schedule=self._registry.schedules.get(config.schedule).spec,
            num_classes=self._num_classes,
            device=self.device,
            on_step=on_step,
            on_epoch=on_epoch,
            forward=forward,
            make_room=self._setup.residency.drop_idle,
        )
        if execution == "compiled" and fitted.micro_batch < min(config.batch_size, source.train_size):
            execution = "eager: a batch did not fit into memory, and its parts were not compiled"
        predictions = {"val": fitted.val}
        if job.test:
            run = bind_suffix(fitted.model, part.cut)
            predictions["test"] = predict_split(
                fitted.model, run, source, "test", config, self.device, on_step
            )
        finished = Finished(
            model=fitted.model,
            start=start,
            predictions=predictions,
            curve=fitted.curve,
            pruned=fitted.pruned,
            seconds=fitted.seconds,
            images=fitted.images,
            micro_batch=fitted.micro_batch,
            norm_in_parts=fitted.norm_in_parts,
            execution=execution,
            total_seconds=time.perf_counter() - began,
        )
        return self._conclude(finished, job, opened)

    def _train_heads(
        self,
        jobs: Sequence[TrialJob],
        on_step: Callable[[], None],
        on_epoch: Callable[[int, EpochRecord], bool],
    ) -> list[TrialOutcome] | None:
        """Train linear heads side by side on features; None where more than a linear head trains."""
        if any(job.config.freeze_depth < 1 for job in jobs):
            return None
        began = time.perf_counter()
        starts = self._prober.find_starts(jobs, on_step)
        model, part = self._setup.build(jobs[0], reuse=not starts[0].is_built)
        if part.head is None:
            return None
        # What the first is built from opens the images for all.
        opened = self._setup.open(jobs[0], (model, part), on_step)
        heads = [_place_head(model, part.head, starts[0])]
        assert opened.prefix is not None
        for job, start in zip(jobs[1:], starts[1:], strict=True):
            model, _ = self._setup.build(job, reuse=not start.is_built)
            heads.append(_place_head(model, part.head, start))
            on_step()
        features = Features(opened.images, opened.prefix, self._setup.residency.claim)
        head_jobs = [
            HeadJob(
                config=dataclasses.replace(job.config, precision=opened.config.precision),
                weight=weight,
                bias=bias,
                loss=self._loss(job.config),
                optimizer=self._registry.optimizers.get(job.config.optimizer).spec,
                schedule=self._registry.schedules.get(job.config.schedule).spec,
            )
            for job, (weight, bias) in zip(jobs, heads, strict=True)
        ]
        results = fit_heads(
            head_jobs,
            features,
            num_classes=self._num_classes,
            device=self.device,
            on_step=on_step,
            on_epoch=on_epoch,
        )
        share = (time.perf_counter() - began) / len(jobs)
        return [
            self._finish_head(
                job, result, opened, features, start, share, together=len(jobs), first=number == 0
            )
            for number, (job, result, start) in enumerate(zip(jobs, results, starts, strict=True))
        ]

    def _finish_head(
        self,
        job: TrialJob,
        result: HeadResult,
        opened: Opened,
        features: Features,
        start: HeadStart,
        seconds: float,
        *,
        together: int,
        first: bool,
    ) -> TrialOutcome:
        """Return the outcome of one head of those that trained together.

        Args:
            job: Its trial.
            result: Of its training.
            opened: What all of them share.
            features: Likewise.
            start: Of the head.
            seconds: Its share of those that all took so far.
            together: How many trained.
            first: Whether it is the one whose record holds the passes of all.
        """
        config, began = job.config, time.perf_counter()
        if result.error is not None:
            # Not raised: with this frame in its traceback it would hold the features that it ran on.
            return fail(result.error, job, curve=result.curve, environment=self._setup.facts(config))
        try:
            assert result.val is not None and opened.part.head is not None
            predictions = {"val": result.val}
            if job.test:
                rows = features.split("test").to(self.device)
                dtype = dtype_of(opened.config.precision)
                probabilities = predict_heads([result.head], rows, dtype)[0].numpy()
                if not np.isfinite(probabilities).all():
                    raise DivergedError(f"outputs on the test split are not finite, lr {config.lr:.3g}")
                predictions["test"] = probabilities, features.labels("test").numpy()
            layer = opened.model.get_submodule(opened.part.head)
            values = [value for value in result.head if value is not None]
            for parameter, value in zip(layer.parameters(), values, strict=True):
                parameter.data.copy_(value)
            finished = Finished(
                model=opened.model,
                start=start,
                predictions=predictions,
                curve=result.curve,
                pruned=result.pruned,
                seconds=result.seconds,
                images=result.images,
                micro_batch=min(config.batch_size, features.train_size),
                total_seconds=seconds + time.perf_counter() - began,
                together=together,
                counts_passes=first,
            )
            return self._conclude(finished, job, opened)
        except Exception as error:
            facts = self._setup.facts(config)
            return fail(error, job, curve=result.curve, environment=facts)

    def _loss(self, config: TrialConfig) -> nn.Module:
        """Build the loss of a trial, on the device; what it draws comes from the trial's seed alone."""
        seed_all(config.seed)
        classes = ClassInfo(num_classes=self._num_classes, counts=self._manifest.counts()["train"])
        with naming("loss", config.loss):
            return self._registry.losses.get(config.loss).spec.build(classes).to(self.device)

    def _conclude(self, finished: Finished, job: TrialJob, opened: Opened) -> TrialOutcome:
        """Save what a training leaves behind, and score it."""
        return conclude(
            finished,
            job,
            opened,
            manifest=self._manifest,
            device=self.device,
            environment=self._setup.facts(job.config),
        )


def _place_head(model: nn.Module, name: str, start: HeadStart) -> tuple[Tensor, Tensor | None]:
    """Put the start of a head into a model; return a copy of its weight and bias."""
    start.place(model)
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer.weight.detach().clone(), None if layer.bias is None else layer.bias.detach().clone()
