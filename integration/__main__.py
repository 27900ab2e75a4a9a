"""The command `python -m integration`: run all tests, or bring services up and down for other programs."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from integration import scale, supervisor
from integration.services.machine import UnavailableError, cache_folder
from integration.services.probes import NotReadyError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m integration", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    test = commands.add_parser(
        "test", help="run the unit tests and the tests on real services, which it starts and stops",
        epilog="Any other argument is passed on to pytest.",
    )  # fmt: skip
    only = test.add_mutually_exclusive_group()
    only.add_argument("--unit-only", action="store_true", help="run pytest tests alone")
    only.add_argument(
        "--integration-only", action="store_true", help="run pytest integration alone"
    )
    how = test.add_mutually_exclusive_group()
    how.add_argument(
        "--quick",
        action="store_true",
        help="leave out what is slow, and brokers for further clients",
    )
    how.add_argument(
        "--nightly",
        action="store_true",
        help="floods and races in their full size, and Keycloak",
    )
    how.add_argument(
        "--clusters", action="store_true", help="only what needs three nodes of a broker"
    )
    commands.add_parser(
        "versions", help="try the oldest and the newest releases of what mqauth uses, and write the page",
        epilog="lowest, highest, installed, beside: one of them; promises, stores, units: a part of the first"
        " two. Any other argument is passed on to pytest.",
    )  # fmt: skip
    up = commands.add_parser(
        "up", help="start RabbitMQ, Kafka and Redis and keep them till Ctrl-C or `down`"
    )
    up.add_argument(
        "--detach",
        action="store_true",
        help="return when they are ready, and keep them running",
    )
    down = commands.add_parser("down", help="stop what `up --detach` started")
    for command in (up, down):
        command.add_argument(
            "--env-file", type=Path, default=cache_folder() / "services.env",
            help="file with the variables to set, there for as long as the services run (%(default)s)",
        )  # fmt: skip
    return parser


def _test(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Run the tests that the options mean."""
    # It needs pytest, which whoever wants a broker alone need not have.
    from integration import runner

    if options.nightly:
        os.environ[scale.VARIABLE] = "1"
    if options.clusters:
        return runner.run_tests([], runner.cluster_tests(), ["-m", "cluster", *rest])
    arguments = ["-m", "not slow", *rest] if options.quick else rest
    units = [] if options.integration_only else runner.unit_tests()
    integration = (
        [] if options.unit_only else runner.integration_tests(quick=options.quick)
    )
    return runner.run_tests(units, integration, arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = _parser()
    options, rest = parser.parse_known_args(argv)
    if rest and options.command not in ("test", "versions"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        if options.command == "test":
            return _test(options, rest)
        if options.command == "versions":
            # It needs packaging, which comes with pytest.
            from integration import versions

            return versions.run(rest)
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
