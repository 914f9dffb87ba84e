"""What to write instead of an option or a command that there is not."""

from __future__ import annotations

import click

from harness.errors import nearest

CLOSE = 0.75
"""Of difflib: `--epoch` is close to `--epochs`, `--timeout` not to `--optimizer`."""

OPTIONS: dict[str, tuple[str, ...]] = {
    "--backbone NAME": ("model", "arch", "architecture", "network"),
    "--batch-size N": ("batch", "bs"),
    "--budget 20m": ("timeout", "time", "max-time", "time-limit", "time-budget"),
    "--augmentation NAME": ("aug", "augment", "transform", "transforms"),
    "--dataset NAME|DIR": ("data", "data-dir", "data-path", "images"),
    "--device cpu": ("cpu", "no-cuda"),
    "--device cuda": ("gpu", "gpus", "cuda"),
    "--epochs N": ("num-epochs", "max-epochs"),
    "--freeze-depth SHARE": ("freeze", "frozen"),
    "--image-size N": ("img-size", "imgsz", "input-size", "resolution"),
    "--init pretrained": ("pretrained",),
    "--init scratch": ("scratch", "no-pretrained"),
    "--loss NAME": ("criterion",),
    "--lr RATE": ("learning-rate",),
    "--optimizer NAME": ("opt", "optim"),
    "--runs DIR": ("out", "output", "output-dir", "out-dir", "save-dir"),
    "--schedule NAME": ("scheduler", "lr-scheduler"),
    "--seed N": ("random-state", "random-seed"),
    "--set space.weight_decay=0.05": ("weight-decay", "wd"),
    "--threads N": ("jobs", "n-jobs", "workers", "num-workers"),
    "--to DIR": ("out", "output", "output-dir", "out-dir", "save-dir"),
    "--trials N": ("n-trials", "num-trials", "max-trials", "num-samples"),
    "--weights DIR": ("checkpoint", "checkpoints"),
}
"""What users of other tools call an option, by the option; it counts where a command has the option."""

COMMANDS: dict[str, tuple[str, ...]] = {
    "harness study run": ("run", "train", "fit", "search", "tune", "optimize", "resume"),
    "harness predict": ("infer", "inference", "classify"),
    "harness leaderboard show": ("rank", "results"),
    "harness data get": ("download", "fetch"),
}


def with_suggestion(error: click.ClickException) -> click.ClickException:
    """Return an error that suggests what there is, where an option or a command is unknown."""
    if isinstance(error, click.NoSuchOption) and error.ctx:
        return _suggesting(error, suggest_option(error.option_name, error.ctx.command))
    if isinstance(error, click.exceptions.NoSuchCommand) and error.ctx:
        group = error.ctx.command
        known = group.list_commands(error.ctx) if isinstance(group, click.Group) else []
        return _suggesting(error, suggest_command(error.command_name, known))
    return error


def suggest_option(name: str, command: click.Command) -> str | None:
    """Return the option of a command that is meant by a name of other tools, or by a close one."""
    wanted = name.lstrip("-").replace("_", "-").lower()
    known = {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
    for option, names in OPTIONS.items():
        if wanted in names and option.split()[0] in known:
            return option
    near = nearest(wanted, [option.lstrip("-") for option in known if option.startswith("--")], cutoff=CLOSE)
    return f"--{near}" if near else None


def suggest_command(name: str, known: list[str]) -> str | None:
    """Return the command that is meant by another name, one of those known where it is close."""
    near = nearest(name, known, cutoff=CLOSE)
    return near or next((command for command, names in COMMANDS.items() if name.lower() in names), None)


def _suggesting(error: click.UsageError, suggestion: str | None) -> click.UsageError:
    hint = f" Did you mean {suggestion!r}?" if suggestion else ""
    return click.UsageError(error.message + hint, error.ctx)
