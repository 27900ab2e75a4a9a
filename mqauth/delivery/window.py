"""What a consumer of a queue asks its broker for, and when it asks for nothing: the rules for queue brokers.

A consumer takes so many deliveries at once, its window. What waits for one message's or one issuer's cause is held
beside it, so that others pass. While a cause of all lasts the queue is suspended: nothing is consumed, so that the
broker's consumer timeout and a quorum queue's delivery limit do not condemn honest messages. What is lost with its
channel comes again.
"""

from __future__ import annotations

import logging
from typing import Final

from mqauth.clock import Clock
from mqauth.delivery.health import QueueHealth
from mqauth.delivery.hold import HeldDelivery, Hold, is_deferred
from mqauth.delivery.prefetch import RESTORE_AFTER, Outage, Prefetch
from mqauth.errors import Cause
from mqauth.judging.delivery import Outcome, Verdict

PROBE_WAIT: Final = 0.5
"""Longest first wait before consuming, or probing, is tried again, seconds; later ones double."""
PROBE_WAIT_MAX: Final = 30.0
_DOUBLINGS: Final = 10
_BLOCKED: Final = "the broker has blocked this connection, by an alarm: no ack is sent, no question answered"
_LOG: Final = logging.getLogger("mqauth.delivery")


class Window:
    """The window of one consumer.

    Args:
        queue: the queue's name.
        clock: the pipeline's.
        hold: what is held.
        prefetch: deliveries at once.

    Attributes:
        consumer: the tag under which the broker sends messages now, ``None`` while it sends none.
        stalled: the delivery for which the queue was suspended.
        outage: since when it does not consume although it wants to.
        failure: what ended the consumer.
        stopping: whether nothing more is begun.
    """

    def __init__(self, queue: str, clock: Clock, hold: Hold, prefetch: int) -> None:
        self._queue = queue
        self._clock = clock
        self._hold = hold
        self._prefetch = Prefetch(prefetch)
        self._stalls_in_a_row = 0
        self._said_full = False
        self.outage = Outage(queue, clock)
        self.consumer: str | None = None
        self.stalled: HeldDelivery | None = None
        self.failure: BaseException | None = None
        self.stopping = False

    @property
    def prefetch(self) -> int:
        """How many deliveries to ask for at once now."""
        return self._prefetch.now

    # What the client says

    def opens(self) -> None:
        """Note that consuming is asked for, on a channel that is open."""
        self._prefetch.opened(self._clock.monotonic())

    def consumes(self, consumer: str) -> None:
        """Note that the broker sends messages, under a consumer's tag."""
        self.consumer = consumer
        self.outage.end()

    def lost(self, why: str, *, channel_alone: bool) -> None:
        """Note that channel or connection ended; three in a row while consuming narrow the window to 1.

        Args:
            why: names it in the log.
            channel_alone: the broker closed the channel and not its connection.
        """
        self.consumer = None
        if self.stopping or not self._prefetch.lost(self._clock.monotonic(), channel_alone=channel_alone):
            return
        _LOG.warning("%s: channel or connection lost (%s)", self._queue, why)
        if self._prefetch.narrow():
            row = self._prefetch.in_a_row
            _LOG.critical(
                "%s: %d connections died in a row, a message may be poison; prefetch falls to 1", self._queue, row
            )

    def cancelled(self, consumer: str) -> bool:
        """Note that the broker itself cancelled a consumer; tell whether to consume anew, since it was ours."""
        if consumer != self.consumer:
            return False
        self.consumer = None
        return True

    def leave(self) -> str | None:
        """Want no more messages; return the tag of the consumer that is to be cancelled at the broker."""
        consumer, self.consumer = self.consumer, None
        return consumer

    # What became of deliveries

    def settled(self, outcome: Outcome) -> bool:
        """Note what a delivery came to; tell whether to consume anew, with the whole window again.

        A rejection that was recorded and buried shows that the outage for which one delivery at a time was taken
        is over.
        """
        if is_deferred(outcome):
            return False
        self._stalls_in_a_row = 0
        if not self._prefetch.is_cautious or outcome.verdict is not Verdict.REJECTED:
            return False
        self._prefetch.restore()
        return True

    def passes_by(self, busy: int) -> bool:
        """Tell whether to consume anew beside what is held; log once that the queue waits, where it does.

        Args:
            busy: deliveries under way, the held ones included.
        """
        if self.consumer is None:
            return False
        said, self._said_full = self._said_full, self._is_full(self.consumer)
        if self._said_full and not said:
            self._say_full()
        return self._hold.capacity.wants_another(self.consumer, self.prefetch, busy - len(self._hold))

    def suspend(self, held: HeldDelivery) -> bool:
        """Suspend the queue before a delivery goes back: it would come again at once. The first one says why.

        Returns:
            Whether the delivery stays unacked meanwhile, and is tried until its cause is over: the first one does,
            where nothing else can tell.
        """
        self._prefetch.closed()
        if self.stalled is None and not self.stopping:
            self.stalled = held
            self._stalls_in_a_row += 1
            whose = ", ".join(self._hold.capacity.by_cause()) or held.outcome.cause
            _LOG.error("%s is stalled: %s", self._queue, whose)
        held.stays = held is self.stalled and held.needs_ours
        return held.stays

    @property
    def probe_wait(self) -> float:
        """Longest first wait between two probes, seconds; more after each stall in a row."""
        return PROBE_WAIT * 2.0 ** min(self._stalls_in_a_row, _DOUBLINGS)

    def go_on(self) -> None:
        """Note that the delivery got further for which the queue was suspended, or had to go back untold.

        In the latter case one delivery alone is taken, to find out whether the cause is over.
        """
        held, self.stalled = self.stalled, None
        if held is None:
            return
        if held.stays and held.goes_back:
            self._prefetch.caution()
        _LOG.warning("%s goes on after %s", self._queue, held.outcome.cause)

    # How it goes on, and ends

    def calm(self) -> float | None:
        """Return the seconds of consuming after which ``widen`` is due, ``None`` where it is not."""
        return RESTORE_AFTER if self._prefetch.narrowed else None

    def widen(self) -> None:
        """Open the whole window again after a long calm."""
        self._prefetch.restore()
        _LOG.warning("%s: prefetch back to %d", self._queue, self.prefetch)

    def fail(self, error: BaseException) -> None:
        """Remember what ends the consumer, the first of all."""
        if self.failure is None:
            _LOG.critical("the consumer of %s ends: %s", self._queue, type(error).__name__)
            self.failure = error

    def stop(self) -> None:
        """Begin nothing more, for ever."""
        self.stopping = True

    def health(self, *, in_flight: int, unsettled: int, blocked: bool) -> QueueHealth:
        """Return how the consumer is doing now.

        Args:
            in_flight: deliveries being processed or held.
            unsettled: acks that could not be sent.
            blocked: the broker has blocked the connection.
        """
        longest = self.stalled or self._hold.longest
        cause, since, detail = self._unwell(blocked) if longest is None else longest.why
        return QueueHealth(
            consuming=self.consumer is not None and not self._is_full(self.consumer),
            in_flight=in_flight,
            deferred=len(self._hold),
            stalled_since=since,
            cause=cause,
            detail=detail,
            connection_deaths=self._prefetch.deaths,
            prefetch=self.prefetch,
            unsettled=unsettled,
            party=None if longest is None else longest.outcome.party,
            held=self._hold.capacity.by_cause(),
            at_limit=self._hold.at_limit,
        )

    def _unwell(self, blocked: bool) -> tuple[Cause | None, float | None, str | None]:
        """Return what is wrong where nothing is deferred: what ended the consumer, or that the broker is away."""
        if self.failure is not None:
            return None, None, f"the consumer ended: {type(self.failure).__name__}"
        if blocked:
            return Cause.BROKER_UNAVAILABLE, None, _BLOCKED
        return self.outage.long() or (None, None, None)

    def _is_full(self, consumer: str) -> bool:
        """Tell whether nothing more comes: all that may be held is."""
        return self._hold.capacity.is_full(consumer, self.prefetch)

    def _say_full(self) -> None:
        """Log that the queue waits, and for what."""
        whose = ", ".join(f"{number} {what}" for what, number in self._hold.capacity.by_cause().items())
        ordered = self.prefetch == 1
        why = "its prefetch is 1" if ordered else "no more can be held"
        _LOG.log(logging.WARNING if ordered else logging.ERROR, "%s waits, since %s: %s", self._queue, why, whose)
