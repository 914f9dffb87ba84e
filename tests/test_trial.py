from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_model

from harness.data.manifest import SplitRules, load_manifest
from harness.engine.job import EngineSettings, ProbeJob, TrialJob
from harness.engine.model import Models
from harness.engine.trial import Engine
from harness.search.space import resolve_space

BACKBONE = "test_efficientnet.formula1"


@pytest.fixture
def engine(registry, tmp_path):
    manifest = load_manifest("dots", registry, rules=SplitRules())
    settings = EngineSettings(
        plugins=("tiny_plugin",), manifest=manifest.without("test"), device="cpu", threads=1, home=tmp_path
    )
    engine = Engine(registry, settings)
    engine.settings = settings
    engine.test = manifest.of("test")
    return engine


@pytest.fixture
def make_job(tiny, registry, tmp_path):
    from harness.engine.weights import preflight

    weights = preflight([registry.backbones.get(BACKBONE)], init="pretrained", weights={}, weights_dir=None)

    def make(number=0, *, kind="search", backbone=BACKBONE, depth=1.0, test=(), **changes):
        study = tiny(
            init="pretrained",
            space={"backbone": backbone, "freeze_depth": depth, "lr": 1e-2, "optimizer": "adamw"},
        )
        space = resolve_space(study, registry)
        config = space.trial_config(study, {axis.name: axis.choices[0] for axis in space.axes}, seed=number)
        return TrialJob(
            kind=kind,
            number=number,
            config=dataclasses.replace(config, **changes),
            weights=weights[backbone].path if backbone in weights else None,
            folder=tmp_path / f"{kind}-{number}-{changes}",
            sharing=3.0,
            depths=(depth,),
            test=test,
        )

    return make


def run(engine, jobs, on_epoch=lambda number, record: False):
    return engine.run(jobs, on_step=lambda: None, on_epoch=on_epoch)


def probabilities(job):
    return load_file(job.folder / "predictions.safetensors")["val.probabilities"]


def test_heads_give_the_same_bits_together_and_alone(engine, make_job):
    changes = [{"lr": 1e-2}, {"lr": 1e-3, "optimizer": "sgd"}, {"weight_decay": 0.0}]
    together = [make_job(number, **change) for number, change in enumerate(changes)]
    outcomes = run(engine, together)
    found = [probabilities(job) for job in together]
    assert [outcome.state for outcome in outcomes] == ["complete"] * 3
    assert sum(outcome.cost.prefix_passes > 0 for outcome in outcomes) == 1
    for job, expected in zip(together, found, strict=True):
        run(engine, [job])
        assert np.array_equal(probabilities(job), expected)


def test_a_head_that_fails_among_others_is_the_only_one(engine, make_job):
    jobs = [make_job(0), make_job(1, loss="raising"), make_job(2, loss="nan")]
    outcomes = run(engine, jobs)
    assert [outcome.state for outcome in outcomes] == ["complete", "failed", "failed"]
    assert outcomes[1].reason == "error: loss 'raising': RuntimeError: this loss is out of order"
    assert outcomes[2].reason.startswith("nan:")


def test_a_policy_that_cannot_be_built_is_named(engine, registry, make_job, monkeypatch):
    def refuse(inputs):
        raise ValueError("not like this")

    none = registry.augmentations.get("none")
    broken = dataclasses.replace(none, spec=dataclasses.replace(none.spec, build=refuse))
    monkeypatch.setitem(registry.augmentations._specs, "none", broken)
    (outcome,) = run(engine, [make_job()])
    assert outcome.reason == "error: augmentation 'none': ValueError: not like this"


def test_one_head_of_many_can_be_pruned(engine, make_job):
    jobs = [make_job(number) for number in range(2)]
    outcomes = run(engine, jobs, lambda number, record: number == 1 and record.epoch == 2)
    assert [outcome.state for outcome in outcomes] == ["complete", "pruned"]
    assert [len(outcome.curve) for outcome in outcomes] == [3, 2]


def test_the_stored_model_predicts_what_the_record_says(engine, make_job, registry):
    job = make_job(kind="final", test=engine.test)
    (outcome,) = run(engine, [job])
    model = registry.backbones.get(BACKBONE).spec.build(3, None, job.config.image_size)
    load_model(model, str(job.folder / "model.safetensors"))
    head = next(module for module in model.modules() if isinstance(module, torch.nn.Linear))
    fresh = registry.backbones.get(BACKBONE).spec.build(3, job.weights, job.config.image_size)
    assert not torch.equal(
        head.weight, next(m for m in fresh.modules() if isinstance(m, torch.nn.Linear)).weight
    )
    assert outcome.scores["test"].n == len(engine.test)
    stored = load_file(job.folder / "predictions.safetensors")
    assert stored["test.probabilities"].shape == (len(engine.test), 3)


