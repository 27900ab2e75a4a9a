"""The verbs of ``mqauth``, each imported when it is called; what they share; how errors become exit codes.

Verbs share options, bounded JSON on standard input, and JSON lines or one line of text on standard output.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final

import typer
from typer.core import TyperGroup

from mqauth._version import __version__
from mqauth.cli import INTERRUPTED, forms, leave
from mqauth.errors import MalformedMessage, MqauthError, Unavailable, refusing, require
from mqauth.wire import strict_json

USAGE: Final = 2
UNDECIDED: Final = 3
VERBS: Final = {
    "demo": (
        "demo",
        "demo",
        "Run a producer, a consumer and an attacker, and show what became of every message.",
    ),
    "init": (
        "init",
        "init",
        "Write a producer and a consumer that run, with keys and settings. Overwrites nothing.",
    ),
    "sign": (
        "sign",
        "sign",
        "Read messages as JSON and print them with a token in their headers.",
    ),
    "verify": ("sign", "verify", "Read messages as JSON and print the verdict on each."),
    "health": ("health", "health", "Ask a process how its consumers are."),
    "check": (
        "check",
        "check",
        "Find mistakes and risky settings in a configuration file.",
    ),
    "selftest": (
        "check",
        "selftest",
        "Try whether a consumer refuses unsigned and forged messages.",
    ),
    "keys": ("keys", "app", "Make, list, rotate, revoke and publish a producer's keys."),
    "authority": (
        "authority",
        "app",
        "Run an authority, which gives identities that live for an hour or so.",
    ),
    "identity": ("sign", "app", "Print what an identity or a token says."),
    "audit": ("audit", "app", "Check, read and search audit files."),
    "dlq": ("dlq", "app", "List, check, redrive and discard dead letters."),
    "rollout": ("rollout", "app", "Bring signatures to a running system, step by step."),
    "config": (
        "check",
        "app",
        "Show the settings that commands take, and where each comes from.",
    ),
    "console": (
        "console",
        "console",
        "Review dead letters in a browser. It runs until Ctrl-C.",
    ),
}
"""Each verb with its module in ``mqauth.cli``, the function or application in it, and its line in the help."""
MAX_INPUT: Final = 16 * 1024 * 1024
"""Most bytes of a message in JSON, of a line of it, or of a body."""
SETTINGS: Final[dict[str, Any]] = {
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
    "add_completion": False,
    "context_settings": {"help_option_names": ["--help", "-h"]},
}
From = Annotated[
    float | None,
    typer.Option(
        "--from",
        "--since",
        parser=forms.moment,
        metavar="TIME",
        help="From this time on: 2026-11-25T10:00:00Z, or 2h or 7d (ago), or now.",
    ),
]
To = Annotated[
    float | None,
    typer.Option(
        "--to",
        "--until",
        parser=forms.moment,
        metavar="TIME",
        help="Before this time, likewise.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
PassphraseEnv = Annotated[
    str | None,
    typer.Option("--passphrase-env", help="Environment variable with the passphrase."),
]
PassphraseFile = Annotated[
    Path | None, typer.Option("--passphrase-file", help="File with the passphrase.")
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        envvar="MQAUTH_CONFIG",
        help="The configuration; by default mqauth.toml.",
    ),
]
Broker = Annotated[
    str | None,
    typer.Option(
        "--broker",
        envvar="MQAUTH_BROKER",
        help="amqp://... or kafka://host:port, or a name of [brokers.NAME].",
    ),
]
Queue = Annotated[
    str | None, typer.Option("--queue", help="The dead-letter queue, on RabbitMQ.")
]
Topic = Annotated[
    str | None, typer.Option("--topic", help="The dead-letter topic, on Kafka.")
]
Reviewer = Annotated[
    str | None,
    typer.Option("--reviewer", help="Name of the reviewer, in releases and audit."),
]
Authority = Annotated[
    str | None,
    typer.Option("--authority", help="Issuer of the releases, as the consumers know it."),
]
Lifetime = Annotated[
    int, typer.Option("--lifetime", help="Seconds for which a release is valid.")
]


def group(text: str, example: str) -> typer.Typer:
    """Return the application of a verb with verbs of its own.

    Args:
        text: the line of help.
        example: a command to try, for whoever names no verb.
    """
    app = typer.Typer(help=text, **SETTINGS)

    @app.callback(invoke_without_command=True)
    def named(context: typer.Context) -> None:
        require(
            context.invoked_subcommand is not None,
            f"no command given: try {example}, or {context.command_path} --help",
        )

    return app


def options(
    **makers: Callable[..., Any],
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the decorator of a command that takes what functions make of options, so that each is declared once.

    Args:
        makers: by the name of the command's argument; their options become options of the command.
    """

    def decorated(command: Callable[..., Any]) -> Callable[..., Any]:
        signatures = {
            name: inspect.signature(function, eval_str=True).parameters
            for name, function in {"": command, **makers}.items()
        }

        def called(**given: Any) -> Any:
            made = {
                name: make(**{each: given[each] for each in signatures[name]})
                for name, make in makers.items()
            }
            return command(
                **made,
                **{name: given[name] for name in signatures[""] if name not in makers},
            )

        known = {
            name: each
            for some in signatures.values()
            for name, each in some.items()
            if name not in makers
        }
        vars(called)["__signature__"] = inspect.Signature([*known.values()])
        called.__annotations__ = {name: each.annotation for name, each in known.items()}
        called.__name__, called.__doc__ = command.__name__, command.__doc__
        return called

    return decorated


