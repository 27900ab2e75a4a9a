"""The life of one consumer of a queue, as ``mqauth.brokers.queue`` runs the engine, by flows that take turns.

The engine is the real one. What is written here is what an event loop does for it: deliveries carried to their
end, acks in a frame, questions on a channel, and the way a consumer is begun, suspended and wound up.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from mqauth.delivery.hold import Held, Hold, is_deferred
from mqauth.delivery.leases import Tended
from mqauth.delivery.ledger import Ledger
from mqauth.delivery.questions import Patience, Questions
from mqauth.delivery.queue_work import QueueWork
from mqauth.delivery.room import Room
from mqauth.delivery.slot import Slot
from mqauth.delivery.window import Window
from mqauth.errors import StaleDelivery
from mqauth.judging.pipeline import Delivery, Outcome
from tests.simulation.log_facilities import Abort
from tests.simulation.queue_facilities import DRAW, Answer, Interrupted
from tests.simulation.queue_model import QUEUE, Calls, Channel, Native
from tests.simulation.queue_tasks import Cancelled, Loop, Steps, Task, Until, at_once

if TYPE_CHECKING:
    from tests.simulation.queue_play import QueuePlay

GRACE: Final = 20.0
PART: Final = 1.0
_WAITS: Final = (0.1, 5.0)
_PROBES: Final = 30.0


class Begun:
    """A delivery under way: its place, its acks, and how far it has come."""

    __slots__ = ("acks", "delivery", "slot")

    def __init__(self, slot: Slot, acks: Acks | None, delivery: Delivery) -> None:
        self.slot = slot
        self.acks = acks
        self.delivery = delivery


def _resumed(first: Steps[Outcome], until: Until | None) -> Steps[Outcome]:
    """Go on with what was begun, once what it waits for is there."""
    if until is not None:
        yield until
    return (yield from first)


class ChannelGone(Exception):
    """A call found its channel ended."""


class Acks:
    """The acks of a channel: ``mqauth.brokers.queue.acks`` by flows."""

    def __init__(self, runner: Runner, channel: Channel, window: int) -> None:
        self.runner = runner
        self.channel = channel
        self.window = window
        self.ledger, channel.clean = Ledger(channel.clean), 0
        self.timed = self.sending = self.closed = False

    def settle(self, tag: int, delivery: Delivery) -> None:
        """Have a delivery acked soon."""
        self.ledger.settled(tag, delivery)
        if self.closed:
            self.runner.work.lost(self.ledger.drop())
        elif self.ledger.presses(self.window):
            self.send_now()
        else:
            self.timed = True

    def close(self) -> None:
        """Give up: the channel is gone."""
        self.closed = True
        if dropped := self.ledger.drop():
            self.runner.work.lost(dropped)

    def ring(self) -> None:
        """Ack what there is when the time is up."""
        self.timed = False
        if self.ledger.waiting:
            self.send_now()

    def send_now(self) -> None:
        """Send once others have gone on."""
        if not self.sending:
            self.sending = True
            self.runner.loop.run(self._send(), "acks")

    def _send(self) -> Steps[None]:
        """Send what is settled; and again, while that presses too."""
        try:
            while True:
                for ack in self.ledger.take():
                    if self.channel.ended:
                        self.runner.work.lost(ack.deliveries)
                    else:
                        self.runner.play.broker.ack(self.channel, ack.tag, multiple=ack.multiple)
                        yield at_once
                if not self.ledger.waiting or not self.ledger.presses(self.window):
                    break
        finally:
            self.sending = False
        self.timed = self.timed or self.ledger.waiting > 0

    def finish(self) -> Steps[None]:
        """Ack everything settled, and return when it was sent."""
        if self.ledger.waiting:
            self.send_now()
        while self.sending:
            yield lambda: not self.sending
            if self.ledger.waiting:
                self.send_now()
        self.channel.clean = self.ledger.clean


class Runner:
    """One consumer.

    Args:
        play: the world around it.
        loop: runs what waits.
    """

    def __init__(self, play: QueuePlay, loop: Loop) -> None:
        self.play = play
        self.loop = loop
        self.clock = play.clock
        self.calls = Calls()
        self.room = Room(play.max_held)
        self.hold = Hold(play.clock, self.room, seconds=play.hold_seconds, consumer_timeout=play.consumer_timeout)
        self.window = Window(QUEUE, play.clock, self.hold, play.prefetch)
        self.work = QueueWork(
            QUEUE, play.guard, play.handler, play.letters,
            ended=self.calls.ended, decode=None, answer=None, stops=True,
        )  # fmt: skip
        self.tended = Tended(play.guard.lease)
        self.questions: dict[Channel, Questions[Answer]] = {}
        self.running: list[Task] = []
        self.acks: Acks | None = None
        self.trying = self.woken = self.went_on = self.looked_at = self.consumed_at = 0
        self.suspended_at: dict[Slot, int] = {}
        self.started = self.interrupted = self.answered = self.stopping = self.over = self.leaving = False
        self.supervisor = loop.run(self._supervised(), "subscription")

    # Deliveries

    def on_message(self, native: Native) -> None:
        """Take what a client was sent."""
        if native.channel.ended:
            return
        acks = self.acks
        if acks is not None:
            acks.ledger.opened(native.tag)
        if self.stopping:
            self._task(self._turn_away(native, acks), "turns away")
        else:
            self._begin(native, acks)

    def _task(self, steps: Steps[None], name: str) -> None:
        """Begin a delivery's task."""
        task = self.loop.run(steps, name)
        self.running.append(task)
        self.loop.go_on(task)

    def _begin(self, native: Native, acks: Acks | None) -> None:
        """Take a delivery as far as nothing is to be awaited."""
        slot = self._slot(native)
        delivery = self.work.receive(native.message, partial(self._passes, slot))
        begun = Begun(slot, acks, delivery)
        self.play.comes(delivery, native)
        first = self.loop.attempt(self.work.attempt(delivery), delivery)
        until, outcome, failed = None, None, None
        try:
            until = next(first)
        except StopIteration as stop:
            outcome = stop.value
        except StaleDelivery:
            return  # only where the channel ended within this call, which no client does
        except BaseException as error:
            failed = error
        if outcome is not None and acks is not None and not is_deferred(outcome):
            self._noted(begun)
            return self._settled(outcome)
        self._task(self._carried(begun, _resumed(first, until), outcome, failed), f"carries {native}")

    def _slot(self, native: Native) -> Slot:
        return Slot(native, self.calls, self.clock.monotonic(), self.play.broker.limit)

    def _carried(
        self, begun: Begun, first: Steps[Outcome], outcome: Outcome | None, failed: BaseException | None
    ) -> Steps[None]:
        """Carry a delivery to its end, and note what it came to."""
        self.work.begin(begun.delivery)
        self.tended.add(begun.delivery, begun.slot.received)
        try:
            if failed is not None:
                raise failed
            outcome = yield from self._to_its_end(begun, first, outcome)
            self._settled(outcome)
        except StaleDelivery:
            yield from self._let_go(begun)
        except GeneratorExit:
            raise
        except BaseException as error:
            if not isinstance(error, Cancelled):
                self._fail(error)
                yield from self.cancelled()
            yield from self._let_go(begun)
        finally:
            self.tended.remove(begun.delivery)
            self.work.end(begun.delivery)

    def _to_its_end(self, begun: Begun, first: Steps[Outcome], outcome: Outcome | None) -> Steps[Outcome]:
        """Process, hold while deferred, then settle or give back."""
        delivery = begun.delivery
        if outcome is None:
            outcome = yield from first
        if is_deferred(outcome):
            outcome = yield from self._put_off(Held(begun.slot, delivery, outcome, self.clock.now()))
        if is_deferred(outcome):
            self.play.goes_back(self, begun.slot, outcome)
            yield from self._let_go(begun)
        elif begun.acks is not None:
            self._noted(begun)
        else:
            self.play.settled(begun.slot.native, delivery)
            if begun.slot.native.channel.ended:
                self.work.lost((delivery,))
            else:
                self.play.broker.ack(begun.slot.native.channel, begun.slot.native.tag, multiple=False)
                yield at_once
        return outcome

    def _noted(self, begun: Begun) -> None:
        """Have a delivery acked soon."""
        assert begun.acks is not None
        self.play.settled(begun.slot.native, begun.delivery)
        begun.acks.settle(begun.slot.native.tag, begun.delivery)

    def _settled(self, outcome: Outcome) -> None:
        """Note what a delivery came to."""
        if self.window.settled(outcome):
            self.interrupted = True

    def _let_go(self, begun: Begun) -> Steps[None]:
        """Give a delivery back unhandled."""
        if (yield from self.loop.driven(self.work.let_go(begun.delivery), begun.delivery)):
            yield from self._give_back(begun.slot, begun.acks)

    def _give_back(self, slot: Slot, acks: Acks | None) -> Steps[None]:
        """Requeue a delivery that is ours to return."""
        if not self.work.returns(slot) or not slot.is_ours:
            return
        self.play.gives_back(slot.native)
        yield at_once
        if not slot.native.channel.ended and acks is not None:
            acks.ledger.gone(slot.native.tag)
        slot.given_back()

    def _turn_away(self, native: Native, acks: Acks | None) -> Steps[None]:
        """Give back what came after the stop began, once nothing is consumed."""
        yield from self.cancelled()
        yield from self._give_back(self._slot(native), acks)

    # Proof

    def _passes(self, slot: Slot, delivery: Delivery) -> Answer | None:
        """Let a delivery's next step pass, now or after a round trip."""
        unproven = slot.unproven(delivery)
        if unproven is None:
            return None
        proof = Answer(lambda: False, "channel", lambda lives: slot.answered(unproven, lives=lives))
        channel = slot.native.channel
        asked = self.questions.setdefault(channel, Questions())
        if asked.add(proof):
            self.loop.run(self._ask(channel, asked), "asks")
        return proof

    def _ask(self, channel: Channel, questions: Questions[Answer]) -> Steps[None]:
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
        patience = Patience()
        while not channel.ended:
            part = self.clock.monotonic() + PART
            if channel.alive and self.play.answers_questions:
                yield at_once
                if channel.alive:
                    return True
            yield lambda part=part: channel.ended or self.clock.monotonic() >= part or self._answers(channel)  # type: ignore[misc]
            late = self.clock.monotonic() >= part
            if late and not self._answers(channel) and patience.is_over(blocked=False):
                self.play.close(channel)
                return False
        return False

    def _answers(self, channel: Channel) -> bool:
        return channel.alive and self.play.answers_questions

    # What is held

    def _put_off(self, held: Held) -> Steps[Outcome]:
        """Hold a deferred delivery for as long as it may be."""
        try:
            outcome = yield from self._held(held)
            if self.hold.wants_suspension(held) and (yield from self._suspend(held)):
                outcome = yield from self._held(held)
            if held.is_given_up:
                held.give_up(self.clock.now())
                self.play.rejected(held.slot.native)
                outcome = yield from self._held(held)
            return outcome
        finally:
            held.end()
            self._look()

    def _held(self, held: Held) -> Steps[Outcome]:
        """Try a delivery again for as long as it may be held."""
        self.hold.put(held)
        self._look()
        tries = 0
        try:
            while True:
                outcome = yield from self._again(held)
                if not is_deferred(outcome) or self.hold.is_over(held):
                    return outcome if not is_deferred(outcome) else held.outcome
                self.play.look_at_held(self, held)
                tries += 1
                yield self._pause(held, min(_WAITS[1], _WAITS[0] * 2.0**tries) * DRAW.random())
        finally:
            self.hold.take(held)
            self._look()

    def _again(self, held: Held) -> Steps[Outcome]:
        """Try a delivery once, in its turn."""
        while self.trying >= self.play.prefetch:
            yield lambda: self.trying < self.play.prefetch
        self.trying += 1
        try:
            outcome = yield from self.loop.attempt(self.work.attempt(held.delivery), held.delivery)
        finally:
            self.trying -= 1
        self.hold.attempted(held, outcome)
        if held.waits:
            self._look()
        self.play.look_at_room(self)
        return outcome

    def _pause(self, held: Held, seconds: float) -> Until:
        """Wait so many seconds, or until woken or told to end."""
        due, woken = self.clock.monotonic() + seconds, self.woken
        yields, stops = self.hold.yields(held), self.hold.stops(held)
        return lambda: (
            self.clock.monotonic() >= due
            or self.woken != woken
            or (yields and self.hold.suspended)
            or (stops and self.hold.stopping)
        )

    def _look(self) -> None:
        """See what follows from what is held now, or no longer."""
        self.looked_at = self.play.moment()
        self.running = [task for task in self.running if task in self.loop.tasks]
        if self.window.passes_by(len(self.running)):
            self.interrupted = True
        if self.window.stalled is not None and self.window.stalled.is_over:
            self.answered = True

    def _suspend(self, held: Held) -> Steps[bool]:
        """Cancel the consumer before a delivery is given back."""
        self.suspended_at[held.slot] = self.play.moment()
        self.hold.suspended = True
        stays = self.window.suspend(held)
        yield from self.cancelled()
        self.interrupted = True
        return stays

    # Consuming

    def _supervised(self) -> Steps[None]:
        """Keep consuming; what keeps it from that for good ends the consumer."""
        try:
            yield from self._subscribed()
        except (Cancelled, GeneratorExit):
            raise
        except BaseException as error:
            self._fail(error)

    def _subscribed(self) -> Steps[None]:
        """Begin, wait for trouble, see it through, and begin again."""
        while not self.window.stopping:
            self.window.absence.begin()
            yield from self._start()
            self.started = True
            if self.window.stalled is None:
                yield from self._trouble()
            yield from self.cancelled()
            if self.window.stalled is not None:
                yield from self._until_answered(self.window.stalled)

    def _start(self) -> Steps[None]:
        """Consume, tried again until it can be had."""
        while True:
            try:
                return (yield from self._consume())
            except ChannelGone as error:
                if not self.started:
                    raise
                self.window.absence.failed(error)
                yield self._after(self.window.probe_wait)

    def _after(self, seconds: float) -> Until:
        """Wait so many seconds."""
        due = self.clock.monotonic() + seconds
        return lambda: self.clock.monotonic() >= due

    def _consume(self) -> Steps[None]:
        """Set the window and consume."""
        yield lambda: not self.play.channel.ended
        channel = self.play.channel
        self.interrupted = False
        prefetch = self.window.prefetch
        yield at_once
        self._refuse_ended(channel)
        self.window.opens()
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
        """Have a call fail where its channel ended."""
        if channel.ended:
            raise ChannelGone

    def _trouble(self) -> Steps[None]:
        """Wait until consuming is interrupted; a window of 1 is opened again after a long calm."""
        calm = self.window.calm()
        due = None if calm is None else self.clock.monotonic() + calm
        yield lambda: self.interrupted or (due is not None and self.clock.monotonic() >= due)
        if not self.interrupted:
            self.window.widen()

    def cancelled(self) -> Steps[None]:
        """Cancel the consumer at the broker, once, and return when nothing more comes."""
        if not self.leaving:
            self.leaving = True
            self.loop.run(self._cancel(), "cancels")
        yield lambda: not self.leaving

    def _cancel(self) -> Steps[None]:
        """Cancel the consumer, if there is one, and wait for what is on its way."""
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
        self.leaving = False

    def _until_answered(self, held: Held) -> Steps[None]:
        """Wait until a deferred delivery gets further, tried by itself or probed with."""
        if not held.stays:
            yield from self._probed(held)
        while held.stays and not held.is_over:
            self.answered = False
            yield lambda: self.answered
        self.hold.suspended = False
        self.window.go_on()
        self.went_on = self.play.moment()
        self.play.goes_on(self)

    def _probed(self, held: Held) -> Steps[None]:
        """Probe with a delivery that was given back until it would get further."""
        yield at_once
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
        except Interrupted:
            return False

    def renew(self) -> Steps[None]:
        """Renew the claims that are due."""
        due = self.play.due_for_renewal(self)
        with suppress(Abort):
            yield from self._renewed()
        self.play.look_at_leases(self, due)

    def _renewed(self) -> Steps[None]:
        for delivery in self.tended.due(self.clock.monotonic()):
            if not (yield from self.loop.driven(self.play.guard.renew(delivery), delivery)):
                self.tended.lost(delivery)

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

    # The end

    def _fail(self, error: BaseException) -> None:
        """Remember what ends the consumer, and begin to stop."""
        self.window.fail(error)
        self.stop()

    def stop(self) -> None:
        """Begin to stop, once."""
        self.window.stop()
        if not self.stopping:
            self.stopping = True
            self.loop.run(self._wind_up(), "winds up")

    def _wind_up(self) -> Steps[None]:
        """Stop consuming, see what runs to its end, and ack what was settled."""
        yield at_once
        self.interrupted = True
        if self.window.absence.lasts:
            due = self._after(1.0)
            yield lambda: due() or self.supervisor not in self.loop.tasks
        if self.supervisor in self.loop.tasks:
            self.loop.go_on(self.supervisor, Cancelled())
        yield from self.cancelled()
        self.hold.stopping = True
        late = self._after(GRACE)
        yield lambda: late() or not self._left()
        for task in self._left():
            if task.until():
                self.loop.go_on(task)  # what is ready goes first in an event loop
        for task in self._left():
            self.loop.go_on(task, Cancelled())
        yield lambda: not self._left()
        if self.acks is not None:
            yield from self.acks.finish()
        self.work.stopped()
        self.over = True

    def _left(self) -> list[Task]:
        """Return the deliveries that are still under way."""
        self.running = [task for task in self.running if task in self.loop.tasks]
        return self.running

    def health(self) -> Any:
        """Return how it is."""
        return self.window.health(in_flight=len(self._left()), unsettled=self.work.unsettled, blocked=False)
