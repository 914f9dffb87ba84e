"""Set up trials from what those of one study share: models, decoded images, activations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import timm
import torch
from torch import nn

from harness.data.bank import Bank, recipe_of
from harness.data.manifest import Item
from harness.data.resident import ResidentBank, resident_bytes
from harness.data.views import Augmentation
from harness.documents import canonical
from harness.engine.compiled import compile_training, is_worth_compiling, keep_compiled
from harness.engine.cost import Bandwidth
from harness.engine.cut import Forward
from harness.engine.device import (
    choose_device,
    chosen_kernels,
    environment_facts,
    prepare_cublas,
)
from harness.engine.job import EngineSettings, TrialJob
from harness.engine.layout import layout_of, name_layout
from harness.engine.model import FrozenPart, Models
from harness.engine.precision import Precision, choose_precision
from harness.engine.prefix import Prefix, Sharing
from harness.engine.residency import Residency, budget_of
from harness.engine.source import Images, Source
from harness.engine.store import ActivationStore, default_budget
from harness.isolation import kept_random_state, naming, seed_all
from harness.provenance import code_sha256
from harness.records import TrialConfig
from harness.registry import Registry
from harness.specs import BackboneSpec, InputSpec


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A trial that is ready to train."""

    config: TrialConfig
    """The trial's, with the precision that `auto` comes to."""
    model: nn.Module
    part: FrozenPart
    images: Images
    prefix: Prefix | None
    """None where nothing is cut."""


