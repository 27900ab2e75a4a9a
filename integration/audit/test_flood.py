"""A flood of forgeries through real brokers; `python -m integration.audit.flood` does the same with 100,000."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from integration.audit.flood import KafkaSource, RabbitMQSource, flood
from integration.scale import nightly

FORGED = nightly(5000, otherwise=400)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "forged"), [(RabbitMQSource, FORGED), (KafkaSource, min(FORGED, 1000))])
def test_flood(
    kind: Any, forged: int, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Audit bytes and alerts are bounded, every honest message is handled, every forged one dead-lettered."""
    broker = "rabbitmq" if kind is RabbitMQSource else "kafka"
    source = kind(request.getfixturevalue(broker).url)
    try:
        counts = flood(source, broker, forged, tmp_path)
    finally:
        source.close()
    with capsys.disabled():
        print("\n" + "\n".join(counts.lines()))
    assert counts.good, counts
    assert counts.flooded > 0
    assert counts.alerts > 0
