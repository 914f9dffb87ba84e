"""What crosses a cut: any number of values of any type, stored as tensors with one row an image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from harness.engine.activations import TensorSpec


class CutError(Exception):
    """A model cannot be cut in this way; another way may do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """A tensor with a value of its own for each image."""

    dim: int
    """The dimension that holds the images."""
    times: int
    """How many entries of `dim` belong to one image: windows, or heads."""
    order: tuple[int, ...]
    """Dimensions as they lie in memory, the outermost first: kernels follow the layout."""
    shape: tuple[int, ...]
    """Of one row, as it is stored."""
    dtype: torch.dtype

    def pack(self, value: Tensor) -> Tensor:
        """Return the tensor as it is stored: images first, the other dimensions as they lie in memory."""
        place = self.order.index(self.dim)
        laid = value.permute(self.order).unflatten(place, (-1, self.times))
        stored: Tensor = laid.movedim(place, 0).contiguous()
        return stored

    def unpack(self, stored: Tensor) -> Tensor:
        """Return the tensor of some rows with the shape and memory layout of the original."""
        place = self.order.index(self.dim)
        laid = stored.movedim(0, place).flatten(place, place + 1).contiguous()
        # Kernels are chosen by all strides, and a dimension of one entry may have got any.
        laid = laid.as_strided(laid.shape, torch.empty(laid.shape, device="meta").stride())
        inverse = [self.order.index(dim) for dim in range(len(self.order))]
        return laid.permute(inverse)


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """A whole number that grows with the batch: `each * images + more`."""

    each: int
    more: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """A value that no image changes."""

    value: Any

    def restore(self, device: torch.device) -> Any:
        """Return it on a device; a tensor is a copy, for the suffix may change it in place."""
        if isinstance(self.value, Tensor):
            return self.value.to(device, copy=True)
        return device if isinstance(self.value, torch.device) else self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A tuple, list or dict of parts."""

    make: Callable[[Sequence[Any]], Any]
    parts: tuple[Part, ...]


Part: TypeAlias = Rows | Count | Fixed | Group


@dataclass(frozen=True, slots=True)
class Boundary:
    """How the values that cross a cut are stored and restored."""

    parts: tuple[Part, ...]

    @classmethod
    def between(cls, two: Sequence[Any], three: Sequence[Any]) -> Boundary:
        """Work it out from the values for a batch of two and one of three other images.

        Raises:
            CutError: A value follows the batch in a way that no row of it belongs to an image.
        """
        return cls(tuple(_compare(a, b) for a, b in zip(two, three, strict=True)))

    @property
    def rows(self) -> tuple[Rows, ...]:
        """The tensors that are stored."""
        return tuple(part for part in _flat(self.parts) if isinstance(part, Rows))

    @property
    def holds_tensors(self) -> bool:
        """Whether it holds tensors of the model that it was worked out with."""
        return any(isinstance(part, Fixed) and isinstance(part.value, Tensor) for part in _flat(self.parts))

    def pack(self, values: Sequence[Any]) -> list[Tensor]:
        """Return the tensors to store, images first."""
        packed: list[Tensor] = []
        for part, value in zip(self.parts, values, strict=True):
            _pack(part, value, packed)
        return packed

    def unpack(self, stored: Sequence[Tensor], images: int, device: torch.device) -> list[Any]:
        """Return the values for some rows, on their device; `images` is the number of the rows."""
        remaining = iter(stored)
        return [_unpack(part, remaining, images, device) for part in self.parts]


def _compare(two: Any, three: Any) -> Part:
    if type(two) is not type(three):
        raise CutError(f"a value is {type(two).__name__} or {type(three).__name__}, by the batch")
    if isinstance(two, Tensor):
        return _compare_tensors(two, three)
    if isinstance(two, dict):
        keys = tuple(two)
        if keys != tuple(three):
            raise CutError("a dict has other keys in another batch")
        parts = tuple(_compare(two[key], three[key]) for key in keys)
        return Group(make=lambda values: dict(zip(keys, values, strict=True)), parts=parts)
    if isinstance(two, tuple | list):
        if len(two) != len(three):
            raise CutError(f"a {type(two).__name__} has another length in another batch")
        kind: Any = type(two)
        parts = tuple(_compare(a, b) for a, b in zip(two, three, strict=True))
        if hasattr(two, "_fields"):
            return Group(make=lambda values: kind(*values), parts=parts)
        return Group(make=lambda values: kind(values), parts=parts)
    if isinstance(two, int) and not isinstance(two, bool) and two != three:
        return Count(each=three - two, more=3 * two - 2 * three)
    try:
        same = bool(two == three)
    except Exception as error:
        raise CutError(f"a {type(two).__name__} cannot be compared: {error}") from error
    if not same:
        raise CutError(f"a {type(two).__name__} changes with the images")
    return Fixed(value=two)


def _compare_tensors(two: Tensor, three: Tensor) -> Part:
    if two.shape == three.shape:
        if not torch.equal(two, three):
            raise CutError(f"a tensor of shape {tuple(two.shape)} holds images but no dimension for them")
        return Fixed(value=three.detach().clone())
    pairs = enumerate(zip(two.shape, three.shape, strict=True)) if two.ndim == three.ndim else ()
    dims = [dim for dim, (a, b) in pairs if a != b]
    if len(dims) != 1 or two.shape[dims[0]] * 3 != three.shape[dims[0]] * 2:
        raise CutError(f"shapes {tuple(two.shape)} and {tuple(three.shape)} for two and three images")
    dim = dims[0]
    times = two.shape[dim] // 2
    # What torch itself makes of a layout, also where an expanded dimension has none.
    strides = torch.empty_like(three).stride()
    # Of equal strides that of a dimension of one entry is the inner one's.
    order = tuple(sorted(range(three.ndim), key=lambda d: (-strides[d], three.shape[d] == 1)))
    place = order.index(dim)
    sizes = [three.shape[d] for d in order]
    shape = (*sizes[:place], times, *sizes[place + 1 :])
    try:
        TensorSpec(shape=shape, dtype=three.dtype)
    except ValueError as error:
        raise CutError(str(error)) from error
    return Rows(dim=dim, times=times, order=order, shape=shape, dtype=three.dtype)


def _flat(parts: Sequence[Part]) -> Iterator[Part]:
    for part in parts:
        if isinstance(part, Group):
            yield from _flat(part.parts)
        else:
            yield part


def _pack(part: Part, value: Any, packed: list[Tensor]) -> None:
    if isinstance(part, Rows):
        packed.append(part.pack(value))
    elif isinstance(part, Group):
        values = value.values() if isinstance(value, dict) else value
        for inner, one in zip(part.parts, values, strict=True):
            _pack(inner, one, packed)


def _unpack(part: Part, stored: Iterator[Tensor], images: int, device: torch.device) -> Any:
    if isinstance(part, Rows):
        return part.unpack(next(stored))
    if isinstance(part, Count):
        return part.each * images + part.more
    if isinstance(part, Group):
        return part.make([_unpack(inner, stored, images, device) for inner in part.parts])
    return part.restore(device)
