"""Find each backbone's pretrained weights, or say before the first trial why they cannot be had."""

from __future__ import annotations

import dataclasses
import http.client
import os
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from harness.documents import file_sha256
from harness.engine.backbone import find_cached
from harness.errors import UsageError, WeightsError, nearest
from harness.paths import expand
from harness.records import WeightsRecord
from harness.registry import Component
from harness.specs import BackboneSpec, WeightsSpec

PROBE_SECONDS = 4.0
_SCRATCH = WeightsRecord(init="scratch", source="", sha256="", licence="")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedWeights:
    """What a backbone starts from."""

    path: Path | None
    """The checkpoint; None for scratch, and for weights that are still to be fetched."""
    record: WeightsRecord
    """Its `sha256` is empty where `path` is None."""


def preflight(
    backbones: Iterable[Component[BackboneSpec]],
    *,
    init: Literal["pretrained", "scratch"],
    weights: Mapping[str, Path],
    weights_dir: Path | None,
    fetch: bool = True,
) -> dict[str, ResolvedWeights]:
    """Have the weights of every backbone on this machine, by backbone; fetches those that are missing.

    Without network it takes no longer than a few seconds to say so, and names all that is missing at once.

    Args:
        backbones: Those of a study.
        init: `scratch` needs no weights.
        weights: Backbone name -> checkpoint file.
        weights_dir: A folder that has `<backbone>.safetensors` for each backbone that `weights` leaves out.
        fetch: False only makes sure that what is missing could be fetched.

    Raises:
        WeightsError: Files are missing, a backbone has no pretrained weights, or a download fails.
        UsageError: `weights` names a backbone that is not among them.
        PluginError: A plugin cannot say whether its weights are here.
    """
    found = {backbone.provider.name: backbone for backbone in backbones}
    if init == "scratch":
        return {name: ResolvedWeights(path=None, record=_SCRATCH) for name in found}
    _check_table(weights, found.values())
    _check_have_weights(
        [backbone for backbone in found.values() if _local_file(backbone, weights, weights_dir) is None],
        weights_dir,
    )
    resolved = {
        name: resolve_weights(backbone, init=init, weights=weights, weights_dir=weights_dir)
        for name, backbone in found.items()
    }
    missing = {name: found[name].spec.weights for name, entry in resolved.items() if entry.path is None}
    specs = {name: spec for name, spec in missing.items() if spec is not None}
    _check_reachable(specs)
    if not fetch:
        return resolved
    for name, spec in specs.items():
        path = _fetch(name, spec)
        record = dataclasses.replace(resolved[name].record, sha256=file_sha256(path))
        resolved[name] = ResolvedWeights(path=path, record=record)
    return resolved


def resolve_weights(
    backbone: Component[BackboneSpec],
    *,
    init: Literal["pretrained", "scratch"],
    weights: Mapping[str, Path],
    weights_dir: Path | None,
) -> ResolvedWeights:
    """Find a backbone's weights on this machine, without network.

    The order is: the file that `weights` names, a file in `weights_dir`, the cache of earlier downloads.

    Raises:
        WeightsError: A file that was named is missing, or the backbone has no pretrained weights.
        PluginError: Its plugin cannot say whether they are here.
    """
    if init == "scratch":
        return ResolvedWeights(path=None, record=_SCRATCH)
    local = _local_file(backbone, weights, weights_dir)
    if local is not None:
        if not local.is_file():
            raise WeightsError(
                f"the weights of backbone {backbone.provider.name!r} are not where the study says",
                where=str(local),
                why="there is no such file",
                fixes=["correct the path", "leave it out to take the backbone's own weights"],
            )
        _check_readable(local, backbone.provider.name)
        # Nobody but its owner knows under which terms a file of theirs stands.
        source = f"file {local.name}"
        return ResolvedWeights(path=local, record=_record(source, "unknown", local))
    _check_have_weights([backbone], weights_dir)
    spec = backbone.spec.weights
    assert spec is not None
    cached = find_cached(backbone)
    return ResolvedWeights(path=cached, record=_record(spec.source, spec.licence, cached))


