"""The test split is sealed until the finalising step: shown by trying to get at it."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from harness import load_registry
from harness.config import RunConfig
from harness.data.manifest import SplitRules, load_manifest
from harness.search import executors

SIZES = {"train": 6, "val": 3, "test": 3}


@dataclass
class Spied:
    lines: list[str]
    folder: Path
    """Of the study, its data and its caches."""


@pytest.fixture(scope="module")
def spied(tmp_path_factory):
    """What the spying plugin found in a study of a folder whose test images are marked."""
    folder = tmp_path_factory.mktemp("spy")
    for split, count in SIZES.items():
        for label, value in (("cat", 20), ("dog", 200)):
            for number in range(count):
                name = f"zq7sealed-{number}.png" if split == "test" else f"{number}.png"
                file = folder / "data" / split / label / name
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (24, 24), (value, 20 * number, len(split))).save(file)
    hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.glob("data/test/*/*")]
    (folder / "hashes").write_text("\n".join(hashes))
    root = Path(__file__).parent
    path = [str(root / "plugins"), os.environ.get("PYTHONPATH", "")]
    program = [
        sys.executable,
        "-m",
        "harness",
        "-p",
        "tiny_plugin",
        "-p",
        "spying_plugin",
        "-p",
        "no:terminal",
    ]
    # Checked beforehand, so that the study keeps nothing of its own check and trains on files it has to open.
    check = [*program, "data", "check", "data/"]
    study = [
        *program,
        *("study", "run", "--dataset", "data/", "--init", "scratch", "--backbone", "wide-net"),
        *("--loss", "spying", "--augmentation", "none", "--epochs", "1", "--batch-size", "4"),
        *("--trials", "1", "--finalists", "1", "--device", "cpu", "--threads", "1", "--freeze-depth", "0"),
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "HARNESS_HOME": str(folder / "home"),
        "HARNESS_RUNS": str(folder / "runs"),
        "SPY_LOG": str(folder / "log"),
    }
    for command in (check, study):
        subprocess.run(command, cwd=folder, check=True, env=environment)
    return Spied(lines=(folder / "log").read_text().splitlines(), folder=folder)


def phases(spied):
    """Return what was found before the study, in its search, and in its finalising step."""
    search, final = spied.lines.index("study started"), spied.lines.index("begin final")
    assert spied.lines.index("begin search") > search
    return spied.lines[:search], spied.lines[search:final], spied.lines[final:]


def test_no_test_image_is_opened_between_the_scan_and_the_finalising_step(spied):
    before, search, final = phases(spied)
    # The check opens each image once, for its hash; then nothing does until the first finalist.
    assert sum("zq7sealed" in line for line in before) >= 6
    assert not [line for line in search if "zq7sealed" in line]
    assert [line for line in search if line.startswith("open")]
    assert sum("zq7sealed" in line for line in final) >= 6


def test_nothing_in_the_worker_s_memory_tells_of_a_test_image_before(spied):
    _, search, final = phases(spied)
    assert [line for line in search if line.startswith("found")] == ["found 0"]
    # The same look does find what is there.
    (found,) = (line for line in final if line.startswith("found"))
    assert int(found.split()[1]) >= 12


def test_nothing_that_an_executor_is_sent_tells_of_the_test_split(tmp_path, monkeypatch):
    registry = load_registry(["tiny_plugin", "no:terminal"])
    manifest = load_manifest("dots", registry, rules=SplitRules())
    sent = []
    monkeypatch.setattr(
        executors, "ProcessExecutor", lambda settings, **_: sent.append(pickle.dumps(settings))
    )
    executors.build_executor(RunConfig(device="cpu"), registry, manifest, log=tmp_path / "log")
    (content,) = sent
    assert b"train/000" in content
    for item in manifest.of("test"):
        for secret in (item.id.encode(), item.sha256.encode(), item.image.tobytes()):
            assert secret not in content
