from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from harness import load_registry
from harness.provenance import PACKAGES, _record_digest, code_sha256, package_digests, plugin_sha256

WHEEL = "thing/__init__.py,sha256=abc,10\nthing/lib.so,sha256=def,20\n"
ADDED = """../../../bin/thing,sha256=zzz,200
thing-1.0.dist-info/RECORD,,
thing-1.0.dist-info/INSTALLER,sha256=qqq,4
thing/__pycache__/__init__.cpython-311.pyc,,
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Return a function that makes a package on disk and imports it."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(name, **files):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        for stem, text in {"__init__": "", **files}.items():
            (folder / f"{stem}.py").write_text(text)
        importlib.invalidate_caches()
        module = importlib.import_module(name)
        code_sha256.cache_clear()
        return module

    yield make
    code_sha256.cache_clear()
    for name in [name for name in sys.modules if name.startswith("prov_")]:
        del sys.modules[name]


def test_a_wheel_has_one_digest_whatever_an_installer_adds_to_it():
    assert _record_digest(WHEEL) == _record_digest(ADDED + WHEEL)
    assert _record_digest(WHEEL) == _record_digest("\n".join(reversed(WHEEL.splitlines())))
    assert _record_digest(WHEEL) != _record_digest(WHEEL.replace("abc", "abd"))
    assert _record_digest(ADDED) == ""


def test_every_package_has_a_digest_of_its_own():
    digests = package_digests()
    assert set(digests) == set(PACKAGES)
    assert len({*digests.values()}) == len(PACKAGES)
    assert all(len(sha256) == 64 for sha256 in digests.values())


def test_an_edited_plugin_has_another_hash(package):
    module = package("prov_a", part="x = 1")
    before = plugin_sha256(module)
    assert plugin_sha256(package("prov_a", part="x = 1")) == before
    assert plugin_sha256(package("prov_a", part="x = 2")) != before


def test_the_name_and_place_of_a_package_are_no_part_of_its_hash(package):
    assert plugin_sha256(package("prov_a", part="x = 1")) == plugin_sha256(package("prov_b", part="x = 1"))


def test_an_object_is_as_its_module(package):
    module = package("prov_c", thing="class Thing:\n    pass\n")
    thing = importlib.import_module("prov_c.thing").Thing()
    assert plugin_sha256(thing) == plugin_sha256(module) != ""


def test_what_lies_beside_a_single_module_does_not_count(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "prov_single.py").write_text("x = 1")
    before = plugin_sha256(importlib.import_module("prov_single"))
    (tmp_path / "other.py").write_text("y = 1")
    code_sha256.cache_clear()
    assert plugin_sha256(sys.modules["prov_single"]) == before != ""


def test_what_has_no_files_has_no_hash():
    assert plugin_sha256(sys) == ""


def test_a_registry_knows_the_hash_of_the_plugin_of_a_component():
    registry = load_registry(["tiny_plugin", "no:terminal"])
    tiny, builtin = registry.provider("backbone", "tiny-net"), registry.provider("optimizer", "adamw")
    assert registry.backbones.get("tiny-net").provider.sha256 == ""
    assert len(tiny.sha256) == len(builtin.sha256) == 64
    assert tiny.sha256 != builtin.sha256
    assert registry.provider("loss", "focal").sha256 == builtin.sha256


def test_nothing_is_hashed_before_a_record_is_written():
    code = (
        "from harness import load_registry; load_registry(); from harness import provenance as p;"
        "assert p.code_sha256.cache_info().misses == p.package_digests.cache_info().misses == 0"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
