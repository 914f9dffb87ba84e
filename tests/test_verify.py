from __future__ import annotations

import base64
import dataclasses
import itertools
import json
import zlib

import numpy as np
import pytest
from bundles_factory import make_failed

from harness import metrics
from harness.documents import canonical, digest, from_json
from harness.leaderboard.bundle import Bundle, read_bundle, write_bundle
from harness.leaderboard.publish import publish
from harness.leaderboard.rerun import (
    RerunRecord,
    Retraining,
    compare,
    join_reruns,
    record_digest,
    write_rerun,
)
from harness.leaderboard.submit import make_bundle
from harness.leaderboard.verify import bundle_entries, verify, verify_file
from harness.records import Protocol
from harness.samples import Samples, protocol_digest, read_samples, split_digest


@pytest.fixture(scope="session")
def bundle(tiny_run):
    return make_bundle(tiny_run, 0)


@pytest.fixture
def body(bundle):
    """The bundle as JSON, to be tampered with."""
    return json.loads(canonical(bundle))


def sign(body):
    """Give a tampered bundle the hash that belongs to it."""
    return canonical({**body, "sha256": digest(body)}) + "\n"


def judge(text, tmp_path):
    path = tmp_path / "records" / "dots" / "bundle.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return verify_file(path)[1]


def pack(values, dtype):
    return base64.b64encode(zlib.compress(np.asarray(values, dtype=dtype).tobytes())).decode()


def answers_of(body, split="test"):
    packed = body["answers"][0][split]
    raw = {
        name: np.frombuffer(zlib.decompress(base64.b64decode(packed[name])), dtype=dtype)
        .reshape(-1, 3)
        .copy()
        for name, dtype in (("classes", "<u2"), ("scores", "<f2"))
    }
    return packed, raw


def sign_protocol(body):
    """Make the digests of the protocol those of the images, in every record."""
    for record in body["records"]:
        protocol = record["protocol"]
        for split, part in body["samples"].items():
            samples = from_json(Samples, part)
            protocol["splits"][split] = split_digest(record["dataset"]["classes"], samples)
        protocol["digest"] = protocol_digest(from_json(Protocol, protocol))


def swap_labels(body):
    """Exchange the labels of two images of different classes that were answered differently."""
    labels = body["samples"]["test"]["labels"]
    chosen = answers_of(body)[1]["classes"][:, 0]
    one, other = next(
        pair
        for pair in itertools.combinations(range(len(labels)), 2)
        if len({labels[place] for place in pair}) == len({chosen[place] for place in pair}) == 2
    )
    labels[one], labels[other] = labels[other], labels[one]


def score(body, split="test"):
    """Make the scores of each record those of its answers."""
    for record, answers in zip(body["records"], body["answers"], strict=True):
        values = np.frombuffer(zlib.decompress(base64.b64decode(answers[split]["classes"])), dtype="<u2")
        chosen = values.reshape(-1, 3)[:, 0].astype(np.int64)
        scores = metrics.evaluate(np.array(body["samples"][split]["labels"]), chosen, 3)
        record["scores"][split] = json.loads(canonical(dataclasses.asdict(scores)))


def edit(*path, to=None, by=None):
    """Return a change of one value: to another, or by a difference."""

    def change(body):
        for key in path[:-1]:
            body = body[key]
        body[path[-1]] = to if by is None else body[path[-1]] + by

    return change


def every_record(*path, to):
    def change(body):
        for number in range(len(body["records"])):
            edit("records", number, *path, to=to)(body)

    return change


def drop_image(body):
    for values in body["samples"]["test"].values():
        del values[0]


def swap_resigned(body):
    swap_labels(body)
    sign_protocol(body)


def replace_answers(column, value):
    def change(body):
        packed, raw = answers_of(body)
        raw[column][0] = value
        packed[column] = pack(raw[column], "<u2" if column == "classes" else "<f2")

    return change


def other_answer(body):
    packed, raw = answers_of(body)
    raw["classes"][0] = np.roll(raw["classes"][0], 1)
    packed["classes"] = pack(raw["classes"], "<u2")


