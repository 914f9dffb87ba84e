"""The file of an entry of the activation store: safetensors, written in place, read through a map."""

from __future__ import annotations

import errno
import json
import math
import mmap
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from harness.documents import canonical

# `harness cache` must start without torch.
if TYPE_CHECKING:
    import torch
    from torch import Tensor

SCHEMA = "harness.activations/1"

_DTYPES = {
    "BOOL": ("bool", 1),
    "U8": ("uint8", 1),
    "I8": ("int8", 1),
    "I16": ("int16", 2),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I32": ("int32", 4),
    "F32": ("float32", 4),
    "I64": ("int64", 8),
    "F64": ("float64", 8),
}
_CODES = {f"torch.{name}": (code, size) for code, (name, size) in _DTYPES.items()}
_RESERVED = ("schema", "seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """What one row of a tensor is."""

    shape: tuple[int, ...]
    """Without the dimension of the rows; empty for one number per row."""
    dtype: torch.dtype

    def __post_init__(self) -> None:
        if str(self.dtype) not in _CODES or min(self.shape, default=1) < 1:
            raise ValueError(f"rows of {self.dtype} {tuple(self.shape)} cannot be stored")

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape) * _CODES[str(self.dtype)][1]


@dataclass(frozen=True, slots=True, kw_only=True)
class EntrySpec:
    """What an entry will hold: tensors of equally many rows."""

    key: str
    """Digest of all that the numbers depend on: letters, digits, `-` and `_`."""
    rows: int
    tensors: Mapping[str, TensorSpec]
    facts: Mapping[str, str]
    """What the key was made of, for whoever looks into the file. `schema` and `seconds` are ours."""
    seconds: float = 0.0
    """What computing it is expected to take: decides which entries give way to it."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9A-Za-z_-]{1,128}", self.key):
            raise ValueError(f"{self.key!r} cannot name a file")
        if self.rows < 1 or not self.tensors:
            raise ValueError(f"entry {self.key} has nothing to store")
        if "__metadata__" in self.tensors or any(name in self.facts for name in _RESERVED):
            raise ValueError(f"entry {self.key} uses a reserved name")

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return len(_header(self, 0.0)) + self.rows * sum(spec.row_bytes for spec in self.tensors.values())


class Entry:
    """A complete entry, mapped. Made by `ActivationStore.open`.

    Args:
        file: Its file, which may be closed afterwards; locks on it live as long as the map.

    Raises:
        ValueError: The file is damaged.
    """

    def __init__(self, file: IO[bytes]) -> None:
        header = _read_header(file)
        metadata = header.pop("__metadata__")
        self.bytes = os.fstat(file.fileno()).st_size
        self.facts: dict[str, str] = {name: metadata[name] for name in metadata if name not in _RESERVED}
        self.rows: int = next(iter(header.values()))["shape"][0]
        # A mapped file keeps a duplicate of the descriptor, and with it the lock.
        self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._tensors = {}
        for name, body in header.items():
            begin, end = body["data_offsets"]
            rows = np.frombuffer(self._map, np.uint8, end - begin, begin).reshape(self.rows, -1)
            self._tensors[name] = (rows, _DTYPES[body["dtype"]][0], body["shape"][1:])

    def gather(self, name: str, rows: Sequence[int] | Tensor) -> Tensor:
        """Return an own copy of some rows of a tensor, in the order given.

        Args:
            name: The tensor.
            rows: Row numbers, in any order, also repeatedly.

        Returns:
            (len(rows), *shape) on the CPU, in the dtype stored.

        Raises:
            IndexError: A row is out of range.
            KeyError: There is no tensor of that name, or the entry has been closed.
        """
        import torch

        stored, dtype, shape = self._tensors[name]
        numbers = rows.cpu().numpy() if isinstance(rows, torch.Tensor) else np.asarray(rows)
        if not numbers.size:
            numbers = np.zeros(0, np.int64)
        whole = numbers.dtype.kind in "iu" and numbers.ndim == 1
        if not whole or not ((numbers >= 0) & (numbers < self.rows)).all():
            raise IndexError(f"rows are whole numbers from 0 to {self.rows - 1}, in one dimension")
        found = torch.empty(len(numbers), *shape, dtype=getattr(torch, dtype))
        # As bytes, because NumPy has no bfloat16. `clip` changes nothing here; it copies without a buffer.
        content = found.reshape(-1).view(torch.uint8).numpy().reshape(len(numbers), stored.shape[1])
        stored.take(numbers.astype(np.intp, copy=False), axis=0, out=content, mode="clip")
        return found

    def mapped(self, name: str) -> Tensor:
        """Return all rows of a tensor as they lie in the file: to read from, never to write to.

        The map stays for as long as the tensor does.

        Raises:
            KeyError: There is no tensor of that name, or the entry has been closed.
        """
        import torch

        stored, dtype, shape = self._tensors[name]
        with warnings.catch_warnings():
            # That it cannot be written is known.
            warnings.simplefilter("ignore", UserWarning)
            content = torch.from_numpy(stored.reshape(-1))
        return content.view(getattr(torch, dtype)).reshape(self.rows, *shape)

    def close(self) -> None:
        """Unmap the file."""
        self._tensors.clear()
        # Somebody is gathering: then the map goes when that is done.
        with suppress(BufferError):
            self._map.close()


