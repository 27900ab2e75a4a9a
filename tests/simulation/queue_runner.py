"""A second writing of the runner in ``mqauth.brokers.queue``, with tasks that take turns.

The engine is the real one. What is written here is what an event loop does for it: deliveries carried to their
end, acks in a frame, questions on a channel, and the way a consumer is begun, suspended and wound up.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from mqauth.delivery.hold import HeldDelivery, Hold, is_deferred
from mqauth.delivery.queue_work import QueueLeases, QueueWork
from mqauth.delivery.slot import Slot
from mqauth.delivery.window import Window
from mqauth.errors import StaleDelivery
from mqauth.judging.pipeline import Delivery, Outcome
from tests.simulation.log_facilities import Abort
from tests.simulation.queue_acks import Acks
from tests.simulation.queue_facilities import DRAW
from tests.simulation.queue_invariants import LEASE
from tests.simulation.queue_model import QUEUE, Calls, Native
from tests.simulation.queue_subscription import Subscription
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
            play.clock, seconds=play.hold_seconds, consumer_timeout=play.consumer_timeout, max_held=play.max_held
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

    def _to_its_end(self, begun: Begun, first: Steps[Outcome], outcome: Outcome | None) -> Steps[Outcome]:
        """Process a delivery, hold it while deferred, then settle or give it back."""
        delivery = begun.delivery
        if outcome is None:
            outcome = yield from first
        if is_deferred(outcome):
            outcome = yield from self._put_off(HeldDelivery(begun.slot, delivery, outcome, self.clock.now()))
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
            self.interrupted, self.play.deaths = True, 0

    def _let_go(self, begun: Begun) -> Steps[None]:
        """Give a delivery back unhandled."""
        if (yield from self.loop.driven(self.work.let_go(begun.delivery), begun.delivery)):
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
                yield self._pause(held, min(_WAITS[1], _WAITS[0] * 2.0**tries) * DRAW.random())
        finally:
            self.hold.take(held)
            self._look()

    def _again(self, held: HeldDelivery) -> Steps[Outcome]:
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
            if not (yield from self.loop.driven(self.play.guard.renew(delivery), delivery)):
                self.tended.lost(delivery)

    # The end

    def fail(self, error: BaseException) -> None:
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
        return self.window.health(in_flight=len(self._left()), unsettled=self.work.unsettled, blocked=False)