def fewer_answers(body):
    packed, raw = answers_of(body)
    packed["classes"], packed["scores"] = pack(raw["classes"][1:], "<u2"), pack(raw["scores"][1:], "<f2")


def bomb(body):
    inflated = zlib.compressobj(9)
    chunk = bytes(2**24)
    text = b"".join(inflated.compress(chunk) for _ in range(20)) + inflated.flush()
    body["answers"][0]["test"]["classes"] = base64.b64encode(text).decode()


def cut_answers(body):
    body["answers"][0]["test"]["classes"] = body["answers"][0]["test"]["classes"][:-10]


FIRST = ("records", 0)
TAMPERED = {
    "f1 edited by 1e-4": (edit(*FIRST, "scores", "test", "f1", by=1e-4), "seed 1: test f1 is "),
    "accuracy edited by 1e-8": (edit(*FIRST, "scores", "test", "accuracy", by=1e-8), "test accuracy is "),
    "val accuracy": (edit(*FIRST, "scores", "val", "accuracy", by=-1e-4), "val accuracy is "),
    "second seed only": (edit("records", 1, "scores", "test", "recall", by=1e-4), "seed 2: test recall is "),
    "interval": (edit(*FIRST, "scores", "test", "f1_interval", 0, by=1e-4), "test f1 interval is "),
    "precision of a class": (
        edit(*FIRST, "scores", "test", "per_class", "precision", 1, by=1e-4),
        "test precision by class is ",
    ),
    "support": (edit(*FIRST, "scores", "test", "per_class", "support", 1, by=1), "test support by class is"),
    "confusion": (edit(*FIRST, "scores", "test", "confusion", 0, 0, by=1), "test confusion is "),
    "confusion of other size": (
        edit(*FIRST, "scores", "test", "confusion", to=[[12]]),
        "is not of 3 classes",
    ),
    "count of images": (edit(*FIRST, "scores", "test", "n", to=13), "test n is 13, its predictions give 12"),
    "swapped label": (swap_labels, "the manifest of test is not that of the protocol"),
    "swapped label, protocol forged": (swap_resigned, "its predictions give"),
    "label out of range": (edit("samples", "test", "labels", 0, to=3), "a label is none of its 3 classes"),
    "negative label": (edit("samples", "test", "labels", 0, to=-1), "a label is none of its 3 classes"),
    "image left out": (drop_image, "the manifest of test is not that of the protocol"),
    "image renamed": (edit("samples", "val", "ids", 0, to="val/!"), "the manifest of val is not that"),
    "image twice": (edit("samples", "val", "ids", 1, to="val/000"), "or one is there twice"),
    "image changed": (edit("samples", "val", "sha256", 0, to="0" * 64), "the manifest of val is not that"),
    "image without hash": (edit("samples", "val", "sha256", 0, to="x"), "an image's hash is no SHA-256"),
    "protocol forged": (every_record("protocol", "digest", to="0" * 64), "the protocol's digest 00000000"),
    "another decoding": (every_record("protocol", "decode", to="other/1"), "is not that of its parts"),
    "another metric": (every_record("protocol", "metric", to="mine/9"), "cannot be recomputed"),
    "class renamed": (every_record("dataset", "classes", 0, to="zebra"), "the classes are not those of"),
    "counts edited": (
        every_record("dataset", "counts", "test", 0, to=99),
        "the counts of test in the record",
    ),
    "a training class too many": (
        every_record("dataset", "counts", "train", to=[1, 1, 1, 9]),
        "the counts of train in the record are not one for each of 3 classes",
    ),
    "negative training images": (
        every_record("dataset", "counts", "train", to=[1, 1, -1]),
        "the counts of train in the record are not one for each of 3 classes",
    ),
    "no counts of train": (
        lambda body: [record["dataset"]["counts"].pop("train") for record in body["records"]],
        "its counts are those of test, val, not of train, val and test",
    ),
    "another answer": (other_answer, "its predictions give"),
    "answer of no class": (replace_answers("classes", [65535, 1, 0]), "a class is none of 3"),
    "answer twice": (replace_answers("classes", [1, 1, 0]), "an answer names a class twice"),
    "NaN score": (replace_answers("scores", [np.nan, 0, 0]), "a score is not finite"),
    "scores above 1": (replace_answers("scores", [0.9, 0.8, 0.7]), "scores are no probabilities"),
    "scores rise": (replace_answers("scores", [0.2, 0.3, 0.5]), "scores do not decrease"),
    "scores lack a part": (replace_answers("scores", [0.3, 0.2, 0.1]), "do not sum to 1"),
    "k of nothing": (edit("answers", 0, "test", "k", to=0), "0 classes of each answer, there must be 3"),
    "fewer answers": (fewer_answers, "11 answers for 12 images"),
    "damaged answers": (cut_answers, "test predictions: answers are"),
    "zip bomb": (bomb, "answers are cut short, or larger than any"),
    "no predictions for test": (
        lambda body: body["answers"][1].pop("test"),
        "seed 2: no predictions for test",
    ),
    "no images of test": (lambda body: body["samples"].pop("test"), "not of val and test"),
    "a seed twice": (edit("records", 1, "config", "seed", to=1), "its records repeat a seed: 1, 1"),
    "another configuration": (edit("records", 1, "config", "lr", to=0.5), "its configuration is not that of"),
    "another study": (edit("records", 1, "study", to="other"), "its study is not that of seed 1"),
    "a trial of the search": (edit(*FIRST, "kind", to="search"), "not of a complete final one"),
    "a failed training": (edit(*FIRST, "state", to="failed"), "not of a complete final one"),
    "weights without hash": (edit(*FIRST, "model", to=""), "the hash of its weights is no SHA-256"),
    "predictions without hash": (edit(*FIRST, "predictions", to={}), "hash of its predictions is no SHA-256"),
    "said to be pretrained": (
        edit(*FIRST, "weights", "init", to="pretrained"),
        "its configuration says scratch",
    ),
    "weights of nobody": (edit(*FIRST, "weights", to=None), "does not say which weights it started from"),
    "negative time": (edit(*FIRST, "cost", "seconds", to=-1.0), "its cost is no cost: seconds -1.0"),
    "more trains than is there": (edit(*FIRST, "cost", "params", to=1), "of 1 parameters train"),
    "no cost": (edit(*FIRST, "cost", to=None), "its cost is missing"),
    "curve edited": (edit(*FIRST, "curve", -1, "val_f1", by=1e-4), "its learning curve ends at val f1"),
    "curve cut": (lambda body: body["records"][0]["curve"].pop(), "its learning curve has 2 epochs"),
    "endless epochs": (every_record("config", "epochs", to=10**15), "its learning curve has 3 epochs"),
    "no time": (edit(*FIRST, "created", to="yesterday"), "which is no time"),
    "more trials than none": (edit("trials", "complete", to=-1), "a negative number of trials"),
    "a word for a number": (
        edit(*FIRST, "cost", "seconds", to="1"),
        "records.0.cost.seconds is of another type",
    ),
    "a word for labels": (
        edit("samples", "test", "labels", to="012"),
        "samples.test.labels is of another type",
    ),
    "a number too large": (edit(*FIRST, "scores", "test", "n", to=10**400), "n is of another type, or too"),
    "a share too large": (every_record("config", "lr", to=10**400), "lr is of another type, or too large"),
    "a cell too large": (
        edit(*FIRST, "scores", "test", "confusion", 0, 0, to=2**64),
        "confusion.0 is of another type, or too large",
    ),
    "endless time": (edit(*FIRST, "cost", "seconds", to=1e308), "its cost is no cost: seconds 1e+308"),
    "curve above 1": (
        edit(*FIRST, "curve", 0, "val_f1", to=1e308),
        "epoch 1 of its learning curve cannot be",
    ),
    "freeze depth": (every_record("config", "freeze_depth", to=2), "cannot be: freeze_depth 2"),
    "no learning rate": (every_record("config", "lr", to=0.0), "its configuration cannot be: lr 0.0"),
    "negative decay": (every_record("config", "weight_decay", to=-0.1), "cannot be: weight_decay -0.1"),
    "no batch": (every_record("config", "batch_size", to=0), "its configuration cannot be: batch_size 0"),
    "negative number": (every_record("number", to=-1), "its trial has the number -1"),
    "another kind": (edit(*FIRST, "kind", to="best"), "records.0.kind is of another type"),
    "a new field": (edit("praise", to="high"), "has not the form of its schema"),
    "no record": (edit("records", to=[]), "a bundle without records"),
    "no predictions": (edit("answers", to=[]), "a bundle without predictions"),
    "predictions of one seed": (lambda body: body["answers"].pop(), "2 records with 1 sets of answers"),
    "newer schema": (
        edit("schema", to="harness.bundle/2"),
        "has schema 'harness.bundle/2', this version reads",
    ),
}
"""Bundles whose outer hash is right, and the reason for which each is rejected."""


