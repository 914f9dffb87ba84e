"""Where pretrained weights come from, and a load that is proven.

A checkpoint is only ever read as safetensors or with `torch.load(weights_only=True)`. Every float of the
backbone is NaN before the load, and none may be NaN after it.
"""

from __future__ import annotations

import argparse
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import WeightsError, WeightsSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

# Where training scripts keep a network's entries; averaged weights go first, as in timm.
_PLACES = ("state_dict_ema", "model_ema", "state_dict", "model")


def hub_weights(repository: str, file: str | None, licence: str) -> WeightsSpec:
    """Describe weights on the Hugging Face hub: `owner/name` or `owner/name@revision`."""
    from huggingface_hub import constants

    repo, _, revision = repository.partition("@")
    files = [file] if file else ["model.safetensors", "pytorch_model.bin"]
    if file and file.endswith(".bin"):
        safe = "open_clip_model" if file == "open_clip_pytorch_model.bin" else file.removesuffix(".bin")
        files = [f"{safe}.safetensors", file]

    def cached() -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        for candidate in files:
            found = try_to_load_from_cache(repo, candidate, revision=revision or None)
            if isinstance(found, str) and Path(found).is_file():
                return Path(found)
        return None

    def fetch() -> Path:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        *preferred, last = files
        for candidate in preferred:
            try:
                return Path(hf_hub_download(repo, candidate, revision=revision or None))
            except LocalEntryNotFoundError:
                # The hub did not answer, which says nothing about the file.
                raise
            except EntryNotFoundError:
                continue
        return Path(hf_hub_download(repo, last, revision=revision or None))

    return WeightsSpec(
        source=repository,
        licence=licence,
        cached=cached,
        fetch=fetch,
        probe_url=f"{constants.ENDPOINT}/{repo}/resolve/{revision or 'main'}/{files[0]}",
    )


def url_weights(url: str, file: str, licence: str) -> WeightsSpec:
    """Describe weights at an address, kept where torch.hub keeps them."""

    def place() -> Path:
        import torch

        return Path(torch.hub.get_dir()) / "checkpoints" / (file or url.rpartition("/")[2])

    def cached() -> Path | None:
        return place() if place().is_file() else None

    def fetch() -> Path:
        import torch

        target = place()
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            # The start of a file's SHA-256 is part of its name.
            stated = re.search(r"-([0-9a-f]{8,})\.", target.name)
            sha256 = stated.group(1) if stated else None
            torch.hub.download_url_to_file(url, str(target), sha256, progress=False)
        return target

    return WeightsSpec(source=url, licence=licence, cached=cached, fetch=fetch, probe_url=url)


