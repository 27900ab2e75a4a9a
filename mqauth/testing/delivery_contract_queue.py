"""The delivery contract for queue brokers: what becomes of deliveries, acks and claims while things go wrong.

Inherit ``QueueDeliveryContract`` in a test class and give a ``stage`` fixture that returns a fresh ``QueueStage``
(``mqauth.testing.delivery_stage``). ``BrokerContract`` asks what a verdict does; nearly every mistake in
*delivery* passes it: an ack of what is not settled, a stale delivery condemned, a place of the window lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import pytest

from mqauth.auditfile import AuditFile
from mqauth.errors import Cause, RetryLater, Unavailable
from mqauth.keys import KeySet
from mqauth.policy import Allow, Rule
from mqauth.replay import ClaimRequest, ClaimStatus
from mqauth.stores.memory import MemoryReplayStore
from mqauth.testing.delivery_play import LIFETIME, Play
from mqauth.testing.delivery_stage import Member, QueueStage, Steps
from mqauth.testing.forge import ISSUER, SUBJECT
from mqauth.verified import Verified
from mqauth.verifier import Issuer

LATER: Final = 2.0 * LIFETIME
"""Seconds beyond every token's life and every lease."""
MOMENT: Final = 0.02
LONG: Final = 3600.0
"""Seconds that no handler comes to the end of."""
ATTEMPTS: Final = 8
"""Attempts of one message a second that are too many: a back-off of a tenth of a second makes four at first."""
FAULTS: Final = 5
"""Deliveries of one message beside one for each fault."""
LEASE: Final = 3.0
"""Seconds of a lease that a handler outlasts."""
RESTARTS: Final = 25
"""More than a queue's delivery limit."""
OTHER: Final = "https://other.example"
"""An issuer that is out of reach."""


class Death(BaseException):
    """What no handler may raise."""


class Gate:
    """A replay store that one consumer cannot always reach.

    Args:
        store: of all consumers.
    """

    in_process = True

    def __init__(self, store: MemoryReplayStore) -> None:
        self._store = store
        self.away = False

    def claim(self, request: ClaimRequest, /) -> ClaimStatus:
        """Take a lease."""
        return self._reached().claim(request)

    def confirm(self, request: ClaimRequest, /) -> None:
        """Make a claim done."""
        self._reached().confirm(request)

    def release(self, request: ClaimRequest, /) -> None:
        """Forget a claim."""
        self._reached().release(request)

    def _reached(self) -> MemoryReplayStore:
        """Return the store, where it is in reach."""
        if self.away:
            raise Unavailable(Cause.REPLAY_STORE_UNAVAILABLE, "away")
        return self._store


class Keys:
    """A source of keys that is out of reach at first.

    Args:
        keys: what it has.
    """

    def __init__(self, keys: KeySet) -> None:
        self._keys = keys
        self.away = True

    def key_set(self) -> KeySet:
        """Return the keys."""
        if self.away:
            raise Unavailable(Cause.KEYS_UNAVAILABLE, "away")
        return self._keys

    def refresh(self, _kid: str, _received: float, /) -> KeySet:
        """Return the same keys."""
        return self.key_set()


