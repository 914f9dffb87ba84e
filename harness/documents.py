"""Files to rely on: canonical JSON with a schema and its own SHA-256, written whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import types
import typing
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from harness.errors import StorageError

T = TypeVar("T")
_SCALARS: Mapping[type[Any], set[type[Any]]] = {int: {int}, float: {int, float}, str: {str}}
"""What may stand for a type in JSON."""
SPARSE: Mapping[str, bool] = {"sparse": True}
"""Metadata of a dataclass's field that JSON leaves out where it is empty."""
_LARGEST = 2**63
"""No whole number in a document is further from 0: JSON's have no end, those of arrays and tables have."""


def canonical(value: object) -> str:
    """Write JSON in the one form that digests are taken of: sorted keys, no spaces, UTF-8, no NaN.

    A dataclass is an object of its fields (`body_of`).
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=body_of
    )


def body_of(value: object) -> dict[str, Any]:
    """Return the fields of a dataclass as its JSON has them: `SPARSE` ones only where they hold something."""
    if not dataclasses.is_dataclass(value):
        raise TypeError(f"no JSON of {type(value).__name__}")
    cls: Any = type(value)
    found = {name: getattr(value, name) for name in _hints(cls)}
    sparse = _sparse(cls)
    return {name: part for name, part in found.items() if part or name not in sparse} if sparse else found


@functools.cache
def _sparse(cls: Any) -> frozenset[str]:
    return frozenset(item.name for item in dataclasses.fields(cls) if item.metadata == SPARSE)


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    """Return the types of a dataclass's fields by name; to work them out takes longer than to use them."""
    hints = typing.get_type_hints(cls)
    return {item.name: hints[item.name] for item in dataclasses.fields(cls)}


@functools.cache
def _shape(hint: Any) -> tuple[Any, tuple[Any, ...], bool]:
    """Return a type's origin and arguments, and whether it is a dataclass."""
    is_record = isinstance(hint, type) and dataclasses.is_dataclass(hint)
    return typing.get_origin(hint), typing.get_args(hint), is_record


def digest(value: object) -> str:
    """Return the SHA-256 of a JSON value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a crash leaves the old one, the new one, or none; never a part.

    Raises:
        StorageError: The folder cannot be written, or the disk is full.
    """
    # Two processes that write the same file each have a part of their own.
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        if os.name == "posix":
            descriptor = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except OSError as error:
        # A full disk has no room for parts that nobody goes on with.
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise StorageError(
            "a file cannot be written",
            where=str(path),
            why=str(error),
            fixes=["free disk space", "choose another folder: --runs for studies, HARNESS_HOME for data"],
        ) from error


def write_document(path: Path, body: Mapping[str, Any]) -> None:
    """Write a document with its SHA-256; the body names its schema."""
    write_atomically(path, canonical({**body, "sha256": digest(body)}) + "\n")


def read_document(path: Path, schema: str, what: str) -> dict[str, Any]:
    """Read a document and check its schema and hash.

    Args:
        path: The file.
        schema: The one that this version reads.
        what: Named in errors: `a record`.

    Raises:
        StorageError: The file is missing, damaged, edited, or of another schema.
    """
    return _read_sealed(path, schema, what).body


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Sealed:
    text: str
    body: dict[str, Any]
    """Without its own SHA-256."""
    sha256: str


def _read_sealed(path: Path, schema: str, what: str) -> _Sealed:
    try:
        text = path.read_text(encoding="utf-8")
        body: dict[str, Any] = json.loads(text)
        stored = body.pop("sha256")
        found = body["schema"]
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is damaged"
        raise StorageError(
            f"{what} cannot be read", where=str(path), why=str(why), fixes=["restore it from a copy"]
        ) from error
    if found != schema:
        raise StorageError(
            f"{what} has schema {found!r}, this version reads {schema!r}",
            where=str(path),
            fixes=["upgrade transfer-harness"],
        )
    try:
        is_own = digest(body) == stored
    except ValueError as error:
        raise StorageError(
            f"{what} holds what is no JSON: NaN, infinity, or half of a character", where=str(path)
        ) from error
    if not is_own:
        raise StorageError(
            f"{what} does not match its own SHA-256: it was damaged or edited", where=str(path)
        )
    return _Sealed(text=text, body=body, sha256=stored)


