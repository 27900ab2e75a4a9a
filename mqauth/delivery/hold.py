"""Deferred deliveries that are held unacked: why each one waits, for how long, and how many may.

Each return to the broker spends one of a message's deliveries. So a delivery that waits for a cause of its own
stays unacked until that cause is over, or the broker's consumer timeout is near. A cause that concerns every
message suspends the queue after ``hold`` seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from mqauth.clock import Clock
from mqauth.delivery.slot import Slot
from mqauth.errors import Cause, Reason, Rejection, Verdict
from mqauth.judging.delivery import Delivery, Outcome, Step
from mqauth.judging.journal import ONE_MESSAGE

SUSPENDS_AFTER: Final = 60.0
"""Default seconds of a cause that concerns everyone after which the queue is suspended."""
CONSUMER_TIMEOUT: Final = 1800.0
"""RabbitMQ's default seconds after which it closes a channel for a delivery that is not acked."""
MAX_HELD: Final = 1000
MAX_BYTES: Final = 16 * 1024 * 1024
HELD_PER_PREFETCH: Final = 10
"""Default number of deliveries held beside the window, for each delivery of the prefetch."""
# Looking up an enum's member is slow in Python 3.11.
_DEFERRED: Final = Verdict.DEFERRED


@dataclass(slots=True, eq=False)
class HeldDelivery:
    """A delivery that is deferred.

    Args:
        slot: its slot in the window.
        delivery: how far it has come.
        outcome: the outcome of its last attempt that left it deferred.
        since: UTC seconds.
        waits: whether its last attempt left it deferred.
        stays: whether it stays unacked while its consumer is suspended.
        everyones_since: monotonic seconds since which its cause concerns everyone; ``None`` where it does not.
        put_off: how often its handler asked for another time.
        goes_back: whether it was still ours and deferred when its waiting ended, and only an attempt can tell
            whether its cause is over.
        is_over: whether its waiting has ended.
    """

    slot: Slot
    delivery: Delivery
    outcome: Outcome
    since: float
    waits: bool = True
    stays: bool = False
    everyones_since: float | None = None
    put_off: int = 0
    goes_back: bool = False
    is_over: bool = False

    @property
    def needs_ours(self) -> bool:
        """Whether it must be ours to find out whether its cause is over.

        Only an attempt can tell whether audit or dead letters are back, and it must not record or bury a
        delivery that
        was given back: somebody else may have handled it.
        """
        return self.delivery.step is Step.RECORD or self.delivery.step is Step.BURY

    @property
    def is_handled(self) -> bool:
        """Whether its handler has ended, and its claim is to be confirmed.

        Somebody else who is given it would run its handler again once the lease is over, also where the replay
        store was back long before.
        """
        return self.delivery.step is Step.CONFIRM

    @property
    def is_kept(self) -> bool:
        """Whether it is not given back when its consumer is suspended."""
        return self.stays or self.slot.is_last

    @property
    def is_given_up(self) -> bool:
        """Whether its handler asked for another time until its last delivery was over."""
        return (
            self.waits
            and self.slot.is_ours
            and self.slot.is_last
            and self.outcome.cause is Cause.HANDLER_DEFERRED
        )

    def give_up(self, now: float) -> None:
        """Reject its message at ``now``, UTC seconds: it is audited and dead-lettered instead of given back."""
        detail = (
            f"put off {self.put_off} times in its last delivery, in all for {now - self.delivery.received:.0f} s:"
            f" {self.outcome.detail}"
        )
        self.delivery.reject(Rejection(Reason.HANDLER_FAILED, detail), Step.RELEASE)

    def end(self) -> None:
        """Note that its waiting has ended."""
        self.goes_back, self.is_over = (
            self.waits and self.slot.is_ours and self.needs_ours,
            True,
        )


