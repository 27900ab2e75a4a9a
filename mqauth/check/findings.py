"""Findings and reports, and the rules that yield them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from mqauth.check.codes import CODES, Code, Severity
from mqauth.check.target import Path, Target
from mqauth.config.toml_file import spelt


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A pitfall at a place; ``line`` counts from 1, and is ``None`` if not even the table stands in the file."""

    code: Code
    severity: Severity
    path: Path
    message: str
    line: int | None = None

    @property
    def key(self) -> str:
        """The place as people read it, like ``consumer.issuers[0].jwks``."""
        parts = (f"[{part}]" if isinstance(part, int) else f".{spelt(part)}" for part in self.path)
        return "".join(parts).removeprefix(".")

    def as_dict(self) -> dict[str, Any]:
        """Return the finding as JSON values."""
        return {
            "code": self.code.name,
            "severity": self.severity.value,
            "line": self.line,
            "key": self.key,
            "message": self.message,
            "why": self.code.why,
            "instead": self.code.instead,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All findings of one file, by severity, and within a severity by line.

    Args:
        findings: what was found.
        unseen: what could not be looked at, and the setting that makes it visible.
        accepted: how many findings ``[check] accept`` left out.
    """

    findings: tuple[Finding, ...]
    unseen: tuple[str, ...] = ()
    accepted: int = 0

    def count(self, severity: Severity) -> int:
        """Return how many findings have a severity."""
        return sum(finding.severity is severity for finding in self.findings)

    def strict(self) -> Report:
        """Return the report with every warning as an error."""
        findings = (
            replace(finding, severity=Severity.ERROR) if finding.severity is Severity.WARNING else finding
            for finding in self.findings
        )
        return replace(self, findings=ordered(findings))

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "findings": [finding.as_dict() for finding in self.findings],
            "errors": self.count(Severity.ERROR),
            "warnings": self.count(Severity.WARNING),
        }


def ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return findings by severity, then by line."""
    ranks = list(Severity)
    return tuple(sorted(findings, key=lambda finding: (ranks.index(finding.severity), finding.line or 0)))


def finding(name: str, path: Path, message: str) -> Finding:
    """Return a finding.

    Args:
        name: one of ``CODES``.
        path: where in the file; the key may be absent from it.
        message: what is wrong, without key material, passphrase or a URL's credentials. Names and paths in it come
            from the file: whoever prints it escapes what a terminal might act on.
    """
    code = CODES[name]
    return Finding(code=code, severity=code.severity, path=path, message=message)


def those(*rows: tuple[object, str, Path, str]) -> Iterator[Finding]:
    """Yield the findings of a table of pitfalls.

    Args:
        rows: what has to hold for it, and the arguments of ``finding``.
    """
    return (finding(name, path, message) for holds, name, path, message in rows if holds)


Rule = Callable[[Target], Iterable[Finding]]


def on(table: str) -> Callable[[Callable[[Target, Any], Iterable[Finding]]], Rule]:
    """Return the decorator of a rule on one table of the file: without the table there is nothing to find."""

    def decorated(rule: Callable[[Target, Any], Iterable[Finding]]) -> Rule:
        def asked(target: Target) -> Iterable[Finding]:
            settings = getattr(target.settings, table)
            return () if settings is None else rule(target, settings)

        return asked

    return decorated