def once(make: Callable[[Any], Any], context: Any) -> Any:
    """Return the parser of a command, which refuses an option that was given twice and has one value.

    Of two values the last would count: ``--reason a --reason b`` would discard what nobody asked for.

    Args:
        make: makes the parser.
        context: of the call.
    """
    parser = make(context)
    parse = parser.parse_args

    def parsed_once(args: list[str]) -> Any:
        values, rest, order = parse(args)
        for each in order:
            require(
                each.multiple or order.count(each) == 1, f"{each.opts[0]}: given twice"
            )
        return values, rest, order

    parser.parse_args = parsed_once
    return parser


class LazyGroup(TyperGroup):
    """A group whose verbs are imported when they are called.

    The verbs import most of the library. ``mqauth --help`` and every wrong call would wait for all of them, so the
    help is printed from ``VERBS``.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        # Typer lists these names, and compares a misspelt verb with them.
        self.commands: dict[str, Any] = dict.fromkeys(VERBS)

    def get_command(self, _context: Any, name: str) -> Any:
        """Return the command of a verb; ``None`` where there is no such verb."""
        if name in VERBS and self.commands[name] is None:
            module, attribute, _ = VERBS[name]
            verb = getattr(import_module(f"mqauth.cli.{module}"), attribute)
            if not isinstance(verb, typer.Typer):
                function, verb = verb, typer.Typer(**SETTINGS)
                verb.command(name)(function)
            self.commands[name] = each = typer.main.get_command(verb)
            for command in (each, *getattr(each, "commands", {}).values()):
                command.make_parser = partial(once, command.make_parser)
            if signal.getsignal(signal.SIGINT) is leave:
                # From here on a command ends what it has begun.
                signal.signal(signal.SIGINT, signal.default_int_handler)
        return self.commands.get(name)

    def format_commands(self, _context: Any, formatter: Any) -> None:
        """Write the list of verbs without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in VERBS.items()])


app: Final = typer.Typer(cls=LazyGroup, **SETTINGS | {"add_completion": True})


@app.callback(invoke_without_command=True)
def mqauth_command(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the versions of mqauth and of its formats."
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Print the traceback of an error too.")
    ] = False,
) -> None:
    """Signed tokens on RabbitMQ and Kafka messages, verified before any handler runs."""
    if version:
        from mqauth.audit.record import SCHEMA_VERSION
        from mqauth.keystore.disk.ring import VERSION
        from mqauth.wire.claims import PROFILE_VERSION

        print(
            f"mqauth {__version__}",
            f"wire profile {PROFILE_VERSION}, audit record {SCHEMA_VERSION}, keystore {VERSION}",
            sep="\n",
        )
        raise typer.Exit(0)
    require(
        context.invoked_subcommand is not None,
        "no command given: try mqauth demo, or mqauth --help",
    )


