"""The command `python -m integration`: run all tests, or bring services up and down for other programs."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from integration import runner, supervisor
from integration.services.machine import UnavailableError, cache_folder
from integration.services.probes import NotReadyError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m integration", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    test = commands.add_parser(
        "test", help="run the unit tests, then the tests on real services, which it starts and stops",
        epilog="Any other argument is passed on to pytest.",
    )  # fmt: skip
    only = test.add_mutually_exclusive_group()
    only.add_argument("--unit-only", action="store_true", help="run pytest tests alone")
    only.add_argument("--integration-only", action="store_true", help="run pytest integration alone")
    up = commands.add_parser("up", help="start RabbitMQ, Kafka and Redis and keep them till Ctrl-C or `down`")
    up.add_argument("--detach", action="store_true", help="return when they are ready, and keep them running")
    down = commands.add_parser("down", help="stop what `up --detach` started")
    for command in (up, down):
        command.add_argument(
            "--env-file", type=Path, default=cache_folder() / "services.env",
            help="file with the variables to set, there for as long as the services run (%(default)s)",
        )  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = _parser()
    options, rest = parser.parse_known_args(argv)
    if rest and options.command != "test":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        if options.command == "test":
            folders = ["tests"] * (not options.integration_only) + ["integration"] * (not options.unit_only)
            return runner.run_tests(folders, rest)
        if options.command == "down":
            return supervisor.down(options.env_file)
        return (supervisor.detach if options.detach else supervisor.up)(options.env_file)
    except (UnavailableError, NotReadyError) as failed:
        print(f"error: {failed}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
