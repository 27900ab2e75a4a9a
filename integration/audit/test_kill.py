"""SIGKILL in the middle of writing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from integration.documentation import ROOT

pytestmark = pytest.mark.slow


def test_a_hundred_kills(capsys: pytest.CaptureFixture[str]) -> None:
    """After 100 kills the log is intact under its heads, no settled message lacks its record, none has two."""
    done = subprocess.run(  # in a process of its own: it forks
        [sys.executable, "-m", "integration.audit.kill", "--times", "100"],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    with capsys.disabled():
        print("\n" + done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "100 kills" in done.stdout
    assert " 0 missing, 0 twice; intact" in done.stdout
    assert ", 0 of them tore a line" not in done.stdout