def run(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code; every error that is ours becomes one line on standard error."""
    if sys.stdout is None:
        print_error("standard output is closed")
        return 1
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal may not have every letter of a name. An escape in its place is better than a traceback.
        sys.stdout.reconfigure(errors="backslashreplace")
    # --debug may stand anywhere before --.
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    given = [each for each in arguments[:end] if each != "--debug"] + [*arguments[end:]]
    try:
        # Names of files may be any bytes; what else is written somewhere is UTF-8.
        with refusing(UnicodeEncodeError, "an argument or a variable is not UTF-8"):
            code = typer.main.get_command(app).main(
                given, prog_name="mqauth", standalone_mode=False
            )
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        abandon_output()
        return 1
    except Exception as error:
        if len(given) < len(arguments):
            traceback.print_exc()
        text, code = _told(error)
        print_error(text)
    return code if isinstance(code, int) else 0


def _told(error: Exception) -> tuple[str, int]:
    """Return an error in one line, and the exit code."""
    if isinstance(error, typer.TyperException):
        command = getattr(getattr(error, "ctx", None), "command_path", "mqauth")
        return (
            f"{' '.join(error.format_message().split()).rstrip('.')} (try {command} --help)",
            USAGE,
        )
    if isinstance(error, MqauthError):
        return str(error), getattr(
            error, "exit_code", UNDECIDED if isinstance(error, Unavailable) else USAGE
        )
    if isinstance(error, OSError):
        # Standard output may be what failed. It would fail again when the interpreter flushes it on exit.
        abandon_output()
        return (
            f"{f'{error.filename}: ' if error.filename else ''}{error.strerror or type(error).__name__}",
            1,
        )
    # Its text may hold anything.
    return (
        f"this is a fault of mqauth ({type(error).__name__}); run it again with --debug and report it",
        1,
    )


def parsed(raw: bytes | None) -> Any:
    """Return the JSON value of a text of standard input. Integers may have 64 bits, as those of AMQP have.

    Args:
        raw: its bytes; ``None`` where there were more than ``MAX_INPUT``.

    Raises:
        MalformedMessage: the text is too large or not strict JSON.
    """
    from mqauth.wire.json_form import JSON_DEPTH

    if raw is None:
        raise MalformedMessage(f"over {MAX_INPUT} bytes")
    with refusing(strict_json.StrictJSONError, str, MalformedMessage):
        return strict_json.loads(raw, depth=JSON_DEPTH, wide=True)


def standard_input() -> BinaryIO:
    """Return standard input as a stream of bytes.

    Raises:
        ConfigurationError: it is closed.
    """
    require(sys.stdin is not None, "standard input is closed")
    return sys.stdin.buffer


def read_texts(stream: BinaryIO, *, lines: bool) -> Iterator[tuple[int, bytes | None]]:
    """Yield the JSON texts of a stream, each with its line, from 1; ``None`` for one over ``MAX_INPUT`` bytes.

    Args:
        stream: the bytes.
        lines: whether each line that is not blank is a text; else the whole stream is one.
    """
    if not lines:
        raw = stream.read(MAX_INPUT + 1)
        yield 1, raw if len(raw) <= MAX_INPUT else None
        return
    for number, line in enumerate(iter(lambda: stream.readline(MAX_INPUT + 1), b""), 1):
        if len(line) > MAX_INPUT and not line.endswith(b"\n"):
            # In pieces: a line without an end must not fill the memory.
            while (chunk := stream.readline(64 * 1024)) and not chunk.endswith(b"\n"):
                pass
            yield number, None
        elif line.strip(b" \t\r\n"):
            yield number, line


def print_json(value: Any) -> None:
    """Print one compact JSON line and flush it, so that a program at the other end of a pipe can go on.

    It is ASCII: characters that a terminal or a viewer might act on are escaped, and to a program it is the same.
    """
    print(
        json.dumps(value, separators=(",", ":"), allow_nan=False).replace(
            "\x7f", "\\u007f"
        ),
        flush=True,
    )


def answer(as_json: bool, value: Any, *lines: str) -> None:
    """Print what a command found: for programs as JSON, for people as lines of text."""
    if as_json:
        print_json(value)
    for line in () if as_json else lines:
        print(line, flush=True)


def print_error(text: str) -> None:
    """Print one line on standard error, whatever characters the text has."""
    print(f"mqauth: {forms.one_line(text)}", file=sys.stderr)


def abandon_output() -> None:
    """Point standard output to the null device, so that the interpreter does not fail on it again at its exit."""
    # A test or an embedding program may have put an object without a descriptor in its place.
    with (
        Path(os.devnull).open("wb") as nowhere,
        contextlib.suppress(io.UnsupportedOperation),
    ):
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


@contextlib.contextmanager
def progress_bar(
    what: str, total: int | None, *, quiet: bool = False
) -> Iterator[Callable[[int], None]]:
    """Give a function that shows how far the work is, as a bar on standard error, on a terminal only.

    Args:
        what: the work, in a word or two.
        total: how much there is, ``None`` where that is not known.
        quiet: show nothing.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    with Progress(
        *Progress.get_default_columns(),
        MofNCompleteColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.update(task, completed=count)
