"""The JSON Schema of what `format_json` writes, read from the dataclasses it is written from."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import types
import typing
from collections.abc import Mapping
from typing import Any

from harness.leaderboard.board import Leaderboard
from harness.leaderboard.render import SCHEMA

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_SCALARS = {str: "string", int: "integer", float: "number", bool: "boolean", types.NoneType: "null"}


def json_schema(board: type[Any] = Leaderboard) -> dict[str, Any]:
    """Return the schema of a document of leaderboards.

    Args:
        board: The dataclass of a leaderboard.
    """
    one = _schema_of(board)
    one["properties"]["caption"] = {"type": "string", "description": "The above in one line."}
    one["required"].append("caption")
    return {
        "$schema": DIALECT,
        "title": "Leaderboards of harness",
        "type": "object",
        "properties": {
            "schema": {"const": SCHEMA},
            "leaderboards": {"type": "array", "items": one},
        },
        "required": ["schema", "leaderboards"],
        "additionalProperties": False,
    }


def _schema_of(hint: Any) -> dict[str, Any]:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint in _SCALARS:
        return {"type": _SCALARS[hint]}
    if origin is typing.Literal:
        return {"enum": list(args)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_schema_of(part) for part in args]}
    if origin is tuple and args[-1] is Ellipsis:
        return {"type": "array", "items": _schema_of(args[0])}
    if origin is tuple:
        parts = [_schema_of(part) for part in args]
        return {"type": "array", "prefixItems": parts, "minItems": len(parts), "maxItems": len(parts)}
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": _schema_of(args[1])}
    if dataclasses.is_dataclass(hint):
        return _object(typing.cast(type[Any], hint))
    raise TypeError(f"no JSON Schema for {hint!r}")


def _object(cls: type[Any]) -> dict[str, Any]:
    hints, notes = typing.get_type_hints(cls), _notes(cls)
    properties = {}
    for item in dataclasses.fields(cls):
        properties[item.name] = _schema_of(hints[item.name])
        if item.name in notes:
            properties[item.name]["description"] = notes[item.name]
    return {
        "description": inspect.cleandoc(cls.__doc__ or ""),
        "type": "object",
        "properties": properties,
        "required": [item.name for item in dataclasses.fields(cls)],
        "additionalProperties": False,
    }


def _notes(cls: type[Any]) -> dict[str, str]:
    """Return the docstring below each field, which only the source holds."""
    found: dict[str, str] = {}
    for parent in reversed(cls.__mro__[:-1]):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(parent))).body
        assert isinstance(body, ast.ClassDef)
        for field, note in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(note, ast.Expr)
                and isinstance(note.value, ast.Constant)
            ):
                found[field.target.id] = inspect.cleandoc(str(note.value.value))
    return found
