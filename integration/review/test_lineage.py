"""What a second letter tells of the first, on real brokers."""

from __future__ import annotations

import json
from typing import Any

from integration.review.scene import Scene
from mqauth import Reason
from mqauth.errors import RejectNow
from mqauth.review import Reading


class Refusing(list[Any]):
    """A handler that refuses every message for good."""

    def append(self, verified: Any) -> None:
        """Refuse."""
        raise RejectNow("no such order")


def newest(scene: Scene) -> Reading:
    """Return the only open letter."""
    with scene.session() as found:
        reading: Reading = scene.look(found, lambda index: index.reading(index.page()[0].number))
    return reading


def test_a_letter_tells_of_those_before_it(scene: Scene) -> None:
    """Released and refused by the handler twice: three counted, two told, by id and reason."""
    scene.stage.inject(scene.message("expired", 0))
    scene.consume(1)
    scene.handled = Refusing()
    ids = []
    for count in (1, 2):
        reading = newest(scene)
        assert (reading.count, reading.intact) == (count, True)
        ids.append(reading.id)
        with scene.session() as found:
            assert scene.redrive(found, Reason.EXPIRED).done == 1
        scene.consume(1)
    last = newest(scene)
    assert (last.count, last.reason) == (3, "handler_failed")
    assert [(hop["id"], hop["reason"]) for hop in last.history] == [
        (ids[0], "expired"), (ids[1], "handler_failed")
    ]  # fmt: skip
    assert json.loads(json.dumps(last.as_dict()))["count"] == 3
