"""Text for people: foreign characters made safe before a terminal sees them, long lists cut short."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

_SHOWN = 10
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def safe_text(value: object) -> str:
    """Return text in which control and direction-changing characters are visible instead of active.

    Class, file, run and plugin names come from strangers. Put the result into `rich.text.Text`, never into
    a markup string: this function leaves `[bold]` as it is.
    """
    return "".join(_visible(character) for character in str(value))


def counted(count: int, noun: str) -> str:
    """Return a number with its noun: `1 trial`, `2 trials`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def listed(what: str, found: Sequence[str]) -> str:
    """Say how many there are and show the first, one a line."""
    lines = "".join(f"\n      {line}" for line in found[:_SHOWN])
    more = f"\n      and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"{what} ({len(found)}){lines}{more}"


def _visible(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    if character in _BIDI or unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return f"<U+{code:04X}>"
    return character