@pytest.mark.parametrize(("how", "builds"), [("ridge", 3), ("xavier", 2), ("zero", 2), ("timm", 5)])
@pytest.mark.parametrize("depth", [0.5, 1.0])
def test_no_more_is_built_once_two_builds_were_alike(engine, make_job, monkeypatch, how, builds, depth):
    counted, lay_out = [], Models._lay_out
    monkeypatch.setattr(Models, "_lay_out", lambda *values: counted.append(values) or lay_out(*values))
    changes = [{"head_init": how, "lr": 10.0 ** -(1 + number), "epochs": 1} for number in range(5)]
    jobs = [make_job(number, depth=depth, **change) for number, change in enumerate(changes)]
    groups = [jobs[:3], jobs[3:4], jobs[4:]] if depth == 1 else [[job] for job in jobs]
    outcomes = [outcome for group in groups for outcome in run(engine, group)]
    assert [outcome.state for outcome in outcomes] == ["complete"] * 5
    # The look at the features has the first trial's seed.
    assert len(counted) == builds
    found = [probabilities(job) for job in jobs]
    assert not np.array_equal(found[0], found[1])
    # To the bit, as if each had built its own.
    for job, expected in zip(jobs, found, strict=True):
        engine._setup._models._heads.clear()
        run(engine, [job])
        assert np.array_equal(probabilities(job), expected)


@pytest.mark.parametrize("kind", ["augmentation", "backbone"])
def test_what_a_plugin_computed_before_it_was_edited_is_computed_again(
    registry, engine, make_job, monkeypatch, kind
):
    def passes():
        (outcome,) = run(Engine(registry, engine.settings), [make_job(depth=0.5)])
        return outcome.cost.prefix_passes

    assert passes() > 0
    assert passes() == 0
    provider = type(registry).provider

    def edited(self, wanted, name):
        found = provider(self, wanted, name)
        return dataclasses.replace(found, sha256="edited") if wanted == kind else found

    monkeypatch.setattr(type(registry), "provider", edited)
    assert passes() > 0


def test_a_head_behind_dropout_trains_as_a_model(engine, make_job):
    (outcome,) = run(engine, [make_job(backbone="tiny-net", init="scratch")])
    assert outcome.state == "complete"


def test_a_probe_ranks_features_above_chance_and_stores_them_for_the_heads(engine, make_job):
    job = make_job()
    probe = engine.probe(
        ProbeJob(config=job.config, weights=job.weights, sharing=3.0, depths=(1.0,)), on_step=lambda: None
    )
    assert probe.reason == ""
    assert min(probe.ridge_f1, probe.ridge_accuracy, probe.knn_f1, probe.knn_accuracy) > 0.5
    (outcome,) = run(engine, [job])
    assert outcome.cost.prefix_passes == 0


def test_a_backbone_that_cannot_be_probed_says_why(engine, make_job):
    job = make_job(backbone="tiny-net", init="scratch")
    probe = engine.probe(
        ProbeJob(config=job.config, weights=None, sharing=1.0, depths=(1.0,)), on_step=lambda: None
    )
    assert probe.reason == "its head is not one linear layer"
    assert probe.value("f1") == 0.0


def test_a_backbone_whose_features_are_not_finite_costs_no_other_its_probe(engine, make_job, monkeypatch):
    from harness.engine.features import Features

    split = Features.split
    monkeypatch.setattr(Features, "split", lambda features, name: split(features, name) * torch.inf)
    job = make_job()
    probe = engine.probe(
        ProbeJob(config=job.config, weights=job.weights, sharing=3.0, depths=(1.0,)), on_step=lambda: None
    )
    assert probe.reason == "features of the val split are not finite"


def test_a_training_keeps_one_stored_view_open_at_a_time(engine, make_job):
    opened = []

    def on_epoch(number, record):
        opened.append(len(engine._setup._store._opened))
        return False

    job = make_job(augmentation="flip-crop")
    (outcome,) = run(engine, [job], on_epoch)
    assert outcome.cost.prefix_passes > 0
    # Of train and of val.
    assert opened == [2] * job.config.epochs
    assert engine._setup._store.info().entries == job.config.epochs + 1