def parse_document(cls: type[T], path: Path, schema: str, what: str, *, foreign: bool = False) -> T:
    """Read a document into its dataclass.

    Args:
        cls: The dataclass.
        path: The file.
        schema: The one that this version reads.
        what: Named in errors: `a record`.
        foreign: A stranger may have written it: each value is looked at, and so is the form of the file.

    Raises:
        StorageError: As `read_document`, or the body has not the form of its schema; of a foreign one also
            where a value is of another type or too large, or the file is not written in the canonical form.
    """
    sealed = _read_sealed(path, schema, what)
    try:
        document = from_json(cls, sealed.body)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StorageError(
            f"{what} has not the form of its schema", where=str(path), why=repr(error)
        ) from error
    if foreign:
        misfit = find_misfit(cls, document)
        if misfit:
            raise StorageError(
                f"{what} has not the form of its schema",
                where=str(path),
                why=f"{misfit} is of another type, or too large",
            )
        # A name that is there twice is one thing to us, and may be another to the next reader.
        if sealed.text != canonical({**body_of(document), "sha256": sealed.sha256}) + "\n":
            raise StorageError(f"{what} is not written in the canonical form", where=str(path))
    return document


def find_misfit(hint: Any, value: object, name: str = "") -> str:
    """Return the dotted name of the first part of a value that is not of its type; empty if each is.

    A whole number beyond 2^63 is of no type.

    `from_json` looks at the structure only: records of one's own are read often, and their hash stands for
    the rest. What strangers wrote is looked at here.

    Args:
        hint: The type, such as a record's dataclass.
        value: What should be of it.
        name: Of the value, for the answer.
    """
    origin, args, is_record = _shape(hint)
    parts: Iterator[tuple[Any, object, str]]
    if hint is typing.Any:
        return ""
    if origin is Literal:
        return "" if value in args and isinstance(value, str) else name
    if origin in (typing.Union, types.UnionType):
        misfits = [find_misfit(part, value, name) for part in args]
        return "" if "" in misfits else misfits[0]
    if is_record:
        if not isinstance(value, hint):
            return name
        hints = _hints(hint)
        parts = ((hints[key], getattr(value, key), f"{name}.{key}".strip(".")) for key in hints)
    elif origin is tuple:
        if not isinstance(value, tuple):
            return name
        if args[-1] is Ellipsis:
            if args[0] in _SCALARS:
                return "" if _are_scalars(value, args[0]) else name
            parts = ((args[0], item, f"{name}.{index}") for index, item in enumerate(value))
        else:
            if len(value) != len(args):
                return name
            parts = ((part, item, name) for part, item in zip(args, value, strict=True))
    elif origin is not None:
        if not isinstance(value, dict):
            return name
        parts = ((args[1], item, f"{name}.{key}") for key, item in value.items())
    else:
        return "" if _are_scalars((value,), hint) else name
    return next(filter(None, (find_misfit(part, item, key) for part, item, key in parts)), "")


def _are_scalars(values: tuple[Any, ...], hint: Any) -> bool:
    kinds = {*map(type, values)}
    if not kinds <= _SCALARS.get(hint, {hint}):
        return False
    return int not in kinds or -_LARGEST <= min(values) <= max(values) <= _LARGEST


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def from_json(cls: type[T], value: Any) -> T:
    """Build a record dataclass from its JSON form, restoring tuples and nested records."""
    kind: Any = cls
    hints = _hints(kind)
    return cls(**{name: _restore(hints[name], item) for name, item in value.items()})


def _restore(hint: Any, value: Any) -> Any:
    origin, args, is_record = _shape(hint)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _restore(args[0], value)
    if is_record:
        return from_json(hint, value)
    if origin is tuple:
        # No look at each cell of a confusion matrix: at a hundred classes that took nearly all the time.
        if args[0] in (int, float, str) and args[-1] is Ellipsis:
            return tuple(value)
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_restore(args[0], item) for item in value)
        return tuple(_restore(part, item) for part, item in zip(args, value, strict=True))
    if origin is not None and isinstance(value, dict):
        return {key: _restore(args[1], item) for key, item in value.items()}
    return value
