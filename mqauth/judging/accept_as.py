"""Messages that arrive at another destination than they were signed for: mirrors, shovels, moved and retry queues.

The configuration alone says so, never a header. One step, no chain: a message that was moved twice needs an alias
of where it arrived for where it was signed. What follows from the destination, policy above all, is of the signed
one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mqauth.errors import MalformedMessage, require
from mqauth.judging.policy import check_pattern, matches
from mqauth.wire import batch, destination
from mqauth.wire.claims import Binding, Claims
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
