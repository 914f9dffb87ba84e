import dataclasses

from bundles_factory import make_bundle, make_failed

from harness.leaderboard.bundle import write_bundle
from harness.leaderboard.crosscheck import find_repeated
from harness.leaderboard.publish import publish

SMALL = {"classes": ("ants", "bees"), "n": 20, "seeds": (1,), "epochs": 2}


def test_a_run_that_grew_is_on_the_board_once(tmp_path, harness_cli):
    small = make_bundle(**{**SMALL, "seeds": (1, 2)}, dataset="x")
    part = dataclasses.replace(small, records=small.records[:1], answers=small.answers[:1])
    later = dataclasses.replace(small, trials={"complete": 40})
    failed = make_failed(part, 2)
    whole = make_failed(later, 3)
    records = tmp_path / "records"
    files = {
        name: write_bundle(records, one).relative_to(records).as_posix()
        for name, one in (("part", part), ("small", small), ("later", later), ("failed", failed))
    }
    made = publish(records)
    assert [row.source for board in made.boards for row in board.rows] == [later.digest]
    assert (made.runs, list(made.rejected)) == (1, [])
    reasons = {one.file: one.reason for one in made.repeated}
    assert reasons == {
        files[name]: f"its trainings are all in {files['later']}" for name in files if name != "later"
    }
    write_bundle(records, whole)
    assert [row.source for board in publish(records).boards for row in board.rows] == [whole.digest]
    code, _, err = harness_cli("leaderboard", "publish", "--records", records, "--to", tmp_path)
    assert code == 0
    assert f"counts once {files['part']}: its trainings are all in x/{whole.digest[:16]}.json" in err


def test_of_the_same_trainings_the_bundle_that_was_re_run_counts(tmp_path):
    one = make_bundle(**SMALL, dataset="x")
    other = dataclasses.replace(one, trials={"complete": 40})
    for tiers, counts in ((("re-run", "recomputed"), one), (("recomputed", "recomputed"), other)):
        bundles = {bundle.digest: (bundle, tier) for bundle, tier in zip((one, other), tiers, strict=True)}
        (repeated,) = find_repeated(bundles).items()
        assert repeated[1] == counts.digest


def test_what_was_less_checked_takes_no_place(tmp_path):
    original = make_bundle(**SMALL, dataset="x")
    bundles = {one.digest: one for one in (original, make_failed(original, 2))}
    (first, second) = bundles
    tiers = {first: "re-run", second: "recomputed"}
    assert find_repeated({name: (one, tiers[name]) for name, one in bundles.items()}) == {}
    assert find_repeated({name: (one, "recomputed") for name, one in bundles.items()}) == {first: second}


def counting(bundle, train):
    """Return the bundle with other counts of the training images."""
    records = tuple(
        dataclasses.replace(
            record,
            dataset=dataclasses.replace(record.dataset, counts={**record.dataset.counts, "train": train}),
        )
        for record in bundle.records
    )
    return dataclasses.replace(bundle, records=records)


def test_counts_of_training_images_that_others_contradict_are_left_out(tmp_path):
    honest = [make_bundle(**SMALL, dataset="x", draw=draw, backbone=f"net-{draw}") for draw in range(2)]
    forged = counting(make_bundle(**SMALL, dataset="x", draw=7, backbone="zzz"), (0, 99))
    paths = [write_bundle(tmp_path, bundle) for bundle in (*honest, forged)]
    made = publish(tmp_path)
    (rejected,) = made.rejected
    assert rejected.file == f"x/{paths[2].name}"
    assert "counts the training images otherwise than most bundles of its protocol" in rejected.reason
    ((board),) = made.boards
    assert (made.runs, board.counts["train"], board.floor.label) == (2, 21, "ants")
    paths[1].unlink()
    made = publish(tmp_path)
    assert made.runs == 0
    assert {"otherwise than as many other bundles" in one.reason for one in made.rejected} == {True}