def test_images_that_stay_on_a_device_train_to_the_same_bits(engine, make_job, tmp_path):
    job = make_job(1, depth=0.0, augmentation="flip-crop", epochs=2)
    (plain,) = run(engine, [job])
    expected = probabilities(job)
    engine._setup.residency.budget = 10**9
    (resident,) = run(engine, [dataclasses.replace(job, folder=tmp_path / "resident")])
    assert engine._setup.residency.used > 0
    assert [plain.environment["images"], resident.environment["images"]] == ["host", "device"]
    assert plain.state == resident.state == "complete"
    assert np.array_equal(
        load_file(tmp_path / "resident/predictions.safetensors")["val.probabilities"], expected
    )


def test_a_trial_says_how_it_ran(registry, engine, make_job, tmp_path, monkeypatch):
    from harness.engine import compiled, setup

    job = make_job(3, depth=0.0, epochs=1)
    (outcome,) = run(engine, [job])
    assert outcome.cost.execution == "eager"
    assert not outcome.cost.norm_in_parts
    settings = EngineSettings(
        plugins=(), manifest=engine._manifest, device="cpu", threads=1, home=tmp_path, compile=True
    )
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    # Long enough is not enough on a CPU.
    monkeypatch.setattr(compiled, "LONG", 0.0)
    compiling = Engine(registry, settings)
    (outcome,) = run(compiling, [job])
    assert outcome.cost.execution == "eager"
    expected = probabilities(job)
    monkeypatch.setattr(setup, "is_worth_compiling", lambda **facts: True)

    def fail(*arguments, **options):
        raise RuntimeError("no compiler (injected)")

    monkeypatch.setattr(torch, "compile", lambda model, **options: fail)
    (outcome,) = run(compiling, [job])
    assert outcome.state == "complete"
    assert "no compiler (injected)" in outcome.cost.execution
    assert np.array_equal(probabilities(job), expected)


@pytest.mark.parametrize("depth", [0.5, 1.0])
@pytest.mark.parametrize(("amx", "precision"), [(False, "fp32"), (True, "bf16")])
def test_a_trial_computes_and_says_what_auto_comes_to(engine, make_job, monkeypatch, amx, precision, depth):
    monkeypatch.setattr("harness.engine.precision.has_amx", lambda: amx)
    asked = make_job(backbone="test_resnet.formula1", depth=depth, precision="auto")
    named = make_job(backbone="test_resnet.formula1", depth=depth, precision=precision)
    (found,), (expected,) = run(engine, [asked]), run(engine, [named])
    assert found.environment["precision"] == expected.environment["precision"] == precision
    assert np.array_equal(probabilities(asked), probabilities(named))


def test_a_trial_that_fails_says_what_auto_came_to(engine, make_job, monkeypatch):
    monkeypatch.setattr("harness.engine.precision.has_amx", lambda: True)
    diverging = make_job(backbone="test_resnet.formula1", depth=0.0, precision="auto", lr=1e30, clip_grad=0.0)
    (outcome,) = run(engine, [diverging])
    assert outcome.state == "failed"
    assert outcome.environment["precision"] == "bf16"


def test_a_trial_that_reads_all_from_the_store_binds_no_prefix(engine, make_job, monkeypatch):
    from harness.engine.trace import TracedHalf

    (outcome,) = run(engine, [make_job(0)])
    assert outcome.cost.prefix_passes > 0
    monkeypatch.delattr(TracedHalf, "bind_prefix")
    (outcome,) = run(engine, [make_job(1)])
    assert (outcome.state, outcome.cost.prefix_passes) == ("complete", 0)


def test_later_heads_are_those_of_an_engine_that_has_built_nothing_yet(engine, registry, make_job, tmp_path):
    jobs = [make_job(number, kind="final") for number in range(4)]
    outcomes = [run(engine, [job])[0] for job in jobs]
    settings = EngineSettings(
        plugins=(), manifest=engine._manifest, device="cpu", threads=1, home=tmp_path / "other"
    )
    alone = dataclasses.replace(jobs[3], folder=tmp_path / "alone")
    (expected,) = run(Engine(registry, settings), [alone])
    assert outcomes[3].model == expected.model
    assert outcomes[3].predictions == expected.predictions


def test_what_a_loss_draws_comes_from_the_seed_of_its_trial_alone(engine, make_job):
    class Losses:
        spec = SimpleNamespace(build=lambda classes: torch.rand(classes.num_classes))

        def get(self, name):
            return self

    engine._registry = SimpleNamespace(losses=Losses())
    first, other = (engine._loss(make_job(number).config) for number in (1, 2))
    assert torch.equal(engine._loss(make_job(1).config), first)
    assert not torch.equal(first, other)
