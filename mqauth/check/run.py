"""The check as a whole: read, ask every rule, try to build, and put the findings in order."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from mqauth.check import codes, delivery, exposure, issuers, jwks, keys, target, tokens, transport
from mqauth.check.findings import Finding, Report, Severity, ordered
from mqauth.check.locator import Path as Place
from mqauth.check.locator import lines_of, nearest
from mqauth.check.target import Rule, Target
from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.config.load import Configuration
from mqauth.config.toml_file import RefusedSetting, read_toml
from mqauth.errors import ConfigurationError

RULES: Final[tuple[Rule, ...]] = (
    *tokens.RULES, *issuers.RULES, *jwks.RULES, *keys.RULES, *exposure.RULES, *transport.RULES, *delivery.RULES,
)  # fmt: skip


def check(path: str | Path, *, clock: Clock = SYSTEM_CLOCK) -> Report:
    """Return what is wrong with a configuration file, without a network and without changing anything.

    Args:
        path: the file, usually ``mqauth.toml``.
        clock: tells how old keys are.

    Raises:
        ConfigurationError: the file cannot be read, or is no TOML.
    """
    text, members = read_toml(Path(path))
    readable, raw = tokens.repaired(members)
    found = target.read(Path(path), readable, now=clock.now())
    findings = [*raw, *_refused(found.refusals), *(finding for rule in RULES for finding in rule(found))]
    findings += [*_unless_known(_built(path, readable, clock, found), findings), *_acceptances(found)]
    return _report(found, _placed(findings, lines_of(text)))


def _report(found: Target, findings: Iterable[Finding]) -> Report:
    """Return the findings that are not accepted, in order."""
    every = ordered(findings)
    kept = tuple(finding for finding in every if not _is_accepted(finding, found))
    return Report(findings=kept, unseen=tuple(_unseen(found)), accepted=len(every) - len(kept))


def _placed(findings: Iterable[Finding], lines: Mapping[Place, int]) -> Iterator[Finding]:
    """Yield findings with their lines."""
    for finding in findings:
        yield replace(finding, line=nearest(lines, finding.path))


def _refused(refusals: Iterable[RefusedSetting]) -> Iterator[Finding]:
    """Yield what the configuration's own reader refuses."""
    for refusal in refusals:
        yield codes.CONFIGURATION.at(refusal.path, refusal.what)


def _built(path: str | Path, members: dict[str, Any], clock: Clock, found: Target) -> Iterator[Finding]:
    """Yield what is refused when the objects are made, as a producer or consumer makes them at its start.

    No audit file is opened and nothing is connected. Without its passphrase a producer cannot be made here.
    """
    wanted = [] if found.producer is None or not keys.is_open(found.producer) else ["signer"]
    for name in [*wanted, *([] if found.consumer is None else ["judge"])]:
        try:
            getattr(Configuration(str(path), members, clock), name)
        except RefusedSetting as refused:
            yield codes.CONFIGURATION.at(refused.path, refused.what)
        except ConfigurationError as error:
            yield codes.CONFIGURATION.at((), str(error))
        except OSError as error:
            yield codes.CONFIGURATION.at((), f"{error.filename}: {error.strerror}")


def _unless_known(built: Iterable[Finding], findings: Iterable[Finding]) -> Iterator[Finding]:
    """Yield what was refused, but for places at which an error is found already."""
    known = {finding.path for finding in findings if finding.severity is Severity.ERROR}
    for finding in built:
        if finding.path not in known:
            known.add(finding.path)
            yield finding


def _acceptances(found: Target) -> Iterator[Finding]:
    """Yield what ``[check] accept`` cannot name."""
    for number, name in enumerate(found.options.accept):
        path = ("check", "accept", number)
        if name not in codes.CODES:
            near = difflib.get_close_matches(name, codes.CODES, 1)
            said = "no such code" + (f"; did you mean {near[0]}?" if near else "")
            yield codes.CONFIGURATION.at(path, said)
        elif codes.CODES[name].severity is Severity.ERROR:
            yield codes.CONFIGURATION.at(path, f"{name} is an error, and cannot be accepted")


def _is_accepted(finding: Finding, found: Target) -> bool:
    """Tell whether a finding is known and wanted; an error never is."""
    return finding.severity is not Severity.ERROR and finding.code.name in found.options.accept


def _unseen(found: Target) -> Iterator[str]:
    """Yield what nobody could look at, and what makes it visible."""
    given = found.options.table.members
    if "brokers" not in given:
        yield "broker URLs ([check] brokers)"
    if found.consumer is not None and found.is_memory:
        if "consumers" not in given:
            yield "whether consumers share the replay store ([check] consumers)"
        if "rate" not in given:
            yield "replay capacity ([check] rate)"
    if any(source.file is None for source in found.sources):
        yield "remote key sets"
