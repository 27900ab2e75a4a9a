"""Deliveries that are deferred: why each waits, for how long it is held unacked, and what ends that.

Each return to the broker spends one of a message's deliveries, so one that waits for a cause of its own stays
unacked until that is over, or the broker's consumer timeout is near. A cause of all suspends the queue after so
many seconds.

How many deferred deliveries a consumer holds, by whose fault, and whether there is room beside them.

A queue cannot pass over a message: one that waits takes a place of the prefetch window. RabbitMQ counts unacked
deliveries by consumer, though (``basic.qos`` with ``global`` false; tried on 4.0.5), so that one who consumes anew
on the same channel has a window of its own, and what the former one holds takes no place in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, NamedTuple

from mqauth.clock import Clock
from mqauth.delivery.slot import Slot
from mqauth.errors import Cause, Reason, Rejection
from mqauth.judging.delivery import Delivery, Outcome, Step, Verdict

SUSPENDS_AFTER: Final = 60.0
"""Seconds of a cause of all after which a queue is suspended, unless told otherwise."""
CONSUMER_TIMEOUT: Final = 1800.0
"""Seconds after which RabbitMQ closes a channel that has not acked a delivery, unless it is set otherwise."""
_OF_TIMEOUT: Final = 0.9
_DEFERRED: Final = Verdict.DEFERRED  # Python 3.11 takes its time to look a member up


@dataclass(slots=True, eq=False)
class HeldDelivery:
    """A delivery that is deferred.

    Args:
        slot: its place.
        delivery: how far it has come.
        outcome: why it waits now, or waited last.
        since: UTC seconds.
        waits: whether its last attempt left it deferred.
        stays: whether it stays unacked while its consumer is suspended.
        everyones_since: monotonic seconds since which its cause is everybody's; ``None`` where it is not.
        put_off: how often its handler asked for another time.
        goes_back: whether it was ours in the end, and its cause not over.
        is_over: whether it waits no longer.
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
    def why(self) -> tuple[Cause | None, float, str | None]:
        """Its cause, since when (UTC seconds), and one line for people."""
        return self.outcome.cause, self.since, self.outcome.detail

    @property
    def needs_ours(self) -> bool:
        """Whether trying it is the only way to find out that its cause is over, and needs it to be ours.

        Nothing may be recorded or buried of what was given back: somebody else may have handled it.
        """
        return self.delivery.step is Step.RECORD or self.delivery.step is Step.BURY

    @property
    def is_kept(self) -> bool:
        """Whether it is not given back when its consumer is suspended."""
        return self.stays or self.slot.is_last

    @property
    def is_given_up(self) -> bool:
        """Whether its handler asked for another time until the last of its deliveries was over."""
        return (
            self.waits and self.slot.is_ours and self.slot.is_last and self.outcome.cause is Cause.HANDLER_DEFERRED
        )

    def give_up(self, now: float) -> None:
        """Reject its message, at ``now``, UTC seconds: it is recorded and buried in place of another return."""
        detail = (
            f"put off {self.put_off} times in its last delivery, in all for {now - self.delivery.received:.0f} s:"
            f" {self.outcome.detail}"
        )
        self.delivery.reject(Rejection(Reason.HANDLER_FAILED, detail), Step.RELEASE)

    def end(self) -> None:
        """Note that it waits no longer, and whether it goes back."""
        self.goes_back, self.is_over = self.waits and self.slot.is_ours, True


class Hold:
    """What is held now.

    Args:
        clock: the pipeline's.
        capacity: counts it.
        seconds: of a cause of all, after which the queue is suspended; ``None`` where it cannot be.
        consumer_timeout: seconds, what the broker is set to; a tenth less after its receipt a delivery goes back.
    """

    def __init__(
        self, clock: Clock, capacity: HoldCapacity, *, seconds: float | None, consumer_timeout: float
    ) -> None:
        self._clock = clock
        self.capacity = capacity
        self._seconds = seconds
        self._oldest = _OF_TIMEOUT * consumer_timeout
        self._held: dict[int, HeldDelivery] = {}
        self.suspended = self.stopping = False

    def __len__(self) -> int:
        return len(self._held)

    @property
    def longest(self) -> HeldDelivery | None:
        """What has been held for longest."""
        return min(self._held.values(), key=lambda held: held.since, default=None)

    @property
    def at_limit(self) -> int:
        """How many are at their last delivery."""
        return sum(held.slot.is_last for held in self._held.values())

    def put(self, held: HeldDelivery) -> None:
        """Hold a delivery."""
        self._held[id(held)] = held
        self.attempted(held, held.outcome)

    def take(self, held: HeldDelivery) -> None:
        """Hold a delivery no longer."""
        del self._held[id(held)]
        self.capacity.take(id(held))

    def attempted(self, held: HeldDelivery, outcome: Outcome) -> None:
        """Note what became of a held delivery, and why it waits now where it still does."""
        held.waits = is_deferred(outcome)
        if not held.waits:
            return
        held.outcome = outcome
        held.put_off += outcome.cause is Cause.HANDLER_DEFERRED
        slot, cause, party = held.slot, outcome.cause, outcome.party
        self.capacity.put(id(held), tag=slot.consumer, cause=cause, party=party, size=slot.size)
        if not self.capacity.concerns_everyone(cause, party):
            held.everyones_since = None
        elif held.everyones_since is None:
            held.everyones_since = self._clock.monotonic()

    def is_over(self, held: HeldDelivery) -> bool:
        """Tell whether a delivery is to be held no longer."""
        slot, step = held.slot, held.delivery.step
        if not slot.is_ours and step is not Step.CONFIRM and step is not Step.RELEASE:
            return True
        if (self.suspended and self.yields(held)) or (self.stopping and self.stops(held)):
            return True
        if self._seconds is not None and held.everyones_since is not None and not held.is_kept:
            return self._clock.monotonic() - held.everyones_since >= self._seconds or self._is_old(slot)
        return self._is_old(slot) and (not slot.is_last or held.is_given_up)

    def _is_old(self, slot: Slot) -> bool:
        """Tell whether the broker's consumer timeout is near."""
        return self._clock.monotonic() - slot.received >= self._oldest

    def yields(self, held: HeldDelivery) -> bool:
        """Tell whether a delivery goes back when its queue is suspended."""
        return not held.is_kept

    def stops(self, held: HeldDelivery) -> bool:
        """Tell whether a stop ends its waiting; one whose handler has ended waits for its confirm to the last."""
        return held.delivery.step is not Step.CONFIRM

    def wants_suspension(self, held: HeldDelivery) -> bool:
        """Tell whether the queue is to be suspended before a delivery goes back: its cause is everybody's."""
        everyones = held.everyones_since is not None or self.suspended
        return self._seconds is not None and everyones and held.waits and not held.is_kept and held.slot.is_ours


