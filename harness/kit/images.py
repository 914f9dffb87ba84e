"""What a data set and an augmentation policy have to do: they yield images, and keep their form."""

from __future__ import annotations

import tempfile
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.errors import DataError
from harness.isolation import seed_all
from harness.kit.component import require
from harness.specs import AugmentationSpec, DatasetSpec, InputSpec, Policy, Sample

if TYPE_CHECKING:
    from torch import Tensor

# --- data sets --------------------------------------------------------------------------------------------


def states_its_terms(spec: DatasetSpec) -> None:
    """Check that a data set names its licence and, unless it is made on this machine, its address."""
    require(spec.licence.strip(), "it states no licence")
    require(not spec.download_url or spec.url, "it is downloaded, and has no url that describes it")
    require(
        not spec.url or spec.url.startswith(("https://", "http://")), f"its url is no address: {spec.url!r}"
    )


def reads_or_says_why(spec: DatasetSpec) -> None:
    """Check up to 200 samples of a data set, unless its files are not at hand."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            samples = list(islice(spec.build(Path(folder), False), 200))
            again = list(islice(spec.build(Path(folder), False), 200))
        except (DataError, OSError, RuntimeError):
            # It is not at hand, and says so in a way that the host takes as a reason to download.
            return
    require(samples, "without its files it yields nothing: raise FileNotFoundError")
    require(all(isinstance(sample, Sample) for sample in samples), "it yields something else than Sample")
    require(len({sample.id for sample in samples}) == len(samples), "two samples have one id")
    require([s.id for s in samples] == [s.id for s in again], "read twice, its order differs")
    for sample in samples:
        require(sample.label.strip(), f"sample {sample.id!r} has no label")
        image = sample.image
        if isinstance(image, np.ndarray):
            good = image.dtype == np.uint8 and (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3))
            require(good, f"sample {sample.id!r} has {image.dtype} pixels of shape {image.shape}")


# --- augmentations ----------------------------------------------------------------------------------------


def _pictures() -> dict[str, Tensor]:
    import torch

    grey = torch.randint(0, 256, (1, 40, 40), dtype=torch.uint8).expand(3, -1, -1).clone()
    return {
        "an odd image": torch.randint(0, 256, (3, 37, 53), dtype=torch.uint8),
        "a grey image": grey,
        "a tiny image": torch.randint(0, 256, (3, 5, 3), dtype=torch.uint8),
        "a black image": torch.zeros(3, 64, 48, dtype=torch.uint8),
    }


def keeps_the_form_of_images(spec: AugmentationSpec) -> None:
    """Check that images of any form become (3, size, size) uint8 tensors, and stay as they were."""
    import torch

    for size in (32, 47):
        policies = _policies(spec, size)
        for label, image in _pictures().items():
            for seed in range(max(4, len(policies))):
                seed_all(seed)
                given = image.clone()
                result = policies[seed % len(policies)](given)
                require(
                    isinstance(result, torch.Tensor), f"{label} became a {type(result).__name__}, no tensor"
                )
                require(result.dtype == torch.uint8, f"{label} became {result.dtype}, not uint8")
                shape = tuple(result.shape)
                require(shape == (3, size, size), f"{label} became {shape}, not {(3, size, size)}")
                require(torch.equal(given, image), f"{label} was changed in place")


def repeats_itself_from_a_seed(spec: AugmentationSpec) -> None:
    """Check that seeded generators alone decide what an image becomes; where views are counted, nothing."""
    import torch

    policies, again = _policies(spec, 32), _policies(spec, 32)
    draws = not isinstance(spec.build(InputSpec(size=32)), tuple)
    for label, image in _pictures().items():
        for first, second in zip(policies, again, strict=True):
            results = []
            # What was drawn in between must not matter, nor which object draws.
            for number, policy in enumerate((first, first, second)):
                seed_all(3 if draws else number)
                results.append(policy(image.clone()))
                first(image.clone())
            same = all(torch.equal(results[0], other) for other in results)
            state = "all generators have the same seed" if draws else "policies of a tuple draw nothing"
            require(same, f"{label} becomes another one though {state}")


def _policies(spec: AugmentationSpec, size: int) -> tuple[Policy, ...]:
    built = spec.build(InputSpec(size=size))
    policies = built if isinstance(built, tuple) else (built,)
    usable = bool(policies) and all(map(callable, policies))
    require(usable, f"build returns {type(built).__name__}, neither a function nor a tuple of some")
    return policies
