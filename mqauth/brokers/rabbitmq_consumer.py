"""The RabbitMQ consumer: one queue, a prefetch window of concurrent deliveries, and what to do in trouble.

A delivery is begun on the spot, and what is to be awaited runs in a task of ours: aio-pika cancels its own when a
connection is lost. While a dependency of all is out of reach the consumer is cancelled, so that the broker's
consumer timeout and a quorum queue's delivery limit do not condemn honest messages, and starts again when a probe
answers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from types import TracebackType
from typing import Any, Final, Self

import tenacity
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue, AbstractRobustChannel
from aio_pika.exceptions import AMQPChannelError
from aiormq.abc import AbstractChannel

from mqauth.brokers.rabbitmq_absence import Absence
from mqauth.brokers.rabbitmq_acks import Acks
from mqauth.brokers.rabbitmq_channel import (
    LOST,
    ClosedByOwnerError,
    closing_is_an_error,
    is_blocked,
    is_stale,
    share_connection,
)
from mqauth.brokers.rabbitmq_delivery import LEFT, Begun, Processor
from mqauth.brokers.rabbitmq_hold import CONSUMER_TIMEOUT, DEFAULT_HOLD, Held, Sleep
from mqauth.brokers.rabbitmq_incoming import subscribed
from mqauth.brokers.rabbitmq_producer import Producer
from mqauth.brokers.rabbitmq_reopening import ready
from mqauth.brokers.rabbitmq_replies import as_responder
from mqauth.brokers.rabbitmq_tasks import Signals, Tasks
from mqauth.brokers.rabbitmq_topology import DEFAULT_DELIVERY_LIMIT
from mqauth.deadletter import DeadLetterSink
from mqauth.delivery.facts import QueueHealth
from mqauth.delivery.prefetch import RESTORE_AFTER, Prefetch
from mqauth.delivery.room import MAX_HELD, PER_PLACE, Room
from mqauth.errors import Cause, ConfigurationError
from mqauth.pipeline import Handler, Pipeline, Verdict
from mqauth.signer import Signer

DEFAULT_PREFETCH: Final = 10
MIN_HOLD: Final = 1.0
_PROBE_WAIT: Final = 0.5
_PROBE_WAIT_MAX: Final = 30.0
_STARTED_WITHIN: Final = 1.0
_LOG: Final = logging.getLogger("mqauth.rabbitmq")


class Consumer:
    """Hands the verified messages of one queue to a handler, and dead-letters the rest.

    Args:
        queue: a connected aio-pika queue, on a connection of its own; ``declare_source`` makes the
            recommended kind.
        guard: the pipeline.
        handler: takes a ``Verified``; of either colour, though a synchronous one blocks the event loop.
        dead_letters: where rejected messages go, best on another connection.
        prefetch: deliveries at once; their handlers run concurrently, so 1 keeps the order.
        coalesce_acks: ack many deliveries in one frame, 5 ms late at most, where the channel is the consumer's
            alone; without, each by itself as soon as it is settled.
        decode: makes ``Verified.value`` of the body, after verification; what it raises dead-letters the
            message as ``handler_failed``, at once.
        replies: signs what ``Verified.reply`` publishes, through the channel of ``dead_letters``; or a
            ``Producer`` on a default exchange.
        grace: seconds that running handlers may take at ``stop``.
        hold: seconds, at least 1, of a cause of all after which the queue is suspended and what is held goes
            back to the broker. What waits for a cause of its own, or of one issuer, is held in any case.
        consumer_timeout: seconds after which the broker closes a channel for a delivery that is not acked, as it
            is set there (``consumer_timeout``); what is held goes back a tenth before.
        delivery_limit: of the queue; by default as declared, else RabbitMQ's 20. Negative for none. A message at
            its last delivery is not given back.
        max_held: deliveries held beside the window, by default ten times ``prefetch`` and at most 1,000, and
            16 MiB of their bodies; beyond it the queue waits for all.
        sleep: waits so many seconds.

    Raises:
        ConfigurationError: the pipeline has no audit, or a setting is out of its limits.
    """

    def __init__(
        self,
        queue: AbstractQueue,
        guard: Pipeline,
        handler: Handler,
        *,
        dead_letters: DeadLetterSink,
        prefetch: int = DEFAULT_PREFETCH,
        coalesce_acks: bool = True,
        decode: Callable[[bytes | None], Any] | None = None,
        replies: Signer | Producer | None = None,
        grace: float = 30,
        hold: float = DEFAULT_HOLD,
        consumer_timeout: float = CONSUMER_TIMEOUT,
        delivery_limit: int | None = None,
        max_held: int | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        if not 1 <= prefetch <= 65_535 or grace < 0 or not 0 <= (max_held or 0) <= MAX_HELD:
            raise ConfigurationError(f"prefetch is 1 to 65,535, max_held 0 to {MAX_HELD}, grace not negative")
        if not MIN_HOLD <= hold < consumer_timeout:
            raise ConfigurationError("hold is at least 1 second, and shorter than consumer_timeout")
        _check(queue, guard, dead_letters)
        self._queue = queue
        self._guard = guard
        self._clock = guard.clock
        self._unsubscribe: Callable[[], None] | None = None
        self._window = Prefetch(prefetch)
        self._coalesce = coalesce_acks
        self._acks: Acks | None = None
        self._underlay: AbstractChannel | None = None
        self._grace = grace
        self._sleep = sleep
        self._absence = Absence(queue.name, guard.clock)
        beside = min(PER_PLACE * prefetch, MAX_HELD) if max_held is None else max_held
        self._room = Room(beside, issuers=guard.verifier.issuers)
        self._said_full = False
        self._processor = Processor(
            queue.name,
            guard,
            handler,
            dead_letters=dead_letters,
            decode=decode,
            responder=as_responder(replies, dead_letters),
            hold=hold,
            consumer_timeout=consumer_timeout,
            delivery_limit=_limit(queue, delivery_limit),
            room=self._room,
            at_once=prefetch,
            changed=self._look,
            before_requeue=self._suspend,
            on_failure=self._end_by,
            sleep=sleep,
        )
        self._tasks = Tasks()
        self._on_the_spot = 0
        self._supervisor: asyncio.Task[None] | None = None
        self._started = asyncio.Event()
        self._interrupted = asyncio.Event()
        self._stopping = asyncio.Event()
        self._tag: str | None = None
        self._stalled: Held | None = None
        self._stalls_in_a_row = 0
        self._cancelling: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None

    async def run(self, *, signals: bool = False) -> None:
        """Consume until ``stop`` is called or this task is cancelled, then stop gracefully.

        Args:
            signals: stop at SIGTERM and SIGINT too; only in a main thread.

        Raises:
            ConfigurationError: the pipeline or a plug-in is not fit; nothing was lost.
            aio_pika.exceptions.AMQPError: the queue cannot be consumed, or a connection that is not robust
                was lost.
        """
        with Signals(self._stopping, enabled=signals):
            async with self:
                await self._stopping.wait()

    async def stop(self) -> None:
        """Take no new messages, let running handlers finish within the grace time, give the rest back.

        However often it is called, or its caller cancelled, it happens once. A handler that calls it is not
        waited for.
        """
        self._tasks.leave_out(asyncio.current_task())
        await asyncio.shield(self._end())

    def _end(self) -> asyncio.Task[None]:
        """Begin to stop, once."""
        self._stopping.set()
        if self._ending is None:
            self._ending = asyncio.create_task(self._wind_up())
        return self._ending

    async def _wind_up(self) -> None:
        """Stop consuming, see what runs to its end, and ack what was settled."""
        if self._unsubscribe is not None:
            self._unsubscribe()
        if self._supervisor is not None:
            self._interrupted.set()
            if self._absence.lasts:
                # aiormq closes a channel whose call is cancelled, and with it the acks of what runs
                await asyncio.wait((self._supervisor,), timeout=_STARTED_WITHIN)
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
        self._window.closed()
        await self._cancelled()
        self._processor.holder.stopping.set()
        await self._tasks.end(self._grace)
        if self._acks is not None:
            await self._acks.finish()
        self._queue.channel.close_callbacks.discard(self._on_close)
        if left := self._processor.left:
            _LOG.critical(LEFT, self._queue.name, left)

    async def __aenter__(self) -> Self:
        """Start consuming in the background."""
        if self._supervisor is not None:
            raise ConfigurationError("a consumer runs once: make another")
        self._queue.channel.close_callbacks.add(self._on_close)
        self._unsubscribe = self._guard.on_change(partial(_wake, asyncio.get_running_loop(), self._processor))
        self._supervisor = asyncio.create_task(self._supervise())
        await asyncio.wait(
            (started := asyncio.ensure_future(self._started.wait()), self._supervisor),
            return_when=asyncio.FIRST_COMPLETED,
        )
        started.cancel()
        if self._failure is not None:
            await self.stop()
            raise self._failure
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop gracefully, and raise what stopped the consumer if something did."""
        await self.stop()
        if self._failure is not None and error is None:
            raise self._failure

    def health(self) -> QueueHealth:
        """Return how the consumer is doing now."""
        held = sorted(self._processor.held, key=lambda item: item.since)
        longest = self._stalled or (held[0] if held else None)
        cause, since, detail = self._unwell() if longest is None else longest.why
        return QueueHealth(
            consuming=self._tag is not None and not self._room.is_full(self._tag, self._window.now),
            in_flight=len(self._tasks) + self._on_the_spot,
            deferred=len(held),
            stalled_since=since,
            cause=cause,
            detail=detail,
            connection_deaths=self._window.deaths,
            prefetch=self._window.now,
            unsettled=self._processor.unsettled,
            party=None if longest is None else longest.outcome.party,
            held=self._room.whose(),
            at_limit=sum(item.slot.is_last for item in held),
        )

    def _unwell(self) -> tuple[Cause | None, float | None, str | None]:
        """Return what is wrong where nothing is deferred: what ended the consumer, or that the broker is away."""
        if self._failure is not None:
            return None, None, f"the consumer ended: {type(self._failure).__name__}"
        channel = self._underlay
        if channel is None or channel.is_closed or not is_blocked(channel):
            return self._absence.long() or (None, None, None)
        blocked = "the broker has blocked this connection, by an alarm: no ack is sent, no question answered"
        return Cause.BROKER_UNAVAILABLE, None, blocked

    async def _on_message(self, incoming: AbstractIncomingMessage) -> None:
        """Process a delivery on the spot or in a task of ours; aio-pika's own dies with the connection."""
        if is_stale(incoming):
            return  # the broker delivers it again
        acks = self._acks
        if acks is not None:
            acks.opened(incoming.delivery_tag or 0)
        if self._stopping.is_set():
            return self._tasks.run(self._turn_away(incoming, acks))
        context = copy_context()  # one for all of a delivery
        begun = context.run(self._begun, incoming, acks)
        if begun is not None:
            self._tasks.run(self._process(incoming, acks, begun), context)

    async def _turn_away(self, incoming: AbstractIncomingMessage, acks: Acks | None) -> None:
        """Give back what came after the stop began, once nothing is consumed: it would come again at once."""
        await self._cancelled()
        await self._processor.turn_away(incoming, acks)

    def _begun(self, incoming: AbstractIncomingMessage, acks: Acks | None) -> Begun | None:
        """Begin a delivery on the spot; ``None`` where it is settled, or an error of ours ends the consumer."""
        self._on_the_spot = 1
        try:
            begun = self._processor.begin(incoming, acks)
        except BaseException as error:
            self._fail(error)
            return None
        finally:
            self._on_the_spot = 0
        if begun is None:
            self._stalls_in_a_row = 0
        return begun

    async def _process(self, incoming: AbstractIncomingMessage, acks: Acks | None, begun: Begun) -> None:
        """Process a delivery; what ends the consumer was told to it before the delivery was given back."""
        try:
            outcome = await self._processor.process(incoming, acks, begun)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            return self._fail(error)
        if outcome is not None and outcome.verdict is not Verdict.DEFERRED:
            self._stalls_in_a_row = 0
            if self._window.is_cautious and outcome.verdict is Verdict.REJECTED:
                self._window.restore()
                self._interrupted.set()

    def _fail(self, error: BaseException) -> None:
        """Remember what ends the consumer, for ``run`` to raise, and begin to stop."""
        if self._failure is None:
            _LOG.critical("the consumer of %s ends: %s", self._queue.name, type(error).__name__)
            self._failure = error
        self._end()

    async def _end_by(self, error: BaseException) -> None:
        """Begin to stop because of an error, and return once nothing is consumed any more."""
        self._fail(error)
        await self._cancelled()

    async def _supervise(self) -> None:
        """Keep consuming: start, wait for trouble, see it through, start again."""
        try:
            while not self._stopping.is_set():
                self._absence.begin()
                await self._start()
                self._absence.end()
                self._started.set()
                if self._stalled is None:
                    await self._trouble()
                # where there is a tag yet, the queue is suspended, or consumed anew with another window
                await self._cancelled()
                if self._stalled is not None:
                    await self._until_answered(self._stalled)
        except Exception as error:
            self._fail(error)

    async def _start(self) -> None:
        """Consume; on a robust channel that was fine before, tried again until it can be had."""
        if not self._started.is_set() or not isinstance(self._queue.channel, AbstractRobustChannel):
            return await self._consume()
        retrying = tenacity.AsyncRetrying(
            sleep=self._sleep,
            wait=tenacity.wait_random_exponential(multiplier=_PROBE_WAIT, max=_PROBE_WAIT_MAX),
            stop=tenacity.stop_never,
            retry=tenacity.retry_if_exception(_passes),
            before_sleep=self._absence.failed,
        )
        await retrying(self._consume)

    async def _consume(self) -> None:
        """Set the window and consume; a reconnect comes back here, so that the window is set first."""
        channel = self._queue.channel
        await ready(channel)
        self._interrupted.clear()
        with closing_is_an_error():
            await channel.set_qos(prefetch_count=self._window.now)
            underlay = await channel.get_underlay_channel()
            underlay.on_consumer_cancel_callbacks.add(self._on_cancel)
            self._underlay = underlay
            self._window.opened(self._clock.monotonic())
            self._acks = self._acks_of(underlay)
            self._tag = await subscribed(self._queue, underlay, self._on_message)

    def _acks_of(self, channel: AbstractChannel) -> Acks | None:
        """Return the acks of a channel: the same while it lives, whose tags go on counting."""
        if not self._coalesce:
            return None
        if self._acks is None or self._acks.channel is not channel:
            self._acks = Acks(channel, lost=self._processor.lost, name=self._queue.name)
        self._acks.window = self._window.now
        return self._acks

    async def _trouble(self) -> None:
        """Wait until consuming is interrupted; a window of 1 is opened again after a long calm."""
        try:
            await asyncio.wait_for(self._interrupted.wait(), RESTORE_AFTER if self._window.narrowed else None)
        except TimeoutError:
            self._window.restore()
            _LOG.warning("%s: prefetch back to %d", self._queue.name, self._window.now)

    def _on_close(self, _channel: object, error: BaseException | None) -> None:
        """Count a death of channel or connection while consuming."""
        self._tag = None
        self._interrupted.set()
        if self._acks is not None:
            self._acks.close()
        if self._stopping.is_set() or not self._window.lost(
            self._clock.monotonic(), channel_alone=isinstance(error, AMQPChannelError)
        ):
            return
        _LOG.warning("%s: channel or connection lost (%s)", self._queue.name, type(error).__name__)
        if self._window.narrow():
            _LOG.critical(
                "%s: %d connections died in a row, a message may be poison; prefetch falls to 1",
                self._queue.name,
                self._window.in_a_row,
            )

    def _on_cancel(self, frame: Any) -> None:
        """Start again after the broker itself cancelled the consumer."""
        if frame.consumer_tag == self._tag:
            self._tag = None
            self._interrupted.set()

    def _look(self) -> None:
        """See whether what is held leaves room for others: consume anew beside it, or say that the queue waits."""
        tag, window = self._tag, self._window.now
        if tag is None:
            return
        if self._room.wants_another(tag, window, len(self._tasks) - len(self._processor.held)):
            self._interrupted.set()
        said, self._said_full = self._said_full, self._room.is_full(tag, window)
        if self._said_full and not said:
            whose = ", ".join(f"{number} {what}" for what, number in self._room.whose().items())
            level, why = (
                (logging.WARNING, "its prefetch is 1") if window == 1 else (logging.ERROR, "no more can be held")
            )
            _LOG.log(level, "%s waits, since %s: %s", self._queue.name, why, whose)

    async def _suspend(self, held: Held) -> bool:
        """Cancel the consumer before a delivery is given back, or it would come back at once.

        Returns:
            Whether the delivery is to stay, to be tried until its cause is over.
        """
        self._processor.holder.suspended.set()
        self._window.closed()
        if self._stalled is None and not self._stopping.is_set():
            self._stalled = held
            self._stalls_in_a_row += 1
            _LOG.error("%s is stalled: %s", self._queue.name, ", ".join(self._room.whose()) or held.outcome.cause)
        await self._cancelled()
        self._interrupted.set()
        held.stays = held is self._stalled and held.needs_ours
        return held.stays

    async def _cancelled(self) -> None:
        """Cancel the consumer at the broker, once, and return when nothing more comes."""
        if self._cancelling is None or self._cancelling.done():
            self._cancelling = asyncio.create_task(self._cancel())
        await asyncio.shield(self._cancelling)

    async def _cancel(self) -> None:
        """Cancel the consumer at the broker, if it has one."""
        tag, self._tag = self._tag, None
        if tag is None:
            return
        try:
            with closing_is_an_error():
                await self._queue.cancel(tag)
        except LOST as error:
            _LOG.warning("cancelling the consumer of %s: %s", self._queue.name, type(error).__name__)

    async def _until_answered(self, held: Held) -> None:
        """Wait until a deferred delivery gets further, tried by itself or probed with ever more slowly."""
        if held.stays:
            await held.ended.wait()
            if held.goes_back:
                self._window.caution()
        else:
            await self._probed(held)
        self._processor.holder.suspended.clear()
        self._stalled = None
        _LOG.warning("%s goes on after %s", self._queue.name, held.outcome.cause)

    async def _probed(self, held: Held) -> None:
        """Probe with a delivery that was given back, ever more slowly, until it would get further."""
        retrying = tenacity.AsyncRetrying(
            sleep=self._processor.holder.doze,
            wait=tenacity.wait_random_exponential(
                multiplier=_PROBE_WAIT * 2 ** min(self._stalls_in_a_row, 10), max=_PROBE_WAIT_MAX
            ),
            stop=tenacity.stop_never,
            retry=tenacity.retry_if_result(lambda answered: answered is not True),
        )
        await self._sleep(0)
        await retrying(self._processor.probe, held.delivery)