def test_an_untouched_bundle_is_recomputed(body, tmp_path):
    verdict = judge(sign(body), tmp_path)
    assert (verdict.tier, verdict.problems, verdict.notes) == ("recomputed", (), ())


@pytest.mark.parametrize("name", TAMPERED)
def test_a_tampered_bundle_is_rejected_for_its_own_reason(body, tmp_path, name):
    change, reason = TAMPERED[name]
    change(body)
    verdict = judge(sign(body), tmp_path)
    assert any(reason in problem for problem in verdict.problems), verdict.problems
    assert verdict.tier == "self-reported"
    assert len("".join(verdict.problems)) < 3000


def edited_without_signing(text):
    body = json.loads(text)
    body["records"][0]["scores"]["test"]["f1"] += 1e-4
    return canonical(body) + "\n"


FILES = {
    "f1 edited by 1e-4": (edited_without_signing, "does not match its own SHA-256"),
    "forged hash": (
        lambda text: canonical({**json.loads(text), "sha256": "0" * 64}) + "\n",
        "does not match its own SHA-256",
    ),
    "truncated": (lambda text: text[: len(text) // 2], "cannot be read: it is damaged"),
    "empty": (lambda text: "", "cannot be read: it is damaged"),
    "a list": (lambda text: "[]", "cannot be read: it is damaged"),
    "nested": (lambda text: "[" * 100_000, "cannot be read: it is damaged"),
    "no text": (lambda text: "\udcff", "cannot be read: it is damaged"),
    "NaN": (lambda text: text.replace('"k":3', '"k":NaN', 1), "holds what is no JSON"),
    "infinity": (lambda text: text.replace('"k":3', '"k":1e999', 1), "holds what is no JSON"),
    "a name twice": (
        lambda text: text.replace('"k":3', '"k":1,"k":3', 1),
        "not written in the canonical form",
    ),
    "spaces": (lambda text: text.replace(",", ", ", 1), "not written in the canonical form"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_a_verdict(body, tmp_path, name):
    change, reason = FILES[name]
    text = change(sign(body))
    path = tmp_path / "bundle.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    found, verdict = verify_file(path)
    assert found is None
    assert verdict.tier == "self-reported"
    assert reason in verdict.problems[0]


def test_every_cut_of_a_file_is_a_verdict(body, tmp_path):
    text = sign(body)
    path = tmp_path / "bundle.json"
    for end in range(0, len(text) - 1, 997):
        path.write_text(text[:end], encoding="utf-8")
        assert verify_file(path)[1].problems


def test_a_missing_or_giant_file_is_a_verdict(tmp_path, monkeypatch, bundle):
    assert "No such file" in verify_file(tmp_path / "none.json")[1].problems[0]
    path = write_bundle(tmp_path, bundle)
    monkeypatch.setattr("harness.leaderboard.bundle._LARGEST_FILE", 1000)
    assert "too large" in verify_file(path)[1].problems[0]


def test_a_forgery_that_hangs_together_is_found_beside_the_images_alone(body, tiny_run, tmp_path):
    """Labels, protocol and scores changed as one: only who has the images knows better."""
    before = list(body["samples"]["test"]["labels"])
    swap_resigned(body)
    score(body)
    pairs = zip(before, body["samples"]["test"]["labels"], strict=True)
    place, (mine, theirs) = next((place, pair) for place, pair in enumerate(pairs) if len(set(pair)) == 2)
    text = sign(body)
    assert judge(text, tmp_path).problems == ()
    path = tmp_path / "records" / "dots" / "bundle.json"
    verdict = verify_file(path, read_samples(tiny_run))[1]
    (problem,) = verdict.problems
    assert problem == f"test: image 'test/{place:03d}' is 'class-{theirs}' there, 'class-{mine}' here"


def test_labels_of_one_s_own_decide(bundle, tiny_run):
    own = read_samples(tiny_run)
    assert verify(bundle, own).problems == ()
    split = own.splits["test"]
    other = dataclasses.replace(split, sha256=("f" * 64, *split.sha256[1:]))
    less = dataclasses.replace(split, ids=("elsewhere", *split.ids[1:]))
    train = own.splits["train"]
    grown = dataclasses.replace(train, labels=(*train.labels[:-1], 0))
    records = tuple(
        dataclasses.replace(record, dataset=dataclasses.replace(record.dataset, counts=counts))
        for record in bundle.records
        for counts in [{**record.dataset.counts, "train": (1, 1, 1)}]
    )
    forged = dataclasses.replace(bundle, records=records)
    assert verify(forged).problems == ()
    said = "the counts of train in the record are not those of the images here"
    assert verify(forged, own).problems == (said,)
    for splits, reason in (
        ({"test": other}, "test: image 'test/000' has another content here"),
        ({"test": less}, "test: there is no image 'test/000' here"),
        ({"train": grown}, "train: the other images here are not those that it was trained on"),
    ):
        changed = dataclasses.replace(own, splits={**own.splits, **splits})
        assert verify(bundle, changed).problems == (reason,)
    fewer = dataclasses.replace(own, classes=own.classes[:2])
    assert "its classes are not those of the images here" in verify(bundle, fewer).problems[0]
    # In which splits they lie here is a matter of rules that the bundle need not share.
    mixed = dataclasses.replace(
        own, splits={"val": own.splits["test"], "test": own.splits["val"], "x": train}
    )
    assert verify(bundle, mixed).problems == ()


def with_failed(bundle, **changes):
    """Add a training of another seed that failed."""
    (failed,) = make_failed(bundle, 9).failed
    config = dataclasses.replace(failed.config, **changes.pop("config", {}))
    return dataclasses.replace(bundle, failed=(dataclasses.replace(failed, config=config, **changes),))


def test_a_failed_training_travels_and_counts(bundle, tmp_path):
    added = with_failed(bundle)
    path = write_bundle(tmp_path, added)
    assert read_bundle(path) == added
    assert '"failed":[{' in path.read_text(encoding="utf-8")
    verdict = verify_file(path)[1]
    assert verdict.problems == ()
    assert [entry.record.state for entry in bundle_entries(added, verdict)] == ["complete"] * 2 + ["failed"]


def test_a_bundle_without_failed_trainings_says_nothing_of_them(bundle, body, tmp_path):
    assert "failed" not in json.loads(write_bundle(tmp_path, bundle).read_text(encoding="utf-8"))
    body["failed"] = []
    assert "not written in the canonical form" in judge(sign(body), tmp_path).problems[0]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"state": "complete"}, "seed 9: a record of a complete final training, not of a failed final one"),
        ({"config": {"seed": 1}}, "its records repeat a seed: 1, 2, 1"),
        ({"config": {"lr": 0.5}}, "seed 9: its configuration is not that of seed 1"),
        ({"study": "other"}, "seed 9: its study is not that of seed 1"),
        ({"number": 7}, "seed 9: its number is not that of seed 1"),
        ({"dataset": None}, "failed.0.dataset is of another type"),
        ({"scores": "those of another"}, "seed 9: it failed, and has scores"),
        ({"created": "yesterday"}, "seed 9: it was created at 'yesterday', which is no time"),
    ],
)
def test_a_failed_training_of_another_run_is_rejected(bundle, changes, reason):
    if "scores" in changes:
        changes = {"scores": bundle.records[0].scores}
    assert any(reason in problem for problem in verify(with_failed(bundle, **changes)).problems)


