import ctypes
import subprocess
import sys

import pytest

from harness.search.worker import keep_freed_memory

STEPS = """
import resource, sys
from harness.search.worker import keep_freed_memory
kept = keep_freed_memory(dict.fromkeys(sys.argv[1:], "1"))
for step in range(12):
    if step == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    # As a training step does: several tensors, all freed before the next one.
    tensors = [bytearray(8 * 2**20) for _ in range(6)]
    del tensors
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def has_mallopt() -> bool:
    try:
        return bool(ctypes.CDLL(None).mallopt)
    except (AttributeError, TypeError):
        return False


def run_steps(*variables: str) -> tuple[int, int]:
    command = [sys.executable, "-c", STEPS, *variables]
    kept, faults = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.split()
    return int(kept), int(faults)


@pytest.mark.skipif(not has_mallopt(), reason="not glibc")
def test_what_a_step_frees_is_there_for_the_next_one():
    kept, faults = run_steps()
    assert kept >= 2**25
    left, faults_left = run_steps("MALLOC_ARENA_MAX")
    assert left == 0
    assert faults < faults_left / 10


@pytest.mark.parametrize("variables", [{"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.check=3"}])
def test_memory_is_left_to_who_has_said_how_it_is_kept(variables):
    assert keep_freed_memory({"HOME": "/", **variables}) == 0


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert keep_freed_memory({}) == 0


def test_older_versions_of_glibc_are_asked_for_less(monkeypatch):
    asked = []

    class Library:
        def mallopt(self, option: int, value: int) -> int:
            asked.append((option, value))
            return int(value <= 2**25)

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    assert keep_freed_memory({}) == 2**25
    # Neither threshold alone: the other one would no longer follow.
    assert asked == [(-3, 2**30), (-3, 2**25), (-1, 2**25)]
