from __future__ import annotations

import io

import pytest

from harness import StudyView
from harness_builtin.terminal import Terminal


@pytest.fixture
def view():
    return StudyView(name="s", dataset="d", metric="f1", trials=3, epochs=2, folder="f", finals=1)


@pytest.fixture
def records():
    from records_factory import make_record

    return [make_record(number=number, backbone=f"net-{number}") for number in range(2)]


def test_a_pipe_gets_one_plain_line_per_trial(view, records, capsys):
    terminal = Terminal()
    terminal.harness_study_started(study=view, records=())
    for record in records:
        terminal.harness_trial_started(study=view, trial=record.config, kind="search", number=record.number)
        terminal.harness_epoch_finished(
            study=view, trial=record.config, kind="search", number=record.number, epoch=1, value=0.5
        )
        terminal.harness_trial_finished(study=view, record=record)
    terminal.harness_study_finished(study=view, records=records)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("[1/3] macro-F1 ")
    assert "net-1" in lines[2]
    assert "\x1b" not in err


def test_a_terminal_gets_a_live_display_that_is_gone_at_the_end(view, records, monkeypatch):
    import rich.console

    screen = io.StringIO()
    real = rich.console.Console
    monkeypatch.setattr(
        rich.console,
        "Console",
        lambda **kwargs: real(
            file=screen, force_terminal=True, width=100, highlight=False, color_system=None
        ),
    )
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    terminal.harness_study_started(study=view, records=())
    terminal.harness_trial_started(study=view, trial=records[0].config, kind="search", number=0)
    terminal.harness_trial_finished(study=view, record=records[0])
    terminal._live.refresh()
    assert "trial 0: net-0" in screen.getvalue()
    assert "best by macro-F1 on val" in screen.getvalue()
    terminal.harness_study_finished(study=view, records=records)
    assert terminal._live is None


def test_a_resumed_study_remembers_its_best(view, records, capsys):
    terminal = Terminal()
    terminal.harness_study_started(study=view, records=records[:1])
    terminal.harness_trial_finished(study=view, record=records[1])
    err = capsys.readouterr().err
    assert "resumes at 1 of 3" in err
    best = max(record.scores["val"].f1 for record in records)
    assert f"[2/3] macro-F1 {records[1].scores['val'].f1:.4f} (best {best:.4f})" in err


@pytest.fixture
def probe():
    from harness import ProbeRecord

    return ProbeRecord(
        backbone="net[bold]", ridge_f1=0.61, ridge_accuracy=0.1, knn_f1=0.5, knn_accuracy=0.2, seconds=1.24
    )


def test_a_pipe_gets_a_line_per_probe(view, probe, capsys):
    terminal = Terminal()
    terminal.harness_study_started(study=view, records=())
    terminal.harness_probe_finished(study=view, probe=probe)
    terminal.harness_probe_finished(study=view, probe=type(probe).failed("other", "crash: signal SIGKILL"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == "[probe] macro-F1 ridge 0.6100 kNN 0.5000 net[bold] 1.2s"
    assert lines[2] == "[probe] none other: crash: signal SIGKILL"


def test_the_first_table_is_of_the_probes(view, records, probe):
    import io

    from rich.console import Console

    terminal = Terminal()
    terminal.harness_study_started(study=view, records=())
    terminal.harness_probe_finished(study=view, probe=probe)
    console = Console(file=io.StringIO(), width=80)
    console.print(terminal._table(view))
    assert "net[bold]" in console.file.getvalue()
    assert "61.0" in console.file.getvalue()
    terminal.harness_trial_finished(study=view, record=records[0])
    console.print(terminal._table(view))
    assert "best by macro-F1" in console.file.getvalue()


def test_a_study_within_a_budget_says_so_and_counts_without_an_end(records, capsys):
    view = StudyView(name="s", dataset="d", metric="f1", trials=None, epochs=2, folder="f", budget=5400)
    terminal = Terminal()
    terminal.harness_study_started(study=view, records=())
    terminal.harness_trial_finished(study=view, record=records[0])
    lines = capsys.readouterr().err.splitlines()
    assert "trials within 1h30m" in lines[0]
    assert lines[1].startswith("[1] macro-F1 ")