def test_entries_carry_source_tier_and_answers(bundle):
    entries = bundle_entries(bundle, verify(bundle))
    assert [entry.record.config.seed for entry in entries] == [1, 2]
    assert {entry.source for entry in entries} == {bundle.digest}
    for entry in entries:
        answers = entry.answers()
        assert set(answers) == {"val", "test"}
        hits = float((answers["test"].labels == answers["test"].chosen).mean())
        assert hits == entry.record.scores["test"].accuracy


def test_what_is_rejected_is_on_no_board(body, bundle, tmp_path):
    write_bundle(tmp_path / "records", bundle)
    edit(*FIRST, "scores", "test", "f1", by=1e-4)(body)
    write_bundle(tmp_path / "records", from_json(Bundle, body))
    publication = publish(tmp_path / "records")
    (board,) = publication.boards
    assert [row.source for row in board.rows] == [bundle.digest]
    (rejected,) = publication.rejected
    assert "test f1 is" in rejected.reason


def repeat(bundle, **changes):
    """Return the document of a rerun in which all came out again, but for the changes."""
    trainings = tuple(
        Retraining(
            record=record_digest(record),
            seed=record.config.seed,
            model=record.model,
            predictions=dict(record.predictions),
            answers=dict(answers),
            seconds=1.0,
            environment=dict(record.environment),
            packages=dict(record.packages),
            providers=dict(record.providers),
        )
        for record, answers in zip(bundle.records, bundle.answers, strict=True)
    )
    values = {
        "bundle": bundle.digest,
        "trainings": trainings,
        "outcome": "identical",
        "created": "2026-01-01",
    }
    return RerunRecord(**{**values, **changes})


