"""``mqauth check``: finds the pitfalls of a configuration file.

``codes`` has the registry of them, ``rule`` has what a rule looks at and what it yields, ``tokens``,
``issuers``, ``deployment`` and ``rollout`` hold the rules. The check as a whole reads the file, asks every rule,
builds the objects, and puts the findings in order.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Final

from mqauth.check import deployment, issuers, rollout, tokens
from mqauth.check.codes import CODES, Code, Severity
from mqauth.check.rule import Finding, Report, Rule, Target, finding, ordered, read
from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.config.load import Configuration
from mqauth.config.toml_file import (
    Place,
    RefusedSetting,
    lines_of,
    nearest,
    placeholders,
    read_toml,
)
from mqauth.errors import ConfigurationError

__all__ = ["CODES", "Code", "Finding", "Report", "Severity", "check"]
RULES: Final[tuple[Rule, ...]] = (
    *tokens.RULES,
    *issuers.RULES,
    *deployment.RULES,
    *rollout.RULES,
)
"""Each rule yields its findings on a target."""
_TRUST: Final = (
    ("consumer", "issuers"),
    ("consumer", "allow"),
    ("release", "authorities"),
)
"""Settings that say whom to trust."""


def check(path: str | Path, *, clock: Clock = SYSTEM_CLOCK) -> Report:
    """Return what is wrong with a configuration file, without using the network or changing anything.

    Args:
        path: the file, usually ``mqauth.toml``.
        clock: tells how old keys are.

    Raises:
        ConfigurationError: the file cannot be read, or it is no TOML.
    """
    text, members = read_toml(Path(path))
    target = read(Path(path), members, now=clock.now())
    findings = [*_findings(target, text)]

    # What is refused when the objects are built counts where no rule found a fault.
    wrong = {each.path for each in findings if each.severity is Severity.ERROR}
    for at, what in _refused(path, members, clock, target):
        if at not in wrong:
            wrong.add(at)
            findings.append(finding("configuration", at, what))
    findings += _wrongly_accepted(target.options.accept)

    lines = lines_of(text)
    located = ordered(replace(each, line=nearest(lines, each.path)) for each in findings)
    kept = []
    for each in located:
        is_error = each.severity is Severity.ERROR
        if is_error or each.code.name not in target.options.accept:
            kept.append(each)
    return Report(
        findings=tuple(kept),
        unseen=tuple(_unseen(target)),
        accepted=len(located) - len(kept),
    )


def _findings(target: Target, text: str) -> Iterator[Finding]:
    """Yield what the reader refuses, what is trusted by a placeholder, and what the rules find."""
    for refusal in target.refusals:
        yield finding("configuration", refusal.path, refusal.what)
    for at, name in placeholders(tomllib.loads(text)):
        if at[:2] in _TRUST:
            message = f"takes {name} from the environment"
            yield finding("trust_from_environment", at, message)
    for rule in RULES:
        yield from rule(target)


def _wrongly_accepted(names: Iterable[str]) -> Iterator[Finding]:
    """Yield the names in ``[check] accept`` that cannot be accepted."""
    for number, name in enumerate(names):
        path = ("check", "accept", number)
        if name not in CODES:
            message = "no such code"
            similar = difflib.get_close_matches(name, CODES, 1)
            if similar:
                message += f"; did you mean {similar[0]}?"
            yield finding("configuration", path, message)
        elif CODES[name].severity is Severity.ERROR:
            message = f"{name} is an error, and cannot be accepted"
            yield finding("configuration", path, message)


def _unseen(target: Target) -> Iterator[str]:
    """Yield what could not be looked at, and the setting that makes it visible."""
    written = target.options.table.members
    if "brokers" not in written:
        yield "broker URLs ([check] brokers)"

    # A store of one process is wrong only for some numbers, which no other table says.
    replay = target.replay
    if target.settings.consumer is not None and replay is not None:
        is_local = replay.kind in ("memory", "file")
        if is_local and "consumers" not in written:
            yield "whether consumers share the replay store ([check] consumers)"
        if is_local and "rate" not in written:
            yield "replay capacity ([check] rate)"

    producer = target.settings.producer
    if producer is not None and producer.identity is not None:
        yield "what the authority would give"
    if any(source.file is None for source in target.sources):
        yield "remote key sets"


def _refused(
    path: str | Path, members: dict[str, Any], clock: Clock, target: Target
) -> Iterator[tuple[Place, str]]:
    """Yield what is refused when the objects are built, as each process builds its own at its start.

    No audit file is opened and nothing is connected.
    """
    # Without their passphrase, keys cannot be opened here.
    openable = set()
    for signs in target.signers:
        with suppress(ConfigurationError):
            signs.settings.read_secret("passphrase")
            openable.add(signs.table)

    parts = []
    producer = target.settings.producer
    # A signer with an identity would ask the authority for it.
    if "producer" in openable:
        parts.append("signer")
    if producer is not None and producer.identity is not None:
        parts.append("identity")
    if target.settings.consumer is not None:
        parts.append("trial")
    if target.settings.authority is not None:
        parts.append("authority.desk")
    if "authority" in openable:
        parts.append("authority.keys")

    for part in parts:
        try:
            attrgetter(part)(Configuration(str(path), members, clock))
        except RefusedSetting as refused:
            yield refused.path, refused.what
        except ConfigurationError as error:
            yield (), str(error)
        except OSError as error:
            yield (), f"{error.filename}: {error.strerror}"
