"""The flood gate: detail is dropped and counted in a flood, the fact never."""

from __future__ import annotations

import pytest

from mqauth.audit.misuse import Alert, Detector, Thresholds
from mqauth.audit.record import AuditRecord
from mqauth.audit.sinks import FloodGate, MisuseWatch
from mqauth.errors import ConfigurationError


class Sink:
    """Keeps records."""

    def __init__(self) -> None:
        self.records: list[AuditRecord] = []

    def write(self, record: AuditRecord, /) -> None:
        self.records.append(record)


def record(number: int = 0, *, verdict: str = "rejected", kid: str = "k", at: float = 0.0) -> AuditRecord:
    """Return a record of a forgery."""
    return AuditRecord(
        id=f"id-{number}", time=1_900_000_000.0 + at, verdict=verdict, reason="signature_invalid", detail="why",
        scope="billing", broker={"destination": "kafka:orders"}, token={"claimed": {"kid": kid}},
        body_sha256="00", body_size=1, key_set="v", policy="p", dead_letter=f"dead-{number}", instance="me",
    )  # fmt: skip


def test_a_minute_later_detail_is_back() -> None:
    """What was a flood a minute ago is told whole again."""
    sink = Sink()
    gate = FloodGate(sink, 1)
    for at in (0, 1, 61):
        gate.write(record(at=at))
    assert [found.detail for found in sink.records] == ["why", None, "why"]


def test_detectors_see_what_the_gate_drops() -> None:
    """A watch around the gate counts every record, also those whose detail is dropped."""
    sink, told = Sink(), list[Alert]()
    watch = MisuseWatch(FloodGate(sink, 2), Detector(Thresholds(burst=50)), on_alert=told.append)
    for number in range(60):
        watch.write(record(number))
    assert [alert.kind for alert in told] == ["burst", "burst"]  # for the kid and for the destination


def test_threshold_is_positive() -> None:
    """A threshold of nothing is refused."""
    with pytest.raises(ConfigurationError):
        FloodGate(Sink(), 0)