def other_training(bundle, **changes):
    first, *others = repeat(bundle).trainings
    return (dataclasses.replace(first, **changes), *others)


def test_a_rerun_that_holds_lifts_a_bundle(bundle, tmp_path):
    path = write_bundle(tmp_path / "records", bundle)
    write_rerun(tmp_path / "reruns", repeat(bundle))
    verdict = verify_file(path)[1]
    assert (verdict.tier, verdict.problems, verdict.notes) == ("re-run", (), ())
    (board,) = publish(tmp_path / "records").boards
    assert [row.tier for row in board.rows] == ["re-run"]
    path = path.rename(tmp_path / "records" / path.name)
    assert verify_file(path)[1].tier == "re-run"
    (board,) = publish(tmp_path / "records").boards
    assert [row.tier for row in board.rows] == ["re-run"]


def test_a_rerun_that_does_not_hold_lifts_nothing(bundle):
    wrong = dict(zip(("val", "test"), [bundle.answers[1]["val"]] * 2, strict=True))
    for document, reason in (
        (dataclasses.replace(repeat(bundle), bundle="0" * 64), "it is of another bundle"),
        (repeat(bundle, trainings=()), "a rerun without trainings"),
        (repeat(bundle, trainings=repeat(bundle).trainings[:1]), "it lacks seed 2"),
        (repeat(bundle, trainings=other_training(bundle, record="0" * 64)), "repeats no record"),
        (
            repeat(bundle, trainings=other_training(bundle, model="0" * 64)),
            "it says 'identical', its answers say",
        ),
        (
            repeat(bundle, trainings=other_training(bundle, answers=wrong)),
            "it says 'identical', its answers say",
        ),
        (repeat(bundle, trainings=other_training(bundle, answers={})), "are missing or damaged"),
    ):
        verdict = verify(bundle, reruns=[document])
        assert verdict.tier == "recomputed"
        assert reason in verdict.notes[0]
    honest = repeat(bundle, trainings=other_training(bundle, answers=wrong), outcome="not reproduced")
    assert "the run was not reproduced" in verify(bundle, reruns=[honest]).notes[0]