class Setup:
    """Sets up the trials of one study on one device.

    Args:
        registry: Where components come from.
        settings: Data set, device and cache.

    Raises:
        UsageError: The device is not there.
    """

    def __init__(self, registry: Registry, settings: EngineSettings) -> None:
        self._registry = registry
        self._manifest = settings.manifest
        self._home = settings.home
        self._dataset_key = settings.manifest.protocol().splits["train"]
        prepare_cublas()
        self.device = choose_device(settings.device)
        self._deterministic = settings.deterministic
        self._compiles = settings.compile
        if settings.compile:
            keep_compiled(settings.home / "compiled")
        if settings.threads:
            torch.set_num_threads(settings.threads)
        folder = settings.home / "activations"
        budget = default_budget(folder) if settings.cache is None else settings.cache
        self._store = ActivationStore(folder, budget)
        self._bandwidth = Bandwidth()
        self._banks: dict[tuple[str, int, str], Bank] = {}
        # By backbone and what was asked for.
        self._precisions: dict[tuple[str, str], Precision] = {}
        self._models = Models(len(settings.manifest.classes), self.device)
        self.residency: Residency[ResidentBank] = Residency(budget_of(self.device, settings.gpu_share))
        """What stays in the memory of a GPU."""

    @contextmanager
    def tidied(self) -> Iterator[None]:
        """Leave random numbers and the choice of kernels as they were, and nothing that others wait for."""
        try:
            with kept_random_state(), chosen_kernels(self.device, deterministic=self._deterministic):
                yield
        finally:
            # Until the next trial, so that others may make room.
            self._store.close()
            self.residency.end_trial()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def facts(self, config: TrialConfig) -> dict[str, str]:
        """Return what a trial runs on; its precision is known from the first trial of its backbone on."""
        precision = self._precisions.get((config.backbone, config.precision), config.precision)
        return environment_facts(self.device, precision, deterministic=self._deterministic)

    def build(self, job: TrialJob, *, reuse: bool = False) -> tuple[nn.Module, FrozenPart]:
        """Build a trial's model and freeze it; `reuse` as in `Models.build`."""
        backbone = self._registry.backbones.get(job.config.backbone).spec
        seed_all(job.config.seed)
        return self._models.build(backbone, job.config, job.weights, reuse=reuse)

    def open(self, job: TrialJob, built: tuple[nn.Module, FrozenPart], on_step: Callable[[], None]) -> Opened:
        """Set up what a trial whose model is built reads its images from."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        backbone = self._registry.backbones.get(job.config.backbone).spec
        model, part = built
        precision = choose_precision(job.config.precision, self.device, model)
        self._precisions[job.config.backbone, job.config.precision] = precision
        job = dataclasses.replace(job, config=dataclasses.replace(job.config, precision=precision))
        inputs = input_of(backbone, job.config)
        images = self._images(job.config, job.test, inputs, layout_of(model), on_step)
        prefix = self._prefix(model, part, job, images, on_step)
        on_step()
        return Opened(config=job.config, model=model, part=part, images=images, prefix=prefix)

    def compile(
        self, model: nn.Module, part: FrozenPart, source: Source, loss: nn.Module, config: TrialConfig
    ) -> tuple[Forward | None, str]:
        """Compile the training pass of a model on its device, where that is asked for and worth it.

        Returns:
            The pass, or None for the model as it is written; and what `CostRecord.execution` says of it.
        """
        flops = part.flops.image if part.flops else None
        images = config.epochs * source.train_size
        if not self._compiles or not is_worth_compiling(
            device=self.device, frozen=len(part.plan.frozen), flops=flops, images=images
        ):
            return None, "eager"
        inputs, labels = next(source.train_batches(0, config.batch_size, config.seed))
        return compile_training(model, part.plan, loss.to(self.device), inputs, labels, config.precision)

    def _prefix(
        self,
        model: nn.Module,
        part: FrozenPart,
        job: TrialJob,
        images: Images,
        on_step: Callable[[], None],
    ) -> Prefix | None:
        """Return what runs a model's frozen part; the model is not trained yet. None where nothing is cut."""
        config = job.config
        if part.cut.method == "none":
            return None
        backbone = self._registry.backbones.get(config.backbone).spec
        twin, parts = self._models.copy_untrained(model, backbone, config, job.weights, job.depths, on_step)
        facts = self.facts(config)
        return Prefix(
            twin,
            part,
            parts,
            images,
            store=self._store if self._store.budget else None,
            facts={
                # With the digest of its plugin's code: a graph does not tell all that its layers do.
                "backbone": canonical(self._registry.provider("backbone", config.backbone)),
                "batch": str(config.batch_size),
                "harness": code_sha256("harness"),
                "torch": torch.__version__,
                "timm": timm.__version__,
                "layout": name_layout(images.layout),
                "products": torch.get_float32_matmul_precision(),
                **{
                    name: facts[name]
                    for name in (
                        "device",
                        "precision",
                        "threads",
                        "processor",
                        "system",
                        "cuda",
                        "cudnn",
                        "deterministic",
                    )
                },
            },
            sharing=Sharing(epochs=config.epochs, trials=job.sharing if job.weights else 1.0),
            batch_size=config.batch_size,
            precision=config.precision,
            bandwidth=self._bandwidth,
            on_step=on_step,
        )

    def _images(
        self,
        config: TrialConfig,
        test: tuple[Item, ...],
        inputs: InputSpec,
        layout: torch.memory_format,
        on_step: Callable[[], None],
    ) -> Images:
        items = {"train": self._manifest.of("train"), "val": self._manifest.of("val"), "test": test}
        items = {split: part for split, part in items.items() if part}
        banks = {split: self._bank(split, part, inputs, on_step) for split, part in items.items()}

        def keep(split: str) -> ResidentBank | None:
            # Test images are read once.
            if split == "test":
                return None
            bank = banks[split]
            size = resident_bytes(bank)
            return self.residency.keep(bank.content, size, lambda: ResidentBank(bank, self.device))

        with naming("augmentation", config.augmentation):
            built = self._registry.augmentations.get(config.augmentation).spec.build(inputs)
        return Images(
            banks,
            {split: torch.tensor([item.label for item in part]) for split, part in items.items()},
            augmentation=Augmentation(config.augmentation, built, self._dataset_key),
            policy_key=canonical(self._registry.provider("augmentation", config.augmentation)),
            inputs=inputs,
            device=self.device,
            layout=layout,
            keep=keep,
        )

    def _bank(
        self, split: str, items: tuple[Item, ...], inputs: InputSpec, on_step: Callable[[], None]
    ) -> Bank:
        """Open the decoded images of a split; those that every trial reads stay open."""
        recipe = recipe_of(inputs)
        key = split, *recipe
        if key in self._banks:
            return self._banks[key]
        bank = Bank.open(items, *recipe, self._home, on_chunk=on_step)
        if split != "test":
            self._banks[key] = bank
        return bank


def input_of(backbone: BackboneSpec, config: TrialConfig) -> InputSpec:
    """Return how images enter the backbone in this trial."""
    return dataclasses.replace(backbone.input, size=config.image_size)
