"""The flood gate: detail is dropped and counted in a flood, the fact never."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from mqauth.audit.misuse import Alert, Detector, Thresholds
from mqauth.audit.record import AuditRecord
from mqauth.audit.sinks import CallableSink, FloodGate, MisuseWatch
from mqauth.errors import ConfigurationError
from mqauth.wire import strict_json as strictjson


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


def test_facts_are_never_dropped() -> None:
    """Every rejection of a flood leaves a record with its own id and dead letter."""
    sink = Sink()
    gate = FloodGate(sink, 5)
    for number in range(100):
        gate.write(record(number))
    assert [found.dead_letter for found in sink.records] == [f"dead-{number}" for number in range(100)]
    assert {found.reason for found in sink.records} == {"signature_invalid"}


def test_detail_goes_after_the_threshold() -> None:
    """The first records of a flood are whole; the rest say only that, and the how-many-eth they are."""
    sink = Sink()
    gate = FloodGate(sink, 5)
    for number in range(8):
        gate.write(record(number))
    assert [found.extra.get("flood") for found in sink.records] == [None] * 5 + [6, 7, 8]
    assert (sink.records[4].detail, sink.records[5].detail) == ("why", None)
    assert (sink.records[5].token, sink.records[5].broker) == ({}, {})


def test_kinds_do_not_flood_each_other() -> None:
    """A flood under one kid leaves another kid's records whole."""
    sink = Sink()
    gate = FloodGate(sink, 5)
    for number in range(20):
        gate.write(record(number))
    gate.write(record(21, kid="other"))
    assert sink.records[-1].detail == "why"


def test_random_kids_are_one_flood() -> None:
    """A flood under a new kid each time loses its detail after ten times the threshold."""
    sink = Sink()
    gate = FloodGate(sink, 5)
    for number in range(200):
        gate.write(record(number, kid=f"random-{number}"))
    assert [found.detail for found in sink.records].count("why") == 50


def test_a_minute_later_detail_is_back() -> None:
    """What was a flood a minute ago is told whole again."""
    sink = Sink()
    gate = FloodGate(sink, 1)
    for at in (0, 1, 61):
        gate.write(record(at=at))
    assert [found.detail for found in sink.records] == ["why", None, "why"]


def test_other_verdicts_pass_whole() -> None:
    """Accepted verdicts and alerts are no flood."""
    sink = Sink()
    gate = FloodGate(sink, 1)
    for _ in range(3):
        gate.write(record(verdict="accepted"))
    assert [found.detail for found in sink.records] == ["why"] * 3


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


def test_random_destinations_are_one_flood() -> None:
    """A flood under a new kid and routing key each time loses its detail after a hundred times the threshold."""
    sink = Sink()
    gate = FloodGate(sink, 5)
    for number in range(1000):
        gate.write(
            replace(record(number, kid=f"random-{number}"), broker={"destination": f"rabbitmq:shop/{number}"})
        )
    assert [found.detail for found in sink.records].count("why") == 500


def test_what_was_not_written_does_not_count() -> None:
    """A record tried again while the disk is full is one of its kind, and keeps its detail once it is written."""
    sink = Sink()
    gate = FloodGate(CallableSink(_refuse), 5)
    for _ in range(20):
        with pytest.raises(OSError, match="full"):
            gate.write(record())
    gate.sink = sink
    gate.write(record())
    assert sink.records[0].detail == "why"


def test_asynchronous_sink_counts_too() -> None:
    """Records of a flood lose their detail over an asynchronous sink as well."""
    sink = Sink()

    async def write(found: AuditRecord) -> None:
        sink.write(found)

    async def flood() -> None:
        gate = FloodGate(CallableSink(write), 5)
        for number in range(8):
            written = gate.write(record(number))
            assert written is not None
            await written

    asyncio.run(flood())
    assert [found.extra.get("flood") for found in sink.records] == [None] * 5 + [6, 7, 8]


def test_flooded_record_is_small() -> None:
    """A record of a flood is under half a kilobyte, whatever the sender wrote."""
    sink = Sink()
    gate = FloodGate(sink, 1)
    for number in range(2):
        gate.write(replace(record(number, kid="k" * 256), detail="x" * 256, broker={"destination": "d" * 256}))
    assert len(strictjson.dumps(sink.records[1].as_dict())) < 512


def _refuse(_record: AuditRecord) -> None:
    raise OSError("full")
