from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
from records_factory import make_record

from harness import DataError, NoTrialSucceeded, UsageError, WeightsError, load_registry
from harness.config import RunConfig
from harness.errors import StorageError, UnknownNameError
from harness.leaderboard.bundle import write_bundle
from harness.leaderboard.rerun import read_rerun
from harness.leaderboard.submit import make_bundle, submit
from harness.leaderboard.verify import verify, verify_file
from harness.records import read_records, write_record
from harness.search.rerun import _as_it_ran, _like, rerun, rerun_of_study


@pytest.fixture(scope="session")
def bundle(tiny_run):
    return make_bundle(tiny_run, 0)


@pytest.fixture
def own(tiny_run, tmp_path):
    """A copy of the study, in which reruns may lie."""
    return shutil.copytree(tiny_run, tmp_path / "runs" / tiny_run.name)


def with_records(bundle, **changes):
    return dataclasses.replace(
        bundle, records=tuple(dataclasses.replace(record, **changes) for record in bundle.records)
    )


def test_a_run_comes_out_again_bit_for_bit(own, registry, tmp_path):
    done = rerun_of_study(own, 0, registry=registry)
    assert done.comparison.outcome == "identical"
    assert [one.seed for one in done.comparison.trainings] == [1, 2]
    for one in done.comparison.trainings:
        assert (one.weights, one.predictions, one.answers, one.accuracy, one.f1) == (True, True, 0, 0, 0)
        assert one.environment == ()
    assert read_rerun(done.folder / "rerun.json") == done.record
    # The rerun goes where the bundle goes, and lifts it.
    (written,) = submit("tiny", tmp_path / "records", own.parent)
    assert [path.parent.parent.name for path in written.reruns] == ["reruns"]
    assert verify_file(written.bundle)[1].tier == "re-run"


def test_seeds_run_again_one_by_one_are_a_whole_rerun(own, registry, tmp_path):
    first = rerun_of_study(own, 0, registry=registry, seed=2)
    assert [one.seed for one in first.comparison.trainings] == [2]
    second = rerun_of_study(own, 0, registry=registry, seed=1)
    assert [one.seed for one in second.comparison.trainings] == [1, 2]
    assert [training.seed for training in read_rerun(second.folder / "rerun.json").trainings] == [1, 2]
    again = rerun_of_study(own, 0, registry=registry, seed=1)
    assert [training.seed for training in again.record.trainings] == [1, 2]
    (written,) = submit("tiny", tmp_path / "records", own.parent)
    assert verify_file(written.bundle)[1].tier == "re-run"


def test_an_earlier_rerun_that_is_damaged_is_said_before_any_training(own, registry):
    file = own / "reruns" / make_bundle(own, 0).digest[:16] / "rerun.json"
    file.parent.mkdir(parents=True)
    file.write_text("{", encoding="utf-8")
    with pytest.raises(StorageError, match="a rerun cannot be read"):
        rerun_of_study(own, 0, registry=registry, on_training=lambda record: pytest.fail("trained"))


def test_a_rerun_stays_with_its_run_when_trials_are_added(own, registry, tmp_path):
    done = rerun_of_study(own, 0, registry=registry)
    (before,) = submit("tiny", tmp_path / "records", own.parent)
    (record,) = (record for record in read_records(own) if record.kind == "search")
    write_record(own, dataclasses.replace(record, number=1))
    (after,) = submit("tiny", tmp_path / "records", own.parent)
    assert after.bundle != before.bundle
    assert read_rerun(after.reruns[0]) == dataclasses.replace(done.record, bundle=make_bundle(own, 0).digest)
    assert verify_file(after.bundle)[1].tier == "re-run"


@pytest.mark.parametrize(
    ("facts", "device", "threads"),
    [
        ({"device": "cpu", "threads": "3"}, "cpu", 3),
        ({"device": "some GPU", "threads": "8"}, "auto", 8),
        ({"device": "cpu", "threads": "99999999999"}, "cpu", 0),
        ({"device": "cpu", "threads": "-1"}, "cpu", 0),
        ({}, "auto", 0),
    ],
)
def test_a_rerun_takes_threads_and_device_from_the_record_and_nothing_that_was_stored(facts, device, threads):
    run = _like(dataclasses.replace(make_record(), environment=facts), RunConfig(device="cuda:1", cache_gb=9))
    assert (run.device, run.threads, run.cache_gb) == (device, threads, 0.0)


@pytest.mark.parametrize(
    ("facts", "precision"), [({"precision": "bf16"}, "bf16"), ({"precision": "fp32"}, "fp32"), ({}, "fp32")]
)
def test_a_rerun_is_in_the_precision_that_auto_came_to_where_the_run_was_trained(facts, precision):
    record = dataclasses.replace(make_record(), environment=facts)
    assert record.config.precision == "auto"
    assert _as_it_ran(record) == dataclasses.replace(record.config, precision=precision)


def test_another_seed_is_found(bundle, registry, tmp_path):
    """The numbers of one seed under the name of another: nothing but a training shows it."""
    first, second = bundle.records
    forged = dataclasses.replace(
        bundle,
        records=(dataclasses.replace(first, config=dataclasses.replace(first.config, seed=7)), second),
    )
    assert verify(forged).problems == ()
    done = rerun(forged, registry=registry, folder=tmp_path / "again", dataset="dots", seed=7)
    (found,) = done.comparison.trainings
    assert not found.weights and not found.predictions
    assert done.comparison.outcome != "identical"


