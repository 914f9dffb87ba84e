from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from filelock import FileLock

from harness.engine.store import ActivationStore, EntrySpec, TensorSpec


@pytest.fixture
def store(tmp_path):
    """A store with the entries `a` and `b`, the second in use."""
    store = ActivationStore(tmp_path / "home" / "activations", 10**9)
    tensors = {"x": TensorSpec(shape=(1000,), dtype=torch.float32)}
    specs = [EntrySpec(key=key, rows=1, tensors=tensors, facts={}) for key in ("a", "b")]
    with store.fill(specs) as filling:
        for spec in specs:
            filling.write(spec.key, "x", 0, torch.zeros(1, 1000))
    store.release("a")
    yield store
    store.close()


@pytest.fixture
def bank(tmp_path):
    """Two sets of decoded images, and one that is being decoded."""
    bank = tmp_path / "home" / "bank"
    for name in ("one", "two", ".three.part"):
        (bank / name).mkdir(parents=True)
        (bank / name / "pixels.bin").write_bytes(bytes(5000))
    return bank


def test_info_of_empty_caches(harness_cli, tmp_path):
    code, out, _ = harness_cli("cache", "info")
    assert code == 0
    assert "0 entries, 0 B" in out
    assert "0 decoded sets, 0 B" in out
    assert not (tmp_path / "home").exists()


def test_info_tells_what_is_kept(harness_cli, store, bank):
    code, out, _ = harness_cli("cache", "info")
    assert code == 0
    assert "2 entries, 8." in out
    assert "in use       1; being written 0" in out
    assert "2 decoded sets, 15.0 kB" in out
    assert str(bank) in out.replace("\n", "")
    assert all(len(line) <= 80 for line in out.splitlines() if not line.startswith("folder"))


def test_info_as_json(harness_cli, store, bank):
    code, out, _ = harness_cli("cache", "info", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["schema"] == "harness.cache/1"
    activations = document["activations"]
    assert (activations["entries"], activations["pinned"], activations["parts"]) == (2, 1, 0)
    assert activations["bytes"] == store.info().bytes
    assert activations["folder"] == str(store.folder)
    assert document["images"] == {"folder": str(bank), "entries": 2, "bytes": 15000}


def test_clear_leaves_what_is_in_use(harness_cli, store, bank):
    code, out, _ = harness_cli("cache", "clear")
    assert code == 0
    assert "of activations" in out
    assert "1 entry in use" in out
    assert "decoded" not in out
    assert store.info().entries == 1
    assert len(list(bank.rglob("pixels.bin"))) == 3
    store.close()
    code, out, _ = harness_cli("cache", "clear")
    assert code == 0
    assert "in use" not in out
    assert store.info().entries == 0


def test_clear_removes_decoded_images_when_asked(harness_cli, bank):
    with FileLock(bank / ".three.lock"):
        code, out, _ = harness_cli("cache", "clear", "--bank")
    assert code == 0
    assert "10.0 kB of decoded images" in out
    assert [path.name for path in bank.iterdir() if path.is_dir()] == [".three.part"]
    harness_cli("cache", "clear", "--bank")
    assert [path.name for path in bank.iterdir() if path.is_dir()] == []


def test_clear_removes_scans_with_the_decoded_images(harness_cli, tmp_path):
    scan = tmp_path / "home" / "scan" / "0.json"
    scan.parent.mkdir(parents=True)
    scan.write_bytes(bytes(3000))
    harness_cli("cache", "clear")
    assert scan.exists()
    code, out, _ = harness_cli("cache", "clear", "--bank")
    assert code == 0
    assert "removed      3.0 kB of scans" in out
    assert not scan.exists()


def test_clear_of_empty_caches(harness_cli):
    code, out, _ = harness_cli("cache", "clear", "--bank")
    assert code == 0
    assert "removed      0 B of activations" in out
    assert "removed      0 B of decoded images" in out


def test_neither_command_imports_torch():
    code = (
        "import sys\n"
        "from harness.cli import main\n"
        "for arguments in (['cache', 'info'], ['cache', 'clear']):\n"
        "    try: main(arguments)\n"
        "    except SystemExit as end: assert end.code == 0, end.code\n"
        "heavy = {'torch', 'torchvision', 'timm', 'optuna', 'scipy', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
