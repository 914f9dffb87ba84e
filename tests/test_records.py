import dataclasses
import json
import os

import pytest
from records_factory import make_config, make_record, make_scores, write_runs

from harness.documents import canonical, digest, write_atomically
from harness.errors import StorageError
from harness.records import TrialRecord, read_record, read_records, study_folders, write_record


def rewrite(path, change):
    """Change a record and give it the hash that belongs to the change."""
    body = json.loads(path.read_text(encoding="utf-8"))
    del body["sha256"]
    change(body)
    path.write_text(canonical({**body, "sha256": digest(body)}), encoding="utf-8")


@pytest.mark.parametrize(
    "record",
    [
        make_record(),
        make_record(kind="final", number=3, seed=7),
        make_record(state="failed", number=12),
        make_record(state="pruned", init="scratch"),
        make_record(dataset="café \u202e\x1b[2J", backbone="日本"),
    ],
    ids=["search", "final", "failed", "pruned", "foreign"],
)
def test_a_record_comes_back_as_it_was(tmp_path, record):
    assert read_record(write_record(tmp_path, record)) == record


def test_every_nested_type_is_restored(tmp_path):
    record = read_record(write_record(tmp_path, make_record(kind="final")))

    def check(original, restored):
        assert type(restored) is type(original)
        if dataclasses.is_dataclass(original):
            for item in dataclasses.fields(original):
                check(getattr(original, item.name), getattr(restored, item.name))
        elif isinstance(original, dict):
            assert original.keys() == restored.keys()
            for name in original:
                check(original[name], restored[name])
        elif isinstance(original, tuple):
            for one, other in zip(original, restored, strict=True):
                check(one, other)

    check(make_record(kind="final"), record)


def test_a_record_lies_where_its_kind_says(tmp_path):
    search = write_record(tmp_path, make_record(number=7))
    final = write_record(tmp_path, make_record(kind="final", number=7, seed=2))
    assert search == tmp_path / "trials/0007/record.json"
    assert final == tmp_path / "finals/0007-seed2/record.json"


def test_one_edited_byte_is_found(tmp_path):
    path = write_record(tmp_path, make_record(f1=0.8125))
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("0.8125", "0.8126", 1), encoding="utf-8")
    with pytest.raises(StorageError, match="damaged or edited") as caught:
        read_record(path)
    assert caught.value.where == str(path)


def test_every_byte_of_a_record_counts(tmp_path):
    path = write_record(tmp_path, make_record())
    content = path.read_bytes()
    # The last byte is the line's end, which says nothing.
    for position in range(0, len(content) - 1, 97):
        other = b"5" if content[position : position + 1] != b"5" else b"6"
        path.write_bytes(content[:position] + other + content[position + 1 :])
        with pytest.raises(StorageError):
            read_record(path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"3", b"{}", b"\xff\xfe", b'{"schema": "harness.record/1"}']
)
def test_what_is_no_record_is_a_storage_error(tmp_path, content):
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(StorageError):
        read_record(path)


def test_a_missing_record_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="cannot be read"):
        read_record(tmp_path / "record.json")


def test_a_newer_schema_says_to_upgrade(tmp_path):
    path = write_record(tmp_path, make_record())
    rewrite(path, lambda body: body.update(schema="harness.record/2"))
    with pytest.raises(StorageError, match=r"harness\.record/2") as caught:
        read_record(path)
    assert "upgrade" in caught.value.fixes[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.pop("config"),
        lambda body: body.update(surprise=1),
        lambda body: body.update(config=[]),
        lambda body: body["scores"]["val"].update(f1_interval=[0.1]),
        lambda body: body.update(curve=[{"epoch": 1}]),
    ],
    ids=["missing", "unknown", "list", "interval", "epoch"],
)
def test_a_record_of_another_form_is_a_storage_error_even_with_a_right_hash(tmp_path, change):
    path = write_record(tmp_path, make_record())
    rewrite(path, change)
    with pytest.raises(StorageError, match="form of its schema"):
        read_record(path)


def test_nothing_unfinished_is_left_behind(tmp_path):
    write_record(tmp_path, make_record())
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["record.json"]


def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    write_atomically(path, "old")

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match="cannot be written") as caught:
        write_atomically(path, "new")
    assert "No space left" in caught.value.why
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_of_a_file_do_not_share_a_part(tmp_path, monkeypatch):
    path = tmp_path / "cache.json"
    fsync, writers = os.fsync, []

    def write_another(descriptor):
        if not writers:
            writers.append(1)
            write_atomically(path, "of another process")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", write_another)
    write_atomically(path, "of this one, which is longer")
    assert path.read_text(encoding="utf-8") == "of this one, which is longer"
    assert list(tmp_path.iterdir()) == [path]


def test_a_score_that_is_no_number_is_not_written(tmp_path):
    record = make_record(scores={"val": dataclasses.replace(make_scores(), f1=float("nan"))})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_record(tmp_path, record)
    assert not list(tmp_path.rglob("record.json"))


def test_canonical_text_does_not_depend_on_order():
    assert canonical({"b": 1, "a": (1, 2)}) == '{"a":[1,2],"b":1}'
    assert digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})


def test_configurations_that_differ_by_seed_only_are_one_candidate():
    assert make_config(seed=1).digest() == make_config(seed=2).digest()
    for change in ({"lr": 1e-3}, {"loss": "focal"}, {"init": "scratch"}, {"image_size": 96}):
        assert make_config(**change).digest() != make_config().digest()


def test_records_of_a_study_come_in_order_trials_first(tmp_path):
    for record in (make_record(kind="final", number=1, seed=1), make_record(number=2), make_record(number=0)):
        write_record(tmp_path, record)
    found = [(record.kind, record.number) for record in read_records(tmp_path)]
    assert found == [("search", 0), ("search", 2), ("final", 1)]


def test_a_study_is_a_folder_with_a_study_file(tmp_path):
    write_runs(tmp_path, make_record(study="b"), make_record(study="a"))
    (tmp_path / "other").mkdir()
    assert [folder.name for folder in study_folders(tmp_path)] == ["a", "b"]


def test_a_record_names_its_schema():
    assert make_record().schema == "harness.record/1"
    assert {item.name for item in dataclasses.fields(TrialRecord)} >= {"config", "scores", "protocol"}


def test_records_come_in_the_order_of_their_numbers_however_many_digits_these_have(tmp_path):
    for number in (10_000, 9_999, 2):
        write_record(tmp_path, make_record(number=number))
    assert [record.number for record in read_records(tmp_path)] == [2, 9_999, 10_000]
