from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_model

from harness.data.manifest import SplitRules, load_manifest
from harness.engine.job import EngineSettings, ProbeJob, TrialJob
from harness.engine.probing import Prober
from harness.engine.trial import Engine
from harness.errors import DataError
from harness.search.space import resolve_space

BACKBONE = "test_efficientnet.formula1"


@pytest.fixture
def engine(registry, tmp_path):
    manifest = load_manifest("dots", registry, rules=SplitRules())
    return Engine(
        registry,
        EngineSettings(
            plugins=("tiny_plugin",),
            manifest=manifest.without("test"),
            device="cpu",
            threads=1,
            home=tmp_path,
            cache=0,
        ),
    )


@pytest.fixture
def make_job(tiny, registry, tmp_path):
    def make(number=0, *, backbone=BACKBONE, weights=True, **changes):
        study = tiny(
            space={"backbone": backbone, "freeze_depth": 0.5, "lr": 1e-9, "optimizer": "sgd"},
            train={"epochs": 1},
        )
        space = resolve_space(study, registry)
        config = space.trial_config(study, {axis.name: axis.choices[0] for axis in space.axes}, seed=number)
        spec = registry.backbones.get(backbone).spec
        return TrialJob(
            kind="final",
            number=number,
            config=dataclasses.replace(config, **changes),
            weights=spec.weights.cached() if spec.weights and weights else None,
            folder=tmp_path / f"{number}-{changes}",
            depths=(0.5,),
        )

    return make


def run(engine, *jobs):
    return engine.run(jobs, on_step=lambda: None, on_epoch=lambda number, record: False)


def head(job):
    state = load_file(job.folder / "model.safetensors")
    return next(value for name, value in state.items() if name.endswith("classifier.weight"))


def probe(engine, job):
    request = ProbeJob(config=job.config, weights=job.weights, sharing=1.0, depths=job.depths)
    return engine.probe(request, on_step=lambda: None)


def test_a_training_begins_where_ridge_regression_ends(engine, make_job):
    job, blank = make_job(), make_job(head_init="timm")
    found = probe(engine, dataclasses.replace(job, config=dataclasses.replace(job.config, freeze_depth=1.0)))
    ridge, drawn = (run(engine, each)[0] for each in (job, blank))
    # With steps of nothing, a model is scored as it starts.
    assert ridge.scores["val"].f1 == pytest.approx(found.ridge_f1)
    assert drawn.scores["val"].f1 < found.ridge_f1
    assert [ridge.environment["head"], drawn.environment["head"]] == ["ridge", "timm"]
    assert head(job).norm().item() == pytest.approx((3 / 3) ** 0.5, rel=1e-4)


@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_heads_start_alike_at_any_depth_with_any_seed(engine, make_job, depth):
    first, second = make_job(1), make_job(2, freeze_depth=depth)
    run(engine, first)
    run(engine, second)
    torch.testing.assert_close(head(first), head(second), atol=1e-6, rtol=0)


def test_who_is_the_first_to_want_a_head_pays_for_it(engine, make_job):
    passes = [run(engine, make_job(number, freeze_depth=0.0))[0].cost.prefix_passes for number in range(2)]
    assert passes[0] > passes[1] == 0


def test_trials_that_train_together_share_the_passes(engine, make_job):
    jobs = [make_job(number, freeze_depth=1.0) for number in range(2)]
    costs = [outcome.cost for outcome in run(engine, *jobs)]
    assert costs[0].prefix_passes > 0 == costs[1].prefix_passes
    assert costs[0].prefix_seconds == costs[1].prefix_seconds > 0


def test_random_weights_have_no_features_to_start_from(engine, make_job):
    (outcome,) = run(engine, make_job(weights=False))
    assert outcome.state == "complete"
    assert outcome.environment["head"] == "as built: its backbone starts from random weights"


def test_a_head_of_more_than_a_linear_layer_stays_as_it_is_built(engine, make_job, tmp_path):
    job = make_job(backbone="tiny-net")
    model = engine._setup.build(job)[0]
    weights = tmp_path / "tiny.safetensors"
    save_model(model, str(weights))
    (outcome,) = run(engine, dataclasses.replace(job, weights=weights))
    assert outcome.state == "complete"
    assert outcome.environment["head"] == "as built: its head is not one linear layer"


def test_features_that_cannot_be_used_cost_a_trial_its_start_alone(engine, make_job, monkeypatch):
    from harness.engine.features import Features

    split = Features.split
    monkeypatch.setattr(Features, "split", lambda features, name: split(features, name) * torch.inf)
    (outcome,) = run(engine, make_job())
    assert outcome.state == "complete"
    assert outcome.environment["head"] == "as built: features of the val split are not finite"


def test_features_that_are_all_the_same_give_no_head(engine, make_job, monkeypatch):
    from harness.engine.features import Features

    train = Features.train
    monkeypatch.setattr(Features, "train", lambda features, epoch: torch.ones_like(train(features, epoch)))
    (outcome,) = run(engine, make_job())
    assert outcome.environment["head"] == "as built: the features say nothing of the classes"


def test_a_machine_that_fails_is_no_reason_to_start_otherwise(engine, make_job, monkeypatch):
    from harness.engine import probing

    def fail(*arguments):
        raise DataError("an image is gone")

    monkeypatch.setattr(probing, "ridge_probe", fail)
    with pytest.raises(DataError, match="an image is gone"):
        run(engine, make_job())


def test_a_device_without_float64_is_spared_the_probes():
    class Features:
        def train(self, epoch):
            return torch.ones(2, 3)

        def split(self, name):
            return torch.ones(2, 3)

        def labels(self, name):
            return torch.zeros(2, dtype=torch.int64)

    prober = Prober(SimpleNamespace(device=torch.device("mps")), 2, None)
    assert {part.device.type for part in prober._data(Features())} == {"cpu"}
