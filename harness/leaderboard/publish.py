"""Publish a leaderboard: from bundles alone to Markdown, CSV, JSON, LaTeX and one HTML page.

The same bundles give the same bytes, in whatever order and under whatever names they came, so published
files can be compared with what the bundles say now.
"""

from __future__ import annotations

import json
import multiprocessing
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from harness.documents import write_atomically
from harness.errors import StorageError
from harness.leaderboard.board import Leaderboard
from harness.leaderboard.bundle import Bundle, bundle_files
from harness.leaderboard.crosscheck import find_disputed, find_repeated
from harness.leaderboard.entry import Entry
from harness.leaderboard.latex import format_latex
from harness.leaderboard.page import render_page
from harness.leaderboard.panel import Shared, summarise_run
from harness.leaderboard.rank import rank
from harness.leaderboard.render import (
    escape_markdown,
    escape_paragraph,
    format_csv,
    format_json,
    format_markdown,
)
from harness.leaderboard.schema import json_schema
from harness.leaderboard.summary import Summary, summarise
from harness.leaderboard.verify import SURPRISES, Verdict, bundle_entries, verify_file
from harness.records import Metric
from harness.samples import Samples

SHARE = 20
"""Bundles that are worth a process of their own."""
SHOWN = 3
"""Problems of a rejected bundle that are listed."""
SCHEMA_FILE = "leaderboard.schema.json"
_BEFORE_TABLES = """\
# Leaderboard

How well pretrained image backbones fine-tune, data set by data set. Every row follows from a bundle under
`records/`: its configuration, its seeds and its predictions. [The columns](../docs/leaderboard.md).
`index.html` has every run with its curves and confusions; open it in a browser.
Made by `harness leaderboard publish`; do not edit.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A bundle that is not ranked."""

    file: str
    """Below the folder of the bundles."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """The files of a published leaderboard."""

    files: Mapping[str, str]
    """Content by name."""
    runs: int
    boards: Sequence[Leaderboard]
    rejected: Sequence[Rejected]
    repeated: Sequence[Rejected]
    """Their trainings are all in another bundle, which is ranked; that is no fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Verified:
    bundle: Bundle
    verdict: Verdict
    file: str
    entries: Sequence[Entry]


def publish(records: Path, *, jobs: int = 1) -> Publication:
    """Read, verify and rank all bundles below a folder, and write what is to be published of them.

    A bundle that is damaged, of another schema, fails its verification, or contradicts the others is left out
    and listed with the reason; a bundle whose trainings are all in another is named and not ranked.

    Args:
        records: The folder; bundles lie at any depth below it, their reruns in a folder `reruns` above them.
        jobs: Processes that verify.

    Raises:
        StorageError: There is no such folder, or no bundle in it.
    """
    paths = list(bundle_files(records))
    if not paths:
        raise StorageError(
            "there are no bundles to publish",
            where=str(records),
            why="no *.json below it" if records.is_dir() else "no such folder",
            fixes=[
                "name the folder of the bundles: --records DIR",
                f"make one: harness leaderboard submit STUDY --to {records}  (STUDY/NUMBER for one run)",
            ],
        )
    verified, rejected = _read(paths, records, jobs)
    repeats = find_repeated({name: (one.bundle, one.verdict.tier) for name, one in verified.items()})
    repeated = [
        Rejected(file=verified[name].file, reason=f"its trainings are all in {verified[other].file}")
        for name, other in sorted(repeats.items(), key=lambda pair: verified[pair[0]].file)
    ]
    verified = {name: one for name, one in verified.items() if name not in repeats}
    rejected += _take_out(verified, find_disputed({name: one.bundle for name, one in verified.items()}))
    try:
        return _make(verified, rejected, repeated)
    except SURPRISES:
        surprises = {name: _surprise(one) for name, one in verified.items()}
        if not any(surprises.values()):
            raise
        rejected += _take_out(verified, {name: why for name, why in surprises.items() if why})
        return _make(verified, rejected, repeated)


def _take_out(verified: dict[str, _Verified], reasons: Mapping[str, str]) -> list[Rejected]:
    return [Rejected(file=verified.pop(name).file, reason=why) for name, why in reasons.items()]


def _surprise(one: _Verified) -> str:
    """Return why a bundle cannot be published, that no check foresaw; nothing where it can."""
    try:
        _make({one.verdict.digest: one}, [], [])
    except SURPRISES as error:
        return f"it cannot be shown: {error!r}"
    return ""


def _make(
    verified: Mapping[str, _Verified], rejected: Sequence[Rejected], repeated: Sequence[Rejected]
) -> Publication:
    """Rank what holds, and write the files."""
    entries = [entry for one in verified.values() for entry in one.entries]
    boards: dict[Metric, list[Leaderboard]] = {
        "f1": rank(entries, metric="f1", split="test"),
        "accuracy": rank(entries, metric="accuracy", split="test"),
    }
    of_backbones = rank(entries, metric="f1", by="backbone", split="test")
    summaries = _summarise(of_backbones)
    ranked = {row.source for board in boards["f1"] for row in board.rows}
    unranked = [
        Rejected(file=one.file, reason="it has no complete final training with scores on test")
        for digest, one in verified.items()
        if digest not in ranked
    ]
    rejected = sorted([*rejected, *unranked], key=lambda one: (one.file, one.reason))
    shared = Shared()
    runs = {digest: summarise_run(one.bundle, shared) for digest, one in verified.items() if digest in ranked}
    files = {
        "LEADERBOARD.md": _format_document(boards["f1"], summaries, rejected),
        "leaderboard.csv": format_csv(boards["f1"]),
        "leaderboard.json": format_json(boards["f1"]),
        SCHEMA_FILE: json.dumps(json_schema(), indent=2) + "\n",
        "leaderboard.tex": format_latex(of_backbones),
        "index.html": render_page(
            boards,
            summaries=summaries,
            runs=runs,
            shared=shared.values,
            rejected=[(one.file, one.reason) for one in rejected],
        ),
    }
    return Publication(files=files, runs=len(runs), boards=boards["f1"], rejected=rejected, repeated=repeated)