class Part:
    """The file of an entry that is being written, with all its space taken from the start.

    Plain writes, not a mapped file: on a full disk they raise, where a map would kill the process.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
    """

    def __init__(self, path: Path, spec: EntrySpec) -> None:
        self.path = path
        self.spec = spec
        start = len(_header(spec, 0.0))
        self._offsets = {name: start + offset for name, offset in _offsets(spec).items()}
        self._written = {name: np.zeros(spec.rows, np.bool_) for name in spec.tensors}
        self._file = path.open("wb", buffering=0)
        try:
            _allocate(self._file, spec.bytes)
        except BaseException:
            self.discard()
            raise

    def write(self, name: str, first_row: int, tensor: Tensor) -> None:
        """Write consecutive rows of a tensor.

        Raises:
            OSError: The disk is full.
            ValueError: The rows are not what the specification announced.
        """
        import torch

        spec, last = self.spec.tensors[name], first_row + len(tensor)
        fits = tensor.dtype == spec.dtype and tuple(tensor.shape[1:]) == tuple(spec.shape)
        if not fits or not 0 <= first_row <= last <= self.spec.rows:
            raise ValueError(
                f"{name!r} of {self.spec.key} has {self.spec.rows} rows of {spec.dtype} {tuple(spec.shape)}; "
                f"{tensor.dtype} {tuple(tensor.shape)} does not fit from row {first_row} on"
            )
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        self._write(self._offsets[name] + first_row * spec.row_bytes, content.data)
        self._written[name][first_row:last] = True

    def check(self) -> None:
        """Raise ValueError unless every row has been written."""
        for name, written in self._written.items():
            if missing := int((~written).sum()):
                raise ValueError(f"{missing} of {self.spec.rows} rows of {name!r} were not written")

    def finish(self, seconds: float) -> None:
        """Write the header, and make sure that all is on the disk."""
        self._write(0, memoryview(_header(self.spec, seconds)))
        os.fsync(self._file.fileno())
        self._file.close()

    def discard(self) -> None:
        """Remove the file."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    def _write(self, at: int, content: memoryview) -> None:
        self._file.seek(at)
        while content:
            content = content[self._file.write(content) :]


def read_seconds(path: Path) -> float:
    """Return what computing an entry took, reading its header only.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is damaged.
    """
    with path.open("rb") as file:
        return float(_read_header(file)["__metadata__"]["seconds"])


def _header(spec: EntrySpec, seconds: float) -> bytes:
    """Write the start of a file. Its length does not depend on `seconds`: those are known last."""
    body: dict[str, Any] = {"__metadata__": {**spec.facts, "schema": SCHEMA, "seconds": f"{seconds:016.6f}"}}
    for name, begin in _offsets(spec).items():
        tensor = spec.tensors[name]
        body[name] = {
            "dtype": _CODES[str(tensor.dtype)][0],
            "shape": [spec.rows, *tensor.shape],
            "data_offsets": [begin, begin + spec.rows * tensor.row_bytes],
        }
    text = canonical(body).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _offsets(spec: EntrySpec) -> dict[str, int]:
    """Place the tensors one after the other, wide numbers first: then all are aligned."""
    offsets, end = {}, 0
    for name in sorted(spec.tensors, key=lambda name: (-_CODES[str(spec.tensors[name].dtype)][1], name)):
        offsets[name] = end
        end += spec.rows * spec.tensors[name].row_bytes
    return offsets


def _read_header(file: IO[bytes]) -> dict[str, Any]:
    """Read a header whose file is whole; `data_offsets` become offsets from the start of the file."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= size - 8:
        raise ValueError("no header")
    try:
        header: dict[str, Any] = json.loads(file.read(length))
        tensors = [body for name, body in header.items() if name != "__metadata__"]
        rows = {body["shape"][0] for body in tensors}
        for body in tensors:
            begin, end = body["data_offsets"] = [8 + length + offset for offset in body["data_offsets"]]
            if end - begin != math.prod(body["shape"]) * _DTYPES[body["dtype"]][1]:
                raise ValueError("a tensor of another size than its shape's")
        whole = len(rows) == 1 and size == max(body["data_offsets"][1] for body in tensors)
        if not whole or header["__metadata__"]["schema"] != SCHEMA or "seconds" not in header["__metadata__"]:
            raise ValueError("not a whole entry")
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError("no header of an entry") from error
    return header


def _allocate(file: IO[bytes], size: int) -> None:
    """Take the space of a file, so that a full disk shows before anything is computed."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
            return
        except OSError as error:
            # Some file systems cannot; there, a write fails.
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
    file.truncate(size)
