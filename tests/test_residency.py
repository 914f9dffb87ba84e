from __future__ import annotations

import pytest
import torch

from harness.engine.residency import Residency, budget_of, resident_budget

GB = 10**9


@pytest.mark.parametrize(
    ("free", "total", "share", "expected"),
    [
        (80 * GB, 80 * GB, 1.0, 40 * GB),
        # The share counts, and not what others leave beyond it.
        (80 * GB, 80 * GB, 0.5, 20 * GB),
        # Others have taken most of it.
        (8 * GB, 80 * GB, 0.9, 4 * GB),
        (0, 80 * GB, 0.9, 0),
    ],
)
def test_half_of_what_a_process_may_take_is_for_what_stays(free, total, share, expected):
    assert resident_budget(free, total, share) == expected


def test_nothing_stays_on_a_cpu_which_reads_mapped_files():
    assert budget_of(torch.device("cpu"), 0.9) == 0


def keep(residency, key, size=40):
    made = []

    def make():
        made.append(key)
        return f"bank {key}"

    return residency.keep(key, size, make), made


def test_what_is_kept_is_made_once():
    residency = Residency(100)
    assert keep(residency, "a") == ("bank a", ["a"])
    residency.end_trial()
    assert keep(residency, "a") == ("bank a", [])


def test_what_does_not_fit_is_not_made_and_drives_nothing_out():
    residency = Residency(100)
    keep(residency, "a")
    residency.end_trial()
    assert keep(residency, "b", 101) == (None, [])
    assert keep(residency, "a") == ("bank a", [])


def test_what_a_trial_uses_stays_until_its_end():
    residency = Residency(100)
    keep(residency, "a")
    keep(residency, "b")
    assert keep(residency, "c") == (None, [])
    assert residency.used == 80
    residency.end_trial()
    assert keep(residency, "c") == ("bank c", ["c"])
    assert residency.used == 80


def test_the_least_recently_used_gives_way():
    residency = Residency(100)
    for key in ("a", "b", "a"):
        keep(residency, key)
    residency.end_trial()
    keep(residency, "c")
    assert keep(residency, "a") == ("bank a", [])
    assert keep(residency, "b") == (None, [])


def test_a_claim_makes_room_and_ends_with_its_trial():
    residency = Residency(100)
    keep(residency, "a")
    residency.end_trial()
    assert residency.claim(70)
    assert residency.used == 70
    assert not residency.claim(40)
    assert keep(residency, "b") == (None, [])
    residency.end_trial()
    assert residency.used == 0
    assert keep(residency, "b") == ("bank b", ["b"])


def test_a_budget_of_nothing_keeps_nothing():
    residency = Residency(0)
    assert keep(residency, "a", 1) == (None, [])
    assert not residency.claim(1)


def test_what_the_present_trial_does_not_use_can_be_given_up():
    residency = Residency(100)
    keep(residency, "a")
    residency.end_trial()
    keep(residency, "b")
    assert residency.drop_idle()
    assert not residency.drop_idle()
    assert keep(residency, "b") == ("bank b", [])
    assert keep(residency, "a") == ("bank a", ["a"])