def _check_readable(file: Path, backbone: str) -> None:
    """Refuse a damaged file before a trial is spent on it."""
    if file.suffix != ".safetensors":
        return
    import safetensors

    try:
        with safetensors.safe_open(str(file), framework="np"):
            pass
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(
            f"the weights of backbone {backbone!r} cannot be read",
            where=str(file),
            why=f"no complete safetensors file: {error}",
            fixes=["copy the file again"],
        ) from error


def probe(url: str, timeout: float = PROBE_SECONDS) -> str:
    """Ask an address for an answer of any kind; return why there is none, or nothing.

    Sends one HEAD request and returns within `timeout` seconds, a hanging name resolution included.
    """
    return _probe_all([url], timeout)[url]


def _check_table(weights: Mapping[str, Path], backbones: Iterable[Component[BackboneSpec]]) -> None:
    names = [name for backbone in backbones for name in (backbone.provider.name, backbone.spec.name)]
    for name in weights:
        if name not in names:
            near = nearest(name, names)
            raise UsageError(
                f"weights are given for {name!r}, which is no backbone of this study"
                + (f", did you mean {near!r}?" if near else ""),
                where=f"weights.{name}",
            )


def _local_file(
    backbone: Component[BackboneSpec], weights: Mapping[str, Path], weights_dir: Path | None
) -> Path | None:
    """Return the file that the user names, whether it is there or not; from the folder only one that is."""
    for name in (backbone.provider.name, backbone.spec.name):
        if name in weights:
            return expand(weights[name])
    files = _expected_files(backbone, weights_dir) if weights_dir else []
    return next((file for file in files if file.is_file()), None)


def _expected_files(backbone: Component[BackboneSpec], folder: Path) -> list[Path]:
    """Return where the folder may hold a backbone's file; the first is the one to tell a user."""
    names = dict.fromkeys((backbone.provider.name, backbone.spec.name))
    flat = [name.replace("/", "_").replace(":", "_") for name in names]
    return [expand(folder) / f"{name}.safetensors" for name in dict.fromkeys((*flat, *names))]


def _check_have_weights(backbones: Sequence[Component[BackboneSpec]], weights_dir: Path | None) -> None:
    """Refuse backbones without a local file that the folder should have, or that have no weights anywhere."""
    if backbones and weights_dir:
        files = [_expected_files(backbone, weights_dir)[0].name for backbone in backbones]
        raise WeightsError(
            f"the weights folder lacks {', '.join(files)}",
            where=str(weights_dir),
            why="" if expand(weights_dir).is_dir() else "there is no such folder",
            fixes=[
                "put the missing files there, as safetensors",
                "leave the folder out to take the backbones' own weights",
            ],
        )
    without = [backbone.provider.name for backbone in backbones if backbone.spec.weights is None]
    if without:
        raise WeightsError(
            f"there are no pretrained weights for {', '.join(without)}",
            fixes=[
                "choose a backbone that has some: harness models list",
                f"put {_as_files(without)} into a folder and add --weights FOLDER",
                "add --init scratch (marked in every table: scores not comparable with pretrained ones)",
            ],
        )