def _wake(loop: asyncio.AbstractEventLoop, processor: Processor) -> None:
    """Have a consumer try again what it holds, from any thread."""
    with suppress(RuntimeError):  # its loop has ended meanwhile
        loop.call_soon_threadsafe(processor.holder.wake)


def _passes(error: BaseException) -> bool:
    """Tell whether an error at consuming may pass: a broker down or a queue gone, not a channel of ours closed."""
    return isinstance(error, LOST) and not isinstance(error, ClosedByOwnerError)


def _limit(queue: AbstractQueue, told: int | None) -> int:
    """Return the delivery limit of a queue: as told, as declared here, or RabbitMQ's own; others have none."""
    if told is not None:
        return told
    declared = getattr(queue, "arguments", None) or {}
    if not getattr(queue, "passive", False) and declared.get("x-queue-type") != "quorum":
        return -1
    limit = declared.get("x-delivery-limit")
    return limit if isinstance(limit, int) else DEFAULT_DELIVERY_LIMIT


def _check(queue: AbstractQueue, guard: Pipeline, dead_letters: DeadLetterSink) -> None:
    """Refuse what cannot work, and warn of what will hurt."""
    if guard.audit is None:
        raise ConfigurationError("a consumer's pipeline needs audit=")
    if dead_letters.name == queue.name:
        raise ConfigurationError("dead letters go to another queue than the one consumed")
    if share_connection(queue.channel, getattr(dead_letters, "channel", None)):
        _LOG.warning("%s: dead letters share its connection; under a memory alarm acks will stall", queue.name)
    declared = getattr(queue, "arguments", None) or {}
    if not getattr(queue, "passive", False) and declared.get("x-queue-type") != "quorum":
        _LOG.warning("%s is no quorum queue: one undecodable message would stop it for ever", queue.name)
