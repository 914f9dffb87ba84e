"""Check verified bundles against each other: which are all in another, and which contradict the others."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from harness.leaderboard.bundle import Bundle
from harness.leaderboard.entry import TIERS, Tier
from harness.leaderboard.rerun import record_digest


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    complete: frozenset[str]
    """Digests of the records."""
    seeds: frozenset[int]
    """Of these and of those that failed."""
    tier: int
    """The higher, the more was checked."""
    worth: tuple[int, int, int, int, str]
    """Which of several that hold a bundle's trainings counts: the highest."""


def find_repeated(bundles: Mapping[str, tuple[Bundle, Tier]]) -> dict[str, str]:
    """Return the bundles whose trainings are all in another of at least their tier, each with that one.

    A run that was submitted again with more seeds, or after more trials, is one run. A training that failed
    is in another bundle where its seed is, however it ended there. What was less checked takes no place: a
    stranger could add failures to somebody's run. Of bundles of the same trainings the one of the higher tier
    counts, then of the longer search, then of the higher digest.

    Args:
        bundles: By digest, with their tiers.
    """
    runs: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for name, (bundle, _) in bundles.items():
        first = bundle.records[0]
        runs[first.protocol.digest, first.study, first.number, first.config.digest()].append(name)
    found: dict[str, str] = {}
    # Digests of records take their time, and most runs are there once.
    for names in (names for names in runs.values() if len(names) > 1):
        held = {name: _held(name, *bundles[name]) for name in names}
        for name, own in held.items():
            best = max(
                (other for other in held.values() if _is_in(own, other)), key=lambda other: other.worth
            )
            if best is not own:
                found[name] = best.worth[-1]
    return found


def _held(name: str, bundle: Bundle, tier: Tier) -> _Held:
    complete = frozenset(map(record_digest, bundle.records))
    seeds = frozenset(record.config.seed for record in (*bundle.records, *bundle.failed))
    rank = TIERS.index(tier)
    worth = (len(complete), len(seeds), rank, sum(bundle.trials.values()), name)
    return _Held(complete=complete, seeds=seeds, tier=rank, worth=worth)


def _is_in(one: _Held, other: _Held) -> bool:
    return one.complete <= other.complete and one.seeds <= other.seeds and one.tier <= other.tier


def find_disputed(bundles: Mapping[str, Bundle]) -> dict[str, str]:
    """Return the bundles that count the training images otherwise than others of their protocol, and why.

    A protocol has one training split, of which bundles hold no images: what most of them state is taken, and
    where none is stated most often, none is.

    Args:
        bundles: By digest.
    """
    protocols: dict[str, list[str]] = defaultdict(list)
    for name, bundle in bundles.items():
        protocols[bundle.records[0].protocol.digest].append(name)
    found: dict[str, str] = {}
    for names in protocols.values():
        counts = {name: tuple(bundles[name].records[0].dataset.counts["train"]) for name in names}
        common = _most_common(counts.values())
        why = "it counts the training images otherwise than "
        why += "most bundles of its protocol" if common else "as many other bundles of its protocol"
        found |= {name: f"{why}: verify it with --data" for name in names if counts[name] != common}
    return found


def _most_common(statements: Iterable[tuple[int, ...]]) -> tuple[int, ...] | None:
    first, *rest = Counter(statements).most_common(2)
    return None if rest and rest[0][1] == first[1] else first[0]