def is_deferred(outcome: Outcome) -> bool:
    """Tell whether a delivery waits for the world."""
    return outcome.verdict is _DEFERRED


OWN_CAUSES: Final = frozenset((Cause.CLAIM_HELD, Cause.HANDLER_DEFERRED, Cause.APPEND_TIME_UNAVAILABLE))
"""Causes that concern one message."""
MAX_HELD: Final = 1000
MAX_BYTES: Final = 16 * 1024 * 1024
HELD_PER_PREFETCH: Final = 10
"""Deliveries held beside the window for each of its places, unless told otherwise."""


class _Entry(NamedTuple):
    """One held delivery: under which consumer tag it came, why it waits, and the bytes of its body."""

    tag: str
    cause: Cause | None
    party: str | None
    size: int

    @property
    def is_beside(self) -> bool:
        """Whether others need not wait for it."""
        return self.cause in OWN_CAUSES or self.party is not None


class HoldCapacity:
    """What is held, by whose fault it is: one message's, one issuer's or release authority's, or everybody's.

    Args:
        max_held: deliveries held beside the window at most.
        issuers: the configured issuers; where none of them has keys, that is everybody's cause.
        max_bytes: of the bodies of those.
    """

    def __init__(
        self, max_held: int = MAX_HELD, *, issuers: Collection[str] = (), max_bytes: int = MAX_BYTES
    ) -> None:
        self._max_held = max_held
        self._max_bytes = max_bytes
        self._issuers = frozenset(issuers)
        self._entries: dict[int, _Entry] = {}
        self._by_tag = Counter[str]()
        self._without_keys = Counter[str]()
        self._beside = 0
        self._bytes = 0

    def put(self, key: int, *, tag: str, cause: Cause | None, party: str | None, size: int) -> None:
        """Hold a delivery, or note why it waits now."""
        self.take(key)
        self._count(entry := _Entry(tag, cause, party, size), 1)
        self._entries[key] = entry

    def take(self, key: int) -> None:
        """Hold a delivery no longer."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._count(entry, -1)

    def _count(self, entry: _Entry, step: int) -> None:
        """Count a delivery in or out."""
        if entry.cause is Cause.KEYS_UNAVAILABLE and entry.party is not None:
            self._without_keys[entry.party] += step
        if entry.is_beside:
            self._by_tag[entry.tag] += step
            self._beside += step
            self._bytes += step * entry.size
            self._by_tag += Counter()  # forgets what is 0

    @property
    def nobody_has_keys(self) -> bool:
        """Whether no configured issuer can serve, as far as what is held tells."""
        return bool(self._issuers) and all(self._without_keys[issuer] > 0 for issuer in self._issuers)

    def concerns_everyone(self, cause: Cause | None, party: str | None) -> bool:
        """Tell whether a cause is everybody's, so that the queue is to be suspended."""
        return not _Entry("", cause, party, 0).is_beside or (
            cause is Cause.KEYS_UNAVAILABLE and self.nobody_has_keys
        )

    def has_room(self) -> bool:
        """Tell whether more may be held beside the window."""
        return self._beside < self._max_held and self._bytes < self._max_bytes and not self.nobody_has_keys

    def wants_another(self, tag: str, window: int, active: int) -> bool:
        """Tell whether to consume anew: half of the window is held, and at most half of it is at work.

        Args:
            tag: of the present consumer.
            window: the prefetch; with 1 order was asked for, and nothing passes by.
            active: deliveries under way that are not held.
        """
        half = 2 * self._by_tag[tag] >= window and 2 * active <= window
        return window > 1 and half and self.has_room()

    def is_full(self, tag: str, window: int) -> bool:
        """Tell whether nothing more comes: the whole window is held, and there is no room beside it."""
        return self._by_tag[tag] >= window and (window == 1 or not self.has_room())

    def by_cause(self) -> dict[str, int]:
        """Return how many are held for each cause, and issuer or authority."""
        found = Counter(_named(entry.cause, entry.party) for entry in self._entries.values())
        return dict(found.most_common())


def _named(cause: Cause | None, party: str | None) -> str:
    """Return a cause with whose it is."""
    name = "" if cause is None else cause.value
    return name if party is None else f"{name} of {party}"
