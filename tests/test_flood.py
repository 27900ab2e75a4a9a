"""The flood gate: detail is dropped and counted in a flood, the fact never."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace

import pytest

from mqauth import (
    Alert,
    CallableSink,
    ConfigurationError,
    Detector,
    FloodGate,
    MisuseWatch,
    Thresholds,
)
from mqauth.audit.record import AuditRecord
from mqauth.wire import strict_json as strictjson
from tests.conftest import Sink, audit_record


def record(
    number: int = 0, *, verdict: str = "rejected", kid: str = "k", at: float = 0.0
) -> AuditRecord:
    """Return a record of a forgery."""
    return audit_record(
        number, time=1_900_000_000.0 + at, verdict=verdict, reason="signature_invalid", body_sha256="00",
        body_size=1, broker={"destination": "kafka:orders"}, token={"claimed": {"kid": kid}}, key_set="v",
        policy="p", dead_letter=f"dead-{number}",
    )  # fmt: skip


def gated(threshold: int, records: Iterable[AuditRecord]) -> list[AuditRecord]:
    """Return what a gate lets through to its sink."""
    sink = Sink()
    gate = FloodGate(sink, threshold)
    for each in records:
        gate.write(each)
    return sink.records


@pytest.mark.parametrize(
    ("threshold", "records", "whole"),
    [
        pytest.param(5, (record(n, kid="k" if n < 20 else "other") for n in range(21)), [*range(5), 20],
                     id="a flood under one kid leaves another kid's records whole"),
        pytest.param(5, (record(number, kid=f"random-{number}") for number in range(200)), range(50),
                     id="a flood under a new kid each time loses its detail after ten times the threshold"),
        pytest.param(5, (replace(record(n, kid=f"k{n}"), broker={"destination": f"rabbitmq:shop/{n}"})
                         for n in range(1000)), range(500),
                     id="with a new kid and routing key each time, after a hundred times the threshold"),
        pytest.param(1, (record(at=at) for at in (0, 1, 61)), [0, 2],
                     id="what was a flood a minute ago is told whole again"),
        pytest.param(1, (record(verdict="accepted") for _ in range(3)), range(3),
                     id="accepted verdicts are no flood"),
    ],
)  # fmt: skip
def test_how_many_are_told_whole(
    threshold: int, records: Iterable[AuditRecord], whole: Iterable[int]
) -> None:
    """Kinds of records do not flood each other, and a kind is one flood for a minute, whatever it varies."""
    found = gated(threshold, records)
    assert [number for number, each in enumerate(found) if each.detail == "why"] == list(
        whole
    )


def test_facts_are_never_dropped() -> None:
    """Every rejection of a flood leaves a record with its own id and dead letter."""
    records = gated(5, map(record, range(100)))
    assert [found.dead_letter for found in records] == [
        f"dead-{number}" for number in range(100)
    ]
    assert {found.reason for found in records} == {"signature_invalid"}


def test_detail_goes_after_the_threshold() -> None:
    """The first records of a flood are whole; the rest say only that, and the how-many-eth they are."""
    records = gated(5, map(record, range(8)))
    assert [found.extra.get("flood") for found in records] == [None] * 5 + [6, 7, 8]
    assert (records[4].detail, records[5].detail) == ("why", None)
    assert (records[5].token, records[5].broker) == ({}, {})


def test_detectors_see_what_the_gate_drops() -> None:
    """A watch around the gate counts every record, also those whose detail is dropped."""
    sink, told = Sink(), list[Alert]()
    watch = MisuseWatch(
        FloodGate(sink, 2), Detector(Thresholds(burst=50)), on_alert=told.append
    )
    for number in range(60):
        watch.write(record(number))
    assert [alert.kind for alert in told] == [
        "burst",
        "burst",
    ]  # for the kid and for the destination


def test_threshold_is_positive() -> None:
    """A threshold of nothing is refused."""
    with pytest.raises(ConfigurationError):
        FloodGate(Sink(), 0)


def test_what_was_not_written_does_not_count() -> None:
    """A record tried again while the disk is full is one of its kind, and keeps its detail once it is written."""
    sink = Sink()
    gate = FloodGate(Sink(OSError("full")), 5)
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
    large = replace(
        record(kid="k" * 256), detail="x" * 256, broker={"destination": "d" * 256}
    )
    assert len(strictjson.dumps(gated(1, [large] * 2)[1].as_dict())) < 512