def test_of_two_repetitions_the_later_counts(bundle):
    done = repeat(bundle)
    old = repeat(bundle, trainings=other_training(bundle, model="0" * 64), created="2020-01-01")
    assert join_reruns(bundle, [done, old]) == done
    new = dataclasses.replace(old, created="2027-01-01")
    joined = join_reruns(bundle, [new, done])
    assert (joined.outcome, joined.created) == ("within tolerance", "2027-01-01")


def test_tolerances_are_of_answers_on_cpus_and_of_mean_scores_on_a_gpu(bundle):
    other = other_training(bundle, model="0" * 64)
    assert compare(bundle, other).outcome == "within tolerance"
    wrong = {"test": bundle.answers[1]["val"]}
    moved = other_training(bundle, model="0" * 64, answers=wrong)
    assert compare(bundle, moved).outcome == "not reproduced"
    # The same labels in another order: as many are right, of other images.
    gpu = {**bundle.records[0].environment, "device": "some GPU"}
    assert compare(bundle, other_training(bundle, model="0" * 64, environment=gpu)).outcome == (
        "within tolerance"
    )


def test_a_comparison_names_what_is_not_as_it_was(bundle):
    first = repeat(bundle).trainings[0]
    environment = {**first.environment, "threads": "64", "torch": "9.9"}
    packages = {**first.packages, "numpy": "0" * 64}
    loss = dataclasses.replace(first.providers["loss"], sha256="ab" * 32)
    training = other_training(
        bundle, environment=environment, packages=packages, providers={**first.providers, "loss": loss}
    )
    lines = "\n".join(compare(bundle, training).trainings[0].environment)
    assert "threads: 1 there, 64 here" in lines
    assert "there, 9.9 here" in lines
    assert "numpy: the same version with other files" in lines
    assert "loss: transfer-harness" in lines