def read_checkpoint(file: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file or a torch checkpoint; names of nested ones are joined by dots.

    Raises:
        WeightsError: The file cannot be read, holds other objects than tensors, or no tensors.
    """
    try:
        content = _read(file)
    # Each format and each kind of damage has an error of its own.
    except Exception as error:
        strange = re.search(r"GLOBAL (\S+) was not", str(error))
        fixes = [
            "fetch or copy the file again: it may be cut off",
            "give weights as .safetensors, or as a torch checkpoint of tensors only",
        ]
        # torch goes on with advice that is never followed here.
        why = first_line(error).partition(". In PyTorch")[0]
        if not file.is_file():
            why = "there is no such file"
        elif strange:
            why = f"it holds a Python object, {strange[1]}, and to read that is to run code"
            fixes = [
                "save the state_dict() of the network, not the network: torch.save(net.state_dict(), FILE)"
            ]
        raise WeightsError("a checkpoint cannot be read", where=str(file), why=why, fixes=fixes) from error
    state = content if isinstance(content, Mapping) else {}
    while inner := next((state[key] for key in _PLACES if isinstance(state.get(key), Mapping)), None):
        state = inner
    tensors = dict(_tensors(state))
    if not tensors:
        found = ", ".join(sorted(map(str, state))[:5])
        kind = "empty" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise WeightsError(
            "a checkpoint holds no tensors",
            where=str(file),
            why=f"at its top are {found}" if found else f"it is {kind}",
            fixes=["save the state_dict of the network itself, or under the key 'state_dict' or 'model'"],
        )
    return tensors


def load_proven(
    model: nn.Module,
    heads: Sequence[str],
    state: Mapping[str, Tensor],
    load: Callable[[dict[str, Tensor]], object],
    name: str,
    file: Path,
    *,
    takes_part: bool = False,
) -> None:
    """Load a checkpoint and prove that each float of the backbone came from it.

    Where the entries do not fit as they are, the network may have been a part of another, as `model` or
    `module`: those of one part are taken if they, and no other part's, fit.

    Args:
        model: Built at random; what a failed load leaves behind is of no use.
        heads: Modules that stay as they are.
        state: The entries of the checkpoint.
        load: Copies entries into the model; may change the dictionary that it is given.
        name: Of the backbone, for errors.
        file: The checkpoint, for errors.
        takes_part: The backbone is a part of the network that was trained: the file may hold more.

    Raises:
        WeightsError: Entries differ in shape, are missing, are NaN in the file, or belong to another network.
    """
    is_head = below(heads)
    known = {key for key in model.state_dict() if not is_head(key)}
    problems: list[tuple[WeightsError, bool]] = []
    fits: dict[str, dict[str, Tensor]] = {}
    tries = [("", dict(state))]
    for prefix, entries in tries:
        where = f"{file}: {prefix}*" if prefix else str(file)
        try:
            _prove(model, is_head, load, dict(entries), name, where, takes_part=takes_part)
            fits[prefix] = entries
        except WeightsError as error:
            problems.append((error, known.isdisjoint(entries)))
            # No part that is much smaller than the backbone can hold it.
            tries += [(f"{prefix}{part}.", inner) for part, inner in _parts(entries, len(known) // 2)]
    if not fits:
        raise next((error for error, foreign in problems if not foreign), problems[0][0])
    if len(fits) > 1:
        raise WeightsError(
            f"the checkpoint holds backbone {name!r} more than once",
            where=str(file),
            why=f"the entries below {' and below '.join(fits)} fit",
            fixes=["save the one that is meant alone"],
        )
    ((prefix, entries),) = fits.items()
    if prefix != tries[-1][0]:
        _prove(model, is_head, load, entries, name, str(file), takes_part=takes_part)


def _prove(
    model: nn.Module,
    is_head: Callable[[str], bool],
    load: Callable[[dict[str, Tensor]], object],
    entries: dict[str, Tensor],
    name: str,
    where: str,
    *,
    takes_part: bool,
) -> None:
    import torch

    outcome: list[Any] = []
    register: Any = model.register_load_state_dict_post_hook
    hook = register(lambda _, keys: outcome.append(keys))
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.is_floating_point() and not is_head(key):
                value.fill_(math.nan)
    try:
        load(entries)
    # An architecture's filter fails in any way when it is given another architecture's entries.
    except Exception as error:
        raise _misfit(name, where, _differences(error)) from error
    finally:
        hook.remove()
    total = sum(not is_head(key) for key in model.state_dict())
    empty = [
        key
        for key, value in model.state_dict().items()
        if value.is_floating_point() and not is_head(key) and _holds_nan(value)
    ]
    absent = set(outcome[-1].missing_keys) if outcome else set(empty)
    missing = [key for key in empty if key in absent]
    foreign = [key for key in outcome[-1].unexpected_keys if not is_head(key)] if outcome else []
    if missing:
        instead = f"; it has {_some(foreign)} instead" if foreign else ""
        why = f"{len(missing)} of {total} entries are not in the file: {_some(missing)}{instead}"
        raise _misfit(name, where, why)
    if empty:
        raise _misfit(name, where, f"{len(empty)} entries are NaN in the file: {_some(empty)}")
    if foreign and not takes_part:
        raise _misfit(
            name, where, f"{len(foreign)} entries of the file have no place in it: {_some(foreign)}"
        )


def _read(file: Path) -> Any:
    import safetensors.torch
    import torch

    if file.suffix == ".safetensors":
        return safetensors.torch.load_file(file)
    # timm's training script keeps its arguments beside the weights; they are data and run nothing.
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(file, map_location="cpu", weights_only=True)


def _tensors(state: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a level by name; what lies deeper only where the level has none of its own."""
    import torch

    own = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    yield from ((f"{prefix}{key}", value) for key, value in own.items())
    for key, value in state.items():
        if not own and isinstance(value, Mapping):
            yield from _tensors(value, f"{prefix}{key}.")


def _parts(entries: Mapping[str, Tensor], least: int) -> list[tuple[str, dict[str, Tensor]]]:
    """Return what lies below each first part of a name, without it, where that are so many entries."""
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, value in entries.items():
        first, _, rest = key.partition(".")
        if rest:
            parts[first][rest] = value
    return [(first, inner) for first, inner in parts.items() if len(inner) >= least]


def _holds_nan(value: Tensor) -> bool:
    # A sum is read in a fraction of the time; infinities may make it NaN as well.
    return bool(value.sum().isnan()) and bool(value.isnan().any())


def _misfit(name: str, where: str, why: str) -> WeightsError:
    return WeightsError(
        f"the checkpoint is not one of backbone {name!r}",
        where=where,
        why=why,
        fixes=[
            f"give a checkpoint of {name.partition('.')[0]}",
            "name the backbone that the file belongs to",
        ],
    )


def _differences(error: Exception) -> str:
    """Say in one line what torch says in many."""
    shapes = re.findall(
        r"size mismatch for (\S+): copying a param with shape (.+?) from checkpoint, "
        r"the shape in current model is (.+?)\.(?:\s|$)",
        str(error),
    )
    if not shapes:
        return first_line(error)
    key, given, wanted = (part.replace("torch.Size", "") for part in shapes[0])
    more = f", and {len(shapes) - 1} more differ in shape" if len(shapes) > 1 else ""
    return f"{key} is {given} in the file and {wanted} in the network{more}"


def below(modules: Sequence[str]) -> Callable[[str], bool]:
    """Return a test of whether a parameter belongs to one of some modules."""
    prefixes = tuple(f"{module}." for module in modules)
    return lambda name: name.startswith(prefixes)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def first_line(error: BaseException) -> str:
    """Return an error's type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
