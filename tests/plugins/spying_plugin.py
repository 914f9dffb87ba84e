"""A plugin that looks for the test split wherever it can: in the objects of its process, and in files.

`SPY_LOG` names the file of what it finds: a line for each phase, each look and each image that is opened.
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

from harness import LossSpec, hookimpl

LOG = os.environ.get("SPY_LOG", "")
# Put together here, so that neither code nor environment holds what is looked for.
MARK = "".join(("zq7", "sealed"))
HASHES = Path(LOG).with_name("hashes").read_text().split() if LOG else []
OURS = {id(HASHES)}


def say(line):
    descriptor = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def listen(event, arguments):
    if event == "open" and isinstance(arguments[0], str | os.PathLike):
        path = os.fspath(arguments[0])
        if isinstance(path, str) and path.endswith(".png"):
            say(f"open {path}")


def is_secret(text):
    return (MARK in text and text != MARK) or text in HASHES


def look():
    """Count the ids, paths and hashes of test images in all that this process holds, stack included."""
    waiting = list(gc.get_objects())
    frame = sys._getframe()
    while frame is not None:
        waiting += [value for name, value in frame.f_locals.items() if name != "waiting"]
        frame = frame.f_back
    seen = {id(waiting), *OURS}
    found = 0
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, str):
            found += is_secret(thing)
        elif isinstance(thing, bytes | bytearray):
            found += MARK.encode() in thing and thing != MARK.encode()
        else:
            waiting += gc.get_referents(thing)
    return found


def build_spying(classes):
    from torch import nn

    say(f"found {look()}")
    return nn.CrossEntropyLoss()


@hookimpl
def harness_losses():
    yield LossSpec(name="spying", summary="looks for the test split", build=build_spying)


@hookimpl
def harness_study_started(study, records):
    say("study started")


@hookimpl
def harness_trial_started(study, trial, kind, number):
    say(f"begin {kind}")


if LOG:
    sys.addaudithook(listen)
