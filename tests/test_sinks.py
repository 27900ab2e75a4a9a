"""Audit sinks beside the file: who must succeed, who may fail, and what the misuse watch adds."""

from __future__ import annotations

import asyncio
import json
import logging
from types import SimpleNamespace
from typing import Any

import pytest

from mqauth import Alert, Detector, FanOut, LoggingSink, MisuseWatch, Thresholds
from mqauth.audit.record import AuditRecord
from tests.conftest import Sink, audit_record, together


class AsyncSink(Sink):
    """The same, asynchronous."""

    async def write(self, record: AuditRecord, /) -> None:  # type: ignore[override]
        super().write(record)


def rejected(reason: str = "key_revoked", number: int = 0) -> AuditRecord:
    """Return a record of a rejection."""
    token = {
        "verified": {"iss": "i", "sub": "s", "kid": "k", "jti": "j"},
        "thumbprint": None,
    }
    return audit_record(
        number,
        time=1_900_000_000.0 + number,
        reason=reason,
        broker={"destination": "kafka:orders"},
        token=token,
    )


def finish(result: Any) -> None:
    """Await what a sink gave back, if it gave anything."""
    if result is not None:
        asyncio.run(_await(result))


async def _await(result: Any) -> None:
    await result


def test_logging_sink(caplog: pytest.LogCaptureFixture) -> None:
    """A rejection is one warning line of JSON."""
    with caplog.at_level(logging.INFO, "mqauth.audit"):
        LoggingSink().write(rejected())
    (line,) = caplog.records
    assert line.levelno == logging.WARNING
    assert json.loads(line.getMessage())["reason"] == "key_revoked"


@pytest.mark.parametrize("kind", [Sink, AsyncSink])
def test_fan_out_second_sink_may_fail(
    kind: type[Sink], caplog: pytest.LogCaptureFixture
) -> None:
    """A second sink that fails is counted and logged, and the message goes on."""
    durable = Sink()
    fan = FanOut(durable, kind(OSError("disk")))
    finish(fan.write(rejected()))
    assert (len(durable.records), fan.failures) == (1, 1)
    assert "lost a record: OSError" in caplog.text


@pytest.mark.parametrize("kind", [Sink, AsyncSink])
def test_fan_out_durable_must_not_fail(kind: type[Sink]) -> None:
    """The durable sink's failure is raised, and no other sink has the record."""
    other = Sink()
    with pytest.raises(OSError, match="disk"):
        finish(FanOut(kind(OSError("disk")), other).write(rejected()))
    assert other.records == []


def broken(_told: object) -> Any:
    """Fail."""
    raise ValueError


@pytest.mark.parametrize(
    ("settings", "records", "said"),
    [
        ({"on_alert": broken}, 2, "alert callback failed: ValueError"),
        (
            {"detector": SimpleNamespace(observe=broken)},
            1,
            "misuse detector failed: ValueError",
        ),
    ],
)
def test_watch_survives(
    settings: Any, records: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A callback or a detector that fails is logged: the record is durable, and raised it would come again."""
    sink = Sink()
    MisuseWatch(sink, **settings).write(rejected())
    assert len(sink.records) == records
    assert said in caplog.text


@pytest.mark.parametrize("kind", [Sink, AsyncSink])
def test_watch_alert_not_written_twice(
    kind: type[Sink], caplog: pytest.LogCaptureFixture
) -> None:
    """An alert that cannot be written is logged; its record, which is durable, is not asked for again."""

    class Full(kind):  # type: ignore[misc,valid-type]
        def write(self, record: AuditRecord, /) -> Any:
            if record.verdict == "alert":
                self.error = OSError("disk")
            return super().write(record)

    sink = Full()
    finish(MisuseWatch(sink, Detector(Thresholds())).write(rejected()))
    assert [record.verdict for record in sink.records] == ["rejected"]
    assert "alert could not be written: OSError" in caplog.text


def test_watch_is_shared_between_threads() -> None:
    """Eight threads lose no record and count every alert once."""
    sink, told = Sink(), list[Alert]()
    watch = MisuseWatch(
        sink, Detector(Thresholds(burst=800, capacity=8)), on_alert=told.append
    )
    together(
        lambda _: [watch.write(rejected("signature_invalid")) for _ in range(100)],
        range(8),
    )
    assert [record.verdict for record in sink.records].count("rejected") == 800
    assert [alert.kind for alert in told] == ["burst"] * 4