def write_publication(publication: Publication, folder: Path) -> list[str]:
    """Write the files that are missing or differ, and return their names.

    Raises:
        StorageError: The folder cannot be written.
    """
    names = stale_files(publication, folder)
    for name in names:
        write_atomically(folder / name, publication.files[name])
    return names


def check_publication(publication: Publication, folder: Path) -> None:
    """Compare published files with what the bundles give.

    Raises:
        StorageError: A file is missing, or is not what it should be.
    """
    missing = [name for name in publication.files if not (folder / name).is_file()]
    stale = [name for name in stale_files(publication, folder) if name not in missing]
    if missing or stale:
        lists = {"missing": missing, "not what the bundles give": stale}
        raise StorageError(
            "the published leaderboard is stale",
            where=str(folder),
            why="; ".join(f"{', '.join(names)}: {what}" for what, names in lists.items() if names),
            fixes=["publish it again: harness leaderboard publish, with the same --records and --to"],
        )


def stale_files(publication: Publication, folder: Path) -> list[str]:
    """Return the names of the published files that are missing or not what the bundles give."""
    return [name for name, text in publication.files.items() if _content(folder / name) != text.encode()]


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _read(paths: Sequence[Path], records: Path, jobs: int) -> tuple[dict[str, _Verified], list[Rejected]]:
    """Read and verify bundles: by digest, in order of it."""
    verified: dict[str, _Verified] = {}
    rejected: list[Rejected] = []
    known: dict[tuple[str, str], Samples] = {}
    for path, (bundle, verdict) in _verdicts(paths, jobs):
        file = path.relative_to(records).as_posix()
        if bundle is None or verdict.problems:
            rejected.append(Rejected(file=file, reason=_reason(verdict.problems)))
            continue
        # Bundles of one protocol list the same images: held once, a thousand of them fit into memory.
        protocol = bundle.records[0].protocol.digest
        samples = {split: known.setdefault((protocol, split), part) for split, part in bundle.samples.items()}
        bundle = replace(bundle, samples=samples)
        entries = bundle_entries(bundle, verdict)
        one = _Verified(bundle=bundle, verdict=verdict, file=file, entries=entries)
        verified.setdefault(verdict.digest, one)
    return dict(sorted(verified.items())), rejected


def _reason(problems: Sequence[str]) -> str:
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return "; ".join(problems[:SHOWN]) + more


def _verdicts(paths: Sequence[Path], jobs: int) -> Iterator[tuple[Path, tuple[Bundle | None, Verdict]]]:
    """Yield each bundle with its verdict, in order; nearly all the time goes into recomputing intervals."""
    jobs = min(jobs, len(paths) // SHARE)
    if jobs < 2:
        yield from ((path, verify_file(path)) for path in paths)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        yield from zip(paths, pool.map(verify_file, paths, chunksize=8), strict=True)


def _summarise(boards: Sequence[Leaderboard]) -> list[Summary]:
    """Summarise what was pretrained and what was not apart, where there is enough to do so."""
    kinds = sorted({board.init for board in boards})
    found = [summarise(board for board in boards if board.init == kind) for kind in kinds]
    return [summary for summary in found if summary]


def _format_document(
    boards: Sequence[Leaderboard], summaries: Sequence[Summary], rejected: Sequence[Rejected]
) -> str:
    """Write the Markdown file: data sets together, a section for each table, then what was left out."""
    parts = [_BEFORE_TABLES]
    parts += [f"## Across data sets\n\n{_format_summary(summary)}" for summary in summaries]
    for board in boards:
        classes = ", ".join(escape_markdown(name) for name in board.classes)
        floor = f"The majority class is {escape_markdown(board.floor.label)}. " if board.floor else ""
        parts.append(
            f"## {escape_markdown(board.dataset)}\n\n{format_markdown([board])}\n{floor}Classes: {classes}.\n"
        )
    if rejected:
        lines = "".join(
            f"* {escape_paragraph(one.file)}: {escape_markdown(one.reason)}\n" for one in rejected
        )
        parts.append(f"## Left out\n\nThese bundles could not be ranked.\n\n{lines}")
    return "\n".join(parts)


def _format_summary(summary: Summary) -> str:
    heads = ["#", "backbone", "mean rank", "Borda", "win rate", *summary.datasets]
    rules = ["---:", "---"] + ["---:"] * (len(heads) - 2)
    shared = Counter(item.rank for item in summary.standings)
    rows = [
        [
            f"{item.rank}{'=' * (shared[item.rank] > 1)}",
            item.backbone,
            f"{item.mean_rank:.2f}",
            f"{item.borda:g}",
            f"{100 * item.win_rate:.0f} %",
            *(f"{place:g}" for place in item.places),
        ]
        for item in summary.standings
    ]
    lines = [[escape_markdown(cell) for cell in line] for line in (heads, *rows)]
    table = "".join(f"| {' | '.join(line)} |\n" for line in (lines[0], rules, *lines[1:]))
    return f"{escape_paragraph(summary.caption())}\n\n{table}"