def test_another_plugin_is_found(own, registry, monkeypatch):
    import tiny_plugin
    from torch import nn

    def build(num_classes, weights, image_size):
        net = build_before(num_classes, weights, image_size)
        return nn.Sequential(*net[:1], nn.BatchNorm2d(8), nn.Tanh(), *net[3:])

    build_before = tiny_plugin.build_tiny_net
    monkeypatch.setattr(tiny_plugin, "build_tiny_net", build)
    monkeypatch.setattr("harness.registry.plugin_sha256", lambda plugin: "ab" * 32)
    changed = load_registry(["tiny_plugin", "no:terminal"])
    (found,) = rerun_of_study(own, 0, registry=changed, seed=1).comparison.trainings
    assert not found.weights
    assert any(line.startswith("backbone: -p ") and "abababababab here" in line for line in found.environment)


def test_a_training_that_fails_now_is_no_rerun(own, monkeypatch):
    import tiny_plugin

    def build(num_classes, weights, image_size):
        raise RuntimeError("out of order")

    monkeypatch.setattr(tiny_plugin, "build_tiny_net", build)
    with pytest.raises(NoTrialSucceeded, match="seed 1 ends otherwise than it did") as caught:
        rerun_of_study(own, 0, registry=load_registry(["tiny_plugin", "no:terminal"]), seed=1)
    assert "out of order" in caught.value.why


def test_what_cannot_be_run_again_is_refused_before_any_training(bundle, registry, tmp_path, monkeypatch):
    import tiny_plugin

    def again(changed, dataset="dots", seed=None):
        return rerun(changed, registry=registry, folder=tmp_path / "again", dataset=dataset, seed=seed)

    with pytest.raises(UsageError, match="the run has no seed 5"):
        again(bundle, seed=5)
    edited = with_records(bundle, model="")
    with pytest.raises(UsageError, match="a bundle that does not hold is not run again"):
        again(edited)
    with pytest.raises(UnknownNameError):
        again(bundle, dataset="dotty")
    unknown = tuple(
        dataclasses.replace(record, config=dataclasses.replace(record.config, loss="poly-9"))
        for record in bundle.records
    )
    with pytest.raises(UnknownNameError, match="unknown loss 'poly-9'"):
        again(dataclasses.replace(bundle, records=unknown))
    bare = load_registry(["no:terminal"])
    with pytest.raises(UnknownNameError, match="unknown backbone 'tiny-net'") as caught:
        rerun(bundle, registry=bare, folder=tmp_path / "again", dataset="dots")
    assert caught.value.fixes == ("load its plugin: harness -p tiny_plugin study rerun ...",)
    lied = dataclasses.replace(bundle.records[0].weights, sha256="ab" * 32)
    with pytest.raises(WeightsError, match="are not those that the run started from"):
        again(with_records(bundle, weights=lied))
    monkeypatch.setattr(tiny_plugin, "SIZES", {"train": 27, "val": 12, "test": 12})
    with pytest.raises(DataError, match="are not those of the run: other the train split"):
        again(bundle)
    assert not (tmp_path / "again").exists()


def test_the_splits_of_a_bundle_need_no_rules(tiny, registry, tmp_path):
    """A folder split with a seed of its own is run again from the bundle alone."""
    from PIL import Image

    from harness import run_study

    for label, value in (("cat", 20), ("dog", 200)):
        for number in range(8):
            file = tmp_path / "photos" / label / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (24, 24), (value, 9 * number, 7)).save(file)
    study = tiny(
        dataset=str(tmp_path / "photos"),
        trials=1,
        train={"epochs": 1},
        split={"seed": 5, "test": 0.3},
        space={"backbone": "wide-net", "freeze_depth": 0.0},
        name="pets",
    )
    result = run_study(study, registry=registry, runs=tmp_path / "runs")
    (tmp_path / "photos").rename(tmp_path / "moved")
    done = rerun(
        make_bundle(result.folder, 0),
        registry=registry,
        folder=tmp_path / "again",
        dataset=str(tmp_path / "moved"),
    )
    assert done.comparison.outcome == "identical"


def test_the_command_demands_what_it_is_told(own, bundle, harness_cli, tmp_path, monkeypatch):
    command = ("-p", "tiny_plugin", "study", "rerun")
    code, out, err = harness_cli(*command, "tiny/0", "--exact", "--seed", 1)
    assert code == 0, err
    assert out.splitlines() == [
        "seed 1: weights identical, 0.00 % of test answers differ, accuracy +0.00, macro-F1 +0.00 points",
        "identical",
    ]
    # Bits that nobody's training gives; the answers are the same.
    other = write_bundle(tmp_path / "records", with_records(bundle, model="0" * 64))
    code, out, _ = harness_cli(*command, other, "--exact", "--seed", 1)
    assert code == 3
    assert "weights different" in out
    assert out.splitlines()[-1] == "not reproduced"
    code, out, _ = harness_cli(*command, other, "--json")
    assert (code, json.loads(out)["outcome"]) == (0, "within tolerance")
    document = next((tmp_path / "runs" / "reruns").glob("*/rerun.json"))
    code, out, err = harness_cli("leaderboard", "submit", document, "--to", tmp_path / "records")
    assert code == 0, err
    assert verify_file(other)[1].tier == "re-run"


def test_a_rerun_of_a_bundle_that_is_not_there_is_not_submitted(own, registry, tmp_path):
    done = rerun_of_study(own, 0, registry=registry, seed=1)
    document = str(done.folder / "rerun.json")
    with pytest.raises(UsageError, match="is not in the folder"):
        submit(document, tmp_path / "records", own.parent)
