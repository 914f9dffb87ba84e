"""A plugin that looks for the test split wherever it can: in the worker's objects, files and arguments.

It writes what it finds to the file that `SPY_LOG` names: one line for each opened image and each phase.
"""

from __future__ import annotations

import gc
import os
import sys

from harness import AugmentationSpec, LossSpec, hookimpl

LOG = os.environ.get("SPY_LOG", "")
SECRETS = tuple(filter(None, os.environ.get("SPY_SECRETS", "").split(os.pathsep)))
"""Ids and hashes of test images."""


def say(line):
    descriptor = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{os.getpid()} {line}\n".encode())
    os.close(descriptor)


def listen(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and arguments[0].endswith(".png"):
        say(f"open {arguments[0]}")


if LOG:
    sys.addaudithook(listen)


def look(place):
    """Count secrets among all text and bytes that the process holds, and in the frames that called us."""
    found = 0
    waiting = list(gc.get_objects())
    frame = sys._getframe()
    while frame is not None:
        waiting.append(frame.f_locals)
        frame = frame.f_back
    seen = set()
    while waiting:
        thing = waiting.pop()
        # Our own list of them is no find.
        if id(thing) in seen or thing is SECRETS or thing is os.environ or thing is os.environ._data:
            continue
        seen.add(id(thing))
        if isinstance(thing, str) and len(thing) < 500:
            found += any(secret in thing for secret in SECRETS) and os.pathsep not in thing
        elif isinstance(thing, bytes) and len(thing) < 10**6:
            found += any(secret.encode() in thing for secret in SECRETS) and b"SPY_SECRETS" not in thing
        elif not isinstance(thing, type(sys)) and thing not in ():
            waiting += gc.get_referents(thing)
    say(f"{place} finds {found}")


def build_spying(classes):
    from torch import nn

    look("loss")
    return nn.CrossEntropyLoss()


def build_looking(size):
    look("augmentation")
    return lambda image: image[:, :size, :size]


@hookimpl
def harness_losses():
    yield LossSpec(name="spying", summary="looks for the test split", build=build_spying)


@hookimpl
def harness_augmentations():
    yield AugmentationSpec(name="looking", summary="looks for the test split", build=build_looking)


@hookimpl
def harness_study_started(study, records):
    say("study started")


@hookimpl
def harness_trial_started(study, trial, kind, number):
    say(f"begin {kind}")