def _check_reachable(missing: Mapping[str, WeightsSpec]) -> None:
    """Refuse to start downloads that cannot work; asks each host once, all at the same time."""
    hosts = {_host(spec.probe_url): spec.probe_url for spec in missing.values() if spec.probe_url}
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        problems = dict.fromkeys(hosts, "HF_HUB_OFFLINE is set")
    else:
        answers = _probe_all(hosts.values(), PROBE_SECONDS)
        problems = {host: answers[url] for host, url in hosts.items() if answers[url]}
    names = [name for name, spec in missing.items() if _host(spec.probe_url) in problems]
    if not names:
        return
    raise WeightsError(
        f"pretrained weights are not on this machine and cannot be downloaded: {', '.join(names)}",
        where=", ".join(problems),
        why="; ".join(f"{urlsplit(host).netloc} cannot be reached: {why}" for host, why in problems.items()),
        fixes=[
            "unset HF_HUB_OFFLINE"
            if "HF_HUB_OFFLINE is set" in problems.values()
            else "connect and run the same command again",
            "use the small backbones that are part of this package: --backbone '*.formula1'",
            "copy a Hugging Face cache to this machine and set HF_HOME to it",
            f"put {_as_files(names)} into a folder and add --weights FOLDER",
            "use a mirror: HF_ENDPOINT=<address>",
            "add --init scratch (marked in every table: scores not comparable with pretrained ones)",
        ],
    )


def _fetch(name: str, spec: WeightsSpec) -> Path:
    try:
        path = spec.fetch()
        if not (isinstance(path, Path) and path.is_file()):
            raise TypeError(f"fetch() returned {path!r}, not the Path of a file")
        return path
    except WeightsError:
        raise
    # A plugin's download may fail in any way.
    except Exception as error:
        status = _http_status(error)
        lines = str(error).strip().splitlines() or [type(error).__name__]
        refused = status in (401, 403)
        raise WeightsError(
            f"the weights of {name} cannot be downloaded",
            where=f"{spec.source} ({spec.probe_url})" if spec.probe_url else spec.source,
            why=f"HTTP {status} {http.client.responses.get(status, '')}".strip() if status else lines[0],
            fixes=[
                *(["accept the terms on the weights' page and set HF_TOKEN"] if refused else []),
                "check the address and HF_ENDPOINT, and try again",
                f"put {_as_files([name])} into a folder and add --weights FOLDER",
            ],
        ) from error


def _http_status(error: BaseException | None) -> int | None:
    """Return the HTTP status at the root of an error, however deep a library has wrapped it."""
    while error is not None:
        answer = getattr(error, "response", None)
        status = getattr(answer, "status_code", None) or getattr(error, "code", None)
        if isinstance(status, int):
            return status
        error = error.__cause__ or error.__context__
    return None


def _probe_all(urls: Iterable[str], timeout: float) -> dict[str, str]:
    answers: dict[str, str] = {}

    def ask(url: str) -> None:
        answers[url] = _ask(url, timeout)

    # Name resolution cannot be timed out from within: daemon threads are left behind when they hang.
    threads = {url: threading.Thread(target=ask, args=(url,), daemon=True) for url in urls}
    deadline = time.monotonic() + timeout
    for thread in threads.values():
        thread.start()
    for thread in threads.values():
        thread.join(max(0.0, deadline - time.monotonic()))
    return {url: answers.get(url, f"no answer within {timeout:g} s") for url in threads}


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer too: whoever sends it is there."""

    def redirect_request(self, *_: object, **__: object) -> None:
        return None


def _ask(url: str, timeout: float) -> str:
    request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "transfer-harness"})
    try:
        urllib.request.build_opener(_NoRedirect).open(request, timeout=timeout).close()
    except urllib.error.HTTPError as error:
        error.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        # Somebody answered; whether a certificate is good is for the library that downloads to judge.
        if isinstance(reason, ssl.SSLCertVerificationError):
            return ""
        if isinstance(reason, socket.gaierror):
            return "its name cannot be resolved"
        if isinstance(reason, TimeoutError):
            return f"no answer within {timeout:g} s"
        return str(getattr(reason, "strerror", None) or reason).lower()
    return ""


def _record(source: str, licence: str, path: Path | None) -> WeightsRecord:
    sha256 = file_sha256(path) if path else ""
    return WeightsRecord(init="pretrained", source=source, sha256=sha256, licence=licence)


def _host(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _as_files(names: Sequence[str]) -> str:
    return ", ".join(f"{name.replace('/', '_').replace(':', '_')}.safetensors" for name in names)
