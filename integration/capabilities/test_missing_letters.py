"""A dead-letter queue or topic that is missing: told at the start, and no verdict is hidden, on every client."""

from __future__ import annotations

import pytest

from integration.capabilities.bench import Bench
from mqauth.testing.stage import wait_until


def told(caplog: pytest.LogCaptureFixture, event: str) -> list[str]:
    """Return the lines of an event."""
    return [record.getMessage() for record in caplog.records if getattr(record, "event", "") == event]


def test_there(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Of one that is there nothing is said."""
    bench.send(bench.signed(b"order"))
    with bench.consuming(1):
        assert told(caplog, "consumer.sink_missing") == []


@pytest.mark.slow
def test_missing(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """The consumer warns and starts, honest messages are handled, and what waits is told with its verdict."""
    stage = bench.stage
    stage.remove_dead_letters()
    bench.send(bench.signed(b"order"))
    with bench.consuming(1) as running:
        warned = f"{stage.dead} does not exist: until it does, what is rejected waits unsettled"
        assert told(caplog, "consumer.sink_missing") == [warned]
        bench.send(bench.message(b"forged"))
        wait_until(lambda: bool(told(caplog, "message.deferred")))
        verdict = f"({stage.dead}); its verdict is token_missing: no token header"
        assert "waits, dead_letter_unavailable: " in told(caplog, "message.deferred")[0]
        assert verdict in told(caplog, "message.deferred")[0]
        if running.health is not None:
            assert verdict in str(running.health().detail)
        stage.restore_dead_letters()
        wait_until(lambda: len(stage.letters()) == 1)
