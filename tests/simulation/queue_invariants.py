"""The invariants of the queue engine's simulation, checked at each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from mqauth.errors import Cause, Reason
from mqauth.judging.pipeline import Delivery, Outcome, Step, Verdict
from mqauth.testing.clock import FakeClock
from tests.simulation.broken import Broken
from tests.simulation.queue_model import Broker, Channel, Native, Parcel

if TYPE_CHECKING:
    from mqauth.delivery.hold import HeldDelivery
    from mqauth.delivery.slot import Slot
    from tests.simulation.queue_facilities import QueueFacilities, QueueStore
    from tests.simulation.queue_runner import Runner

TIME_DEPENDENT: Final = (Reason.REPLAYED, Reason.EXPIRED, Reason.HANDLER_FAILED)
"""Of what the play condemns for, that which another moment would decide otherwise."""
TRIES: Final = 2
LEASE: Final = 60.0
OWN: Final = (Cause.HANDLER_DEFERRED, Cause.CLAIM_HELD)
EVERYONES: Final = (
    Cause.REPLAY_STORE_UNAVAILABLE, Cause.AUDIT_UNAVAILABLE, Cause.DEAD_LETTER_UNAVAILABLE,
    Cause.POLICY_UNAVAILABLE,
)  # fmt: skip
STEADY: Final = 60.0
DEATHS: Final = 3
BURIED: Final = ("forged", "stale", "fails", "rejects")


class QueueInvariants:
    """Records what happens to each message, and raises ``Broken`` at the first step that breaks an invariant.

    Args:
        clock: the clock.
        tell: told what happens; ``None`` for nobody.
    """

    broker: Broker
    facilities: QueueFacilities
    store: QueueStore
    channel: Channel
    max_held: int
    prefetch: int
    consumer_timeout: float
    runner: Runner

    def __init__(self, clock: FakeClock, tell: Callable[[str], None] | None) -> None:
        self.clock = clock
        self.tell = tell
        self.parcels: list[Parcel] = []
        self.contents: list[list[Parcel]] = []
        self.current: Delivery | None = None
        self.healed = False
        self.probing = 0
        self.found: Broken | None = None
        self.narrowed_at = self.rejected_at = self._moment = 0
        self.failures: dict[int, tuple[Runner | None, int]] = {}
        self.handled_by: dict[int, Runner] = {}
        self.consumed_since: float | None = None
        self.deaths = 0
        self.dropped: set[str] = set()
        """Consumers that the broker cancelled: what each one was sent, a window at most, stays held."""
        self.natives: dict[int, tuple[Delivery, Native]] = {}

    def note(self, what: Any, of: Any) -> None:
        """Add a line to the trace."""
        if self.tell is not None:
            self.tell(f"{self.clock.monotonic():8.2f}  {what} {of}")

    def moment(self) -> int:
        """Return a number later than all before."""
        self._moment += 1
        return self._moment

    # A delivery's steps

    def comes(self, delivery: Delivery, native: Native) -> None:
        """Note which broker delivery a ``Delivery`` belongs to now; one given back goes on with the next."""
        self.natives[id(delivery)] = delivery, native
        native.received = self.clock.monotonic()
        if delivery.rejection is not None:
            self.rejected(native)

    def native_of(self, delivery: Delivery) -> Native:
        """Return the broker delivery that a ``Delivery`` belongs to."""
        found = self.natives.get(id(delivery))
        native: Any = delivery.message.native if found is None else found[1]
        return native  # type: ignore[no-any-return]

    def seen(self, step: str) -> None:
        """Check a step before it is taken."""
        delivery = self.current
        if delivery is None or (step == "judge" and self.probing):
            return
        native = self.native_of(delivery)
        self.require(
            not native.channel.ended, f"nothing of an ended channel: {step}", native
        )
        if step == "judge":
            return
        self.note(step, native)
        found = delivery.rejection
        if step == "record" and found is not None and found.reason in TIME_DEPENDENT:
            proven = native.channel.proven > native.verdict
            self.require(
                proven,
                "what another moment would decide is proven",
                f"{native} {found.reason}",
            )

    def rejected(self, native: Native) -> None:
        """Note when a delivery was rejected for what another moment would decide otherwise."""
        native.verdict = self.moment()

    def refused(self) -> None:
        """Note that a claim was refused as ``replayed``."""
        if self.current is not None:
            self.rejected(self.native_of(self.current))

    def begins(self, native: Native) -> None:
        """Check a handler that begins."""
        self.note("handles", native)
        self.require(
            native.parcel.kind not in ("forged", "stale"),
            "nothing forged is handled",
            native,
        )
        goes_on, native.goes_on = native.goes_on, False
        self.require(
            goes_on or not native.channel.ended,
            "nothing of an ended channel: handle",
            native,
        )

    def failed(self, native: Native, error: BaseException) -> None:
        """Check a handler that failed."""
        content = native.parcel.content
        if (
            native.parcel.kind not in ("fails", "rejects")
            or len(self.contents[content]) > 1
        ):
            return
        runner, count = self.failures.get(content, (None, 0))
        self.failures[content] = found = (
            self.runner,
            count + 1 if runner is self.runner else 1,
        )
        self.require(found[1] <= TRIES, "a handler that failed is not run again", native)

    def completed(self, native: Native, *, by: str) -> None:
        """Check a handler that succeeded."""
        self.note(f"handled by {by}", native)
        native.parcel.handled += 1
        times = sum(each.handled for each in self.contents[native.parcel.content])
        # A claim whose lease is over is taken by another consumer, or by a returned copy. The same consumer knows.
        knows = self.handled_by.get(native.parcel.number) is self.runner
        if by == "us":
            self.handled_by[native.parcel.number] = self.runner
            allowed = 1 if knows else 1 + self.store.taken_over[native.id]
            self.require(times <= allowed, "handled once", native)

    def settled(self, native: Native, delivery: Delivery) -> None:
        """Check a delivery that is to be acked."""
        self.note(f"settled as {delivery.verdict.value}", native)
        self.require(delivery.step is Step.SETTLE, "settled is at its end", native)
        self.require(not native.settled, "settled once", native)
        native.settled = True
        if delivery.verdict is Verdict.REJECTED:
            self.rejected_at = self.moment()
        copies = self.contents[native.parcel.content]
        if delivery.verdict is Verdict.ACCEPTED and not native.parcel.handled:
            # A copy was settled by what was known of another one, which comes again as something new.
            for each in copies:
                self.handled_by.pop(each.number, None)
        self.failures.pop(
            native.parcel.content, None
        )  # where its ack is lost it comes as something new
        ended = any(each.handled or each.letters for each in copies)
        self.require(ended, "settled is handled or buried", native)

    def acks(self, channel: Channel, deliveries: Sequence[Delivery]) -> None:
        """Note acks on a channel that has ended, unheard: what comes again is new to the consumer."""
        if not channel.alive:
            for each in deliveries:
                self.handled_by.pop(self.native_of(each).parcel.number, None)

    def burying(self) -> Callable[[], None]:
        """Check a letter before it is sent; return a function to call when it is confirmed."""
        self.seen("bury")
        assert self.current is not None
        native = self.native_of(self.current)
        return lambda: self.buried(native)

    def buried(self, native: Native) -> None:
        """Check a letter that was confirmed."""
        self.note("buried", native)
        parcel = native.parcel
        parcel.letters += 1
        runner, first = parcel.first or (None, math.inf)
        ours = runner is self.runner and first <= parcel.expires and not parcel.handled
        alone = len(self.contents[parcel.content]) == 1
        if parcel.kind in ("honest", "aborts") or (
            parcel.kind == "later" and self.broker.limit < 0
        ):
            self.require(not alone, "no honest message is condemned", native)
        if parcel.kind == "brief" and alone:
            self.require(not ours, "no message expires in our hands", native)

    def goes_back(
        self, runner: Runner, slot: Slot, delivery: Delivery, outcome: Outcome
    ) -> None:
        """Check a deferred delivery that is no longer held: for a cause of all the queue is suspended first.

        One whose handler has ended waits for its confirm as long as the broker allows.
        """
        if outcome.cause not in EVERYONES or not slot.is_ours or slot.is_last:
            return
        waits = (
            delivery.step is Step.CONFIRM
            and not self.is_old(slot)
            and not runner.window.stopping
        )
        self.require(not waits, "what was handled is not given back", slot.native)
        suspended = runner.suspended_at.pop(slot, runner.went_on)
        begins = runner.window.stopping or suspended < runner.went_on
        consumed = bool(self.channel.consumers) and self.channel.alive and not begins
        self.require(
            not consumed,
            "the queue is suspended before what waits for a cause of all goes back",
            slot.native,
        )

    def is_old(self, slot: Slot) -> bool:
        """Tell whether the broker's consumer timeout is near for a delivery."""
        return self.clock.monotonic() - slot.received >= 0.9 * self.consumer_timeout

    def gives_back(self, native: Native) -> None:
        """Check a delivery that is given back."""
        self.note("given back", native)
        self.require(
            not native.channel.ended, "nothing of an ended channel: give back", native
        )
        self.broker.requeue(native)

    # The consumer

    def opens(self) -> None:
        """Note that consuming begins, or goes on under another tag."""
        if self.consumed_since is None:
            self.consumed_since = self.clock.monotonic()

    def consumes(self, runner: Runner, prefetch: int) -> None:
        """Check a consumer that begins."""
        self.require(
            1 <= prefetch <= self.prefetch, "the window is within its bounds", prefetch
        )

    def died(self, runner: Runner, *, channel_alone: bool) -> None:
        """Check the window after a channel ended, alone or with its connection."""
        since, self.consumed_since = self.consumed_since, None
        if channel_alone or since is None or runner.window.stopping:
            return
        self.deaths = self.deaths + 1 if self.clock.monotonic() - since < STEADY else 1
        if self.deaths >= DEATHS:
            self.require(
                runner.window.prefetch == 1,
                "many deaths narrow the window",
                runner.window.prefetch,
            )

    def look_at_held(self, runner: Runner, held: HeldDelivery) -> None:
        """Check a delivery that is still held."""
        native, step = held.slot.native, held.delivery.step
        ended = native.channel.ended and step not in (Step.CONFIRM, Step.RELEASE)
        self.require(not ended, "nothing of an ended channel is held", native)
        last = 0 <= self.broker.limit <= native.returns
        self.require(
            last or not self.is_old(held.slot) or native.channel.ended,
            "held no longer than the broker allows",
            native,
        )
        self.require(
            step is Step.CONFIRM or not runner.hold.stopping,
            "nothing is held at a stop",
            native,
        )

    def goes_on(self, runner: Runner) -> None:
        """Note when a queue went on after it was suspended."""
        if runner.window._is_cautious:
            self.narrowed_at = self.moment()

    def look_at_rest(self, runner: Runner) -> None:
        """Check a consumer when nothing can happen without time passing."""
        window = runner.window
        if (
            window.stopping
            or window.consumer is None
            or self.channel.ended
            or not self.channel.alive
        ):
            return
        cautious = window._is_cautious
        self.require(
            not cautious or self.rejected_at <= self.narrowed_at,
            "the whole window comes back",
            window.prefetch,
        )
        beside = [
            each.slot.native
            for each in runner.hold._held.values()
            if each.outcome.cause in OWN
        ]
        taken = [
            each
            for each in self.channel.unacked.values()
            if each.consumer == window.consumer
        ]
        full = len(taken) >= window.prefetch > 1 and all(each in beside for each in taken)
        looked = runner.looked_at > max(
            runner.consumed_at, runner.ended_at
        )  # else it does so with the next attempt
        waits = (
            bool(self.broker.ready) and full and looked and len(beside) < self.max_held
        )
        self.require(
            not waits, "others pass what waits for its own cause", self.broker.ready
        )

    def due_for_renewal(self, runner: Runner, before: float) -> list[Native]:
        """Return the deliveries whose claims were made before a time, so that they are due for renewal."""
        found = [each.about for each in runner.loop.answers if each.about is not None]
        return [each for each in found if each.received <= before]

    def look_at_leases(self, runner: Runner, due: list[Native], before: float) -> None:
        """Check that the claims of long handlers were renewed since a time; the store may be slow at each."""
        still = {each.about for each in runner.loop.answers}
        reached = "store" not in self.facilities.out
        for native in due:
            claim = self.store.entries.get(native.id)
            held = (
                claim is not None
                and claim.owner is not None
                and native.id not in self.store.taken_over
            )
            asked = self.store.renewed.get(native.id, -1.0) >= before
            self.require(
                asked or not reached or not held or native not in still,
                "a claim is renewed",
                native,
            )

    def look_at_room(self, runner: Runner) -> None:
        """Check how many deliveries are held."""
        most = self.max_held + 2 * self.prefetch
        natives = [each.slot.native for each in runner.hold._held.values()]
        held = sum(
            not each.channel.ended and each.consumer not in self.dropped
            for each in natives
        )
        self.require(held <= most, "what is held is bounded", f"{held} of {most}")

    def look_at_a_stop(self, runner: Runner) -> None:
        """Check that an orderly stop leaves nothing."""
        self.store.left_behind |= self.store.unended
        self.require(not runner.running, "every place comes back", runner.running)
        self.require(
            len(runner.hold) == 0, "nothing is held after a stop", runner.hold.by_cause()
        )
        self.require(
            not runner.hold._by_tag,
            "what is held no longer takes no room",
            runner.hold._by_tag,
        )
        self.require(not runner.tended, "no lease is renewed after a stop", "")
        self.require(
            not runner.work._progress._in_flight, "nothing is in flight after a stop", ""
        )
        if runner.acks is not None:
            self.require(
                not runner.acks.ledger.waiting,
                "all is acked at a stop",
                runner.acks.ledger.waiting,
            )
        for native in self.channel.unacked.values():
            last = 0 <= self.broker.limit <= native.returns
            self.require(
                last or not self.channel.alive, "all is given back at a stop", native
            )

    def look_at_the_end(self) -> None:
        """Check that each message was acked, and handled or buried, and that no claim is left."""
        away = {parcel.content for parcel in self.broker.put_away}
        for parcels in self.contents:
            first = parcels[0]
            claim = self.store.entries.get(first.id)
            if first.content in away:
                continue
            left = (
                claim is not None
                and claim.owner is not None
                and not claim.owner.startswith("rival")
            )
            # A stop while the store is away leaves a claim; nobody claims again what has expired when it is back.
            excused = (
                left
                and first.kind == "brief"
                and (first.id, claim.owner) in self.store.left_behind
            )
            self.require(not left or excused, "no claim is left", first)
            if first.kind in ("honest", "aborts") or (
                first.kind == "later" and self.broker.limit < 0
            ):
                self.require(
                    any(each.handled for each in parcels),
                    "every honest message is handled",
                    first,
                )
            for each in parcels:
                self.require(each.acked, "each message has its end", each)
            if first.kind in BURIED:
                self.require(
                    any(each.letters for each in parcels), "what is bad is buried", first
                )

    def require(self, holds: bool, invariant: str, text: Any) -> None:
        """Raise ``Broken`` if an invariant does not hold."""
        if not holds:
            self.fail(invariant, str(text))

    def fail(self, invariant: str, text: str) -> None:
        """Raise ``Broken`` for an invariant."""
        self.found = self.found or Broken(invariant, text)
        raise self.found

    def look(self) -> None:
        """Raise a ``Broken`` again that the engine has caught as an error of a facility."""
        if self.found is not None:
            raise self.found