@dataclass
class QueuePlay(Play):
    """One run on a queue stage."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.calls: list[tuple[bytes, float]] = []
        """Body and monotonic seconds of each attempt that ``later`` put off."""

    def send(self, count: int, *, sealed: bool = True, **identity: Any) -> list[bytes]:
        """Send so many messages and return their bodies."""
        return [self.inject(sealed=sealed, **identity) for _ in range(count)]

    def handle(self, verified: Verified) -> Iterator[float]:
        """Handle a message, for a moment."""
        yield MOMENT
        self.handled.append(verified)

    def later(self, *bodies: bytes) -> Steps:
        """Return a handler that puts these messages off, or every one where none is named."""

        def handler(verified: Verified) -> Iterator[float]:
            body = verified.body or b""
            if body in bodies or not bodies:
                self.calls.append((body, self.clock.monotonic()))
                raise RetryLater("not now")
            yield from self.handle(verified)

        return handler

    def start(
        self, handler: Steps | None = None, *, prefetch: int = 10, grace: float = 10, **settings: Any
    ) -> Member:
        """Start a consumer."""
        guard = self.guard(**settings)
        member: Member = self.stage.second(guard, handler or self.handle, prefetch=prefetch, grace=grace)
        self.members.append(member)
        return member

    def two_issuers(self, keys: Keys) -> dict[str, Any]:
        """Return what of a pipeline trusts another issuer too, whose keys come from a source of their own."""
        issuers = {ISSUER: Issuer(keys=self.forge.keys), OTHER: Issuer(keys=keys)}
        places = (self.stage.destination,)
        rules = [Rule(subject=SUBJECT, destinations=places, issuer=issuer) for issuer in issuers]
        return {"verifier": self.forge.verifier(leeway=0, keys=issuers), "policy": Allow(rules)}

    def wait(self, condition: Callable[[], bool], seconds: float | None = None) -> None:
        """Wait until a condition holds, while every consumer is well.

        Raises:
            TimeoutError: it did not come to hold, or a consumer ended.
        """

        def over() -> bool:
            return condition() or any(member.failed for member in self.members)

        self.stage.wait(over, self.stage.patience if seconds is None else seconds)
        if not condition():
            raise TimeoutError("the condition did not come to hold")

    def go_on(self, seconds: float) -> None:
        """Let everything go on for so many seconds."""
        self.stage.wait(lambda: False, seconds)

    def all_handled(self, bodies: list[bytes]) -> None:
        """Wait until all of these were handled."""
        self.wait(lambda: set(self.bodies) >= set(bodies))

    def watch_acks(self) -> None:
        """Have each ack of a message neither handled nor dead-lettered noted as a fault."""

        def observe(body: bytes) -> None:
            if body not in self.bodies and body not in [letter.body for letter in self.stage.letters()]:
                self.faults.append(f"{body!r} was acked unsettled")

        self.stage.watch(observe)

    def stop_all(self) -> None:
        """Stop every consumer in order."""
        while self.members:
            self.stop(self.members[-1])


class QueueDeliveryContract:
    """What every wrapper of a queue broker must do with its deliveries; each docstring is the promise."""

    @pytest.fixture
    def play(self, stage: QueueStage, tmp_path: Any) -> Any:
        """Yield a play on a fresh stage."""
        with AuditFile(tmp_path / "audit.jsonl", fsync=False) as audit:
            yield QueuePlay(stage, audit, stage.clock)

    # acks and letters

    def test_an_ack_covers_what_is_settled(self, play: QueuePlay) -> None:
        """At every ack each message that it covers was handled, or its dead letter is confirmed."""
        play.watch_acks()

        def handler(verified: Verified) -> Iterator[float]:
            yield 0.5 if verified.body == honest[0] else MOMENT
            play.handled.append(verified)

        honest = play.send(5)
        play.send(3, sealed=False)
        honest += play.send(12)
        play.start(handler)
        play.wait(lambda: len(play.handled) >= len(honest) and len(play.reasons()) >= 3)
        play.stop_all()
        assert play.faults == []
        assert (sorted(play.bodies), play.stage.left()) == (sorted(honest), 0)

    def test_everything_is_acked_in_the_end(self, play: QueuePlay) -> None:
        """Once all is settled all is acked, at the latest by the stop; each message was delivered once."""
        honest = play.send(20)
        forged = play.send(2, sealed=False)
        play.start()
        play.wait(lambda: len(play.handled) >= 20 and len(play.reasons()) >= 2)
        play.stop_all()
        assert play.stage.left() == 0
        assert {play.stage.deliveries(body) for body in honest + forged} == {1}

    def test_a_letter_is_confirmed(self, play: QueuePlay) -> None:
        """A rejected message waits while its letter is lost on the way, seen to wait, and has one letter then."""
        play.watch_acks()
        play.stage.refuse_letters(True)
        play.send(3, sealed=False)
        behind = play.send(3)
        member = play.start()
        play.wait(lambda: play.stage.attempts() >= 2 and member.health().cause is not None)
        assert member.health().cause is Cause.DEAD_LETTER_UNAVAILABLE
        play.stage.refuse_letters(False)
        play.all_handled(behind)
        play.wait(lambda: len(play.reasons()) >= 3)
        play.stop_all()
        assert (play.reasons(), play.faults, play.stage.left()) == (["token_missing"] * 3, [], 0)

    # what waits

    def test_what_is_put_off_is_not_settled(self, play: QueuePlay) -> None:
        """What a handler puts off is not acked, and after the stop the next consumer handles it."""
        bodies = play.send(3)
        play.start(play.later())
        play.wait(lambda: len(play.calls) >= 4)
        play.stop_all()
        assert play.stage.left() == 3
        play.start()
        play.all_handled(bodies)
        assert play.reasons() == []

    def test_what_is_put_off_is_not_tried_hotly(self, play: QueuePlay) -> None:
        """A message that waits is tried ever more rarely, stays with its consumer, and others are handled."""
        (body,) = play.send(1)
        play.start(play.later(body))
        others = play.send(10)
        play.all_handled(others)
        play.go_on(3)
        assert 2 <= len(play.calls) <= 3 * ATTEMPTS
        assert play.stage.deliveries(body) == 1

    def test_what_is_put_off_is_not_overtaken(self, play: QueuePlay) -> None:
        """A consumer that takes one message at a time handles them in their order, also where one is put off."""

        def handler(verified: Verified) -> Iterator[float]:
            calls[verified.body or b""] += 1
            if verified.body == bodies[1] and calls[bodies[1]] <= 2:
                raise RetryLater("not now")
            yield from play.handle(verified)

        calls: Counter[bytes] = Counter()
        bodies = play.send(4)
        play.start(handler, prefetch=1)
        play.all_handled(bodies)
        assert play.bodies == bodies

    def test_what_is_put_off_starves_nobody(self, play: QueuePlay) -> None:
        """A window full of messages that wait for causes of their own lets the others pass."""
        waiting = play.send(8)
        play.start(play.later(*waiting), prefetch=4)
        play.all_handled(play.send(12))
        play.go_on(2)
        play.all_handled(play.send(4))
        assert {play.stage.deliveries(body) for body in waiting} == {1}

    def test_an_issuer_starves_nobody(self, play: QueuePlay) -> None:
        """A window full of messages of an issuer out of reach lets those of others pass; then they are handled."""
        keys, waiting = Keys(play.forge.keys), play.send(8, issuer=OTHER)
        member = play.start(prefetch=4, **play.two_issuers(keys))
        play.all_handled(play.send(12))
        play.go_on(2)
        play.all_handled(play.send(4))
        assert member.health().cause is Cause.KEYS_UNAVAILABLE
        keys.away = False
        play.all_handled(waiting)
        assert (len(play.handled), play.reasons()) == (len(play.sent), [])

    def test_an_outage_requeues_nothing_hotly(self, play: QueuePlay) -> None:
        """While a dependency of all is away nothing is consumed; it costs each message one return, and goes on."""
        store = Gate(play.store)
        member = play.start(replay=store)
        store.away = True
        bodies = play.send(3)
        play.go_on(4)
        assert max(map(play.stage.deliveries, bodies)) <= 1 + FAULTS
        assert member.health().cause is Cause.REPLAY_STORE_UNAVAILABLE
        assert not member.health().consuming
        store.away = False
        play.all_handled(bodies)
        play.wait(lambda: member.health().consuming)
        assert max(map(play.stage.deliveries, bodies)) <= 1 + FAULTS
        assert (sorted(play.bodies), play.reasons()) == (bodies, [])

    def test_the_time_of_receipt_survives(self, play: QueuePlay) -> None:
        """What was given back in an outage is judged by when it came first, however long the outage was."""
        store = Gate(play.store)
        member = play.start(replay=store)
        store.away = True
        bodies = play.send(3)
        play.wait(lambda: not member.health().consuming and play.stage.left() == 3)
        play.stage.advance(LATER)
        store.away = False
        play.all_handled(bodies)
        assert (sorted(play.bodies), play.reasons()) == (bodies, [])

    def test_restarts_put_nothing_away(self, play: QueuePlay) -> None:
        """A message that a handler puts off over many restarts is dead-lettered, not put away by the broker."""
        play.send(1)
        for _ in range(RESTARTS):
            before = len(play.calls)
            play.start(play.later())
            play.wait(lambda before=before: len(play.calls) > before or bool(play.reasons()))  # type: ignore[misc]
            play.stop_all()
        assert (play.reasons(), play.stage.put_away(), play.stage.left()) == (["handler_failed"], 0, 0)

    # ends

    def test_no_claim_outlives_the_stop(self, play: QueuePlay) -> None:
        """A consumer that stopped in order holds no claim of what was put off."""
        play.send(3)
        play.start(play.later())
        play.wait(lambda: len(play.calls) >= 4)
        play.stop_all()
        assert len(play.store) == 0

    def test_no_claim_outlives_a_long_handler(self, play: QueuePlay) -> None:
        """A handler that outlasts its grace is cancelled once, and its clean-up ends; its claim is released."""

        def handler(_verified: Verified) -> Iterator[float]:
            begun.append(True)
            try:
                yield LONG
            finally:
                yield 0.5
                cleaned.append(True)

        begun: list[bool] = []
        cleaned: list[bool] = []
        play.send(1)
        play.start(handler, grace=0.2)
        play.wait(lambda: bool(begun))
        play.stop_all()
        assert (cleaned, len(play.store), play.stage.left()) == ([True], 0, 1)

    def test_what_a_handler_must_not_raise(self, play: QueuePlay) -> None:
        """It ends the consumer, which gives its message back though its connection lives; another handles all."""

        def handler(_verified: Verified) -> Iterator[float]:
            yield MOMENT
            raise Death

        bodies = play.send(4)
        member = play.start(handler, prefetch=1)
        play.members.clear()
        play.wait(lambda: member.failed)
        play.start(prefetch=1)
        play.all_handled(bodies)
        assert (sorted(play.bodies), play.reasons()) == (bodies, [])

    def test_a_consumer_that_is_killed(self, play: QueuePlay) -> None:
        """What a killed consumer had in hand another one handles once its lease is over; nothing is condemned."""

        def hanging(_verified: Verified) -> Iterator[float]:
            begun.append(True)
            yield LONG

        begun: list[bool] = []
        bodies = play.send(4)
        member = play.start(hanging)
        play.wait(lambda: len(begun) == 4)
        play.members.remove(member)
        play.stage.kill(member)
        play.start()
        play.stage.advance(LATER)
        play.all_handled(bodies)
        play.stop_all()
        assert (sorted(play.bodies), play.reasons(), play.stage.left()) == (bodies, [], 0)

    # what is stale

    def test_what_is_stale_is_not_condemned(self, play: QueuePlay) -> None:
        """A consumer that stood still condemns nothing that was in its buffers and another has handled."""
        self._stale(play, 0)

    def test_what_is_stale_is_not_condemned_for_its_time(self, play: QueuePlay) -> None:
        """Nor where it stood still for longer than tokens live."""
        self._stale(play, LATER)

    def _stale(self, play: QueuePlay, seconds: float) -> None:
        """Have one consumer find in its buffers what another has handled, so many seconds later."""
        first = play.start()
        warm = play.send(2)
        play.all_handled(warm)
        play.stage.cut(first)
        bodies = play.send(8)
        play.wait(lambda: min(map(play.stage.deliveries, bodies)) == 1)
        play.stage.give_up(first)
        play.start()
        play.all_handled(bodies)
        play.stage.advance(seconds)
        play.stage.heal(first)
        after = play.send(8)
        play.all_handled(after)
        play.wait(lambda: first.health().consuming)
        play.stop_all()
        assert (sorted(play.bodies), play.reasons(), play.stage.left()) == (sorted(warm + bodies + after), [], 0)

    def test_a_channel_that_ends_while_messages_wait(self, play: QueuePlay) -> None:
        """What waited for a dependency when its channel ended is not judged any more, but its redelivery is."""
        store = Gate(play.store)
        first = play.start(replay=store)
        store.away = True
        bodies = play.send(6)
        play.wait(lambda: first.health().cause is not None)
        play.start()
        play.stage.close_channel(first)
        play.wait(lambda: len(play.handled) >= 2)
        store.away = False
        play.all_handled(bodies)
        play.stop_all()
        assert (sorted(play.bodies), play.reasons(), play.stage.left()) == (bodies, [], 0)

    def test_a_channel_that_ends_under_a_handler(self, play: QueuePlay) -> None:
        """A handler that runs goes on, and what comes of it counts for the redelivery: it runs once."""

        def handler(verified: Verified) -> Iterator[float]:
            begun.append(True)
            yield 1.0
            play.handled.append(verified)

        begun: list[bool] = []
        bodies = play.send(3)
        member = play.start(handler)
        play.wait(lambda: len(begun) == 3)
        play.stage.close_channel(member)
        play.all_handled(bodies)
        play.wait(lambda: min(map(play.stage.deliveries, bodies)) >= 2)
        play.go_on(2)
        play.stop_all()
        assert (sorted(play.bodies), play.reasons(), play.stage.left()) == (bodies, [], 0)
        assert len(begun) == 3

    def test_a_handler_that_outlasts_its_lease(self, play: QueuePlay) -> None:
        """Its claim is renewed, so that another consumer waits for it that was given its message."""

        def handler(verified: Verified) -> Iterator[float]:
            begun.append(True)
            yield 1.5 * LEASE
            play.handled.append(verified)

        begun: list[bool] = []
        bodies = play.send(3)
        first = play.start(handler, lease=LEASE)
        play.wait(lambda: len(begun) == 3)
        play.start(handler, lease=LEASE)
        play.stage.give_up(first)
        play.all_handled(bodies)
        play.wait(lambda: min(map(play.stage.deliveries, bodies)) >= 2)
        play.stop_all()
        assert (sorted(play.bodies), play.reasons(), play.stage.left()) == (bodies, [], 0)
        assert len(begun) == 3

    # consuming again

    def test_consumes_again_after_its_channel_was_closed(self, play: QueuePlay) -> None:
        """A channel that the broker closes is opened again."""
        self._again(play, play.stage.close_channel)

    def test_consumes_again_after_its_connection_was_lost(self, play: QueuePlay) -> None:
        """A connection that is lost is made again."""
        self._again(play, play.stage.give_up)

    def test_consumes_again_after_it_was_cancelled(self, play: QueuePlay) -> None:
        """A consumer that the broker cancels consumes again."""
        self._again(play, play.stage.cancel)

    def test_consumes_again_when_its_queue_is_back(self, play: QueuePlay) -> None:
        """A queue that was away for some seconds is consumed again."""
        self._again(play, lambda _: self._away(play, 5))

    def test_consumes_again_when_its_queue_is_back_after_a_minute(self, play: QueuePlay) -> None:
        """Nor is it given up after a minute."""
        self._again(play, lambda _: self._away(play, 60))

    def _away(self, play: QueuePlay, seconds: float) -> None:
        """Have the queue be away for so many seconds."""
        play.stage.remove_source()
        play.go_on(seconds)
        play.stage.restore_source()

    def _again(self, play: QueuePlay, fault: Callable[[Member], None]) -> None:
        """Have a consumer go on after a fault, which happens twice."""
        member = play.start()
        for _ in range(2):
            before = play.send(3)
            play.all_handled(before)
            play.go_on(0.5)
            fault(member)
            after = play.send(3)
            play.all_handled(after)
            play.wait(lambda: member.health().consuming)
        play.stop_all()
        assert (sorted(play.bodies), play.reasons(), play.stage.left()) == (sorted(play.sent), [], 0)
