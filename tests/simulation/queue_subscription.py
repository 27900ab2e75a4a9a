"""A second writing of ``mqauth.brokers.queue.subscription``, with tasks that take turns.

Questions on the channel are asked here, too, as ``mqauth.brokers.queue.client`` asks them.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from mqauth.delivery.hold import HeldDelivery, Hold
from mqauth.delivery.queue_work import QueueWork
from mqauth.delivery.slot import TIMEOUT_PARTS, RoundTripQueue, Slot
from mqauth.delivery.window import Window
from mqauth.judging.pipeline import Delivery
from mqauth.testing.clock import FakeClock
from tests.simulation.queue_acks import Acks
from tests.simulation.queue_facilities import Answer, Interrupted
from tests.simulation.queue_model import Channel
from tests.simulation.queue_tasks import Cancelled, Loop, Steps, Task, Until, at_once

if TYPE_CHECKING:
    from tests.simulation.queue_play import QueuePlay

PART: Final = 1.0
_PROBES: Final = 30.0


class ChannelGone(Exception):
    """A call found its channel ended."""


class Subscription:
    """The part of a consumer that consumes.

    Args:
        play: the world around it.
        loop: runs what waits.
    """

    hold: Hold
    window: Window
    work: QueueWork

    def __init__(self, play: QueuePlay, loop: Loop) -> None:
        self.play = play
        self.loop = loop
        self.clock: FakeClock = play.clock
        self.questions: dict[Channel, RoundTripQueue[Answer]] = {}
        self.acks: Acks | None = None
        self.woken = self.went_on = self.consumed_at = 0
        self.started = self.interrupted = self.answered = self.starting = False
        self.cancelling: Task | None = None

    def fail(self, error: BaseException) -> None:
        """Remember what ends the consumer, and begin to stop."""
        raise NotImplementedError

    # Consuming

    def supervised(self) -> Steps[None]:
        """Keep consuming; an error that prevents that for good ends the consumer."""
        try:
            yield from self._subscribed()
        except (Cancelled, GeneratorExit):
            raise
        except BaseException as error:
            self.fail(error)

    def _subscribed(self) -> Steps[None]:
        """Consume until interrupted, deal with the cause, and consume again."""
        while not self.window.stopping:
            self.window.begins()
            yield from self._start()
            self.started = True
            if self.window.stalled is None:
                yield from self._trouble()
            yield from self.cancelled()
            if self.window.stalled is not None:
                yield from self._until_answered(self.window.stalled)

    def _start(self) -> Steps[None]:
        """Begin to consume, and try again until that succeeds."""
        while True:
            try:
                return (yield from self._consume())
            except ChannelGone as error:
                if not self.started:
                    raise
                self.window.cannot(error)
                yield self._after(self.window.probe_wait)

    def _after(self, seconds: float) -> Until:
        """Wait so many seconds."""
        due = self.clock.monotonic() + seconds
        return lambda: self.clock.monotonic() >= due

    def _consume(self) -> Steps[None]:
        """Consume once the channel is open, unless the queue is suspended."""
        yield lambda: not self.play.channel.ended
        channel = self.play.channel
        self.interrupted = False
        if self.window.stalled is not None:
            return self.window.consumes(None)
        self.starting = True
        try:
            yield from self._consume_on(channel)
        finally:
            self.starting = False

    def _consume_on(self, channel: Channel) -> Steps[None]:
        """Set the window of a channel and consume on it."""
        prefetch = self.window.prefetch
        yield at_once
        self._refuse_ended(channel)
        self.window.opens()
        self.play.opens()
        if not self.play.coalesce:
            self.acks = None
        elif self.acks is None or self.acks.channel is not channel:
            self.acks = Acks(self, channel, prefetch)
        if self.acks is not None:
            self.acks.window = self.window.prefetch
        tag = None
        try:
            yield at_once
            if channel.alive:
                tag = self.play.broker.consume(channel, prefetch)
            yield lambda: channel.alive or channel.ended
        except Cancelled:
            self.play.close(channel)  # as a client does with a call that is cancelled
            raise
        self._refuse_ended(channel)
        if tag is None:
            raise ChannelGone
        self.window.consumes(tag)
        self.consumed_at = self.play.moment()
        self.play.consumes(self, prefetch)

    def _refuse_ended(self, channel: Channel) -> None:
        """Raise if a channel has ended."""
        if channel.ended:
            raise ChannelGone

    def _trouble(self) -> Steps[None]:
        """Wait until consuming is interrupted; a window of 1 is opened again after a long calm."""
        calm = self.window.calm()
        due = None if calm is None else self.clock.monotonic() + calm
        yield lambda: self.interrupted or (due is not None and self.clock.monotonic() >= due)
        if not self.interrupted:
            self.window.widen()
            self.play.deaths = 0

    def cancelled(self) -> Steps[None]:
        """Cancel the consumer at the broker, once, and return when nothing more comes."""
        if self.cancelling not in self.loop.tasks:
            self.cancelling = self.loop.run(self._cancel(), "cancels")
        cancelling = self.cancelling
        yield lambda: cancelling not in self.loop.tasks

    def _cancel(self) -> Steps[None]:
        """Cancel the consumer, if there is one, and wait for the deliveries on their way."""
        yield lambda: not self.starting
        channel = self.play.channel
        if (consumer := self.window.leave()) is not None and not channel.ended:
            yield at_once
            self.play.broker.cancel(channel, consumer)
            yield (
                lambda: (
                    channel.ended
                    or (channel.alive and not any(each.consumer == consumer for each in channel.transit))
                )
            )

    def _until_answered(self, held: HeldDelivery) -> Steps[None]:
        """Wait until a deferred delivery gets further, tried by itself or probed with."""
        while not held.is_over:
            self.answered = False
            yield lambda: self.answered
        if held.waits and not held.needs_ours:
            yield from self._probed(held)
        self.hold.suspended = False
        self.window.go_on()
        self.went_on = self.play.moment()
        self.play.goes_on(self)

    def _probed(self, held: HeldDelivery) -> Steps[None]:
        """Probe with a delivery that was given back until it would get further."""
        tries = 0
        while True:
            self.play.probing += 1
            try:
                if (yield from self._probe(held.delivery)):
                    return
            finally:
                self.play.probing -= 1
            due, woken = self.clock.monotonic() + min(_PROBES, self.window.probe_wait * 2.0**tries), self.woken
            tries += 1
            yield lambda due=due, woken=woken: self.clock.monotonic() >= due or self.woken != woken  # type: ignore[misc]

    def _probe(self, delivery: Delivery) -> Steps[bool]:
        """Tell whether it would get further now."""
        try:
            return (yield from self.loop.driven(self.work.probe(delivery), delivery))
        except (Interrupted, Cancelled) as error:
            yield from self.loop.driven(self.work.end_probe(), delivery)
            if isinstance(error, Cancelled):
                raise
            return False

    # What happens to the channel

    def on_close(self, *, channel_alone: bool) -> None:
        """Note that the channel ended."""
        self.interrupted = True
        if self.acks is not None:
            self.acks.close()
        self.window.lost("a fact", channel_alone=channel_alone)

    def on_cancel(self, consumer: str) -> None:
        """Note that the broker cancelled the consumer."""
        if self.window.cancelled(consumer):
            self.interrupted = True

    # Proof

    def passes(self, slot: Slot, delivery: Delivery) -> Answer | None:
        """Let a delivery's next step pass, now or after a round trip."""
        unproven = slot.unproven(delivery)
        if unproven is None:
            return None
        proof = Answer(lambda: False, "channel", lambda lives: slot.answered(unproven, lives=lives))
        channel = slot.native.channel
        asked = self.questions.setdefault(channel, RoundTripQueue())
        if asked.add(proof):
            self.loop.run(self._ask(channel, asked), "asks")
        return proof

    def _ask(self, channel: Channel, questions: RoundTripQueue[Answer]) -> Steps[None]:
        """Ask until nobody waits."""
        while questions.ask():
            began = self.play.moment()
            lives = yield from self._lives(channel)
            if lives:
                channel.proven = began
            for answer in questions.answered():
                answer.act = partial(bool, lives)
                answer.come()

    def _lives(self, channel: Channel) -> Steps[bool]:
        """Ask once; close the channel where no answer came."""
        left = TIMEOUT_PARTS
        while not channel.ended:
            part = self.clock.monotonic() + PART
            if channel.alive and self.play.answers_questions:
                yield at_once
                if channel.alive:
                    return True
            yield lambda part=part: channel.ended or self.clock.monotonic() >= part or self._answers(channel)  # type: ignore[misc]
            late = self.clock.monotonic() >= part
            left -= late and not self._answers(channel)
            if not left:
                self.play.close(channel)
                return False
        return False

    def _answers(self, channel: Channel) -> bool:
        return channel.alive and self.play.answers_questions
