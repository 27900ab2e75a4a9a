"""One run of a delivery contract: the messages sent, the consumers, the messages handled, and the faults.

Nothing here depends on the kind of broker; each contract adds the calls that its stages have.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Final

from mqauth import (
    Attempts,
    AuditFile,
    MemoryReplayStore,
    Message,
    Outcome,
    Pipeline,
    Verified,
)
from mqauth.clock import Clock
from mqauth.testing.attacks import honest_message
from mqauth.testing.forge import Forge
from tests.kit.delivery_stage import Member

LIFETIME: Final = 60
"""Seconds that a token lives, and that a claim's lease lasts."""
LATER: Final = 2.0 * LIFETIME
"""Seconds that are longer than every token's life, every lease and every session."""


@dataclass
class Play:
    """A forge, a replay store that all consumers share, the messages they handled, and each attempt's outcome.

    Args:
        stage: the stage of the run.
        audit: the audit file of every consumer.
        clock: the clock of tokens, store and pipelines.
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
        self.outcomes.append((message.body or b"", outcome))

    def inject(
        self, *, key: bytes | None = None, sealed: bool = True, **identity: Any
    ) -> bytes:
        """Send one message and return its body, which no other message has.

        Args:
            key: the key of a Kafka record.
            sealed: whether it has a token.
            identity: arguments of the signer that differ from the forge's own.
        """
        number = len(self.sent)
        body = b"message %d" % number
        plain = replace(
            honest_message(self.stage.destination, number), key=key, body=body
        )
        self.stage.inject(self.forge.signer(**identity).sign(plain) if sealed else plain)
        self.sent.append(body)
        return body

    def stop(self, member: Member) -> None:
        """Stop a consumer in order."""
        self.members.remove(member)
        member.close()

    @property
    def bodies(self) -> list[bytes]:
        """The bodies of the handled messages, in order."""
        return [seen.body or b"" for seen in list(self.handled)]

    def reasons(self) -> list[str]:
        """Return the reasons on the dead letters, sorted."""
        return sorted(
            text(letter, "mqauth-dead-reason") for letter in self.stage.letters()
        )


def text(letter: Message, name: str) -> str:
    """Return a header of a letter as text."""
    (value,) = letter.occurrences(name)
    return value.decode() if isinstance(value, bytes) else str(value)
