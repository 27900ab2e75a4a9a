"""Signed answers while the broker is out of reach, on a real Kafka."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.services import Kafka
from integration.test_kafka_wrapper import Bench
from mqauth import AuditFile, Verified
from mqauth.brokers import kafka as wrapper
from mqauth.testing.stage_kafka import KafkaStage, wait_until


@pytest.fixture
def bench(kafka: Kafka, tmp_path: Path) -> Iterator[Bench]:
    """A bench with a source of one partition."""
    with AuditFile(tmp_path / "audit.jsonl", fsync=False) as audit:
        bench = Bench(KafkaStage(kafka.url), audit)
        yield bench
        for client in bench.clients:
            client.close()
        bench.stage.close()


def _ask(bench: Bench, topic: str) -> None:
    """Send a request for an answer to a topic."""
    sent: Any = bench.producer().send(bench.stage.topic, b"ping", b"k", [("reply-to", topic.encode())])
    sent.get(timeout=30)


def _replies(bench: Bench, **settings: Any) -> wrapper.Producer:
    """Return a producer that does not wait long."""
    return wrapper.Producer(bench.keep(bench.stage.dead_letter_client(**settings)), bench.forge.signer())


@pytest.mark.parametrize("known", [False, True], ids=["when sent", "when awaited"])
def test_broker_out_of_reach(bench: Bench, kafka: Kafka, known: bool) -> None:
    """A handler whose answer cannot be sent is put off, and not failed, until the broker can be reached again."""
    replies = _replies(bench, max_block_ms=500, request_timeout_ms=2000, delivery_timeout_ms=3000)
    if known:
        assert replies.client.partitions_for(bench.stage.dead)
    _ask(bench, bench.stage.dead)
    came, away = threading.Event(), threading.Event()

    def handler(verified: Verified) -> None:
        came.set()
        away.wait(30)
        verified.reply(b"pong").get(timeout=1)

    with bench.consumer(handler, replies=replies) as consumer:
        assert came.wait(30)
        kafka.pause()
        away.set()
        wait_until(lambda: consumer.health().cause is not None or _rejected(bench))
        kafka.resume()
        wait_until(lambda: bool(bench.stage.letters()) and not consumer.health().stalls)
    assert not _rejected(bench)


@pytest.mark.parametrize("topic", ["no-such-topic", "no topic's name"])
def test_no_such_topic(bench: Bench, topic: str) -> None:
    """An answer to a topic that does not exist is the handler's failure, and holds no partition for ever."""
    replies = _replies(bench, max_block_ms=1000)
    _ask(bench, topic)
    with bench.consumer(lambda verified: verified.reply(b"pong").get(timeout=30), replies=replies):
        wait_until(lambda: _rejected(bench))
        wait_until(lambda: bool(bench.stage.letters()))
    (letter,) = bench.stage.letters()
    assert letter.occurrences("mqauth-dead-reason") == (b"handler_failed",)


def test_a_producer_that_failed_for_good_ends_the_consumer(bench: Bench) -> None:
    """One answer that the broker refuses is its request's failure; the next consumer answers the others."""
    small = bench.stage.topic + ".small"
    bench.stage.create(small, config={"max.message.bytes": "2000"})
    _ask(bench, small)
    _ask(bench, bench.stage.dead)
    answers = {small: b"x" * 5000, bench.stage.dead: b"pong"}

    def fresh() -> wrapper.Producer:
        client = bench.keep(type(bench.stage._client)(bootstrap_servers=bench.stage.servers))
        return wrapper.Producer(client, bench.forge.signer())

    def handler(verified: Verified) -> None:
        verified.reply(answers[verified.properties["reply-to"]]).get(timeout=30)

    with (
        pytest.raises(wrapper.ProducerFatalError, match="MessageSizeTooLargeError"),
        bench.consumer(handler, replies=fresh()) as consumer,
    ):
        wait_until(lambda: consumer.failed)
    consumer.calls._client.close()
    assert bench.audit.path.read_bytes().count(b"handler_failed") == 1
    with bench.consumer(handler, replies=fresh()):
        wait_until(lambda: len(bench.stage.letters()) == 2)
    assert bench.audit.path.read_bytes().count(b"handler_failed") == 1
    bench.stage.admin.delete_topics([small])


def _rejected(bench: Bench) -> bool:
    """Tell whether a request was rejected: its record is written before its letter."""
    return b"handler_failed" in bench.audit.path.read_bytes()
