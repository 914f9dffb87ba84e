"""One trial, from a configuration to saved predictions."""

from __future__ import annotations

import dataclasses
import errno
import platform
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import safetensors.torch
import timm
import torch
from torch import nn

from harness import metrics
from harness.data.bank import Bank, short_side
from harness.data.manifest import Item, Manifest
from harness.documents import canonical, file_sha256
from harness.engine.cost import Bandwidth
from harness.engine.cut import Cut, bind_suffix
from harness.engine.fit import DivergedError, FitResult, fit, is_bf16, predict_split
from harness.engine.job import TrialJob, TrialOutcome
from harness.engine.model import FrozenPart, Models
from harness.engine.prefix import Prefix, Sharing
from harness.engine.source import Images, Source
from harness.engine.store import ActivationStore, default_budget
from harness.errors import DataError, HarnessError, StorageError, UsageError
from harness.isolation import kept_random_state, seed_all
from harness.records import CostRecord, EpochRecord, Scores, TrialConfig
from harness.registry import Registry
from harness.specs import BackboneSpec, ClassInfo, InputSpec

_DISK_ERRORS = {errno.ENOSPC, errno.EROFS, errno.EIO, getattr(errno, "EDQUOT", errno.ENOSPC)}


class Engine:
    """Runs trials of one study on one device; keeps decoded images and activations between them.

    Args:
        registry: Where components come from.
        manifest: The data set without its test split.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        threads: CPU threads; 0 takes all cores.
        home: Folder of decoded banks and activations.
        cache: Bytes that activations may take on disk; None: a share of what is free, 0: nothing is stored.
    """

    def __init__(
        self,
        registry: Registry,
        manifest: Manifest,
        *,
        device: str,
        threads: int,
        home: Path,
        cache: int | None = None,
    ) -> None:
        self._registry = registry
        self._manifest = manifest
        self._home = home
        self._dataset_key = manifest.protocol().splits["train"]
        self.device = choose_device(device)
        if threads:
            torch.set_num_threads(threads)
        folder = home / "activations"
        self._store = ActivationStore(folder, default_budget(folder) if cache is None else cache)
        self._bandwidth = Bandwidth()
        self._models = Models(len(manifest.classes))

    def run(
        self, job: TrialJob, *, on_step: Callable[[], None], on_epoch: Callable[[EpochRecord], bool]
    ) -> TrialOutcome:
        """Train and evaluate; whatever goes wrong with the trial is its outcome, not an error."""
        environment = environment_facts(self.device, job.config.precision)
        curve: list[EpochRecord] = []

        def keep(record: EpochRecord) -> bool:
            curve.append(record)
            return on_epoch(record)

        try:
            with kept_random_state():
                outcome = self._train(job, on_step, keep)
            return dataclasses.replace(outcome, environment=environment)
        except (StorageError, DataError):
            # The machine failed, not the trial: it is worth trying again once that is repaired.
            raise
        except (OSError, safetensors.SafetensorError) as error:
            if isinstance(error, OSError) and error.errno not in _DISK_ERRORS:
                return self._failed(f"error: {_line(error)}", traceback.format_exc(), curve, environment)
            raise StorageError(
                "a trial's files cannot be read or written",
                where=str(job.folder),
                why=_line(error),
                fixes=["free disk space", "repair the disk, then run the same command again"],
            ) from error
        except DivergedError as error:
            reason, detail = f"nan: {error}", ""
        except torch.OutOfMemoryError as error:
            config = job.config
            reason = f"oom: batch {config.batch_size} at {config.image_size} px: {_line(error)}"
            detail = ""
        except HarnessError as error:
            reason, detail = f"error: {error.what}", traceback.format_exc()
        except Exception as error:
            reason, detail = f"error: {_line(error)}", traceback.format_exc()
        finally:
            # Until the next trial, so that others may make room.
            self._store.close()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        return self._failed(reason, detail, curve, environment)

    def _failed(
        self, reason: str, detail: str, curve: list[EpochRecord], environment: dict[str, str]
    ) -> TrialOutcome:
        return TrialOutcome(
            state="failed",
            reason=_encodable(reason),
            detail=_encodable(detail),
            curve=tuple(curve),
            environment=environment,
        )

    def _train(
        self, job: TrialJob, on_step: Callable[[], None], on_epoch: Callable[[EpochRecord], bool]
    ) -> TrialOutcome:
        config, manifest = job.config, self._manifest
        num_classes = len(manifest.classes)
        backbone = self._registry.backbones.get(config.backbone).spec
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

        seed_all(config.seed)
        model, part = self._models.build(backbone, config, job.weights)
        images = self._images(config, job.test, input_of(backbone, config), on_step)
        counts = manifest.counts()["train"]
        prefix = self._prefix(model, part, job, images, on_step)
        model.to(self.device)
        source = Source(images, prefix or images)
        on_step()
        # After everything that may draw, so that dropout depends on the seed alone.
        seed_all(config.seed)
        fitted = fit(
            model,
            source,
            config,
            plan=part.plan,
            cut=part.cut,
            loss=self._registry.losses.get(config.loss).spec.build(
                ClassInfo(num_classes=num_classes, counts=counts)
            ),
            optimizer=self._registry.optimizers.get(config.optimizer).spec,
            schedule=self._registry.schedules.get(config.schedule).spec,
            num_classes=num_classes,
            device=self.device,
            on_step=on_step,
            on_epoch=on_epoch,
        )
        scores, predictions = self._evaluate(job, fitted, part.cut, source, num_classes, on_step)
        if job.kind == "final":
            job.folder.mkdir(parents=True, exist_ok=True)
            safetensors.torch.save_model(fitted.model, str(job.folder / "model.safetensors"))
        return TrialOutcome(
            state="pruned" if fitted.pruned else "complete",
            reason=f"pruned at epoch {len(fitted.curve)} of {config.epochs}" if fitted.pruned else "",
            scores=scores,
            curve=fitted.curve,
            cost=self._cost(model, part, fitted, prefix),
            predictions=predictions,
        )

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
        twin, parts = self._models.copy_untrained(
            model, backbone, config, job.weights, job.depths, self.device
        )
        facts = environment_facts(self.device, config.precision)
        return Prefix(
            twin,
            part,
            parts,
            images,
            store=self._store if self._store.budget else None,
            facts={
                "backbone": config.backbone,
                "batch": str(config.batch_size),
                "cpu": torch.backends.cpu.get_cpu_capability(),
                "torch": torch.__version__,
                "timm": timm.__version__,
                **{
                    name: facts[name]
                    for name in ("device", "precision", "threads", "system", "cuda", "cudnn")
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
        on_step: Callable[[], None],
    ) -> Images:
        items = {"train": self._manifest.of("train"), "val": self._manifest.of("val"), "test": test}
        items = {split: part for split, part in items.items() if part}
        resize = short_side(inputs.size, inputs.crop)
        augmentation = self._registry.augmentations.get(config.augmentation)
        return Images(
            {
                split: Bank.open(part, resize, inputs.interpolation, self._home, on_chunk=on_step)
                for split, part in items.items()
            },
            {split: torch.tensor([item.label for item in part]) for split, part in items.items()},
            policy=augmentation.spec.build(inputs),
            policy_name=config.augmentation,
            policy_key=canonical(dataclasses.asdict(augmentation.provider)),
            varies=augmentation.spec.varies,
            dataset_key=self._dataset_key,
            inputs=inputs,
            device=self.device,
        )

    def _evaluate(
        self,
        job: TrialJob,
        fitted: FitResult,
        cut: Cut,
        source: Source,
        num_classes: int,
        on_step: Callable[[], None],
    ) -> tuple[dict[str, Scores], dict[str, str]]:
        """Score each split from the predictions that are saved, and save them."""
        items = {"val": self._manifest.of("val"), "test": job.test}
        scores: dict[str, Scores] = {}
        tensors: dict[str, npt.NDArray[Any]] = {}
        for split, part in items.items():
            if not part:
                continue
            probabilities, labels = (
                fitted.val
                if split == "val"
                else predict_split(
                    fitted.model,
                    bind_suffix(fitted.model, cut),
                    source,
                    split,
                    job.config,
                    self.device,
                    on_step,
                )
            )
            scores[split] = metrics.evaluate(labels, probabilities.argmax(axis=1), num_classes)
            tensors[f"{split}.probabilities"] = probabilities
            tensors[f"{split}.labels"] = labels
            tensors[f"{split}.images"] = np.array(
                [list(bytes.fromhex(item.sha256)) for item in part], dtype=np.uint8
            )
        job.folder.mkdir(parents=True, exist_ok=True)
        path = job.folder / "predictions.safetensors"
        safetensors.numpy.save_file(tensors, str(path))
        return scores, {path.name: file_sha256(path)}

    def _cost(
        self, model: nn.Module, part: FrozenPart, fitted: FitResult, prefix: Prefix | None
    ) -> CostRecord:
        params = sum(parameter.numel() for parameter in model.parameters())
        trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        return CostRecord(
            seconds=fitted.seconds,
            images_per_second=fitted.images / fitted.seconds,
            params=params,
            trainable=trainable,
            frozen_param_share=part.plan.param_share,
            frozen_flop_share=part.flop_share,
            cut=part.cut.method,
            prefix_passes=prefix.counts.passes if prefix else 0,
            prefix_seconds=prefix.counts.seconds if prefix else 0.0,
            peak_memory=peak_memory(self.device),
        )


def input_of(backbone: BackboneSpec, config: TrialConfig) -> InputSpec:
    """Return how images enter the backbone in this trial."""
    return dataclasses.replace(backbone.input, size=config.image_size)


def choose_device(device: str) -> torch.device:
    """Return the device asked for; `auto` takes a GPU where there is one.

    Raises:
        UsageError: The device is not there.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    chosen = torch.device(device)
    missing = (chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count()) or (
        chosen.type == "mps" and not torch.backends.mps.is_available()
    )
    if missing:
        raise UsageError(
            f"device {device!r} is not available",
            why=f"torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices"
            if chosen.type == "cuda"
            else f"torch {torch.__version__} finds no Apple GPU",
            fixes=["use --device auto or --device cpu", "run harness doctor"],
        )
    return chosen


def environment_facts(device: torch.device, precision: str) -> dict[str, str]:
    """Return what a reader needs to repeat a run; nothing that names a user or a machine."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "device": name,
        "precision": "bf16" if is_bf16(precision, device) else "fp32",
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cuda": str(torch.version.cuda) if device.type == "cuda" else "",
        "cudnn": str(torch.backends.cudnn.version()) if device.type == "cuda" else "",
    }


def peak_memory(device: torch.device) -> int:
    """Return peak bytes: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows has no such module
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _encodable(text: str) -> str:
    """Return text that a file can hold: an error's message may carry half of a character."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _line(error: Any) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
