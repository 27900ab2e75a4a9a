"""Tampering with a log is found, every time, and called by its name."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from integration.audit.tamper import Log, cuts, deeds

DEEDS = 1000
CUTS = 200


@pytest.fixture
def log(tmp_path: Path) -> Log:
    """An honest log with signed heads."""
    return Log(tmp_path)


def test_honest_log_is_intact(log: Log) -> None:
    """The log the deeds are done to is intact under its heads: what is found is found for a reason."""
    assert log.verdict(log.lines, heads=log.heads) == {
        "intact": True, "anchored": True, "records": len(log.lines), "first_bad": None, "what": None,
    }  # fmt: skip


def test_a_thousand_deeds(log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 1,000 random edits, deletions, swaps and insertions all are found and named, without heads."""
    findings = deeds(log, DEEDS, random.Random(5))
    with capsys.disabled():
        print("\n" + "\n".join(findings.lines()))
    assert findings.found.total() == findings.named.total() == DEEDS


def test_two_hundred_cuts(log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 200 cut or recomputed chains heads find all; without them the answer is never intact (asserted there)."""
    findings = cuts(log, CUTS, random.Random(5))
    with capsys.disabled():
        print("\n" + "\n".join(findings.lines()))
    assert findings.found.total() == findings.named.total() == CUTS
