"""Plays a schedule of facts on the queue engine: ``Window``, ``Hold``, ``Slot``, ``QueueWork`` and the pipeline.

Around them stand a queue, a channel that may end long before its client hears of it, a rival that consumes the
same queue and shares the table of claims, and a runner whose every wait may last until any later fact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mqauth.flow import Attempts
from mqauth.judging.pipeline import Delivery, Pipeline
from mqauth.testing.clock import FakeClock
from tests.simulation.queue_facilities import (
    DRAW,
    LEASE,
    QueueFacilities,
    QueueHandlers,
    QueueLetters,
    QueueStore,
)
from tests.simulation.queue_model import Broker, Channel, Native, Parcel
from tests.simulation.queue_runner import Loop, Runner

TRIES: Final = 2
KINDS: Final = (
    "honest", "honest", "honest", "forged", "stale", "later", "later", "fails", "flaky", "rejects", "aborts",
    "copy", "copy", "brief", "brief",
)  # fmt: skip
NAMES: Final = ("store", "audit", "letters", "keys", "policy")
MODES: Final = ("refuses", "breaks", "loses", "loses once", "aborts")
WAITS: Final = (0.1, 0.5, 1.0, 2.0, 5.0, 9.0, 25.0, 70.0)


class QueuePlay(QueueHandlers):
    """One schedule.

    Args:
        seed: decides the settings, and how soon what is asked is answered.
        tell: told what happens; ``None`` for nobody.
    """

    def __init__(self, seed: int, tell: Callable[[str], None] | None = None) -> None:
        DRAW.seed(seed)
        drawn = DRAW.getrandbits(16)
        super().__init__(FakeClock(), tell)
        self.prefetch = (1, 2, 3, 8)[drawn & 3]
        self.max_held = (0, 1, 4, 20)[drawn >> 2 & 3]
        self.coalesce = bool(drawn & 16)
        self.hold_seconds = (1.0, 10.0, 60.0)[(drawn >> 5) % 3]
        self.consumer_timeout = (65.0, 200.0)[drawn >> 8 & 1]
        self.facilities = QueueFacilities(self.clock, self.seen, self.rejected)
        self.store = QueueStore(self.facilities, self.clock, self.refused)
        self.letters = QueueLetters(self.facilities, self.burying)
        self.broker = Broker(
            (-1, -1, 2, 5)[drawn >> 9 & 3], self.fail, self.clock.monotonic
        )
        self.channel: Channel = self.broker.open()
        self.answers_questions = True
        self.rival: tuple[Native, str] | None = None
        self.loop = Loop(self.carries, self.look)
        self.guard = Pipeline(
            verifier=self.facilities, policy=self.facilities, replay=self.store, audit=self.facilities,  # type: ignore[arg-type]
            clock=self.clock, attempts=Attempts(limit=TRIES, wait=0), lease=LEASE, instance="i",
            randomness=DRAW.randbytes,
        )  # fmt: skip
        self.runner = Runner(self, self.loop)

    # Facts of the world

    def publish(self, number: int) -> None:
        """Let messages come into the queue."""
        for _ in range(1 + (number >> 2) % 4):
            self.publish_one(KINDS[(number >> 4) % len(KINDS)], number)
            number = number * 5 + 1 & 0xFFFF
        self.broker.send()

    def publish_one(self, kind: str, number: int) -> None:
        """Publish one message."""
        if kind == "copy" and not self.contents:
            kind = "honest"
        if kind == "copy":
            original = self.contents[number % len(self.contents)][0]
            parcel = Parcel(
                len(self.parcels), original.content, original.kind, original.misbehaves
            )
            self.contents[original.content].append(parcel)
        else:
            parcel = Parcel(len(self.parcels), len(self.contents), kind, 1 + number % 3)
            self.contents.append([parcel])
        if parcel.kind == "brief":
            parcel.expires = self.clock.now() + 20.0
        if number % 3 == 0:
            parcel.returns = min(
                number >> 9 & 7, max(0, self.broker.limit)
            )  # somebody had it before
        self.parcels.append(parcel)
        self.broker.ready.append(parcel)
        self.note("published", parcel)

    def wait(self, number: int) -> None:
        """Let time pass; the broker closes a channel whose delivery is not acked in time."""
        self.clock.advance(WAITS[number % len(WAITS)])
        if number % 64 == 7:
            self.clock.step(-3.0)
        oldest = min((each.sent for each in self.channel.unacked.values()), default=None)
        if (
            oldest is not None
            and self.clock.monotonic() - oldest >= self.consumer_timeout
        ):
            self.note("consumer timeout", self.channel.number)
            self.end(0)

    def outage(self, number: int) -> None:
        """Let a facility be out of reach."""
        name, how = NAMES[number % 5], MODES[(number >> 4) % 5]
        if name == "store" and how == "aborts":
            how = "breaks"  # what ends a consumer while it gives back leaves the delivery to the broker
        self.facilities.out[name] = how
        self.note(name, how)

    def stall(self, number: int) -> None:
        """Let a facility be out of reach for a while, with messages coming in."""
        self.facilities.out[("audit", "letters", "policy", "store")[number & 3]] = (
            "refuses"
        )
        self.publish(number)
        for at in range(3):
            self.rest(0)
            self.wait((number >> 2 + 3 * at & 7) + 2)
        self.rest(0)

    def heal(self, number: int) -> None:
        """Let a facility be in reach, or all of them."""
        if number & 1:
            self.facilities.out.clear()
        else:
            self.facilities.out.pop(NAMES[(number >> 1) % 5], None)
        self.note("out of reach", self.facilities.out)

    def keys_changed(self, _number: int) -> None:
        """Let keys change."""
        self.runner.woken += 1

    def mute(self, number: int) -> None:
        """Let the broker answer no question, or answer them again."""
        self.answers_questions = bool(number & 1)

    # Channels

    def end(self, number: int) -> None:
        """End the channel at the broker; now and then its client knows at once."""
        if self.channel.alive:
            self.note("ended at the broker", self.channel.number)
            self.broker.end(self.channel)
        if number & 1:
            self.hear(number >> 1)

    def hear(self, number: int) -> None:
        """Tell the client that its channel ended; now and then cancel whoever waits for a letter's confirm."""
        if self.channel.alive or self.channel.ended:
            return
        self.close(self.channel, channel_alone=bool(number & 1))
        if number & 2:
            self.loop.interrupt("letters")

    def close(self, channel: Channel, *, channel_alone: bool = True) -> None:
        """End a channel at the client."""
        if channel.alive:
            self.broker.end(channel)
        if channel.ended:
            return
        self.note("ended", channel.number)
        channel.ended = True
        channel.transit.clear()
        self.runner.on_close(channel_alone=channel_alone)
        self.died(self.runner, channel_alone=channel_alone)

    def die(self, number: int) -> None:
        """Let connections die in a row."""
        for _ in range(1 + number % 4):
            if self.channel.alive:
                self.broker.end(self.channel)
            self.hear(0)
            self.reopen(0)
            self.rest(number >> 3)
            self.wait(number >> 4 & 3)
            self.rest(number >> 5)

    def reopen(self, _number: int) -> None:
        """Let the client open a channel anew."""
        if self.channel.ended:
            self.channel = self.broker.open()
            self.note("opened", self.channel.number)

    def drop(self, _number: int) -> None:
        """Let the broker cancel the consumer; the client reads first what was sent to it before."""
        for consumer in list(self.channel.consumers):
            if consumer == self.runner.window.consumer:
                self.broker.cancel(self.channel, consumer)
                self.dropped.add(consumer)
                while self.channel.transit and not self.channel.ended:
                    self.deliver(0)
                self.runner.on_cancel(consumer)

    # The client

    def deliver(self, number: int) -> None:
        """Let the client read some of what was sent to it."""
        for _ in range(1 + number % 4):
            if self.channel.transit and not self.channel.ended:
                native = self.channel.transit.pop(0)
                self.note("delivered", native)
                if native.parcel.first is None and not self.runner.stopping:
                    native.parcel.first = self.runner, self.clock.now()
                self.runner.on_message(native)

    def step(self, number: int) -> None:
        """Let one task go on."""
        self.loop.turn(number)

    def answer(self, number: int) -> None:
        """Let one answer come, or a handler end."""
        self.loop.answer(number)

    def round(self, number: int) -> None:
        """Let several things go on."""
        self.deliver(number)
        for at in range(2 + (number >> 2) % 6):
            self.loop.answer(number >> at) if number >> at & 1 else None
            self.loop.turn(number >> at)
        self.ring(number)

    def rest(self, number: int) -> None:
        """Let everything go on until nothing can happen without time passing."""
        for _ in range(400):
            self.ring(0)
            self.deliver(3)
            if (
                not self.loop.answer(number)
                and not self.loop.turn(number)
                and not self.channel.transit
            ):
                self.look_at_rest(self.runner)
                break

    def ring(self, _number: int) -> None:
        """Let the timer of acks fire."""
        if self.runner.acks is not None and self.runner.acks.timed:
            self.runner.acks.ring()

    def renew(self, _number: int) -> None:
        """Let the timer of renewals fire."""
        self.loop.run(self.runner.renew(), "renews")

    def stop(self, _number: int) -> None:
        """Ask the consumer to stop; a second time changes nothing."""
        self.note("stop", "")
        self.runner.stop()

    def again(self, _number: int) -> None:
        """Begin a new consumer where the last one has ended."""
        if self.runner.over:
            self.look_at_a_stop(self.runner)
            self.note("begins anew", "")
            self.deaths, self.consumed_since = 0, None
            self.reopen(0)
            self.runner = Runner(self, self.loop)

    # The end

    def finish(self) -> None:
        """Heal everything, wait for rest, stop, and check what is left."""
        self.facilities.out.clear()
        self.healed = self.answers_questions = True
        self.note("healed", "")
        for _ in range(80):
            self.hear(0)
            self.reopen(0)
            self.again(0)
            if self.rival is not None:
                self.rivals(1)
            self.broker.send()
            self.rest(0)
            if self.is_at_rest():
                break
            self.wait(2)
            self.wait(4)
            self.wait(3)
            self.renew(0)
        else:
            self.fail(
                "all comes to rest",
                f"{self.broker.ready}, {self.channel.unacked}, {self.runner.health()}",
            )
        self.stop(0)
        self.rest(0)
        self.wait(6)
        self.rest(0)
        if not self.runner.over:
            self.fail("a stop ends", str([task.name for task in self.loop.tasks]))
        self.look_at_a_stop(self.runner)
        self.look_at_the_end()

    def is_at_rest(self) -> bool:
        """Tell whether nothing is left and the consumer consumes."""
        left = (
            self.broker.ready
            or self.channel.unacked
            or self.channel.ended
            or self.rival
            or self.runner.stopping
        )
        return not left and self.runner.window.consumer is not None

    def carries(self, delivery: Delivery | None) -> None:
        """Note whose delivery is carried on."""
        self.current = delivery
