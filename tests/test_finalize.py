from __future__ import annotations

import json

import pytest

from harness import UsageError, run_study
from harness.errors import NoTrialSucceeded
from harness.samples import read_samples, split_digest
from harness.search.study import finalize_study

NONE = {"top": 0}


def finals_of(result):
    return [
        (record.number, record.config.seed, record.predictions)
        for record in result.records
        if record.kind == "final"
    ]


def test_the_step_alone_gives_what_the_study_would_have_given(tiny, registry, tmp_path):
    whole = run_study(tiny(finalize={"top": 2, "seeds": 2}), registry=registry, runs=tmp_path / "whole")
    ended = run_study(tiny(finalize=NONE), registry=registry, runs=tmp_path / "ended")
    assert finals_of(ended) == []
    result = finalize_study(ended.folder, finalists=2, seeds=2, registry=registry)
    assert finals_of(result) == finals_of(whole)
    assert result.exit_code == 0


def test_the_step_is_done_from_any_folder(tiny, registry, tmp_path, monkeypatch):
    from PIL import Image

    for label, value in (("cat", 20), ("dog", 200)):
        for number in range(8):
            file = tmp_path / "photos" / label / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (24, 24), (value, 9 * number, 7)).save(file)
    monkeypatch.chdir(tmp_path)
    study = tiny(dataset="photos", trials=1, train={"epochs": 1}, finalize={"top": 0})
    result = run_study(study, registry=registry, runs=tmp_path / "runs")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    done = finalize_study(result.folder, finalists=1, registry=registry)
    assert [record.kind for record in done.records] == ["search", "final"]
    # Moved, and found again by the command that goes on with the study.
    (tmp_path / "photos").rename(elsewhere / "photos")
    run_study(study, registry=registry, runs=tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    assert len(finalize_study(result.folder, finalists=1, seeds=2, registry=registry).records) == 3


def test_what_was_tested_is_not_tested_again(tiny, registry, tmp_path):
    first = run_study(tiny(), registry=registry, runs=tmp_path)
    more = finalize_study(first.folder, seeds=3, registry=registry)
    finals = {record.config.seed: record.created for record in more.records if record.kind == "final"}
    assert sorted(finals) == [1, 2, 3]
    again = finalize_study(first.folder, seeds=3, registry=registry)
    assert {r.config.seed: r.created for r in again.records if r.kind == "final"} == finals


def test_no_label_of_a_test_image_is_in_the_study_before_the_step(tiny, registry, tmp_path):
    ended = run_study(tiny(finalize=NONE), registry=registry, runs=tmp_path)
    for path in ended.folder.rglob("*"):
        assert path.is_dir() or b"test/0" not in path.read_bytes(), path
    finalize_study(ended.folder, finalists=1, registry=registry)
    stored = read_samples(ended.folder)
    assert stored.splits["test"].ids == tuple(f"test/{number:03d}" for number in range(12))
    record = ended.records[0]
    for split, samples in stored.splits.items():
        assert split_digest(stored.classes, samples) == record.protocol.splits[split]


def test_no_finalist_is_an_error(tiny, registry, tmp_path):
    ended = run_study(tiny(finalize=NONE), registry=registry, runs=tmp_path)
    for numbers in ({}, {"finalists": 0}, {"finalists": 1, "seeds": 0}):
        with pytest.raises(UsageError, match="at least one finalist and one seed"):
            finalize_study(ended.folder, registry=registry, **numbers)


def test_another_data_set_is_refused(tiny, registry, tmp_path, monkeypatch):
    import tiny_plugin

    from harness import load_registry

    ended = run_study(tiny(trials=1, finalize=NONE), registry=registry, runs=tmp_path)
    monkeypatch.setattr(tiny_plugin, "SIZES", {"train": 24, "val": 12, "test": 15})
    with pytest.raises(UsageError, match="cannot be finalized") as caught:
        finalize_study(ended.folder, finalists=1, registry=load_registry(["tiny_plugin", "no:terminal"]))
    assert "its images, labels or splits changed" in caught.value.why


def test_a_study_without_a_complete_trial_has_no_finalists(tiny, registry, tmp_path):
    study = tiny(trials=1, space={"loss": "raising"}, finalize=NONE)
    with pytest.raises(NoTrialSucceeded):
        run_study(study, registry=registry, runs=tmp_path)
    (folder,) = (path.parent for path in tmp_path.glob("*/study.json"))
    with pytest.raises(NoTrialSucceeded):
        finalize_study(folder, finalists=1, registry=registry)


def test_the_command_prints_the_board(tiny, registry, harness_cli, tmp_path):
    ended = run_study(tiny(trials=1, finalize=NONE), registry=registry, runs=tmp_path / "runs")
    code, out, err = harness_cli("-p", "tiny_plugin", "study", "finalize", ended.name, "--finalists", 1)
    assert code == 0, err
    assert "on test" in out
    code, out, _ = harness_cli(
        "-p", "tiny_plugin", "study", "finalize", ended.name, "--finalists", "1", "--json"
    )
    assert (code, json.loads(out)["finals"]) == (0, 1)
