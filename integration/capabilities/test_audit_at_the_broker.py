"""FastStream's consumers write audit records to a queue or topic, each confirmed before its message is settled."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import closing
from typing import Any

import kafka as kafka_python
import pytest

from integration.capabilities.bench import Bench
from integration.every_client import CLIENTS
from mqauth.brokers import kafka, pika
from mqauth.testing.stage import wait_until
from mqauth.testing.stage_pika import connect


def rejected(written: Iterable[Any]) -> str:
    """Return the reason of the first record that has one: others tell of the exemption."""
    return next(str(reason) for raw in written if (reason := json.loads(raw)["reason"]) is not None)


@pytest.mark.parametrize("bench", [name for name in CLIENTS if "faststream" in name], indirect=True)
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
            name, bootstrap_servers=bench.stage.servers, auto_offset_reset="earliest", consumer_timeout_ms=30_000
        )
        with closing(reader):
            assert rejected(record.value for record in reader) == "token_missing"
        bench.stage.admin.delete_topics([name], raise_errors=False)
