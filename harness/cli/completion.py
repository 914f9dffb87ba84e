"""`harness completion`: print a shell's completion script."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_USE = {
    "bash": 'eval "$(harness completion bash)"  in ~/.bashrc',
    "zsh": 'eval "$(harness completion zsh)"  in ~/.zshrc',
    "fish": "harness completion fish | source  in ~/.config/fish/config.fish",
}


@click.command()
@click.argument("shell", type=click.Choice(list(_USE)))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script of SHELL; how to use it goes to standard error."""
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, "harness", "_HARNESS_COMPLETE").source())
    click.echo(f"# {_USE[shell]}", err=True)
