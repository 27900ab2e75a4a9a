"""Findings: a code of the registry, at a place in the file, with a sentence about this very file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from mqauth.check.target import Path
from mqauth.config.toml_file import spelt


class Severity(StrEnum):
    """How bad a finding is: an error fails the check, a warning fails it with ``--strict``, a note never does."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Code:
    """One pitfall; its name and severity are stable.

    Args:
        name: what programs look for.
        severity: how bad it is.
        why: why it matters.
        instead: what to write instead.
    """

    name: str
    severity: Severity
    why: str
    instead: str


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
            "code": self.code.name, "severity": self.severity.value, "line": self.line, "key": self.key,
            "message": self.message, "why": self.code.why, "instead": self.code.instead,
        }  # fmt: skip


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
    return tuple(sorted(findings, key=lambda found: (ranks.index(found.severity), found.line or 0)))
