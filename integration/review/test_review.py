"""Dead letters of eight kinds on a real RabbitMQ and a real Kafka: reviewed, and everything adds up."""

from __future__ import annotations

import threading

from integration.review.scenario import Story
from integration.review.scene import Scene

EACH = 25


def test_letters_of_eight_kinds(scene: Scene) -> None:
    """200 letters: grouped, judged, redriven, released, discarded; zero difference, every act in the chain."""
    Story(scene, lambda line: None).play(EACH)


def test_letters_that_are_left_stay_and_a_cancelled_run_adds_up(scene: Scene) -> None:
    """Browsing three times consumes nothing; cancelled after three, exactly three are gone."""
    scene.fill(2)
    with scene.session() as found:
        for _ in range(3):
            assert scene.look(found, lambda index: index.count()) == 16
        cancelled = threading.Event()
        done = found.act(
            scene.plan("discard", rate=200), scene.freeze(found), cancelled=cancelled,
            progress=lambda so_far: cancelled.set() if so_far == 3 else None,
        )  # fmt: skip
        assert (done.done, done.left, done.cancelled) == (3, 13, True)
        assert scene.look(found, lambda index: index.count()) == 13
        assert scene.ledger(found).difference == 0
    with scene.session() as found:
        assert scene.look(found, lambda index: index.count()) == 13
