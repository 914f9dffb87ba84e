from __future__ import annotations

import dataclasses
import itertools
import json
import shutil

import pytest

from harness import UsageError
from harness.documents import canonical
from harness.errors import StorageError, UnknownNameError
from harness.leaderboard.bundle import PackedAnswers, bundle_files, read_bundle, write_bundle
from harness.leaderboard.rank import load, rank
from harness.leaderboard.submit import find_runs, make_bundle, submit
from harness.leaderboard.verify import bundle_entries, verify
from harness.predictions import read_predictions
from harness.records import read_record, write_record


@pytest.fixture(scope="session")
def bundle(tiny_run):
    return make_bundle(tiny_run, 0)


@pytest.fixture
def own(tiny_run, tmp_path):
    """A copy of the study, to be harmed."""
    return shutil.copytree(tiny_run, tmp_path / "own" / tiny_run.name)


def test_a_bundle_comes_back_as_it_was(bundle, tmp_path):
    path = write_bundle(tmp_path, bundle)
    assert read_bundle(path) == bundle
    assert path == tmp_path / "dots" / f"{bundle.digest[:16]}.json"
    text = path.read_text(encoding="utf-8")
    assert text == canonical(json.loads(text)) + "\n"


def test_a_bundle_holds_all_seeds_of_a_run_and_what_each_answered(bundle, tiny_run):
    assert [record.config.seed for record in bundle.records] == [1, 2]
    assert bundle.trials == {"complete": 1}
    for record, answers in zip(bundle.records, bundle.answers, strict=True):
        stored = read_predictions(tiny_run / record.folder, record.predictions)
        for split, packed in answers.items():
            classes, scores = packed.unpack()
            assert (classes[:, 0] == stored[split].chosen).all()
            assert len(scores) == len(classes) == len(bundle.samples[split].ids) == 12


def test_a_training_that_failed_is_in_the_bundle_without_what_its_error_says(own):
    record = read_record(own / "finals/0000-seed2/record.json")
    failed = dataclasses.replace(
        record, state="failed", reason="error: OSError: /home/me/x", scores={}, predictions={}, model=""
    )
    write_record(own, failed)
    made = make_bundle(own, 0)
    assert [one.config.seed for one in made.records] == [1]
    assert made.failed == (dataclasses.replace(failed, reason="error"),)
    assert verify(made).problems == ()
    ((row,),) = (board.rows for board in rank(bundle_entries(made, verify(made)), split="test"))
    ((own_row,),) = (board.rows for board in rank(load(own.parent)[0], split="test"))
    shown = ("seeds", "failed", "f1", "f1_interval", "accuracy", "val", "gap")
    assert [getattr(row, name) for name in shown] == [getattr(own_row, name) for name in shown]
    assert (row.seeds, row.failed) == (1, 1)


def test_scores_are_kept_in_half_precision_the_best_first(bundle, tiny_run):
    record = bundle.records[0]
    stored = read_predictions(tiny_run / record.folder, record.predictions)["test"].probabilities
    classes, scores = bundle.answers[0]["test"].unpack()
    for row, (numbers, values) in enumerate(zip(classes, scores, strict=True)):
        assert values == pytest.approx(sorted(stored[row], reverse=True), abs=5e-4)
        assert sorted(numbers) == [0, 1, 2]


def test_the_same_run_gives_the_same_file(tiny_run, tmp_path):
    (first,) = submit("tiny/0", tmp_path / "records", tiny_run.parent)
    content = first.bundle.read_bytes()
    (second,) = submit("tiny", tmp_path / "records", tiny_run.parent)
    assert second.bundle == first.bundle
    assert second.bundle.read_bytes() == content
    assert list(bundle_files(tmp_path / "records")) == [first.bundle]


def changed(bundle, **values):
    return dataclasses.replace(bundle, **values)


def test_merging_is_commutative_and_idempotent(bundle, tmp_path):
    others = [changed(bundle, trials={"complete": number}) for number in range(3)]
    results = set()
    for number, order in enumerate(itertools.permutations(others)):
        target = tmp_path / str(number)
        for position, one in enumerate(order):
            source = tmp_path / f"{number}-{position}"
            for _ in range(2):
                submit(str(write_bundle(source, one)), target, tmp_path)
        results.add(tuple((path.name, path.read_bytes()) for path in bundle_files(target)))
    assert len(results) == 1
    assert len(next(iter(results))) == 3


def test_a_strangers_file_name_says_nothing(bundle, tmp_path):
    path = write_bundle(tmp_path / "theirs", bundle)
    renamed = path.rename(tmp_path / "anything.json")
    (done,) = submit(str(renamed), tmp_path / "ours", tmp_path)
    assert done.bundle.name == path.name


