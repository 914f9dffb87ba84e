from __future__ import annotations

import math

import numpy as np
import pytest
from safetensors.numpy import load_file

from harness import run_study
from harness.engine.cut import NO_CUT
from harness.engine.prefix import Prefix, Sharing

BACKBONE = "test_efficientnet.formula1"


@pytest.fixture
def asked(tiny):
    """Make a study of a bundled backbone on dots, of one trial unless a test says otherwise."""

    def make(**changes):
        space = {"backbone": BACKBONE, "lr": [3e-3], "optimizer": "adamw", **changes.pop("space", {})}
        return tiny(
            **{
                "init": "pretrained",
                "trials": 1,
                "space": space,
                "search": {"sampler": "grid", "pruner": "none", "probes": False},
                **changes,
            }
        )

    return make


def predictions(result):
    found = []
    for record in result.records:
        tensors = load_file(result.folder / record.folder / "predictions.safetensors")
        found += [tensors[name] for name in sorted(tensors)]
    return found


@pytest.mark.parametrize(
    ("depth", "policy", "ema", "precision"),
    [
        (0.25, "none", 0.0, "fp32"),
        (0.75, "flip-crop", 0.9, "fp32"),
        (1.0, "flip-crop", 0.0, "fp32"),
        (0.5, "flip-crop", 0.0, "bf16"),
        (1.0, "none", 0.0, "bf16"),
    ],
)
def test_stored_or_not_cut_or_not_a_trial_predicts_the_same_bits(
    asked, registry, tmp_path, monkeypatch, depth, policy, ema, precision
):
    ways = {}
    for way, cache in (("stored", None), ("computed", 0.0), ("whole", None)):
        if way == "whole":
            monkeypatch.setattr("harness.engine.model.cut_model", lambda *_: NO_CUT)
        config = asked(
            name=way,
            # Where nothing is cut there are no features for a head to start from.
            space={"freeze_depth": [depth], "augmentation": policy, "head_init": "timm"},
            train={"ema": ema, "precision": precision},
            run={"cache_gb": cache},
        )
        ways[way] = run_study(config, registry=registry, runs=tmp_path)
    assert {record.cost.cut for record in ways["stored"].records} == {"trace"}
    assert {record.cost.cut for record in ways["whole"].records} == {"none"}
    expected = predictions(ways["whole"])
    for way in ("stored", "computed"):
        found = predictions(ways[way])
        assert len(found) == len(expected)
        if depth < 1:
            assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True)), way
        # A linear head trains by other kernels than a whole model, whose sums round otherwise.
        atol = 1e-4 if precision == "fp32" else 0.02
        assert all(np.allclose(a, b, atol=atol) for a, b in zip(expected, found, strict=True)), way
    pairs = zip(predictions(ways["stored"]), predictions(ways["computed"]), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)


def test_heads_start_alike_whether_features_are_stored_or_not(asked, registry, tmp_path):
    found = []
    for cache in (None, 0.0):
        config = asked(name=f"cache-{cache}", space={"freeze_depth": [0.5]}, run={"cache_gb": cache})
        result = run_study(config, registry=registry, runs=tmp_path)
        assert {record.environment["head"] for record in result.records} == {"ridge"}
        found.append(predictions(result))
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


def test_one_pass_of_a_backbone_serves_all_depths_and_a_second_study(asked, registry, tmp_path):
    depths = [0.25, 0.5, 0.75, 1.0]
    first, second = (
        run_study(
            asked(name=name, trials=4, space={"freeze_depth": depths}, finalize={"top": 0}),
            registry=registry,
            runs=tmp_path,
        )
        for name in ("first", "second")
    )
    counts = first.records[0].dataset.counts
    batch = first.records[0].config.batch_size
    once = sum(math.ceil(sum(counts[split]) / batch) for split in ("train", "val"))
    assert sorted(record.cost.prefix_passes for record in first.records) == [0, 0, 0, once]
    assert [record.cost.prefix_passes for record in second.records] == [0, 0, 0, 0]
    assert [r.scores["val"] for r in first.records] == [r.scores["val"] for r in second.records]


def test_test_images_leave_nothing_in_the_store(asked, registry, tmp_path, monkeypatch):
    stored = []
    original = Prefix._fill

    def watch(self, store, split, *rest):
        stored.append(split)
        return original(self, store, split, *rest)

    monkeypatch.setattr(Prefix, "_fill", watch)
    result = run_study(asked(space={"freeze_depth": [1.0]}), registry=registry, runs=tmp_path)
    assert "test" in result.records[-1].scores
    assert set(stored) == {"train", "val"}


def test_random_weights_are_shared_with_no_other_seed(asked, registry, tmp_path):
    result = run_study(
        asked(
            init="scratch", trials=2, space={"freeze_depth": [1.0], "lr": [1e-3, 3e-3]}, finalize={"top": 0}
        ),
        registry=registry,
        runs=tmp_path,
    )
    passes = [record.cost.prefix_passes for record in result.records]
    # Each trial draws its own, and runs it over every image once.
    assert passes[0] == passes[1] > 0


def test_a_budget_that_is_too_small_computes_instead(asked, registry, tmp_path):
    config = asked(space={"freeze_depth": [0.5]}, finalize={"top": 0}, run={"cache_gb": 1e-6})
    record = run_study(config, registry=registry, runs=tmp_path).records[0]
    batches = record.config.epochs * (sum(record.dataset.counts["train"]) // record.config.batch_size)
    assert record.state == "complete"
    assert record.cost.prefix_passes > batches


def test_a_view_that_only_one_training_reads_is_read_once():
    assert Sharing(epochs=5, trials=1).reads(views=5) == 1
    assert Sharing(epochs=5, trials=2).reads(views=5) == 2
    assert Sharing(epochs=5, trials=2).reads(views=2) == 5
    assert Sharing(epochs=5, trials=2).reads(views=1) == 10
