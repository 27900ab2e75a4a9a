"""Slots and held deliveries of a queue, made of facts alone: no client, no event loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mqauth import Cause, Message
from mqauth.delivery.hold import HeldDelivery, Hold
from mqauth.delivery.slot import NO_LIMIT, Slot
from mqauth.judging.pipeline import Delivery, Outcome, Step, Verdict
from mqauth.testing import FakeClock

ACCEPTED = Outcome(Verdict.ACCEPTED)
REJECTED = Outcome(Verdict.REJECTED)


@dataclass
class Said:
    """What a client says of one delivery; a test changes it."""

    is_ended: bool = False
    tag: str = "tag"
    length: int = 1
    returned: int = 0

    def ended(self, _: Any, /) -> bool:
        """Tell whether its channel ended."""
        return self.is_ended

    def consumer(self, _: Any, /) -> str:
        """Return its consumer's tag."""
        return self.tag

    def size(self, _: Any, /) -> int:
        """Return the bytes of its body."""
        return self.length

    def returns(self, _: Any, /) -> int:
        """Return how often it was given back."""
        return self.returned


def deferred(cause: Cause, party: str | None = None) -> Outcome:
    """Return what leaves a delivery waiting."""
    return Outcome(Verdict.DEFERRED, cause=cause, party=party)


def delivery(step: Step = Step.JUDGE, body: bytes = b"") -> Delivery:
    """Return a delivery that has come to a step."""
    return Delivery(
        message=Message(destination="rabbitmq:/q", body=body), received=0, step=step
    )


def held(
    cause: Cause,
    step: Step = Step.JUDGE,
    *,
    said: Said | None = None,
    limit: int = NO_LIMIT,
    since: float = 0,
) -> HeldDelivery:
    """Return a delivery that waits for a cause, received at the clock's start."""
    return HeldDelivery(
        Slot(None, said or Said(), 0, limit), delivery(step), deferred(cause), since
    )


def hold(
    clock: FakeClock,
    *,
    seconds: float | None = 60,
    timeout: float = 1800,
    issuers: Sequence[str] = ("https://ours",),
) -> Hold:
    """Return what holds, on a clock that counts from 0."""
    return Hold(
        clock, seconds=seconds, consumer_timeout=timeout, max_held=20, issuers=issuers
    )
