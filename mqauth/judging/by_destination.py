"""What a configuration says of messages at some destinations, and no header ever does.

``AcceptAs``: they arrive at another destination than they were signed for: mirrors, shovels, moved and retry
queues. One step, no chain: a message that was moved twice needs an alias of where it arrived for where it was
signed. What follows from the destination, policy above all, is of the signed one.

``WithoutEvidence``: the broker will never say when it appended them, and they wait no longer for that. A
consumer with ``at="append"`` defers a message without evidence of its append time: somebody may still set the
topic to LogAppendTime, or the broker's interceptor. But records that were stamped before that keep their stamp
for ever. An operator who has looked at them names them here. They become dead letters (``append_time_missing``),
which a reviewer can release. An entry touches nothing that has evidence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mqauth.audit.record import iso_time
from mqauth.errors import MalformedMessage, require
from mqauth.judging.policy import check_pattern, matches
from mqauth.wire import batch, destination
from mqauth.wire.claims import Binding, Claims, is_name
from mqauth.wire.message import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptAs:
    """One alias.

    Args:
        at: the destination where messages arrive, exact.
        signed_for: destinations they may be signed for, on the same broker: patterns as of a ``Rule``. For
            messages of a batch, whose token has only a digest of the destination, those without a wildcard count.

    Raises:
        ConfigurationError: a destination is not in its form, or of another broker.
    """

    at: str
    signed_for: tuple[str, ...]

    def __post_init__(self) -> None:
        require(not isinstance(self.signed_for, str), "signed_for is a list")
        try:
            destination.parse(self.at)
        except MalformedMessage as error:
            require(False, f"at {self.at!r}: {error}")
        for pattern in self.signed_for:
            check_pattern(pattern)
        kind = destination.is_kafka(self.at)
        # The two brokers carry properties in different ways, so that no message keeps its signature across them.
        require(
            all(destination.is_kafka(each) is kind for each in self.signed_for), "at and signed_for: one broker"
        )

    @property
    def broad(self) -> tuple[str, ...]:
        """The patterns with ``#``, which takes any number of words."""
        return tuple(pattern for pattern in self.signed_for if "#" in pattern.replace(":", ".").split("."))

    def signed(self, message: Message, claims: Claims, proof: batch.Proof | None) -> Message:
        """Return a message as at the destination it was signed for, if that is one of these; else itself."""
        if isinstance(claims.mqa, Binding):
            signed_for = claims.mqa.dst
            fits = any(matches(pattern, signed_for) for pattern in self.signed_for)
            return replace(message, destination=signed_for) if fits else message
        for candidate in self.signed_for:
            if proof is not None and batch.is_for(candidate, proof):
                return replace(message, destination=candidate)
        return message


@dataclass(frozen=True, slots=True, kw_only=True)
class WithoutEvidence:
    """Messages at some destinations that can never have evidence of their append time.

    Args:
        destination: where they arrive, a pattern as of a ``Rule``.
        through: of a Kafka topic, the last such offset of each partition, or the time in UTC seconds by which they
            were signed; of a queue, that time.
        why: the operator's reason, which the audit records.

    Raises:
        ConfigurationError: the destination is not in its form, there is no reason, or offsets of a queue.
    """

    destination: str
    through: Mapping[int, int] | float
    why: str

    def __post_init__(self) -> None:
        check_pattern(self.destination)
        require(is_name(self.why), "why is a reason of 1 to 256 characters")
        of_a_queue = isinstance(self.through, Mapping) and not destination.is_kafka(self.destination)
        require(not of_a_queue, "only a Kafka topic has offsets")

    @property
    def facts(self) -> dict[str, Any]:
        """Itself as JSON values, for the audit record ``rollout``."""
        through = self.through
        if isinstance(through, Mapping):
            shown: Any = {str(partition): offset for partition, offset in through.items()}
        else:
            shown = iso_time(through)
        return {"destination": self.destination, "through": shown, "why": self.why}

    def names(self, message: Message, issued: int) -> bool:
        """Tell whether a message is one of these.

        Args:
            message: as the broker delivered it.
            issued: UTC seconds, ``iat`` of its verified token.
        """
        if not matches(self.destination, message.destination):
            return False
        if isinstance(self.through, Mapping):
            partition, offset = message.origin.partition, message.origin.offset
            last = None if partition is None else self.through.get(partition)
            return last is not None and offset is not None and offset <= last
        return issued <= self.through
