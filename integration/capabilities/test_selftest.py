"""A consumer with a hole does not start, whatever its client: it takes no message from a real broker."""

from __future__ import annotations

import pytest

from integration.capabilities.bench import Bench
from mqauth import ConfigurationError
from mqauth.judging.judge import Judge
from mqauth.testing.stage import wait_until


def test_a_consumer_with_a_hole_does_not_start(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names what would be let in; nothing is handled, recorded or dead-lettered."""
    bench.send(bench.message(b"forged"))
    monkeypatch.setattr(Judge, "prepare", lambda *_: None)
    with pytest.raises(ConfigurationError, match="self-test: the consumer would let in"), bench.consuming(0):
        pass
    monkeypatch.undo()
    assert (bench.handled, bench.recorded(), bench.reasons()) == ([], [], {})
    with bench.consuming(1):
        wait_until(lambda: bench.reasons() == {b"forged": "token_missing"})
    assert bench.handled == []
