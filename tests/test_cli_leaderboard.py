import csv
import io
import json
import subprocess
import sys

import pytest
from records_factory import make_record, write_runs

from harness.cli import main


@pytest.fixture
def runs(tmp_path):
    records = [make_record(number=n, f1=0.8 + n / 100, lr=1e-4 * (n + 1)) for n in range(3)]
    other = make_record(study="leafy", dataset="beans", backbone="test_vit", init="scratch", f1=0.4)
    return write_runs(tmp_path, *records, make_record(number=3, state="failed"), other)


@pytest.fixture
def harness(capsys, monkeypatch):
    """Run the command line: exit code, stdout, stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "path", [*sys.path])
        with pytest.raises(SystemExit) as ended:
            main(["leaderboard", "show", *map(str, arguments)])
        streams = capsys.readouterr()
        return ended.value.code, streams.out, streams.err

    return run


def test_show_prints_a_table_for_each_data_set(harness, runs):
    code, out, err = harness("--runs", runs)
    assert (code, err) == (0, "")
    assert "beans · macro-F1 on val" in out
    assert "4 trials: 3 complete, 1 failed" in out
    assert out.index("beans") < out.index("trashnet")


def test_the_runs_folder_comes_from_the_environment(harness, runs, monkeypatch):
    monkeypatch.setenv("HARNESS_RUNS", str(runs))
    assert "trashnet" in harness()[1]


def test_json_is_a_document_on_stdout_alone(harness, runs):
    for flags in (["--json"], ["--format", "json"], ["--json", "--format", "json"]):
        code, out, err = harness("--runs", runs, *flags)
        document = json.loads(out)
        assert (code, err) == (0, "")
        assert document["schema"] == "harness.leaderboard/1"
        assert [board["dataset"] for board in document["leaderboards"]] == ["beans", "trashnet"]


def test_json_and_another_format_exclude_each_other(harness, runs):
    code, out, err = harness("--runs", runs, "--json", "--format", "csv")
    assert (code, out) == (2, "")
    assert "exclude each other" in err


def test_csv_is_one_table_of_all_boards(harness, runs):
    rows = list(csv.DictReader(io.StringIO(harness("--runs", runs, "--format", "csv")[1])))
    assert [(row["dataset"], row["rank"]) for row in rows] == [
        ("beans", "1"),
        ("trashnet", "1"),
        ("trashnet", "2"),
        ("trashnet", "3"),
    ]


def test_markdown_is_for_pasting(harness, runs):
    assert "| 1 | test_vit |" in harness("--runs", runs, "--format", "md")[1]


def test_data_sets_and_studies_limit_what_is_shown(harness, runs):
    assert "trashnet" not in harness("--runs", runs, "-d", "beans")[1]
    assert "trashnet" not in harness("--runs", runs, "leafy")[1]
    both = harness("--runs", runs, "-d", "trashnet", "-d", "beans", "-d", "trashnet")[1]
    assert both.count("trashnet ·") == both.count("beans ·") == 1


def test_metric_by_and_split_are_passed_on(harness, runs):
    out = harness("--runs", runs, "--metric", "accuracy", "--by", "backbone", "-d", "trashnet", "--json")[1]
    (board,) = json.loads(out)["leaderboards"]
    assert (board["metric"], board["by"], len(board["rows"])) == ("accuracy", "backbone", 1)
    code, out, err = harness("--runs", runs, "--split", "test")
    assert (code, out) == (0, "")
    assert "nothing to rank for trashnet: 3 complete trainings, none with test scores" in err


def test_an_unknown_data_set_names_the_nearest(harness, runs):
    code, out, err = harness("--runs", runs, "-d", "bean")
    assert (code, out) == (2, "")
    assert "did you mean 'beans'?" in err


def test_an_unknown_study_names_the_nearest(harness, runs):
    code, out, err = harness("--runs", runs, "leavy")
    assert (code, out) == (2, "")
    assert "did you mean 'leafy'?" in err


def test_a_study_without_records_is_known(harness, runs):
    (runs / "begun").mkdir()
    (runs / "begun/study.json").write_text("{}", encoding="utf-8")
    code, out, err = harness("--runs", runs, "begun")
    assert (code, out) == (0, "")
    assert "no records" in err


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], ""),
        (["--format", "md"], ""),
        (["--json"], '{\n  "schema": "harness.leaderboard/1",\n  "leaderboards": []\n}\n'),
    ],
)
def test_no_records_is_no_error(harness, tmp_path, flags, expected):
    for folder, what in ((tmp_path, "no records"), (tmp_path / "none", "no such folder")):
        code, out, err = harness("--runs", folder, "-d", "beans", *flags)
        assert (code, out) == (0, expected)
        assert what in err
        assert "harness study run" in err


def test_no_records_as_csv_is_a_header(harness, tmp_path):
    assert harness("--runs", tmp_path, "--format", "csv")[1].startswith("dataset,split,protocol,metric,rank,")


def test_a_study_whose_trials_all_failed_is_named(harness, tmp_path):
    write_runs(tmp_path, make_record(state="failed"))
    code, out, err = harness("--runs", tmp_path)
    assert (code, out) == (0, "")
    assert "nothing to rank for trashnet: 0 complete trainings" in err


def test_damaged_records_are_warnings(harness, runs):
    damaged = runs / "demo/trials/0002/record.json"
    damaged.write_text(damaged.read_text(encoding="utf-8").replace("0.82", "0.99"), encoding="utf-8")
    code, out, err = harness("--runs", runs, "-d", "trashnet", "--json")
    assert code == 0
    assert [row["number"] for row in json.loads(out)["leaderboards"][0]["rows"]] == [1, 0]
    assert f"warning: left out {damaged}" in err
    assert "damaged or edited" in err


def test_a_hostile_name_does_not_reach_the_terminal(harness, tmp_path):
    failed = make_record(number=1, state="failed", dataset="\x1bz")
    write_runs(tmp_path, make_record(dataset="\x1b[2Jx", backbone="\u202ey"), failed)
    _, out, err = harness("--runs", tmp_path)
    assert "\x1b" not in out + err
    assert "\u202e" not in out
    assert "x" in out
    assert "z" in err


def test_stdout_without_unicode_is_no_error(runs, monkeypatch):
    write_runs(runs, make_record(study="foreign", dataset="caf\u00e9"))
    for form in ("table", "md", "csv", "json"):
        stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setattr(sys, "path", [*sys.path])
        with pytest.raises(SystemExit) as ended:
            main(["leaderboard", "show", "--runs", str(runs), "--format", form])
        stdout.flush()
        assert ended.value.code == 0
        assert stdout.buffer.getvalue().isascii()


def test_showing_imports_nothing_heavy(runs):
    code = (
        "import sys\n"
        "from harness.cli import main\n"
        "try:\n"
        f"    main(['leaderboard', 'show', '--runs', {str(runs)!r}])\n"
        "except SystemExit as ended:\n"
        "    assert ended.code == 0\n"
        "heavy = {'torch', 'pandas', 'numpy', 'optuna', 'pydantic', 'timm', 'pluggy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
