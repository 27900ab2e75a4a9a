"""What every client refuses or says at its start, and what waits or is recorded, on the real brokers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from typing import Any

import kafka as kafka_python
import pytest

from integration.capabilities.bench import Bench
from integration.every_client import CLIENTS
from mqauth import ConfigurationError
from mqauth.brokers import kafka, pika
from mqauth.judging.judge import Judge
from mqauth.testing.stage import wait_until
from mqauth.testing.stage_pika import connect


def told(caplog: pytest.LogCaptureFixture, event: str) -> list[str]:
    """Return the lines of an event."""
    return [
        record.getMessage()
        for record in caplog.records
        if getattr(record, "event", "") == event
    ]


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


GUEST = {"user-id": "guest"}
"""RabbitMQ takes this property only from the user of that name."""


def test_user_id(bench: Bench) -> None:
    """RabbitMQ's user is compared with the subject; Kafka has no such thing, and its consumer does not start."""
    bench.guard = bench.pipeline(user_id={"guest": bench.forge.subject})
    if not bench.on_rabbitmq:
        with (
            pytest.raises(ConfigurationError, match="Kafka's records have none"),
            bench.consuming(0),
        ):
            pass
        return
    bench.send(bench.signed(b"of its user", properties=GUEST))
    with bench.consuming(1):
        assert bench.bodies() == [b"of its user"]
    bench.guard = bench.pipeline(user_id={"guest": "somebody-else"})
    bench.send(bench.signed(b"of another user", properties=GUEST))
    with bench.consuming(2):
        wait_until(lambda: bench.reasons() == {b"of another user": "subject_mismatch"})


@pytest.mark.parametrize(
    "bench", [name for name in CLIENTS if "faststream" in name], indirect=True
)
def test_transactional_letters_in_faststream(bench: Bench) -> None:
    """FastStream commits the offsets of its records itself, so that no transaction can have them."""

    class Transactional:
        """As much of transactional dead letters as FastStream is given."""

        name = "orders.dead"

    wiring = bench.wiring()
    with (
        pytest.raises(
            ConfigurationError, match="transactional dead letters cannot be used"
        ),
        CLIENTS[bench.client](replace(wiring, letters=Transactional())),
    ):
        pass


def test_a_consumer_with_a_hole_does_not_start(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names what would be let in; nothing is handled, recorded or dead-lettered."""
    bench.send(bench.message(b"forged"))
    monkeypatch.setattr(Judge, "prepare", lambda *_: None)
    with (
        pytest.raises(ConfigurationError, match="self-test: the consumer would let in"),
        bench.consuming(0),
    ):
        pass
    monkeypatch.undo()
    assert (bench.handled, bench.recorded(), bench.reasons()) == ([], [], {})
    with bench.consuming(1):
        wait_until(lambda: bench.reasons() == {b"forged": "token_missing"})
    assert bench.handled == []


def rejected(written: Iterable[Any]) -> str:
    """Return the reason of the first record that has one: others tell of the exemption."""
    return next(
        str(reason)
        for raw in written
        if (reason := json.loads(raw)["reason"]) is not None
    )


@pytest.mark.parametrize(
    "bench", [name for name in CLIENTS if "faststream" in name], indirect=True
)
def test_audit_at_the_broker(bench: Bench) -> None:
    """Once the dead letter is there, so is the record."""
    name = f"{bench.stage.dead}.audit"
    bench.send(bench.message(b"forged"))
    if bench.on_rabbitmq:
        with connect(bench.url) as writing, connect(bench.url) as reading:
            queue = pika.AuditQueue(writing, name)
            queue.declare()
            bench.guard = bench.pipeline(audit=queue)
            with bench.consuming(1):
                wait_until(lambda: len(bench.stage.letters()) == 1)
            channel = reading.channel()
            written = iter(lambda: channel.basic_get(name, auto_ack=True)[2], None)
            assert rejected(written) == "token_missing"
            channel.queue_delete(name)
    else:
        bench.stage.create(name)
        with closing(bench.stage.dead_letter_client()) as producer:
            bench.guard = bench.pipeline(audit=kafka.AuditTopic(producer, name))
            with bench.consuming(1):
                wait_until(lambda: len(bench.stage.letters()) == 1)
        reader = kafka_python.KafkaConsumer(  # type: ignore[attr-defined]
            name,
            bootstrap_servers=bench.stage.servers,
            auto_offset_reset="earliest",
            consumer_timeout_ms=30_000,
        )
        with closing(reader):
            assert rejected(record.value for record in reader) == "token_missing"
        bench.stage.admin.delete_topics([name], raise_errors=False)
