"""The delivery contract for queue brokers: what happens to deliveries, acks and claims when things go wrong.

Inherit ``QueueDeliveryContract`` in a test class and provide a ``stage`` fixture that returns a fresh stage. It
has the calls of ``tests.simulation.contract_stage``: a source queue with a delivery limit of 20, and consumers
that share it. ``BrokerContract`` tests the verdict. Nearly every mistake in *delivery* passes it: an ack of a
message that is not settled, a stale delivery condemned, a slot of the window lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from mqauth import AuditFile, Cause, Verified
from tests.kit.delivery_contract_waiting import WaitingContract
from tests.kit.delivery_play import LATER
from tests.kit.delivery_play_queue import MOMENT, Gate, QueuePlay
from tests.kit.delivery_stage import Member

__all__ = ["QueueDeliveryContract", "QueuePlay"]
LONG: Final = 3600.0
"""Seconds for which a handler waits that is not meant to end."""
LEASE: Final = 3.0
"""Seconds of a lease that is shorter than its handler."""


class Death(BaseException):
    """An exception that no handler may raise."""


class QueueDeliveryContract(WaitingContract):
    """What every wrapper of a queue broker must do with its deliveries; each docstring is the promise."""

    @pytest.fixture
    def play(self, stage: Any, tmp_path: Any) -> Any:
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
        """Once all messages are settled they are acked, at the latest by the stop; each was delivered once."""
        honest = play.send(20)
        forged = play.send(2, sealed=False)
        play.start()
        play.wait(lambda: len(play.handled) >= 20 and len(play.reasons()) >= 2)
        play.stop_all()
        assert play.stage.left() == 0
        assert {play.stage.deliveries(body) for body in honest + forged} == {1}

    def test_a_letter_is_confirmed(self, play: QueuePlay) -> None:
        """A rejected message waits, and says so, while its letter is lost on the way; then it has one letter."""
        play.watch_acks()
        play.stage.refuse_letters(True)
        play.send(3, sealed=False)
        behind = play.send(3)
        member = play.start()
        play.wait(
            lambda: play.stage.attempts() >= 2 and member.health().cause is not None
        )
        assert member.health().cause is Cause.DEAD_LETTER_UNAVAILABLE
        play.stage.refuse_letters(False)
        play.all_handled(behind)
        play.wait(lambda: len(play.reasons()) >= 3)
        play.stop_all()
        assert (play.reasons(), play.faults, play.stage.left()) == (
            ["token_missing"] * 3,
            [],
            0,
        )

    # ends

    def test_no_claim_outlives_the_stop(self, play: QueuePlay) -> None:
        """A consumer that stopped in order holds no claim of a message that was put off."""
        play.send(3)
        play.start(play.later())
        play.wait(lambda: len(play.calls) >= 4)
        play.stop_all()
        assert len(play.store) == 0

    def test_no_claim_outlives_a_long_handler(self, play: QueuePlay) -> None:
        """A handler that outlasts the grace is cancelled once and may clean up; its claim is released."""

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
        assert play.mistakes(bodies) == []

    def test_a_consumer_that_is_killed(self, play: QueuePlay) -> None:
        """A killed consumer's messages are handled by another once their leases are over; none is condemned."""

        def hanging(_verified: Verified) -> Iterator[float]:
            begun.append(True)
            yield LONG

        begun: list[bool] = []
        bodies = play.send(4)
        member = play.start(hanging, grace=0.2)
        play.wait(lambda: len(begun) == 4)
        play.members.remove(member)
        play.stage.kill(member)
        play.start()
        play.wait(lambda: min(map(play.stage.deliveries, bodies)) == 2)
        play.wait(lambda: play.deferred(Cause.CLAIM_HELD) >= set(bodies))
        play.stage.advance(LATER)
        play.all_handled(bodies)
        assert play.mistakes(bodies) == []

    # what is stale

    def test_what_is_stale_is_not_condemned(self, play: QueuePlay) -> None:
        """A consumer that was frozen condemns nothing in its buffers that another has handled meanwhile."""
        self._stale(play, 0)

    def test_what_is_stale_is_not_condemned_for_its_time(self, play: QueuePlay) -> None:
        """A consumer that was frozen for longer than tokens live condemns none of these as expired."""
        self._stale(play, LATER)

    def _stale(self, play: QueuePlay, seconds: float) -> None:
        """Freeze a consumer while another one handles the messages in its buffers, and let ``seconds`` pass."""
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
        assert play.mistakes(play.sent) == []

    def test_a_channel_that_ends_while_messages_wait(self, play: QueuePlay) -> None:
        """A message that waits for a dependency when its channel ends is not judged, but its redelivery is."""
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
        assert play.mistakes(bodies) == []

    def test_a_channel_that_ends_under_a_handler(self, play: QueuePlay) -> None:
        """A handler goes on when its channel ends, and its result counts for the redelivery: it runs once."""

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
        assert play.mistakes(bodies) == []
        assert len(begun) == 3

    def test_an_ack_is_of_its_own_channel(self, play: QueuePlay) -> None:
        """What is settled after its channel ended is not acked on the next one, where its tag is another's."""

        def handler(verified: Verified) -> Iterator[float]:
            begun.append(verified.body or b"")
            yield MOMENT if verified.body in quick else 2.5
            play.handled.append(verified)

        play.watch_acks()
        begun: list[bytes] = []
        quick, long = play.send(2), play.send(1)
        member = play.start(handler)
        play.wait(lambda: set(play.bodies) == set(quick) and long[0] in begun)
        play.go_on(0.2)
        play.stage.close_channel(member)
        long += play.send(2)
        play.wait(lambda: set(long) <= set(begun))
        play.all_handled(play.sent)
        assert play.mistakes(play.sent) == []
        assert play.faults == []

    def test_a_handler_that_outlasts_its_lease(self, play: QueuePlay) -> None:
        """Its claim is renewed, so that another consumer which gets its message waits for it."""

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
        assert play.mistakes(bodies) == []
        assert len(begun) == 3

    # consuming again

    def test_consumes_again_after_its_channel_was_closed(self, play: QueuePlay) -> None:
        """A channel that the broker closes is opened again."""
        self._again(play, play.stage.close_channel)

    def test_consumes_again_after_its_connection_was_lost(self, play: QueuePlay) -> None:
        """A connection that is lost is opened again."""
        self._again(play, play.stage.give_up)

    def test_consumes_again_after_it_was_cancelled(self, play: QueuePlay) -> None:
        """A consumer that the broker cancels consumes again."""
        self._again(play, play.stage.cancel)

    def test_consumes_again_when_its_queue_is_back(self, play: QueuePlay) -> None:
        """A queue that was away for some seconds is consumed again."""
        self._again(play, lambda _: self._away(play, 5), times=1)

    def test_consumes_again_when_its_queue_is_back_after_a_minute(
        self, play: QueuePlay
    ) -> None:
        """A queue that was away for a minute is consumed again."""
        self._again(play, lambda _: self._away(play, 60), times=1)

    def _away(self, play: QueuePlay, seconds: float) -> None:
        """Remove the queue for some seconds."""
        play.stage.remove_source()
        play.go_on(seconds)
        play.stage.restore_source()

    def _again(
        self, play: QueuePlay, fault: Callable[[Member], None], *, times: int = 2
    ) -> None:
        """Let a fault happen some times, and check that the consumer goes on after each."""
        member = play.start()
        for _ in range(times):
            before = play.send(3)
            play.all_handled(before)
            play.go_on(0.5)
            fault(member)
            after = play.send(3)
            play.all_handled(after)
            play.wait(lambda: member.health().consuming)
        assert play.mistakes(play.sent) == []
