"""Since when a consumer does not consume, and how it is told."""

from __future__ import annotations

import logging

import pytest

from mqauth.delivery.window import OUTAGE_AFTER, Window
from mqauth.errors import Cause
from mqauth.testing import FakeClock
from tests.delivery_parts import hold


def test_long(caplog: pytest.LogCaptureFixture) -> None:
    """Not consuming is a cause after a minute, with the last error, until it consumes again."""
    clock = FakeClock()
    window = Window("billing", clock, hold(clock), 10)

    def told() -> tuple[Cause | None, float | None, str | None]:
        health = window.health(in_flight=0, unsettled=0, blocked=False)
        return health.cause, health.stalled_since, health.detail

    clock.advance(OUTAGE_AFTER)
    assert told() == (None, None, None)
    window.begins()
    began = clock.now()
    clock.advance(OUTAGE_AFTER - 1)
    assert (window.is_out, told()) == (True, (None, None, None))
    clock.advance(1)
    assert told() == (Cause.BROKER_UNAVAILABLE, began, "cannot consume: the connection is down")
    with caplog.at_level(logging.WARNING, "mqauth.delivery"):
        window.cannot(ConnectionError("no queue 'billing'"))
    assert told() == (Cause.BROKER_UNAVAILABLE, began, "cannot consume: no queue 'billing'")
    assert "cannot consume billing now, trying again: no queue 'billing'" in caplog.text
    window.cannot(TimeoutError())
    assert told() == (Cause.BROKER_UNAVAILABLE, began, "cannot consume: TimeoutError")
    window.consumes("tag")
    assert (window.is_out, told()) == (False, (None, None, None))
