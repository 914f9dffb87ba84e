"""Where pretrained weights come from, and a load that is proven.

A checkpoint is only ever read as safetensors or with `torch.load(weights_only=True)`. Every float of the
backbone is NaN before the load, and none may be NaN after it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import WeightsError, WeightsSpec

if TYPE_CHECKING:
    from torch import Tensor, nn


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
    """Read a safetensors file, or a torch checkpoint that holds nothing but tensors."""
    import torch
    from timm.models import load_state_dict

    try:
        state = load_state_dict(str(file), weights_only=True)
        tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    # Each format and each kind of damage has an error of its own.
    except Exception as error:
        raise WeightsError(
            "a checkpoint cannot be read",
            where=str(file),
            why="there is no such file" if not file.is_file() else first_line(error),
            fixes=[
                "fetch or copy the file again: it may be cut off",
                "give weights as .safetensors, or as a torch checkpoint of tensors only",
            ],
        ) from error
    if not tensors:
        found = ", ".join(sorted(map(str, state))[:5])
        raise WeightsError(
            "a checkpoint holds no tensors",
            where=str(file),
            why=f"at its top are {found}" if found else "it is empty",
            fixes=["save the state_dict of the network itself, or under the key 'state_dict' or 'model'"],
        )
    return tensors


def load_proven(
    model: nn.Module,
    heads: Sequence[str],
    load: Callable[[], object],
    name: str,
    file: Path,
    *,
    takes_part: bool = False,
) -> None:
    """Load a checkpoint and prove that each float of the backbone came from it.

    Args:
        model: Built at random; what a failed load leaves behind is of no use.
        heads: Modules that stay as they are.
        load: Copies the checkpoint into the model.
        name: Of the backbone, for errors.
        file: The checkpoint, for errors.
        takes_part: The backbone is a part of the network that was trained: the file may hold more.

    Raises:
        WeightsError: Entries differ in shape, are missing, are NaN in the file, or belong to another network.
    """
    import torch

    is_head = below(heads)
    outcome: list[Any] = []
    register: Any = model.register_load_state_dict_post_hook
    hook = register(lambda _, keys: outcome.append(keys))
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.is_floating_point() and not is_head(key):
                value.fill_(math.nan)
    try:
        load()
    # An architecture's filter fails in any way when it is given another architecture's entries.
    except Exception as error:
        raise _misfit(name, file, _differences(error)) from error
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
        raise _misfit(name, file, f"{len(missing)} of {total} entries are not in the file: {_some(missing)}")
    if empty:
        raise _misfit(name, file, f"{len(empty)} entries are NaN in the file: {_some(empty)}")
    if foreign and not takes_part:
        raise _misfit(name, file, f"{len(foreign)} entries of the file have no place in it: {_some(foreign)}")


def _holds_nan(value: Tensor) -> bool:
    # A sum is read in a fraction of the time; infinities may make it NaN as well.
    return bool(value.sum().isnan()) and bool(value.isnan().any())


def _misfit(name: str, file: Path, why: str) -> WeightsError:
    return WeightsError(
        f"the checkpoint is not one of backbone {name!r}",
        where=str(file),
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