def test_the_command_exits_with_5_where_one_is_rejected(body, bundle, harness_cli, tmp_path):
    good = write_bundle(tmp_path / "records", bundle)
    code, out, err = harness_cli("leaderboard", "verify", tmp_path / "records")
    assert (code, out) == (0, f"recomputed  {good}\n")
    assert "1 checked: 1 hold, 0 rejected" in err
    bad = tmp_path / "bad.json"
    bad.write_text(sign(body)[:5000], encoding="utf-8")
    code, out, err = harness_cli("leaderboard", "verify", good, bad, "--json")
    rows = json.loads(out)["bundles"]
    assert code == 5
    assert [row["accepted"] for row in rows] == [True, False]
    assert "damaged" in rows[1]["problems"][0]
    code, out, _ = harness_cli("leaderboard", "verify", bad)
    assert (code, out.splitlines()[0]) == (5, f"REJECTED    {bad}")


def test_the_command_takes_labels_from_the_images_here(bundle, harness_cli, tmp_path):
    path = write_bundle(tmp_path / "records", bundle)
    command = ("-p", "tiny_plugin", "leaderboard", "verify", path)
    code, out, err = harness_cli(*command, "--data", "dots")
    assert (code, out) == (0, f"recomputed  {path}\n"), err
    code, _, err = harness_cli(*command, "--data", tmp_path / "nowhere/")
    assert code == 5
    assert "Traceback" not in err


def test_a_folder_without_bundles_is_an_error(harness_cli, tmp_path):
    code, _, err = harness_cli("leaderboard", "verify", tmp_path)
    assert code == 5
    assert "no bundle in this folder" in err


def test_reading_is_the_inverse_of_writing(bundle, tmp_path):
    assert read_bundle(write_bundle(tmp_path, bundle)).digest == bundle.digest
