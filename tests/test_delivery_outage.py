"""Since when a consumer does not consume, and how it is told."""

from __future__ import annotations

import logging

import pytest

from mqauth.delivery.window import OUTAGE_AFTER, Outage
from mqauth.errors import Cause
from mqauth.testing import FakeClock


def test_long(caplog: pytest.LogCaptureFixture) -> None:
    """Not consuming is a cause after a minute, with the last error, until it consumes again."""
    clock = FakeClock()
    absence = Outage("billing", clock)
    clock.advance(OUTAGE_AFTER)
    assert absence.long() is None
    absence.begin()
    began = clock.now()
    clock.advance(OUTAGE_AFTER - 1)
    assert (absence.lasts, absence.long()) == (True, None)
    clock.advance(1)
    assert absence.long() == (Cause.BROKER_UNAVAILABLE, began, "cannot consume: the connection is down")
    with caplog.at_level(logging.WARNING, "mqauth.delivery"):
        absence.failed(ConnectionError("no queue 'billing'"))
    assert absence.long() == (Cause.BROKER_UNAVAILABLE, began, "cannot consume: no queue 'billing'")
    assert "cannot consume billing now, trying again: no queue 'billing'" in caplog.text
    absence.failed(TimeoutError())
    assert absence.long() == (Cause.BROKER_UNAVAILABLE, began, "cannot consume: TimeoutError")
    absence.end()
    assert (absence.lasts, absence.long()) == (False, None)
