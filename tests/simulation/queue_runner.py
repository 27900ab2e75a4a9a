"""A second writing of runner, subscription and acks of ``mqauth.brokers.queue``, and the tasks that take turns."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from mqauth import flow
from mqauth.delivery.hold import HeldDelivery, Hold, is_deferred
from mqauth.delivery.queue_work import INTERRUPTED, QueueLeases, QueueWork
from mqauth.delivery.slot import TIMEOUT_PARTS, DeliveryTags, RoundTripQueue, Slot
from mqauth.delivery.window import Window
from mqauth.errors import StaleDelivery
from mqauth.flow import Call, Flow
from mqauth.judging.pipeline import Delivery, Outcome
from mqauth.testing.clock import FakeClock
from tests.simulation.log_facilities import Abort
from tests.simulation.queue_facilities import DRAW, Answer, Interrupted
from tests.simulation.queue_invariants import LEASE
from tests.simulation.queue_model import QUEUE, Calls, Channel, Native

R = TypeVar("R")
Until = Callable[[], bool]
"""What is waited for, which is true once it is there."""
Steps = Generator[Until, None, R]
"""What a coroutine is here: it says what it waits for, and goes on some time after that is there."""


class Cancelled(BaseException):
    """A task is to end."""


def at_once() -> bool:
    """Wait for nothing, but let other tasks go first."""
    return True


class Task:
    """A task.

    Args:
        steps: it.
        name: for people.
    """

    __slots__ = ("name", "steps", "until")

    def __init__(self, steps: Steps[None], name: str, until: Until = at_once) -> None:
        self.steps = steps
        self.name = name
        self.until = until


class Loop:
    """Tasks, and the answers that they wait for.

    Args:
        current: told whose delivery is carried on.
        look: called after each turn.
    """

    def __init__(
        self, current: Callable[[Delivery | None], None], look: Callable[[], None]
    ) -> None:
        self.tasks: list[Task] = []
        self.answers: list[Answer] = []
        self._current = current
        self._look = look

    def run(self, steps: Steps[None], name: str) -> Task:
        """Let a task begin with its next turn."""
        task = Task(steps, name)
        self.tasks.append(task)
        return task

    def turn(self, number: int) -> bool:
        """Let one task go on; tell whether one could."""
        ready = [task for task in self.tasks if task.until()]
        if not ready:
            return False
        self.go_on(ready[number % len(ready)])
        return True

    def go_on(self, task: Task, error: BaseException | None = None) -> None:
        """Resume a task, or raise an error in it."""
        try:
            task.until = next(task.steps) if error is None else task.steps.throw(error)
        except StopIteration:
            self.tasks.remove(task)
        except Cancelled:
            self.tasks.remove(task)
        self._look()

    def answer(self, number: int) -> bool:
        """Let one answer come; tell whether one was awaited."""
        if not self.answers:
            return False
        self.answers.pop(number % len(self.answers)).come()
        return True

    def interrupt(self, of: str) -> None:
        """Cancel the tasks that wait for answers of a kind."""
        for each in [answer for answer in self.answers if answer.of == of]:
            self.answers.remove(each)
            each.interrupt()

    # What a runner of flows does

    def attempt(self, attempted: Flow[Outcome], delivery: Delivery) -> Steps[Outcome]:
        """Run a flow; defer if the client cancelled an awaited call."""
        try:
            return (yield from self.driven(attempted, delivery))
        except Interrupted:
            return INTERRUPTED

    def driven(self, driven: Flow[R], delivery: Delivery) -> Steps[R]:
        """Run a flow to its end."""
        result: Any = None
        error: Exception | None = None
        while True:
            self._current(delivery)
            try:
                wish = driven.send(result) if error is None else driven.throw(error)
            except StopIteration as stop:
                found: R = stop.value
                return found
            finally:
                self._current(None)
            result, error = None, None
            try:
                result = yield from self._made(wish, delivery)
            except Exception as raised:
                error = raised

    def _made(self, wish: Call, delivery: Delivery) -> Steps[Any]:
        """Make a call."""
        self._current(delivery)
        try:
            itself = wish.function is flow._itself
            result = wish.arguments[0] if itself else wish.function(*wish.arguments)
        finally:
            self._current(None)
        return (yield from self.awaited(result))

    def awaited(self, result: Any) -> Steps[Any]:
        """Return a result, awaited where it is an answer."""
        if not isinstance(result, Answer):
            return result
        if result.of != "channel":
            self.answers.append(result)
        try:
            yield lambda: result.came
        finally:
            if result in self.answers:
                self.answers.remove(result)
        if result.error is not None:
            raise result.error
        return result.result if result.then is None else result.then(result.result)


class Acks:
    """The acks of one channel."""

    def __init__(self, runner: Subscription, channel: Channel, window: int) -> None:
        self.runner = runner
        self.channel = channel
        self.window = window
        self.ledger = DeliveryTags()
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
        """Begin a task that sends, once other tasks have had a turn."""
        if not self.sending:
            self.sending = True
            self.runner.loop.run(self._send(), "acks")

    def _send(self) -> Steps[None]:
        """Send acks until none presses."""
        try:
            while True:
                for ack in self.ledger.take():
                    if self.channel.ended:
                        self.runner.work.lost(ack.deliveries)
                    else:
                        self.runner.play.acks(self.channel, ack.deliveries)
                        self.runner.play.broker.ack(
                            self.channel, ack.tag, multiple=ack.multiple
                        )
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
        yield (
            lambda: (
                self.interrupted or (due is not None and self.clock.monotonic() >= due)
            )
        )
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
                    or (
                        channel.alive
                        and not any(each.consumer == consumer for each in channel.transit)
                    )
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
            due, woken = (
                self.clock.monotonic()
                + min(_PROBES, self.window.probe_wait * 2.0**tries),
                self.woken,
            )
            tries += 1
            yield (
                lambda due=due, woken=woken: (
                    self.clock.monotonic() >= due or self.woken != woken
                )
            )  # type: ignore[misc]

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
        proof = Answer(
            lambda: False, "channel", lambda lives: slot.answered(unproven, lives=lives)
        )
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
            yield (
                lambda part=part: (
                    channel.ended
                    or self.clock.monotonic() >= part
                    or self._answers(channel)
                )
            )  # type: ignore[misc]
            late = self.clock.monotonic() >= part
            left -= late and not self._answers(channel)
            if not left:
                self.play.close(channel)
                return False
        return False

    def _answers(self, channel: Channel) -> bool:
        return channel.alive and self.play.answers_questions


if TYPE_CHECKING:
    from tests.simulation.queue_play import QueuePlay

GRACE: Final = 20.0
_WAITS: Final = (0.1, 5.0)


class Begun:
    """A delivery under way: its place, its acks, and how far it has come."""

    __slots__ = ("acks", "delivery", "slot")

    def __init__(self, slot: Slot, acks: Acks | None, delivery: Delivery) -> None:
        self.slot = slot
        self.acks = acks
        self.delivery = delivery


def _resumed(first: Steps[Outcome], until: Until | None) -> Steps[Outcome]:
    """Resume steps once the answer that they wait for is there."""
    if until is not None:
        yield until
    return (yield from first)


class Runner(Subscription):
    """One consumer.

    Args:
        play: the world around it.
        loop: runs what waits.
    """

    def __init__(self, play: QueuePlay, loop: Loop) -> None:
        super().__init__(play, loop)
        self.calls = Calls()
        self.hold = Hold(
            play.clock,
            seconds=play.hold_seconds,
            consumer_timeout=play.consumer_timeout,
            max_held=play.max_held,
        )
        self.window = Window(QUEUE, play.clock, self.hold, play.prefetch)
        self.work = QueueWork(
            QUEUE, play.guard, play.handler, play.letters,
            ended=self.calls.ended, decode=None, answer=None, stops=True,
        )  # fmt: skip
        self.tended = QueueLeases(play.guard.lease)
        self.running: list[Task] = []
        self.trying = self.looked_at = self.ended_at = 0
        self.suspended_at: dict[Slot, int] = {}
        self.stopping = self.over = False
        self.supervisor = loop.run(self.supervised(), "subscription")

    # Deliveries

    def on_message(self, native: Native) -> None:
        """Take a delivery from the client."""
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
        delivery = self.work.receive(native.message, partial(self.passes, slot))
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
        self._task(
            self._carried(begun, _resumed(first, until), outcome, failed),
            f"carries {native}",
        )

    def _slot(self, native: Native) -> Slot:
        return Slot(native, self.calls, self.clock.monotonic(), self.play.broker.limit)

    def _carried(
        self,
        begun: Begun,
        first: Steps[Outcome],
        outcome: Outcome | None,
        failed: BaseException | None,
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
            try:
                yield from self._failed(begun, error)
            except Cancelled:
                yield from self._let_go(begun)
        finally:
            if self.work.end(begun.delivery):
                self.tended.remove(begun.delivery)
            self.ended_at = self.play.moment()

    def _failed(self, begun: Begun, error: BaseException) -> Steps[None]:
        """Give back a delivery whose task ends, once nothing is consumed any more."""
        if not isinstance(error, Cancelled):
            self.fail(error)
            yield from self.cancelled()
        yield from self._let_go(begun)

    def _to_its_end(
        self, begun: Begun, first: Steps[Outcome], outcome: Outcome | None
    ) -> Steps[Outcome]:
        """Process a delivery, hold it while deferred, then settle or give it back."""
        delivery = begun.delivery
        if outcome is None:
            outcome = yield from first
        if is_deferred(outcome):
            outcome = yield from self._put_off(
                HeldDelivery(begun.slot, delivery, outcome, self.clock.now())
            )
        if is_deferred(outcome):
            self.play.goes_back(self, begun.slot, delivery, outcome)
            yield from self._let_go(begun)
        elif begun.acks is not None:
            self._noted(begun)
        else:
            self.play.settled(begun.slot.native, delivery)
            if begun.slot.native.channel.ended:
                self.work.lost((delivery,))
            else:
                self.play.acks(begun.slot.native.channel, (begun.delivery,))
                self.play.broker.ack(
                    begun.slot.native.channel, begun.slot.native.tag, multiple=False
                )
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
            self.interrupted, self.play.deaths = True, 0

    def _let_go(self, begun: Begun) -> Steps[None]:
        """Give a delivery back unhandled."""
        if (
            yield from self.loop.driven(self.work.let_go(begun.delivery), begun.delivery)
        ):
            yield from self._give_back(begun.slot, begun.acks)

    def _give_back(self, slot: Slot, acks: Acks | None) -> Steps[None]:
        """Requeue a delivery that is ours to return."""
        if not self.work.returns(slot) or not slot.is_ours:
            return
        slot.given_back()
        self.play.gives_back(slot.native)
        yield at_once
        if not slot.native.channel.ended and acks is not None:
            acks.ledger.gone(slot.native.tag)

    def _turn_away(self, native: Native, acks: Acks | None) -> Steps[None]:
        """Give back what came after the stop began, once nothing is consumed."""
        yield from self.cancelled()
        yield from self._give_back(self._slot(native), acks)

    # What is held

    def _put_off(self, held: HeldDelivery) -> Steps[Outcome]:
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

    def _held(self, held: HeldDelivery) -> Steps[Outcome]:
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
                yield self._pause(
                    held, min(_WAITS[1], _WAITS[0] * 2.0**tries) * DRAW.random()
                )
        finally:
            self.hold.take(held)
            self._look()

    def _again(self, held: HeldDelivery) -> Steps[Outcome]:
        """Try a delivery once, in its turn."""
        while self.trying >= self.play.prefetch:
            yield lambda: self.trying < self.play.prefetch
        self.trying += 1
        try:
            outcome = yield from self.loop.attempt(
                self.work.attempt(held.delivery), held.delivery
            )
        finally:
            self.trying -= 1
        self.hold.attempted(held, outcome)
        if held.waits:
            self._look()
        self.play.look_at_room(self)
        return outcome

    def _pause(self, held: HeldDelivery, seconds: float) -> Until:
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
        """Let the window react to what is held now."""
        self.looked_at = self.play.moment()
        self.running = [task for task in self.running if task in self.loop.tasks]
        if self.window.passes_by(len(self.running)):
            self.interrupted = True
        if self.window.stalled is not None and self.window.stalled.is_over:
            self.answered = True

    def _suspend(self, held: HeldDelivery) -> Steps[bool]:
        """Cancel the consumer before a delivery is given back."""
        self.suspended_at[held.slot] = self.play.moment()
        self.hold.suspended = True
        stays = self.window.suspend(held)
        self.play.consumed_since = None
        yield from self.cancelled()
        self.interrupted = True
        return stays

    def renew(self) -> Steps[None]:
        """Renew the claims that are due."""
        before = self.clock.monotonic() - LEASE / 3
        due = self.play.due_for_renewal(self, before)
        with suppress(Abort):
            yield from self._renewed()
        self.play.look_at_leases(self, due, before)

    def _renewed(self) -> Steps[None]:
        for delivery in self.tended.due(self.clock.monotonic()):
            if not (
                yield from self.loop.driven(self.play.guard.renew(delivery), delivery)
            ):
                self.tended.lost(delivery)

    # The end

    def fail(self, error: BaseException) -> None:
        """Remember what ends the consumer, and begin to stop."""
        self.window.fail(error)
        self.stop()

    def stop(self) -> None:
        """Begin to stop, once."""
        self.window.stopping = True
        if not self.stopping:
            self.stopping = True
            self.loop.run(self._wind_up(), "winds up")

    def _wind_up(self) -> Steps[None]:
        """Stop consuming, see what runs to its end, and ack what was settled."""
        yield at_once
        self.interrupted = True
        if self.window.is_out:
            due = self._after(1.0)
            yield lambda: due() or self.supervisor not in self.loop.tasks
        if self.supervisor in self.loop.tasks:
            self.loop.go_on(self.supervisor, Cancelled())
            yield lambda: self.supervisor not in self.loop.tasks
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
        """Return its health."""
        return self.window.health(
            in_flight=len(self._left()), unsettled=self.work.unsettled, blocked=False
        )
