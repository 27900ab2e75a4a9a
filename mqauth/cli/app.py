"""The verbs of ``mqauth``, each imported when it is called, and the one place where errors become exit codes."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from mqauth._version import __version__
from mqauth.cli.options import SETTINGS
from mqauth.cli.streams import abandon_output, print_error
from mqauth.errors import MqauthError, Unavailable, require

USAGE: Final = 2
UNDECIDED: Final = 3
_INTERRUPTED: Final = 130
VERBS: Final = {
    "demo": ("demo", "demo", "Run a producer, a consumer and an attacker, and show what became of every message."),
    "sign": ("sign", "sign", "Read messages as JSON and print them with a token in their headers."),
    "verify": ("sign", "verify", "Read messages as JSON and print the verdict on each."),
    "check": ("check", "check", "Find the pitfalls of a configuration file."),
    "keys": ("keys", "app", "Make, list and publish a producer's keys."),
    "audit": ("audit", "app", "Check, read and search audit files."),
    "dlq": ("dlq", "app", "List, judge, redrive and discard dead letters."),
    "console": ("console", "console", "Review dead letters in a browser, until it is stopped."),
    "bench": (
        "bench",
        "bench",
        "Measure what signing and verifying cost on this machine, beside the bare clients.",
    ),
}
"""Each verb with its module in ``mqauth.cli``, the function or application in it, and its line in the help."""


class LazyGroup(TyperGroup):
    """A group whose verbs are imported when they are called.

    The verbs import most of the library. ``mqauth --help`` and every wrong call would wait for all of them, so the
    help is printed from ``VERBS``.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        # Typer compares a misspelt verb with these names.
        self.commands: dict[str, Any] = dict.fromkeys(VERBS)

    def list_commands(self, _context: Any) -> list[str]:
        """Return the names of the verbs, in the order of the help."""
        return list(VERBS)

    def get_command(self, _context: Any, name: str) -> Any:
        """Return the command of a verb; ``None`` where there is no such verb."""
        if name in VERBS and self.commands[name] is None:
            module, attribute, _ = VERBS[name]
            found = getattr(import_module(f"mqauth.cli.{module}"), attribute)
            if not isinstance(found, typer.Typer):
                function, found = found, typer.Typer(**SETTINGS)
                found.command(name)(function)
            self.commands[name] = typer.main.get_command(found)
        return self.commands.get(name)

    def format_commands(self, _context: Any, formatter: Any) -> None:
        """Write the list of verbs without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in VERBS.items()])


app: Final = typer.Typer(cls=LazyGroup, **SETTINGS | {"add_completion": True})


@app.callback(invoke_without_command=True)
def mqauth_command(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Signed tokens on RabbitMQ and Kafka messages, verified before any handler runs."""
    if version:
        print(f"mqauth {__version__}")
        raise typer.Exit(0)
    require(context.invoked_subcommand is not None, "no command given: try mqauth demo, or mqauth --help")


def run(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code; every error that is ours becomes one line on standard error."""
    if sys.stdout is None:
        return _failed("standard output is closed", 1)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal may not have every letter of a name. An escape in its place is better than a traceback.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = typer.main.get_command(app).main(list(arguments), prog_name="mqauth", standalone_mode=False)
        sys.stdout.flush()
    except typer.TyperException as error:
        return _failed(f"{' '.join(error.format_message().split()).rstrip('.')} (try mqauth --help)", USAGE)
    except Unavailable as error:
        return _failed(str(error), UNDECIDED)
    except MqauthError as error:
        return _failed(str(error), USAGE)
    except BrokenPipeError:
        abandon_output()
        return 1
    except OSError as error:
        # Standard output may be what failed. It would fail again when the interpreter flushes it on exit.
        abandon_output()
        place = f"{error.filename}: " if error.filename else ""
        return _failed(f"{place}{error.strerror or type(error).__name__}", 1)
    except (KeyboardInterrupt, typer.Abort):
        return _INTERRUPTED
    return code if isinstance(code, int) else 0


def _failed(text: str, code: int) -> int:
    print_error(text)
    return code
