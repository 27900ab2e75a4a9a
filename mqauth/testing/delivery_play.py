"""One run of a delivery contract: what is sent, who consumes, what was handled, and what went wrong.

Nothing here knows a kind of broker; each contract adds what its stages can do.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Final

from mqauth.audit.file import AuditFile
from mqauth.clock import Clock
from mqauth.flow import Attempts
from mqauth.judging.pipeline import Outcome, Pipeline
from mqauth.judging.verified import Verified
from mqauth.replay.memory import MemoryReplayStore
from mqauth.testing.attacks import honest_message
from mqauth.testing.delivery_stage import Member
from mqauth.testing.forge import Forge
from mqauth.wire.message import Message

LIFETIME: Final = 60
"""Seconds that a token lives; a claim's lease is as long."""
LATER: Final = 2.0 * LIFETIME
"""Seconds beyond every token's life, every lease and every session."""


@dataclass
class Play:
    """A forge, a store that all consumers share, what they handled, and what became of each attempt, by body.

    Args:
        stage: where it is played.
        audit: of every consumer.
        clock: of tokens, store and pipelines.
    """

    stage: Any
    audit: AuditFile
    clock: Clock
    handled: list[Verified] = field(default_factory=list)
    outcomes: list[tuple[bytes, Outcome]] = field(default_factory=list)
    members: list[Member] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.forge = Forge(self.clock, lifetime=LIFETIME)
        self.store = MemoryReplayStore(clock=self.clock)

    def guard(self, **settings: Any) -> Pipeline:
        """Return a pipeline that trusts the forge's producer on the stage's source."""
        wanted: dict[str, Any] = {
            "verifier": self.forge.verifier(leeway=0), "policy": self.forge.policy(self.stage.destination),
            "replay": self.store, "audit": self.audit, "clock": self.clock,
            "attempts": Attempts(limit=2, wait=0, wait_max=0),
            "observers": [self._observe],
        }  # fmt: skip
        return Pipeline(**(wanted | settings))

    def _observe(self, outcome: Outcome, message: Message, _seconds: float) -> None:
        """Keep what became of an attempt."""
        self.outcomes.append((message.body or b"", outcome))

    def inject(self, *, key: bytes | None = None, sealed: bool = True, **identity: Any) -> bytes:
        """Send one message and return its body, which is unlike any other's.

        Args:
            key: of a Kafka record.
            sealed: whether it has a token.
            identity: what is not the forge's own of the signer.
        """
        number = len(self.sent)
        body = b"message %d" % number
        plain = replace(honest_message(self.stage.destination, number), key=key, body=body)
        self.stage.inject(self.forge.signer(**identity).sign(plain) if sealed else plain)
        self.sent.append(body)
        return body

    def stop(self, member: Member) -> None:
        """Stop a consumer in order."""
        self.members.remove(member)
        member.close()

    @property
    def bodies(self) -> list[bytes]:
        """What was handled, in order."""
        return [seen.body or b"" for seen in list(self.handled)]

    def reasons(self) -> list[str]:
        """Return the reasons on the dead letters, sorted."""
        return sorted(text(letter, "mqauth-dead-reason") for letter in self.stage.letters())


def text(letter: Message, name: str) -> str:
    """Return a header of a letter as text."""
    (value,) = letter.occurrences(name)
    return value.decode() if isinstance(value, bytes) else str(value)
