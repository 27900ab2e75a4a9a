"""What a row of the chaos tests keeps of its own, on either broker: what was sent, and what became of it."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from integration.chaos.count import Count, Letter, Sent, count
from integration.victim import Orders
from mqauth import Allow, AuditFile, Pipeline, Verified, Verifier
from mqauth.flow import Attempts
from mqauth.judging.pipeline import Outcome
from mqauth.replay.memory import MemoryReplayStore
from mqauth.replay.rules import ReplayStore
from mqauth.testing.forge import SUBJECT, Forge
from mqauth.wire.jwk import dump_key_set


class Row:
    """The names, the issuer and the sums of a row.

    Args:
        url: of the broker.
        source: the queue or topic to consume.
        dead: that of dead letters.
        folder: for files.
        lifetime: seconds an honest token lives.
    """

    broker: ClassVar[str]
    client: ClassVar[str]
    """Of consumers in other processes."""
    append: ClassVar[dict[str, Any]]
    """Verifier settings for a source whose broker stamps what it receives."""
    place: ClassVar[str]
    """What stands before the source's name in a destination."""
    impatient: ClassVar[dict[str, Any]] = {}
    """Settings of a consumer that does not hold for long what waits."""
    few_at_once: ClassVar[dict[str, Any]] = {}
    many_at_once: ClassVar[dict[str, Any]] = {}
    one_partition: ClassVar[dict[str, Any]] = {}
    other_partition: ClassVar[dict[str, Any]] = {}
    process: ClassVar[dict[str, Any]] = {"at_once": 10}
    """Orders of a consumer process."""
    group = ""

    def __init__(self, url: str, source: str, dead: str, folder: Path, *, lifetime: int) -> None:
        self.url, self.name, self.dead, self.folder = url, source, dead, folder
        self.forge = Forge(lifetime=lifetime)
        self.honest: list[bytes] = []
        self.failing: list[bytes] = []
        self.forged: list[bytes] = []
        self.copies: Counter[bytes] = Counter()
        self.handled: list[bytes] = []
        self.outcomes: list[Outcome] = []

    @property
    def destination(self) -> str:
        """That of the source."""
        return self.place + self.name

    @property
    def handled_file(self) -> Path:
        """Where consumers in other processes write what they handled."""
        return self.folder / "handled"

    def handled_elsewhere(self) -> list[bytes]:
        """Return what consumers in other processes handled."""
        return self.handled_file.read_bytes().split(b"\n")[:-1]

    def orders(self, **settings: Any) -> Orders:
        """Return what a consumer in another process is to do."""
        self.handled_file.touch()
        keys = self.folder / "jwks.json"
        keys.write_text(json.dumps(dump_key_set(self.forge.keys)))
        wanted: dict[str, Any] = {
            "client": self.client, "url": self.url, "destination": self.destination, "source": self.name,
            "dead": self.dead, "group": self.group, "keys": str(keys), "handled": str(self.handled_file),
            "audit": str(self.folder / "audit.jsonl"), "verifier": self.append, "session": 2.0,
        }  # fmt: skip
        return Orders(**(wanted | self.process | settings))

    def end(self, processes: Iterable[subprocess.Popen[bytes]]) -> None:
        """Let consumer processes end in order."""
        for process in processes:
            process.terminate()
        assert {process.wait(60) for process in processes} == {0}

    def settle_in(self, how: str) -> None:
        """Do what a broker needs before it is stopped, or killed."""

    def handle(self, verified: Verified) -> None:
        """Remember what was handled, at its end."""
        self.handled.append(verified.body or b"")

    def named(self, number: int, *, failing: bool = False) -> list[bytes]:
        """Return the bodies of so many further honest messages."""
        known = self.failing if failing else self.honest
        bodies = [b"%s %d" % (b"failing" if failing else b"honest", len(known) + n) for n in range(number)]
        known += bodies
        return bodies

    def named_forged(self, number: int) -> list[bytes]:
        """Return the bodies of so many further forged messages."""
        bodies = [b"forged %d" % (len(self.forged) + n) for n in range(number)]
        self.forged += bodies
        return bodies

    def audit_file(self) -> AuditFile:
        """Return the audit of this row."""
        return AuditFile(self.folder / "audit.jsonl", fsync=False)

    def verifier(self, **settings: Any) -> Verifier:
        """Return a verifier that judges times by the broker's stamp."""
        return self.forge.verifier(**(self.append | settings))

    def guard(self, audit: AuditFile, replay: ReplayStore | None = None, **settings: Any) -> Pipeline:
        """Return a pipeline that trusts the forge on the source."""
        wanted: dict[str, Any] = {
            "verifier": self.verifier(), "policy": Allow({SUBJECT: [self.destination]}), "audit": audit,
            "replay": replay or MemoryReplayStore(), "attempts": Attempts(limit=2, wait=0, wait_max=0),
            "observers": [lambda outcome, message, seconds: self.outcomes.append(outcome)],
        }  # fmt: skip
        return Pipeline(**(wanted | settings))

    def summed(self, row: str, handled: Iterable[bytes] | None, letters: Iterable[Letter]) -> Count:
        """Return the sums of the row, from what was handled, here or elsewhere, and all letters."""
        sent = Sent(honest=self.honest, failing=self.failing, forged=self.forged, copies=self.copies)
        handled = self.handled if handled is None else handled
        return count(row, self.broker, sent, handled=handled, letters=letters)