@pytest.mark.parametrize("name", ["../../etc", "..", "/etc/passwd", "a/b", "\x1b[2J", "", "日本"])
def test_a_data_set_of_any_name_stays_within_the_folder(bundle, tmp_path, name):
    records = tuple(
        dataclasses.replace(record, dataset=dataclasses.replace(record.dataset, name=name))
        for record in bundle.records
    )
    path = write_bundle(tmp_path / "records", changed(bundle, records=records))
    assert path.resolve().parent.parent == (tmp_path / "records").resolve()
    assert path.parent.name.isascii()


def test_nothing_of_the_machine_is_in_a_bundle(tiny, registry, tmp_path, monkeypatch):
    """Secrets in the environment, the user's name and the paths of data, runs and caches."""
    from PIL import Image

    from harness import run_study

    canaries = {
        "HF_TOKEN": "canary-token",
        "AWS_SECRET_ACCESS_KEY": "canary-secret",
        "USER": "canary-user",
        "LOGNAME": "canary-logname",
        "HOSTNAME": "canary-host",
        "HOME": str(tmp_path / "canary-home"),
        "HARNESS_HOME": str(tmp_path / "canary-cache"),
    }
    for name, value in canaries.items():
        monkeypatch.setenv(name, value)
    photos = tmp_path / "canary-data" / "photos"
    for label, value in (("cat", 20), ("dog", 200)):
        for number in range(6):
            file = photos / label / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (24, 24), (value, 9 * number, 7)).save(file)
    study = tiny(
        dataset=str(photos),
        trials=1,
        train={"epochs": 1},
        space={"backbone": "wide-net", "freeze_depth": 1.0},
        name="pets",
    )
    result = run_study(study, registry=registry, runs=tmp_path / "canary-runs")
    assert b"canary-data" in (result.folder / "study.json").read_bytes()
    (done,) = submit("pets", tmp_path / "records", tmp_path / "canary-runs")
    text = done.bundle.read_text(encoding="utf-8")
    assert "canary" not in text
    assert str(tmp_path) not in text
    assert "cat/0.png" in text or "cat/1.png" in text


def test_a_run_is_named_by_its_study_or_with_its_number(tiny_run):
    runs = tiny_run.parent
    for name in ("tiny", "tiny/0", str(tiny_run), f"{tiny_run}/0"):
        assert [(path.name, number) for path, number in find_runs(name, runs)] == [("tiny", 0)]
    with pytest.raises(UsageError, match="no final training of trial 7") as caught:
        find_runs("tiny/7", runs)
    assert caught.value.why == "there are those of trial 0"
    with pytest.raises(UnknownNameError, match="did you mean 'tiny'"):
        find_runs("tiney/0", runs)


def test_a_study_without_finalists_has_no_bundle(own):
    shutil.rmtree(own / "finals")
    with pytest.raises(UsageError, match="has no final training"):
        submit("tiny", own.parent / "records", own.parent)


@pytest.mark.parametrize("harm", ["manifest", "no manifest", "predictions", "no predictions"])
def test_evidence_that_is_missing_or_another_s_makes_no_bundle(own, harm, tmp_path):
    manifest, predictions = own / "manifest.json", own / "finals/0000-seed1/predictions.safetensors"
    if harm == "manifest":
        manifest.write_text(manifest.read_text(encoding="utf-8").replace("test/000", "test/00x"))
    elif harm == "no manifest":
        manifest.unlink()
    elif harm == "predictions":
        shutil.copy(own / "finals/0000-seed2/predictions.safetensors", predictions)
    else:
        predictions.unlink()
    with pytest.raises(StorageError):
        submit("tiny", tmp_path / "records", own.parent)
    assert not (tmp_path / "records").exists()


def test_packed_answers_take_what_they_hold(bundle):
    packed = bundle.answers[0]["test"]
    for harmed in (
        dataclasses.replace(packed, k=0),
        dataclasses.replace(packed, k=5),
        dataclasses.replace(packed, classes=packed.classes[:-3]),
        dataclasses.replace(packed, scores="é"),
        PackedAnswers(classes="", scores="", k=3),
    ):
        with pytest.raises(ValueError, match=r"answers|classes|reshape|ASCII|cannot|buffer"):
            harmed.unpack()


def test_the_command_prints_what_it_wrote_and_says_what_is_in_it(harness_cli, tiny_run, tmp_path):
    to = tmp_path / "records"
    code, out, err = harness_cli("leaderboard", "submit", "tiny", "--to", to, "--runs", tiny_run.parent)
    assert code == 0, err
    assert [str(path) for path in bundle_files(to)] == out.split()
    assert "names, classes and hashes of the images" in err