class Hold:
    """The deliveries that are held now: for whose cause, and whether more may be held beside the window.

    A queue cannot pass over a message: a deferred one takes a place of the prefetch window. But RabbitMQ counts
    unacked deliveries by consumer (``basic.qos`` with ``global`` false; tried on 4.0.5). So a consumer that
    starts anew under another tag on the same channel has a window of its own, beside which the held deliveries
    stay.

    Args:
        clock: the pipeline's.
        seconds: of a cause that concerns everyone, after which the queue is suspended; ``None`` where it cannot
            be.
        consumer_timeout: seconds, as the broker is set; a tenth before it a delivery goes back.
        max_held: deliveries held beside the window at most.
        issuers: the configured issuers; where none of them has keys, that concerns everyone.
        max_bytes: bytes of the bodies held beside the window at most.

    Attributes:
        suspended: whether the queue is suspended.
        stopping: whether the consumer stops.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        seconds: float | None,
        consumer_timeout: float,
        max_held: int = MAX_HELD,
        issuers: Collection[str] = (),
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._clock = clock
        self._seconds = seconds
        self._oldest = 0.9 * consumer_timeout
        self._max_held = max_held
        self._max_bytes = max_bytes
        self._issuers = frozenset(issuers)
        self._held: dict[int, HeldDelivery] = {}
        self._by_tag = Counter[str]()
        self._without_keys = Counter[str]()
        self._bytes = 0
        self.suspended = self.stopping = False

    def __len__(self) -> int:
        return len(self._held)

    def _count(self, held: HeldDelivery, step: int) -> None:
        """Count a held delivery by its present cause, with 1; with -1 no longer, before that cause changes."""
        slot, cause, party = held.slot, held.outcome.cause, held.outcome.party
        if cause is Cause.KEYS_UNAVAILABLE and party is not None:
            self._without_keys[party] += step
        if _is_beside(cause, party):
            self._by_tag[slot.facts.consumer(slot.native)] += step
            self._bytes += step * slot.facts.size(slot.native)
            # Drops the tags that count 0: each consumer that starts anew has a tag of its own.
            self._by_tag += Counter()

    @property
    def nobody_has_keys(self) -> bool:
        """Whether no configured issuer has keys, as far as the held deliveries tell."""
        return bool(self._issuers) and all(
            self._without_keys[issuer] > 0 for issuer in self._issuers
        )

    def concerns_everyone(self, cause: Cause | None, party: str | None) -> bool:
        """Return whether a cause concerns every message, so that the queue is to be suspended."""
        return not _is_beside(cause, party) or (
            cause is Cause.KEYS_UNAVAILABLE and self.nobody_has_keys
        )

    def has_room(self) -> bool:
        """Return whether more may be held beside the window."""
        beside = self._by_tag.total()
        return (
            beside < self._max_held
            and self._bytes < self._max_bytes
            and not self.nobody_has_keys
        )

    def wants_another(self, tag: str, window: int, active: int) -> bool:
        """Return whether to consume anew: at least half of the window is held, and at most half of it is at work.

        Args:
            tag: of the present consumer.
            window: the prefetch; with 1 the user wants order, so nothing may pass.
            active: deliveries in work that are not held.
        """
        half = 2 * self._by_tag[tag] >= window and 2 * active <= window
        return window > 1 and half and self.has_room()

    def is_full(self, tag: str, window: int) -> bool:
        """Return whether nothing more comes: the whole window is held, and no more may be held beside it."""
        return self._by_tag[tag] >= window and (window == 1 or not self.has_room())

    def by_cause(self) -> dict[str, int]:
        """Return how many are held for each cause and party, the most frequent first."""
        return dict(
            Counter(_told(held.outcome) for held in self._held.values()).most_common()
        )

    @property
    def longest(self) -> HeldDelivery | None:
        """The delivery that has been held for longest."""
        return min(self._held.values(), key=lambda held: held.since, default=None)

    @property
    def at_limit(self) -> int:
        """How many are at their last delivery."""
        return sum(held.slot.is_last for held in self._held.values())

    def put(self, held: HeldDelivery) -> None:
        """Hold a delivery."""
        self._held[id(held)] = held
        self._count(held, 1)
        self.attempted(held, held.outcome)

    def take(self, held: HeldDelivery) -> None:
        """Hold a delivery no longer."""
        del self._held[id(held)]
        self._count(held, -1)

    def attempted(self, held: HeldDelivery, outcome: Outcome) -> None:
        """Note the outcome of an attempt at a held delivery, which may have another cause now."""
        held.waits = is_deferred(outcome)
        if not held.waits:
            return
        self._count(held, -1)
        held.outcome = outcome
        self._count(held, 1)
        held.put_off += outcome.cause is Cause.HANDLER_DEFERRED
        if not self.concerns_everyone(outcome.cause, outcome.party):
            held.everyones_since = None
        elif held.everyones_since is None:
            held.everyones_since = self._clock.monotonic()

    def is_over(self, held: HeldDelivery) -> bool:
        """Return whether a delivery is to be held no longer."""
        slot, step = held.slot, held.delivery.step
        if (self.suspended and self.yields(held)) or (self.stopping and self.stops(held)):
            return True
        # A handler that ended is confirmed all the same, and one that failed gives its claim back.
        if not slot.is_ours:
            return (
                step is not Step.CONFIRM and step is not Step.RELEASE
            ) or self._is_old(slot)
        if (
            self._seconds is not None
            and held.everyones_since is not None
            and not held.is_kept
        ):
            return (
                self._clock.monotonic() - held.everyones_since >= self._seconds
                or self._is_old(slot)
            )
        return self._is_old(slot) and (not slot.is_last or held.is_given_up)

    def _is_old(self, slot: Slot) -> bool:
        return self._clock.monotonic() - slot.received >= self._oldest

    def yields(self, held: HeldDelivery) -> bool:
        """Return whether a delivery goes back when its queue is suspended."""
        return not held.is_kept and held.slot.is_ours

    def stops(self, held: HeldDelivery) -> bool:
        """Return whether a stop ends its waiting; one whose handler has ended waits for its confirm."""
        return not held.is_handled

    def wants_suspension(self, held: HeldDelivery) -> bool:
        """Return whether the queue is to be suspended before a delivery goes back: its cause concerns everyone."""
        everyones = held.everyones_since is not None or self.suspended
        return (
            self._seconds is not None
            and everyones
            and held.waits
            and not held.is_kept
            and held.slot.is_ours
        )


def is_deferred(outcome: Outcome) -> bool:
    """Return whether a delivery waits for something that is out of reach."""
    return outcome.verdict is _DEFERRED


def _told(outcome: Outcome) -> str:
    """Return why a delivery waits, for people, and for which party."""
    cause = "" if outcome.cause is None else outcome.cause.value
    return cause if outcome.party is None else f"{cause} of {outcome.party}"


def _is_beside(cause: Cause | None, party: str | None) -> bool:
    """Return whether others need not wait for a delivery, since its cause concerns one message or one party."""
    return cause in ONE_MESSAGE or party is not None
