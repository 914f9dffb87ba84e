"""What code a training ran on: versions and hashes of packages and plugins, for its record.

Nothing here is computed before a record is written: a command line that trains nothing pays nothing.
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import inspect
import re
import sys
from functools import cache
from pathlib import Path, PurePosixPath

from harness.documents import digest, file_sha256

PACKAGES = ("transfer-harness", "torch", "torchvision", "timm", "optuna", "numpy", "pillow")
_CODE = tuple(importlib.machinery.SOURCE_SUFFIXES + importlib.machinery.EXTENSION_SUFFIXES)


def package_versions() -> dict[str, str]:
    """Return the version of each package that a result may depend on."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


@cache
def package_digests() -> dict[str, str]:
    """Return the SHA-256 of each package that a result may depend on, by its name.

    It is taken over the lines of the package's RECORD that name files of its own, sorted: (path, SHA-256 of
    the content, size), as its wheel was made. Left out is what an installer adds (scripts, `*.dist-info`,
    compiled bytecode), so that one wheel has one digest on every machine. Files that were edited after the
    installation are not seen. Of the host itself the source files are read, as of a plugin.
    """
    digests = {}
    for name in PACKAGES[1:]:
        try:
            text = importlib.metadata.distribution(name).read_text("RECORD") or ""
        except importlib.metadata.PackageNotFoundError:
            continue
        digests[name] = _record_digest(text)
    return {PACKAGES[0]: code_sha256("harness"), **digests}


def plugin_sha256(plugin: object) -> str:
    """Return the SHA-256 of a plugin's code; empty where it has no files.

    Args:
        plugin: Its module, or an object of one.
    """
    module = plugin if inspect.ismodule(plugin) else sys.modules.get(type(plugin).__module__)
    return code_sha256(module.__name__) if inspect.ismodule(module) else ""


@cache
def code_sha256(module: str) -> str:
    """Return the SHA-256 over the code of the top-level package that holds an imported module.

    It is taken over the sorted (path within the package, SHA-256 of the content) of all Python sources and
    extension modules as they lie on disk, so that it is the same for a wheel, an editable installation and
    a module named with `-p`, and sees an edit. A module that is no part of a package is its own file.
    """
    top = sys.modules.get(module.partition(".")[0])
    # A folder without `__init__.py` may hold anything beside the plugin.
    if top is None or getattr(top, "__file__", None) is None:
        top = sys.modules.get(module)
    file = getattr(top, "__file__", None)
    if file is None:
        return ""
    path = Path(file)
    if not hasattr(top, "__path__"):
        return digest([[path.name, file_sha256(path)]]) if path.is_file() else ""
    root = path.parent
    files = sorted(part for part in root.rglob("*") if part.name.endswith(_CODE) and part.is_file())
    return digest(sorted([part.relative_to(root).as_posix(), file_sha256(part)] for part in files))


def _record_digest(text: str) -> str:
    lines = []
    for line in text.splitlines():
        name = PurePosixPath(re.sub(r",[^,]*,[^,]*$", "", line).strip('"'))
        is_own = not name.is_absolute() and ".." not in name.parts
        is_installed = name.parts[:1] and name.parts[0].endswith((".dist-info", ".data"))
        if line and is_own and not is_installed and name.suffix != ".pyc":
            lines.append(line)
    return digest(sorted(lines)) if lines else ""
