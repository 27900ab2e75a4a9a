"""The part of the queue delivery contract on messages that wait for their handler, for keys, or for a store."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from mqauth import Cause, RetryLater, Verified
from tests.kit.delivery_play import LATER
from tests.kit.delivery_play_queue import OTHER, Gate, Keys, QueuePlay

ATTEMPTS: Final = 8
"""Attempts of one message in a second that are too many; a back-off of a tenth of a second makes four at first."""
RETURNED_ONCE: Final = 2
"""Deliveries of a message that went back to the queue once."""
RESTARTS: Final = 25
"""More than a queue's delivery limit."""


class WaitingContract:
    """What every wrapper of a queue broker must do with messages put off; each docstring is the promise."""

    def test_what_is_put_off_is_not_settled(self, play: QueuePlay) -> None:
        """A message that a handler puts off is not acked; after the stop the next consumer handles it."""
        bodies = play.send(3)
        play.start(play.later())
        play.wait(lambda: len(play.calls) >= 4)
        play.stop_all()
        assert play.stage.left() == 3
        play.start()
        play.all_handled(bodies)
        assert play.reasons() == []

    def test_what_is_put_off_is_not_tried_hotly(self, play: QueuePlay) -> None:
        """A message that waits is tried less and less often, stays with its consumer, and others are handled."""
        (body,) = play.send(1)
        play.start(play.later(body))
        others = play.send(10)
        play.all_handled(others)
        play.go_on(3)
        assert 2 <= len(play.calls) <= 3 * ATTEMPTS
        assert play.stage.deliveries(body) == 1

    def test_what_is_put_off_is_not_overtaken(self, play: QueuePlay) -> None:
        """A consumer that takes one message at a time handles them in order, also if one is put off."""

        def handler(verified: Verified) -> Iterator[float]:
            if verified.body == bodies[1]:
                tried.append(play.clock.monotonic())
                if tried[-1] - tried[0] < 1:
                    raise RetryLater("not now")
            yield from play.handle(verified)

        tried: list[float] = []
        bodies = play.send(4)
        play.start(handler, prefetch=1)
        play.all_handled(bodies)
        assert play.bodies == bodies

    def test_what_is_put_off_starves_nobody(self, play: QueuePlay) -> None:
        """A window full of messages that each wait for a cause of their own lets the others pass."""
        waiting = play.send(8)
        play.start(play.later(*waiting), prefetch=4)
        play.all_handled(play.send(12))
        play.go_on(1.5)
        play.all_handled(play.send(4))
        assert {play.stage.deliveries(body) for body in waiting} == {1}

    def test_an_issuer_starves_nobody(self, play: QueuePlay) -> None:
        """A window full of messages of an unreachable issuer lets others pass; they are handled later."""
        keys, waiting = Keys(play.forge.keys), play.send(8, issuer=OTHER)
        member = play.start(prefetch=4, **play.two_issuers(keys))
        play.all_handled(play.send(12))
        play.go_on(1.5)
        play.all_handled(play.send(4))
        assert member.health().cause is Cause.KEYS_UNAVAILABLE
        keys.away = False
        play.all_handled(waiting)
        assert play.mistakes(play.sent) == []

    def test_an_outage_requeues_nothing_hotly(self, play: QueuePlay) -> None:
        """While a dependency of all messages is away nothing is consumed, and each goes back at most once."""
        store = Gate(play.store)
        member = play.start(replay=store)
        store.away = True
        bodies = play.send(3)
        play.wait(lambda: not member.health().consuming)
        play.go_on(0.5)
        assert max(map(play.stage.deliveries, bodies)) <= RETURNED_ONCE
        assert member.health().cause is Cause.REPLAY_STORE_UNAVAILABLE
        store.away = False
        play.all_handled(bodies)
        play.wait(lambda: member.health().consuming)
        assert max(map(play.stage.deliveries, bodies)) <= RETURNED_ONCE
        assert play.mistakes(bodies) == []

    def test_the_time_of_receipt_survives(self, play: QueuePlay) -> None:
        """A message that went back in an outage is judged by its first receipt, however long the outage was."""
        store = Gate(play.store)
        member = play.start(replay=store)
        store.away = True
        bodies = play.send(3)
        play.wait(lambda: not member.health().consuming and play.stage.left() == 3)
        play.stage.advance(LATER)
        store.away = False
        play.all_handled(bodies)
        assert play.mistakes(bodies) == []

    def test_restarts_put_nothing_away(self, play: QueuePlay) -> None:
        """A message that a handler puts off over many restarts is dead-lettered, not put away by the broker."""
        play.send(1)
        for _ in range(RESTARTS):
            before = len(play.calls)
            play.start(play.later())
            play.wait(
                lambda before=before: len(play.calls) > before or bool(play.reasons())
            )  # type: ignore[misc]
            play.stop_all()
        assert (play.reasons(), play.stage.put_away(), play.stage.left()) == (
            ["handler_failed"],
            0,
            0,
        )
