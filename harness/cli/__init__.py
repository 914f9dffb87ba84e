"""The command line: parses, calls one function, prints. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import errno
import importlib
import io
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from harness import __version__
from harness.cli.suggestions import with_suggestion
from harness.errors import HarnessError, Interrupted, StorageError
from harness.text import safe_text

COMMANDS = {
    "study": "Run, resume and inspect studies.",
    "leaderboard": "Rank what the studies found.",
    "data": "List, fetch and check data sets.",
    "models": "List backbones.",
    "plugins": "List plugins and what they provide.",
    "predict": "Classify images with a finalist.",
    "cache": "Show and clear what is kept to save time.",
    "doctor": "Check this machine.",
    "completion": "Print a shell's completion script.",
}


class Lazy(click.Group):
    """A group whose commands live in modules of their own, imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the command names, in the order of the help page."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; without importing it, describe it for the help page."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"harness.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; that the reader of our output went away (`| head`) is no error of ours."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError:
            # click would end with 1. What is still to be written goes nowhere.
            _write_nowhere()
            return 0
        except SystemExit as error:
            # rich meets a closed pipe before we do, and leaves so.
            if isinstance(error.__context__, BrokenPipeError):
                return 0
            raise
        except OSError as error:
            # Of files in the way of a command, our own errors tell.
            if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EIO):
                raise
            _write_nowhere()
            raise StorageError("the output cannot be written", why=str(error.strerror)) from error


def _write_nowhere() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "-p",
    "plugins",
    multiple=True,
    metavar="MODULE|no:NAME",
    help="Load a plugin module, or block a plugin before anything is loaded. Repeatable.",
)
@click.version_option(__version__, prog_name="harness")
@click.pass_context
def command(ctx: click.Context, plugins: tuple[str, ...]) -> None:
    """Find the best way to fine-tune a pretrained image backbone, and show the evidence."""
    ctx.obj = plugins


def _prepare_streams() -> None:
    """Let a name that the output's encoding lacks be escaped, not fatal; and a closed output be no error."""
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with the code that `harness.errors` documents."""
    _prepare_streams()
    logging.basicConfig(format="harness: %(message)s", level=logging.WARNING, stream=sys.stderr)
    # So that `-p mynet` finds mynet.py in the current folder, and never instead of an installed package.
    sys.path.append("")
    try:
        code = command(args=arguments, prog_name="harness", standalone_mode=False)
    except click.exceptions.Abort:
        code = 130
    except click.ClickException as error:
        with_suggestion(error).show()
        code = error.exit_code
    except HarnessError as error:
        code = _say_error(error)
    except Interrupted as stopped:
        print("stopped before the first trial; the same command starts again", file=sys.stderr)
        code = stopped.exit_code
    except KeyboardInterrupt:
        code = 130
    except OSError as error:
        # A name that is too long, a folder nobody may look into: of paths that a user gives. That one of the
        # harness's own files is missing is nothing a user can mend.
        is_bug = error.filename is None or isinstance(error, FileNotFoundError)
        code = _say_bug() if is_bug else _say_error(_cannot_use(error))
    except Exception:
        code = _say_bug()
    sys.exit(code if isinstance(code, int) else 0)


def _say_error(error: HarnessError) -> int:
    what, *rest = str(error).splitlines()
    print("\n".join([f"error: {safe_text(what)}", *(safe_text(line) for line in rest)]), file=sys.stderr)
    return error.exit_code


def _cannot_use(error: OSError) -> StorageError:
    return StorageError(
        "a file or folder cannot be used",
        where=str(error.filename),
        why=error.strerror or str(error),
        fixes=["check the path, and who may read and write it"],
    )


def _say_bug() -> int:
    traceback.print_exc()
    print("error: a bug in harness; the lines above say where", file=sys.stderr)
    return HarnessError.exit_code
