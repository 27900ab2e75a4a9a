"""``mqauth check``: finds the pitfalls of a configuration file.

``codes`` has the registry of them, ``target`` and ``keystores`` are what the rules look at, ``tokens``,
``issuers``, ``authority`` and ``deployment`` hold the rules. The check as a whole reads the file, asks every rule,
builds the objects, and puts the findings in order.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Final

from mqauth.check import authority, deployment, enrolment, issuers, rollout, tokens
from mqauth.check.codes import CODES, Code, Severity
from mqauth.check.findings import Finding, Report, Rule, finding, ordered
from mqauth.check.target import Target, lines_of, nearest, read
from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.config.load import Configuration
from mqauth.config.toml_file import RefusedSetting, placeholders, read_toml
from mqauth.errors import ConfigurationError

__all__ = ["CODES", "Code", "Finding", "Report", "Severity", "check"]
_TRUST: Final = {"consumer": ("issuers", "allow"), "release": ("authorities",)}
RULES: Final[tuple[Rule, ...]] = (
    *tokens.RULES, *enrolment.RULES, *issuers.RULES, *authority.RULES, *deployment.RULES, *rollout.RULES,
)  # fmt: skip
"""Each rule yields its findings on a target."""


def check(path: str | Path, *, clock: Clock = SYSTEM_CLOCK) -> Report:
    """Return what is wrong with a configuration file, without using the network or changing anything.

    Args:
        path: the file, usually ``mqauth.toml``.
        clock: tells how old keys are.

    Raises:
        ConfigurationError: the file cannot be read, or it is no TOML.
    """
    text, members = read_toml(Path(path))
    readable, raw = tokens.repaired(members)
    target = read(Path(path), readable, now=clock.now())
    findings = [*raw, *(finding("configuration", refusal.path, refusal.what) for refusal in target.refusals)]
    findings += [
        finding("trust_from_environment", at, f"takes {name} from the environment") for at, name in _outside(text)
    ]
    findings += [found for rule in RULES for found in rule(target)]
    findings += [*_unless_known(_built(path, readable, clock, target), findings), *_acceptances(target)]
    lines = lines_of(text)
    every = ordered(replace(found, line=nearest(lines, found.path)) for found in findings)
    accepted = target.options.accept
    kept = tuple(one for one in every if one.severity is Severity.ERROR or one.code.name not in accepted)
    return Report(findings=kept, unseen=tuple(_unseen(target)), accepted=len(every) - len(kept))


def _outside(text: str) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield each setting that says whom to trust and has a placeholder, with the variable."""
    members = tomllib.loads(text)
    for table, keys in _TRUST.items():
        found = members.get(table)
        for at, name in placeholders({key: found.get(key) for key in keys} if isinstance(found, dict) else None):
            yield (table, *at), name


def _built(path: str | Path, members: dict[str, Any], clock: Clock, target: Target) -> Iterator[Finding]:
    """Yield what is refused when the objects are built, as each process builds its own at its start.

    No audit file is opened and nothing is connected.
    """
    settings = target.settings
    # Without their passphrase, keys cannot be opened here.
    openable = {signs.table for signs in target.signers if signs.is_open}
    parts = {
        # A signer with an identity would ask the authority for it.
        "signer": "producer" in openable,
        "identity": settings.producer is not None and settings.producer.identity is not None,
        "trial": settings.consumer is not None,
        "authority.desk": settings.authority is not None,
        "authority.keys": "authority" in openable,
    }
    for name in [name for name, wanted in parts.items() if wanted]:
        try:
            attrgetter(name)(Configuration(str(path), members, clock))
        except RefusedSetting as refused:
            yield finding("configuration", refused.path, refused.what)
        except ConfigurationError as error:
            yield finding("configuration", (), str(error))
        except OSError as error:
            yield finding("configuration", (), f"{error.filename}: {error.strerror}")


def _unless_known(built: Iterable[Finding], findings: Iterable[Finding]) -> Iterator[Finding]:
    """Yield the findings at places where no error has been found already."""
    known = {found.path for found in findings if found.severity is Severity.ERROR}
    for found in built:
        if found.path not in known:
            known.add(found.path)
            yield found


def _acceptances(target: Target) -> Iterator[Finding]:
    """Yield a finding for each name in ``[check] accept`` that cannot be accepted."""
    for number, name in enumerate(target.options.accept):
        path = ("check", "accept", number)
        if name not in CODES:
            near = difflib.get_close_matches(name, CODES, 1)
            yield finding("configuration", path, "no such code" + (f"; did you mean {near[0]}?" if near else ""))
        elif CODES[name].severity is Severity.ERROR:
            yield finding("configuration", path, f"{name} is an error, and cannot be accepted")


def _unseen(target: Target) -> Iterator[str]:
    """Yield what could not be looked at, and the setting that makes it visible."""
    given = target.options.table.members
    if "brokers" not in given:
        yield "broker URLs ([check] brokers)"
    replay = target.replay
    if target.settings.consumer is not None and replay is not None and replay.kind in ("memory", "file"):
        if "consumers" not in given:
            yield "whether consumers share the replay store ([check] consumers)"
        if "rate" not in given:
            yield "replay capacity ([check] rate)"
    if target.settings.producer is not None and target.settings.producer.identity is not None:
        yield "what the authority would give"
    if any(source.file is None for source in target.sources):
        yield "remote key sets"
