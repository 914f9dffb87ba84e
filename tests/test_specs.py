"""Values that no host could use are refused where they are written."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from harness import InputSpec, OptimizerSpec, Sample

PIXELS = np.zeros((2, 2, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"split": "validation"}, "sample 'a' has the split 'validation', not train, val, test or None"),
        ({"split": "Val"}, "the split 'Val'"),
        ({"id": 3}, "the id 3 of a sample is no str"),
        ({"label": 1}, "sample 'a' has the label 1, which is no str"),
        ({"image": "a.png"}, "sample 'a' has a str as image, not a Path or a NumPy array"),
    ],
)
def test_a_sample_that_would_be_taken_for_another_is_refused(values, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Sample(**{"id": "a", "label": "b", "image": PIXELS, **values})


@pytest.mark.parametrize("split", [None, "train", "val", "test"])
@pytest.mark.parametrize("image", [PIXELS, Path("a.png")])
def test_a_sample_has_an_official_split_or_none(split, image):
    assert Sample(id="a", label="b", image=image, split=split).split == split


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", 0),
        ("size", 224.0),
        ("mean", (123.0, 116.0, 103.0)),
        ("mean", (0.5,)),
        ("mean", 0.5),
        ("mean", (0.5, 0.5, float("nan"))),
        ("std", (0, 0, 0)),
        ("std", ("a", "b", "c")),
        ("interpolation", "area"),
        ("crop", 0),
        ("crop", 1.15),
        ("crop", None),
    ],
)
def test_an_input_that_no_image_can_be_brought_to_is_refused(field, value):
    with pytest.raises(ValueError, match=f"InputSpec.{field} is .*, not "):
        InputSpec(**{field: value})


def test_bounds_of_an_input_are_sound():
    assert InputSpec(size=1, mean=(0, 0.5, 1), std=(1, 1, 1), interpolation="nearest", crop=1).crop == 1


@pytest.mark.parametrize("lr", [1e-3, (1e-3,), (1e-2, 1e-4), (0, 1), (1e-3, 1e-3), ("a", "b"), (1, math.inf)])
def test_an_optimizer_states_a_range_of_learning_rates(lr):
    with pytest.raises(ValueError, match=r"OptimizerSpec.lr is .*, not \(low, high\) with 0 < low < high"):
        OptimizerSpec(name="opt", summary="s", build=len, lr=lr)
