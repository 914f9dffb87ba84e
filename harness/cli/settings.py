"""From flags and a study file to the values of one study."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.errors import UsageError


def study_values(file: Path | None, flags: dict[str, Any]) -> dict[str, Any]:
    """Merge the study file, or the default study, with the flags.

    Raises:
        UsageError: The file or a `--set` is unreadable.
    """
    from harness.config import DEFAULT_STUDY, DRAWN, load_study_file

    values: dict[str, Any]
    if file is not None and file.is_dir():
        raise UsageError(
            "a study file is wanted, this is a folder",
            where=str(file),
            fixes=[f"images in it? harness study run --dataset {file}"],
        )
    if file is not None:
        values = load_study_file(file)
    elif flags.get("dataset") and flags["dataset"] not in DRAWN:
        values = {}
    else:
        values = json.loads(json.dumps(DEFAULT_STUDY))
    homes = {
        "space": ("backbone", "freeze_depth", "lr", "optimizer", "augmentation", "loss", "schedule"),
        "train": ("epochs", "batch_size", "image_size"),
        "search": ("sampler", "pruner"),
        "run": ("device", "threads"),
        "": ("dataset", "trials", "budget", "metric", "seed", "init", "name", "skip_bad"),
    }
    for section, keys in homes.items():
        for key in keys:
            value = flags.get(key)
            if value is None or value == ():
                continue
            _put(values, [section, key] if section else [key], _lr(value) if key == "lr" else value)
    renamed = {"finalists": ["finalize", "top"], "seeds": ["finalize", "seeds"], "weights": ["weights_dir"]}
    for key, path in renamed.items():
        if flags.get(key) is not None:
            _put(values, path, str(flags[key]) if key == "weights" else flags[key])
    for setting in flags.get("settings") or ():
        _put(values, *_parse_setting(setting))
    return values


def _put(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    *sections, key = path
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise UsageError(f"{section!r} is no table of the study", where="--set")
    values[key] = list(value) if isinstance(value, tuple) else value


def _lr(texts: Sequence[str]) -> object:
    if texts == ("auto",):
        return "auto"
    low, colon, high = texts[0].partition(":")
    try:
        if colon and len(texts) == 1:
            return {"low": float(low), "high": float(high), "log": True}
        return [float(text) for text in texts]
    except ValueError:
        raise UsageError(
            f"write learning rates as 1e-3 (repeatable), 1e-5:1e-2 or auto (got {', '.join(texts)})",
            where="--lr",
        ) from None


def _parse_setting(setting: str) -> tuple[list[str], Any]:
    import tomllib

    key, equals, text = setting.partition("=")
    if not equals:
        raise UsageError(f"write --set as KEY=VALUE (got {setting!r})", where="--set")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        # A bare word is what a shell leaves of a quoted string.
        if text[:1] in "[{\"'":
            raise UsageError(
                f"the value of --set {setting!r} is no valid TOML", where="--set", why=str(error)
            ) from None
        value = text
    return key.strip().split("."), value
