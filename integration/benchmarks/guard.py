"""The guard and the message that every benchmark uses: 1 KiB, five headers, every check on."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from mqauth import AuditFile, MemoryReplayStore, Pipeline
from mqauth.testing import Forge

BODY: Final = b"x" * 1024
HEADERS: Final = {f"header-{number}": f"value {number}" for number in range(5)}


def guard(forge: Forge, destination: str, audit: AuditFile) -> Pipeline:
    """Return a pipeline with every check on, for one destination."""
    return Pipeline(
        verifier=forge.verifier(),
        policy=forge.policy(destination),
        replay=MemoryReplayStore(),
        audit=audit,
    )


def audit_file(folder: str) -> AuditFile:
    """Return an audit file; nothing is written to it while every message is honest."""
    return AuditFile(Path(folder) / "audit.jsonl")
