"""Get the images of a named data set onto this machine, wholly or not at all."""

from __future__ import annotations

import contextlib
import http.client
import shutil
import socket
import sys
import tarfile
import threading
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

from harness.errors import DataError, HarnessError, PluginError
from harness.isolation import kept_random_state
from harness.specs import DatasetSpec, Sample

SECONDS = 5.0
"""How long a server may take to answer before a download is given up."""

_FAILURES = (OSError, RuntimeError, EOFError, zipfile.BadZipFile, tarfile.TarError, http.client.HTTPException)


def folder_of(name: str, home: Path) -> Path:
    """Return the folder of a named data set."""
    return home / "data" / name.replace(":", "-")


def is_present(spec: DatasetSpec, home: Path) -> bool:
    """Tell, without building it, whether a data set's files seem to be here."""
    if not spec.download_url:
        return True
    return _has_files(folder_of(spec.name, home))


def fetch(spec: DatasetSpec, home: Path, *, download: bool) -> list[Sample]:
    """Return the samples of a named data set, downloading it if asked to.

    A download is built in a folder of its own, which becomes the data set's when it is complete: what a
    failed or killed one leaves behind never lies among files that were put there by hand.

    Raises:
        DataError: The data are not here and cannot be, or may not be, downloaded.
        PluginError: The plugin yields something else than samples, or fails otherwise.
    """
    folder = folder_of(spec.name, home)
    try:
        return _build(spec, folder, download=False)
    except _FAILURES as error:
        why = _line(error)
    if not download:
        if _part(folder).exists():
            why = "an earlier download was interrupted, or one is under way"
        elif "download=True" in why:
            # torchvision's advice is for Python, not for this command line.
            why = "no complete copy of its files is there"
        raise _missing(spec, folder, why)
    return _download(spec, folder)


def unreachable(url: str, seconds: float = SECONDS) -> str:
    """Return why an address does not answer within some seconds; empty when it does."""
    answer: list[str] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "transfer-harness"})
            with urllib.request.urlopen(request, timeout=seconds):
                answer.append("")
        except urllib.error.HTTPError as error:
            # Some servers refuse to answer HEAD: only "not there" says that a download will fail.
            answer.append(f"the server says {error.code} {error.reason}" if error.code in (404, 410) else "")
        except (OSError, ValueError, http.client.HTTPException) as error:
            answer.append(_line(getattr(error, "reason", error)))

    # A thread, because looking up a host name knows no time limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answer[0] if answer else f"no answer within {seconds:g} seconds"


def _download(spec: DatasetSpec, folder: Path) -> list[Sample]:
    from filelock import FileLock

    # Where a link leads to, there is the room for it.
    folder = folder.resolve()
    part = _part(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            # Another process may have finished while this one waited for the lock.
            with contextlib.suppress(*_FAILURES):
                return _build(spec, folder, download=False)
            why = unreachable(spec.download_url) if spec.download_url else ""
            if why and not _has_files(folder):
                raise _missing(spec, folder, why, tried=True)
            try:
                _share(folder, part)
                with _impatient(bool(why)):
                    _build(spec, part, download=True)
                _move(part, folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
            return _build(spec, folder, download=False)
    except _FAILURES as error:
        why = _line(error).replace(str(part), str(folder))
        raise _missing(spec, folder, why, tried=True) from error


def _build(spec: DatasetSpec, folder: Path, *, download: bool) -> list[Sample]:
    try:
        # Progress belongs to stderr: stdout may be JSON.
        with kept_random_state(), contextlib.redirect_stdout(sys.stderr):
            samples = list(spec.build(folder, download))
    except (*_FAILURES, HarnessError):
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {_line(error)}"
        raise PluginError(f"data set {spec.name!r} cannot be built", where=str(folder), why=why) from error
    strange = next((sample for sample in samples if not isinstance(sample, Sample)), None)
    if strange is not None or not samples:
        what = f"yields {type(strange).__name__}, not Sample" if samples else "yields no samples"
        raise PluginError(f"data set {spec.name!r} {what}", where=str(folder))
    return samples


@contextlib.contextmanager
def _impatient(active: bool) -> Iterator[None]:
    """While the network is known to be away, let nothing wait for it: files put there by hand may suffice."""
    before = socket.getdefaulttimeout()
    if active:
        socket.setdefaulttimeout(SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _part(folder: Path) -> Path:
    """Name the folder that a download is built in, and that is there only while one runs or after a kill."""
    return folder.with_name(f".{folder.name}.part")


def _share(folder: Path, part: Path) -> None:
    """Begin a part with the files that are there already, in place of what a killed download left."""
    if part.exists():
        shutil.rmtree(part)
    if folder.is_dir():
        # No links: a download that writes over a damaged archive must not change the user's own.
        shutil.copytree(folder, part, symlinks=True)
    else:
        part.mkdir()


def _move(source: Path, target: Path) -> None:
    """Move a folder to another place, whole folders at a time where nothing is there yet."""
    if target.is_dir() and source.is_dir() and not source.is_symlink():
        for entry in list(source.iterdir()):
            _move(entry, target / entry.name)
    else:
        # Not rename: the data set's folder may be another file system.
        shutil.move(source, target)


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(path.is_file() for path in folder.rglob("*"))


def _missing(spec: DatasetSpec, folder: Path, why: str, *, tried: bool = False) -> DataError:
    size = f" ({spec.size})" if spec.size else ""
    return DataError(
        f"data set {spec.name!r} is not on this machine" + (" and could not be downloaded" if tried else ""),
        where=str(folder),
        why=why,
        fixes=[
            f"connect and run: harness data get {spec.name}{size}",
            f"put the files of {spec.url} there and run: harness data check {spec.name}",
            "use your own images: harness study run --dataset path/to/folder",
            "try without any data: harness study run",
        ],
    )


def _line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
