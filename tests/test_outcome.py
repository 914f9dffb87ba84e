from __future__ import annotations

import dataclasses
import errno

import pytest
import torch

from harness.engine.fit import DivergedError
from harness.engine.job import TrialJob
from harness.engine.outcome import fail
from harness.errors import PluginError, StorageError
from harness.isolation import naming
from harness.search.space import resolve_space


@pytest.fixture
def job(tiny, registry, tmp_path):
    study = tiny(space={"backbone": "tiny-net", "freeze_depth": 1.0, "lr": 1e-2, "optimizer": "adamw"})
    space = resolve_space(study, registry)
    config = space.trial_config(study, {axis.name: axis.choices[0] for axis in space.axes}, seed=0)
    return TrialJob(
        kind="search",
        number=0,
        config=dataclasses.replace(config, batch_size=8, image_size=32),
        weights=None,
        folder=tmp_path,
        sharing=1.0,
        depths=(1.0,),
        test=(),
    )


def test_after_an_error_of_a_gpu_its_process_goes_no_further(job):
    error = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(torch.AcceleratorError):
        fail(error, job, curve=[], environment={})


def test_a_full_disk_is_not_the_trials_fault(job):
    with pytest.raises(StorageError, match="cannot be read or written"):
        fail(OSError(errno.ENOSPC, "No space left on device"), job, curve=[], environment={})


def raised_by(kind, error):
    try:
        with naming(kind, "x"):
            raise error
    except Exception as noted:
        return noted


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            torch.OutOfMemoryError("out of memory\nmore"),
            "oom: batch 8 at 32 px: OutOfMemoryError: out of memory",
        ),
        (DivergedError("the training loss is nan"), "nan: the training loss is nan"),
        (ValueError("odd \ud800"), "error: ValueError: odd \\ud800"),
        (PluginError("augmentation 'x' fails", why="boom\nmore"), "error: augmentation 'x' fails: boom"),
        (raised_by("loss", ValueError("boom\nmore")), "error: loss 'x': ValueError: boom"),
        (raised_by("optimizer", RuntimeError()), "error: optimizer 'x': RuntimeError"),
    ],
)
def test_what_a_trial_fails_of_is_said_in_a_line(job, error, reason):
    outcome = fail(error, job, curve=[], environment={"device": "cpu"})
    assert (outcome.state, outcome.reason) == ("failed", reason)
    assert outcome.environment == {"device": "cpu"}
