"""The rules of time, step (9): by which moment a token is judged, and how long it and its key may live.

A message is judged by one moment: when this process first received it, or when the broker appended it. Never by
the moment of judging, or an honest message that waits for an outage of ours would expire meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from mqauth.errors import Cause, Reason, Rejection, Unavailable, require
from mqauth.wire.claims import Claims
from mqauth.wire.destination import is_kafka
from mqauth.wire.keys import Key
from mqauth.wire.message import Message

MAX_LEEWAY: Final = 60
At = Literal["consume", "append"]
_NOTHING: Final = frozenset[Reason]()


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """The settings of time, which ``Verifier`` describes, and the rules that follow from them."""

    max_lifetime: int = 3600
    leeway: int = 5
    at: At = "consume"
    max_queue_age: int | None = None
    append_evidence: Literal["interceptor"] | None = None

    def __post_init__(self) -> None:
        require(self.at in ("consume", "append"), 'at is "consume" or "append"')
        require(self.append_evidence in (None, "interceptor"), 'append_evidence is "interceptor"')
        require(
            (self.at == "append") == (self.max_queue_age is not None),
            'at = "append" and max_queue_age go together',
        )
        _check_seconds("max_lifetime", self.max_lifetime, 1, None)
        _check_seconds("leeway", self.leeway, 0, MAX_LEEWAY)
        _check_seconds("max_queue_age", 1 if self.max_queue_age is None else self.max_queue_age, 1, None)

    def evidence(self, message: Message) -> float | None:
        """Return when the broker says it appended a message, UTC seconds; ``None`` if it may not be believed."""
        origin = message.origin
        # a producer writes a timestamp of another type itself, and on RabbitMQ any header
        if self.at == "consume" or origin.timestamp_ms is None or origin.timestamp_type != "append":
            return None
        if not is_kafka(message.destination) and self.append_evidence != "interceptor":
            return None
        return origin.timestamp_ms / 1000

    def ends(self, claims: Claims, key: Key) -> float:
        """Return until when the outcome of ``check`` at ``"consume"`` stays as it is, UTC seconds of receipt."""
        until = float(claims.exp + self.leeway)
        return until if key.revocation is None else min(until, float(key.revocation.revoked_at))

    def check(
        self, claims: Claims, key: Key, message: Message, received: float, waived: frozenset[Reason] = _NOTHING
    ) -> None:
        """Judge the end of the key, ``iat``, ``nbf``, ``exp``, lifetime and age in the queue, in that order.

        Raises:
            Rejection: the reason of the first rule that is broken, unless it is waived.
            Unavailable: ``append_time_unavailable``.
        """
        if key.expires is not None and Reason.KEY_EXPIRED not in waived:
            # whoever has a retired key can write any ``iat``; the append time is the broker's word
            appended = self.evidence(message)
            if (claims.iat if appended is None else appended) >= key.expires:
                raise Rejection(Reason.KEY_EXPIRED, "the key had retired before the token was made")
        moment = self.evidence(message) if self.at == "append" else received
        if moment is None:
            raise Unavailable(Cause.APPEND_TIME_UNAVAILABLE, "the broker gives no evidence of append time")
        if claims.iat > moment + self.leeway:
            raise Rejection(Reason.ISSUED_IN_FUTURE, "issued in the future")
        if claims.nbf is not None and claims.nbf > moment + self.leeway:
            raise Rejection(Reason.NOT_YET_VALID, "not valid yet")
        if (claims.exp + self.leeway <= moment or claims.exp <= claims.iat) and Reason.EXPIRED not in waived:
            raise Rejection(Reason.EXPIRED, "expired")
        if claims.exp - claims.iat > self.max_lifetime and Reason.LIFETIME_EXCESSIVE not in waived:
            raise Rejection(Reason.LIFETIME_EXCESSIVE, f"lives longer than {self.max_lifetime} s")
        aged = self.max_queue_age is not None and received - moment > self.max_queue_age
        if aged and Reason.QUEUE_AGE_EXCEEDED not in waived:
            raise Rejection(Reason.QUEUE_AGE_EXCEEDED, f"waited longer than {self.max_queue_age} s")


def is_revoked(key: Key, appended: float | None, received: float) -> bool:
    """Tell whether the revocation of a key counts for a message."""
    revocation = key.revocation
    if revocation is None or revocation.revoked_at > received:
        return False
    # only the append time proves that a message is older than the revocation: its signer may have been the thief
    return appended is None or appended >= revocation.revoked_at


def _check_seconds(name: str, value: int, low: int, high: int | None) -> None:
    bounds = f"at least {low}" if high is None else f"{low} to {high}"
    require(
        type(value) is int and value >= low and (high is None or value <= high),
        f"{name} is {bounds} whole seconds",
    )
