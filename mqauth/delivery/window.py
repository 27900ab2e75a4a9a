"""The window of a queue consumer: how many deliveries it asks its broker for, and when it asks for none.

How the queue engine works
==========================
The engine is told what a client sees and says what the client is to do. It makes no calls and knows no event loop;
``mqauth.brokers.queue`` runs it in one.

**Window.** The broker sends one consumer tag at most ``prefetch`` unacked deliveries at a time: the window. Each
delivery has a ``Slot``, which says whether the broker still counts on us to settle it.

**From arrival to ack.** A delivery arrives on a channel, with a delivery tag. ``DeliveryTags`` notes the tag as
open, and ``QueueWork`` takes the delivery through the pipeline. Once it is accepted and handled, or rejected
with its audit record and its dead letter durable, it is settled: its tag is acked, with others in one frame
where no open tag lies before them, at most 10 ms later. A rejection that depends on the moment, such as
``replayed`` or ``expired``, is recorded only after a round trip on the channel has shown that the delivery was
ours when it was judged.

**Hold.** A delivery that is deferred stays unacked in the ``Hold`` and is tried again with a back-off. Where its
cause concerns one message or one issuer, others must not wait for it: once half of the window is held, the
consumer is cancelled and consumes anew under another tag on the same channel, which has a whole window of its
own.

**Suspension.** Where the cause concerns everyone (replay store, audit, dead letters, policy, keys of all
issuers), the queue is suspended after ``hold`` seconds: the consumer is cancelled first, and then the held
deliveries go back. Otherwise they would come again at once, each time nearer to the quorum queue's delivery
limit. A delivery of them is probed until its cause is over; then the queue is consumed again. A delivery that
another return would put over the limit is not given back at all. One whose handler has ended waits unacked for
its confirm: another consumer would run its handler again once the lease is over.

**Channel generations.** A delivery tag is valid on its own channel alone. Where a channel or connection is lost,
the broker delivers everything unacked on it again, flagged ``redelivered``. So the tags of the old channel are
dropped and never acked on the new one, slots of the old channel are not ours any more, and deferred deliveries
of it end. A handler that runs is carried to its end; ``Progress`` knows its message by content and lets the
redelivery wait for it, and then confirm and ack without running the handler again. After three lost connections
in a row the window falls to 1, since one message may be killing its reader.

Example, with a prefetch of 4. Deliveries 1 to 4 arrive. 1 and 3 are handled; the issuer of 2 has no keys, so 2
is held; the handler of 4 runs long. One ack covers 1, another one 3, none may cover 2. Delivery 5 is held too,
for the same issuer: half of the window is held, so the consumer starts anew, and 6 to 9 arrive beside 2, 4 and
5. The issuer's keys arrive: 2 and 5 are tried at once, accepted, handled and acked. Now the connection is lost
while the handler of 4 still runs. 4 comes again on the new channel, with a new tag and marked as redelivered. It
is deferred as ``claim_held`` until the handler ends, then takes over its progress: the claim is confirmed, and
the new tag is acked.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Final

from mqauth.clock import Backoff, Clock
from mqauth.delivery.health import NO_SETTINGS, Counts, QueueHealth, Settings
from mqauth.delivery.hold import HeldDelivery, Hold, is_deferred
from mqauth.errors import Cause, Verdict
from mqauth.judging.delivery import Outcome
from mqauth.logs import emit

STEADY: Final = 60.0
"""Seconds of consuming after which a lost connection is no longer in a row with the one before."""
DEATHS_IN_A_ROW: Final = 3
RESTORE_AFTER: Final = 600.0
"""Seconds without a loss after which a window of 1 is opened again."""
OUTAGE_AFTER: Final = 60.0
"""Seconds without consuming after which health names that as a cause."""
PROBES: Final = Backoff(first=0.5, longest=30.0)
"""How long consuming or probing waits before it is tried again."""
_DOWN: Final = "the connection is down"


class Window:
    """The window of one consumer.

    Args:
        queue: the queue's name.
        clock: the pipeline's.
        hold: the held deliveries.
        prefetch: deliveries at once.

    Attributes:
        prefetch: how many deliveries to ask for at once now.
        consumer: the tag under which the broker sends messages now, ``None`` while it sends none.
        stalled: the delivery for which the queue was suspended.
        counts: what became of the deliveries.
        failure: the error that ended the consumer.
        stopping: whether nothing more is begun.
    """

    def __init__(self, queue: str, clock: Clock, hold: Hold, prefetch: int) -> None:
        self._queue = queue
        self._clock = clock
        self._hold = hold
        # It falls to 1 after three lost connections in a row. A message that kills its reader takes the connection
        # with it, and a quorum queue counts that against the delivery limit of every message in the window. With a
        # window of 1 its healthy neighbours are not counted.
        self._whole = self.prefetch = prefetch
        self._deaths = self._in_a_row = 0
        self._is_cautious = False
        self._since: float | None = None
        self._stalls_in_a_row = 0
        self._said_full = False
        # Since when it wants to consume and cannot, in monotonic and in UTC seconds, and why.
        self._out_since: tuple[float, float] | None = None
        self._why_out = _DOWN
        self.counts = Counts()
        self.consumer: str | None = None
        self.stalled: HeldDelivery | None = None
        self.failure: BaseException | None = None
        self.stopping = False

    # Facts from the client

    @property
    def is_out(self) -> bool:
        """Whether it does not consume, and wants to."""
        return self._out_since is not None

    def begins(self) -> None:
        """Note that it does not consume, and wants to."""
        self._out_since, self._why_out = (
            (self._clock.monotonic(), self._clock.now()),
            _DOWN,
        )

    def cannot(self, error: BaseException) -> None:
        """Log why it could not consume, and that it is tried again."""
        self._why_out = str(error) or type(error).__name__
        emit(
            "connection.unavailable",
            "cannot consume %s now, trying again: %s",
            self._queue,
            self._why_out,
        )

    def opens(self) -> None:
        """Note that consuming is being asked for, on an open channel."""
        # Or it goes on under another tag.
        self._since = self._clock.monotonic() if self._since is None else self._since

    def consumes(self, consumer: str | None) -> None:
        """Note that the broker sends messages, under a consumer's tag; none where the queue is suspended."""
        self.consumer, self._out_since = consumer, None

    def lost(self, why: str, *, channel_alone: bool) -> None:
        """Note that channel or connection ended; three in a row while consuming narrow the window to 1.

        Args:
            why: names the reason in the log.
            channel_alone: whether the broker closed the channel and not its connection.
        """
        self.consumer = None
        if self.stopping or self._since is None:
            return
        steady, self._since = self._clock.monotonic() - self._since >= STEADY, None
        self._deaths += 1
        # A channel that the broker closed, and not its connection, is no death in a row.
        if not channel_alone:
            self._in_a_row = 1 if steady else self._in_a_row + 1
        emit("connection.lost", "%s: channel or connection lost (%s)", self._queue, why)
        if self._in_a_row >= DEATHS_IN_A_ROW and self.prefetch == self._whole > 1:
            self.prefetch = 1
            emit(
                "consumer.narrowed",
                "%s: %d connections were lost in a row, a message may be poison; prefetch falls to 1",
                self._queue,
                self._in_a_row,
            )

    def cancelled(self, consumer: str) -> bool:
        """Note that the broker cancelled a consumer; return whether it was ours, so that we consume anew."""
        if consumer != self.consumer:
            return False
        self.consumer = None
        return True

    def leave(self) -> str | None:
        """Want no more messages; return the tag of the consumer that is to be cancelled at the broker."""
        consumer, self.consumer = self.consumer, None
        return consumer

    # Outcomes of deliveries

    def settled(self, outcome: Outcome) -> bool:
        """Note the last outcome of a delivery; return whether to consume anew, with the whole window again.

        A rejection that was audited and dead-lettered shows that the outage is over for which the window is 1.
        """
        self.counts.add(outcome)
        if is_deferred(outcome):
            return False
        self._stalls_in_a_row = 0
        if not self._is_cautious or outcome.verdict is not Verdict.REJECTED:
            return False
        self._restore()
        return True

    def passes_by(self, busy: int) -> bool:
        """Return whether to consume anew beside what is held; log once where the queue waits.

        Args:
            busy: deliveries in work, the held ones included.
        """
        if self.consumer is None:
            return False
        was_full, self._said_full = (
            self._said_full,
            self._hold.is_full(self.consumer, self.prefetch),
        )
        if self._said_full and not was_full:
            causes = ", ".join(
                f"{number} {what}" for what, number in self._hold.by_cause().items()
            )
            # A warning where the user chose a prefetch of 1, else an error.
            level, why = logging.ERROR, "no more can be held"
            if self.prefetch == 1:
                level, why = logging.WARNING, "its prefetch is 1"
            emit(
                "consumer.full",
                "%s waits, since %s: %s",
                self._queue,
                why,
                causes,
                level=level,
            )
        return self._hold.wants_another(
            self.consumer, self.prefetch, busy - len(self._hold)
        )

    def suspend(self, held: HeldDelivery) -> bool:
        """Suspend the queue before a delivery goes back.

        Returns:
            Whether the delivery stays unacked meanwhile, and is tried until its cause is over. One that was
            handled does, and the first one where only that can tell whether it is over.
        """
        self._since = None
        if self.stalled is None and not self.stopping:
            self.stalled = held
            self._stalls_in_a_row += 1
            causes = ", ".join(self._hold.by_cause()) or held.outcome.cause
            emit("consumer.stalled", "%s is stalled: %s", self._queue, causes)
        held.stays = held.is_handled or (held is self.stalled and held.needs_ours)
        return held.stays

    @property
    def probe_wait(self) -> float:
        """Longest first wait between two probes, seconds; it doubles with each suspension in a row."""
        return PROBES.step(1 + self._stalls_in_a_row)

    def go_on(self) -> None:
        """End a suspension: its delivery got further, or had to go back because its consumer timeout was near.

        In the latter case one delivery alone is taken, to find out whether the cause is over.
        """
        held, self.stalled = self.stalled, None
        if held is None:
            return
        if held.goes_back:
            # One delivery alone finds out whether an outage is over.
            self.prefetch, self._is_cautious = 1, True
        emit("consumer.resumed", "%s goes on after %s", self._queue, held.outcome.cause)

    # Recovery, the end, and health

    def calm(self) -> float | None:
        """Return the seconds of consuming after which ``widen`` is due, ``None`` where it is not."""
        return RESTORE_AFTER if self.prefetch < self._whole else None

    def widen(self) -> None:
        """Open the whole window again after a long time without a loss."""
        self._restore()
        emit("consumer.widened", "%s: prefetch back to %d", self._queue, self.prefetch)

    def _restore(self) -> None:
        self.prefetch, self._in_a_row, self._is_cautious = self._whole, 0, False

    def fail(self, error: BaseException) -> None:
        """Remember the first error that ends the consumer."""
        if self.failure is None:
            emit(
                "consumer.failed",
                "the consumer of %s ends: %s",
                self._queue,
                type(error).__name__,
            )
            self.failure = error

    def health(
        self,
        *,
        in_flight: int,
        unsettled: int,
        blocked: bool,
        silent: float = 0.0,
        settings: Settings = NO_SETTINGS,
    ) -> QueueHealth:
        """Return how the consumer is doing now.

        Args:
            in_flight: deliveries that are processed or held.
            unsettled: acks that could not be sent.
            blocked: whether the broker has blocked the connection.
            silent: seconds since the event loop last moved.
            settings: as ``told_of`` returns them.
        """
        longest = self.stalled or self._hold.longest
        why: tuple[Cause | None, float | None, str | None] = None, None, None
        if longest is not None:
            why = longest.outcome.cause, longest.since, longest.outcome.detail
        elif self.failure is not None:
            why = None, None, f"the consumer ended: {type(self.failure).__name__}"
        elif blocked:
            alarm = "the broker has blocked this connection by an alarm: it takes no ack and answers nothing"
            why = Cause.BROKER_UNAVAILABLE, None, alarm
        elif (
            self._out_since is not None
            and self._clock.monotonic() - self._out_since[0] >= OUTAGE_AFTER
        ):
            why = (
                Cause.BROKER_UNAVAILABLE,
                self._out_since[1],
                f"cannot consume: {self._why_out}",
            )
        cause, since, detail = why
        return QueueHealth(
            consuming=self.consumer is not None
            and not self._hold.is_full(self.consumer, self.prefetch),
            in_flight=in_flight,
            deferred=len(self._hold),
            stalled_since=since,
            cause=cause,
            detail=detail,
            running=not self.stopping and self.failure is None,
            at=self._clock.now(),
            silent=silent,
            counts=replace(self.counts),
            **settings,
            connection_deaths=self._deaths,
            prefetch=self.prefetch,
            unsettled=unsettled,
            party=None if longest is None else longest.outcome.party,
            held=self._hold.by_cause(),
            at_limit=self._hold.at_limit,
        )
