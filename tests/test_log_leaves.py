"""What the leaves of all Kafka clients have in common: producers, letters, answers and transactional letters."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka import errors as aio_errors
from confluent_kafka import Consumer, KafkaError

from mqauth import Pipeline, Verdict
from mqauth.brokers import aiokafka, confluent
from mqauth.brokers.aiokafka.membership import Membership
from mqauth.brokers.closing import CLOSE_WITHIN
from mqauth.brokers.confluent.client import carries as confluent_carries
from mqauth.brokers.confluent.positions import Place
from mqauth.brokers.log.records import carries as log_carries
from mqauth.delivery.start import Committed
from mqauth.errors import (
    Cause,
    ConfigurationError,
    MalformedMessage,
    Reason,
    RetryLater,
    Unavailable,
)
from mqauth.testing import Forge
from mqauth.wire.message import TOKEN_HEADER, Message, Origin
from tests.conftest import KAFKA
from tests.log_leaves import (
    AIOKAFKA,
    CONFLUENT,
    IDEMPOTENT,
    LEAVES,
    QUIET,
    AioClient,
    ConfluentClient,
    KafkaClient,
    LogLeaf,
    Sink,
    aiokafka_record,
    confluent_record,
    done,
    forge,
    guard,
    kafka_error,
    letter,
)

__all__ = ["forge", "guard"]

METADATA = "mqauth partitions=2"


@pytest.fixture(params=LEAVES.values(), ids=LEAVES)
def leaf(request: pytest.FixtureRequest) -> LogLeaf:
    """Each leaf."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(params=[CONFLUENT, AIOKAFKA], ids=["confluent", "aiokafka"])
def sealing(request: pytest.FixtureRequest) -> LogLeaf:
    """The leaves whose batches are tested here; kafka-python's stand in ``test_kafka_sealing``."""
    return request.param  # type: ignore[no-any-return]


# Records


RECORDS = pytest.mark.parametrize(
    ("module", "record"),
    [(confluent, confluent_record), (aiokafka, aiokafka_record)],
    ids=["confluent", "aiokafka"],
)


@RECORDS
def test_fields(module: Any, record: Any) -> None:
    """Every field of a record is its message's."""
    native = record(headers=[("a", b"1"), ("a", None)], timestamp_type=1)
    message = module.from_native(native, scope="billing", log=module.Log("cluster"))
    assert message.origin == Origin(
        topic="orders", partition=0, offset=7, timestamp_ms=99, timestamp_type="append", scope="billing",
        cluster="cluster",
    )  # fmt: skip
    assert (message.destination, message.body, message.key, message.headers) == (
        KAFKA, b"x", b"k", (("a", b"1"), ("a", None)),
    )  # fmt: skip
    assert (message.malformed, message.native) == (None, native)


@RECORDS
def test_no_fields(module: Any, record: Any) -> None:
    """A record without headers, key, body or timestamp is one all the same."""
    message = module.from_native(
        record(key=None, value=None, timestamp=-1), scope="billing"
    )
    assert (message.body, message.key, message.headers, message.malformed) == (
        None,
        None,
        (),
        None,
    )
    assert message.origin.timestamp_ms is None


@pytest.mark.parametrize(
    ("carries", "name", "value", "sent"),
    [
        (confluent_carries, "a", b"1", True), (confluent_carries, "a\0b", b"1", False),
        (confluent_carries, "a\ud800", b"1", False), (confluent_carries, "a", None, False),
        (log_carries, "a", b"1", True), (log_carries, "a", None, False), (log_carries, "a", "text", False),
    ],
)  # fmt: skip
def test_carries(carries: Any, name: str, value: Any, sent: bool) -> None:
    """A letter has a header as a header only where the client sends it unchanged."""
    assert carries(name, value) is sent


@RECORDS
async def test_judge(module: Any, record: Any, guard: Pipeline, forge: Forge) -> None:
    """A verdict for who polls by himself: accepted, put back, confirmed, and a copy elsewhere is rejected."""
    signed = forge.signer().sign(Message(destination=KAFKA, body=b"x", key=b"k"))
    headers = list(signed.headers)
    judgement = await done(module.judge(guard, record(headers=headers), scope="billing"))
    assert judgement.verdict is Verdict.ACCEPTED
    assert (await done(judgement.release())).verdict is Verdict.DEFERRED
    assert (await done(judgement.again())).verdict is Verdict.ACCEPTED
    assert (await done(judgement.confirm())).verdict is Verdict.ACCEPTED
    copy = await done(
        module.judge(guard, record(headers=headers, offset=8), scope="billing")
    )
    assert copy.reason is Reason.REPLAYED
    assert (await done(copy.dead_letter(Sink()))).verdict is Verdict.REJECTED
    with pytest.raises(ConfigurationError, match=r"is needed"):
        await done(module.judge(guard, object(), scope="g"))


# The producer


@pytest.mark.parametrize(
    ("leaf", "wrong"),
    [
        (LEAVES["kafka-python"], lambda: KafkaClient(value_serializer=str.encode)),
        (LEAVES["kafka-python"], lambda: KafkaClient(key_serializer=str.encode)),
        (AIOKAFKA, lambda: AioClient(value_serializer=str.encode)), (AIOKAFKA, ConfluentClient),
        (CONFLUENT, object),
    ],
)  # fmt: skip
async def test_clients_refused(leaf: LogLeaf, wrong: Any, forge: Forge) -> None:
    """A client of another library, or whose serializer would change what was signed, is refused by name."""
    client = wrong()
    with pytest.raises(
        ConfigurationError, match=rf"_serializer|is needed, not .*{type(client).__name__}"
    ):
        leaf.producer(client, forge)
    with pytest.raises(
        ConfigurationError, match=r"_serializer|is needed, not|confirms need"
    ):
        leaf.letters(client)


@pytest.mark.parametrize(
    ("leaf", "settings", "warned"),
    [
        (LEAVES["kafka-python"], {"enable_idempotence": False}, True), (LEAVES["kafka-python"], {}, False),
        (AIOKAFKA, {"enable_idempotence": False}, True), (AIOKAFKA, {}, False),
        (CONFLUENT, {}, True), (CONFLUENT, IDEMPOTENT, False), (CONFLUENT, {"enable_idempotence": "true"}, False),
    ],
)  # fmt: skip
async def test_retries(
    leaf: LogLeaf,
    settings: Any,
    warned: bool,
    forge: Forge,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Who lets the client's own retries make second copies is told once; an idempotent one is not."""
    if leaf is CONFLUENT:
        leaf.producer(leaf.client(), forge, config=settings)
    else:
        leaf.producer(leaf.client(**settings), forge)
    assert ["idempotence" in each.getMessage() for each in caplog.records] == [
        True
    ] * warned


async def test_producer_settings_refused(leaf: LogLeaf, forge: Forge) -> None:
    """Settings that can do nothing are refused."""
    wrong: list[dict[str, Any]] = [{"batch": 0}]
    wrong += [] if leaf is AIOKAFKA else [{"max_in_flight": 0}, {"max_in_flight": -1}]
    wrong += [{"config": None}] if leaf is CONFLUENT else []
    for settings in wrong:
        with pytest.raises(ConfigurationError):
            leaf.producer(leaf.client(), forge, **settings)


@pytest.mark.parametrize("batch", [1, 8])
async def test_send(batch: int, leaf: LogLeaf, forge: Forge) -> None:
    """The client gets what was signed, each record with a token of its own, the token last, the rest as said."""
    if leaf.module is LEAVES["kafka-python"].module:
        batch = 1  # its batches are in ``test_kafka_sealing``
    client, headers = leaf.client(), [("content-type", b"a/b"), ("a", b"1")]
    producer = leaf.producer(client, forge, batch=batch)
    results = [
        await done(leaf.send(producer, "orders", b"x", b"k", 3, 5, headers)),
        await done(leaf.send(producer, "orders", b"y")),
    ]
    for result in results:
        await done(result.result())
    first, second = client.sent
    stamp = "timestamp" if leaf is CONFLUENT else "timestamp_ms"
    assert (first["topic"], first["value"], first["key"], first["partition"], first[stamp]) == (
        "orders", b"x", b"k", 3, 5,
    )  # fmt: skip
    assert [name for name, _ in first["headers"]] == ["content-type", "a", TOKEN_HEADER]
    assert (second["partition"], second[stamp]) == (
        (-1, 0) if leaf is CONFLUENT else (None, None)
    )
    assert headers == [("content-type", b"a/b"), ("a", b"1")]
    verifier, places = forge.verifier(), set()
    for sent in client.sent:
        message = Message(
            destination=KAFKA, body=sent["value"], key=sent["key"], headers=tuple(sent["headers"]),
        )  # fmt: skip
        seen = verifier.verify(
            message, verifier.open(message), forge.keys, forge.clock.now()
        )
        places.add(seen.jti)
    assert len(places) == 2


async def test_serializer(leaf: LogLeaf, forge: Forge) -> None:
    """What ``value_serializer`` makes is signed; bytes and tombstones pass, and other values are refused."""
    client = leaf.client()
    producer = leaf.producer(client, forge, value_serializer=str.encode, batch=1)
    for value in ("text", b"bytes", None):
        await done(leaf.send(producer, "orders", value, b"k"))
    assert [sent["value"] for sent in client.sent] == [b"text", b"bytes", None]
    with pytest.raises(MalformedMessage):
        await done(leaf.send(leaf.producer(client, forge), "orders", "text"))


async def test_a_failure_for_good(leaf: LogLeaf, forge: Forge) -> None:
    """A client that has failed for good is named, and nothing more is given to it."""
    client = leaf.client()
    producer = leaf.producer(client, forge, batch=1)
    if leaf is AIOKAFKA:
        client._message_accumulator._exception = aio_errors.ProducerFenced()
    elif leaf is CONFLUENT:
        client.outcomes = [kafka_error(KafkaError._FATAL)]
    else:
        error = leaf.errors["refused"]
        client._transaction_manager = SimpleNamespace(
            last_error=error, has_fatal_error=lambda: True
        )
    for _ in range(2):
        with pytest.raises(
            leaf.module.ProducerFatalError,
            match=r"ProducerFenced|_FATAL|TopicAuthorization",
        ):
            await done(leaf.send(producer, "orders", b"x"))
    assert client.sent == []


async def test_a_record_refused(leaf: LogLeaf, forge: Forge) -> None:
    """What the client refuses of one record says nothing about the next, and takes no place in flight."""
    client = leaf.client()
    producer = leaf.producer(
        client, forge, batch=1, **({} if leaf is AIOKAFKA else {"max_in_flight": 1})
    )
    leaf.expects(client, *[leaf.at_once(leaf.errors["too large"])] * 2)
    for _ in range(2):
        with leaf.raises("too large"):
            await done(leaf.send(producer, "orders", b"x"))
    await done(leaf.send(producer, "orders", b"y"))
    assert [sent["value"] for sent in client.sent] == [b"y"]


async def test_a_batch_fails_alone(sealing: LogLeaf, forge: Forge) -> None:
    """What the client refuses of a batch, at once or later, fails its own record; the others go on."""
    client, errors = sealing.client(), sealing.errors
    client.deaf = True
    producer = sealing.producer(client, forge, batch=4, linger=10)
    await done(sealing.send(producer, "orders", b"first"))
    client.deaf = False
    client.outcomes = [sealing.at_once(errors["too large"]), errors["late"], None]
    results = [
        await done(sealing.send(producer, "orders", b"%d" % number))
        for number in range(3)
    ]
    for result, name in zip(results, ("too large", "late", None), strict=True):
        with sealing.raises(name) if name else nullcontext():
            await done(result.result())


async def test_a_batch_without_key(
    sealing: LogLeaf, forge: Forge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records of a batch that cannot be sealed fail, and are never sent."""
    client, signer = sealing.client(), forge.signer()
    client.deaf = True
    producer = sealing.module.Producer(
        client, signer, batch=4, linger=10, **sealing.config
    )
    await done(sealing.send(producer, "orders", b"0"))
    waiting = await done(sealing.send(producer, "orders", b"1"))

    def no_key(_signer: Any, _prepared: Any) -> Any:
        raise ConfigurationError("there is no key")

    monkeypatch.setattr(type(signer), "tokens", no_key)
    client.deaf = False
    with pytest.raises(Exception, match=r"no key|_FAIL"):
        await done(waiting.result())
    assert [sent["value"] for sent in client.sent] == [b"0"]


async def test_stopped(sealing: LogLeaf, forge: Forge) -> None:
    """The end of a producer sends what waits and ends its client; a batch takes nothing more."""
    client = sealing.client()
    producer = sealing.producer(client, forge, batch=4, linger=10)
    async with AsyncExitStack() as stack:
        if sealing is AIOKAFKA:
            await stack.enter_async_context(producer)
            client.deaf = True
        else:
            stack.enter_context(producer)
        await done(sealing.send(producer, "orders", b"0"))
        await done(sealing.send(producer, "orders", b"1"))
    assert [sent["value"] for sent in client.sent] == [b"0", b"1"]
    if sealing is AIOKAFKA:
        assert client.calls == ["flush", "stop"]
    else:
        (flush, seconds), close = client.calls
        assert (flush, close) == ("flush", "close")
        assert 0 < seconds <= CLOSE_WITHIN
    with pytest.raises(ConfigurationError, match="closed"):
        await done(sealing.send(producer, "orders", b"2"))


async def test_transactions(sealing: LogLeaf, forge: Forge) -> None:
    """What waits is part of its transaction; one that lacks a record is not committed, an unknown one refused."""
    client = AioClient(transactional_id="t") if sealing is AIOKAFKA else sealing.client()
    config = {"config": {"transactional.id": "t"}} if sealing is CONFLUENT else {}
    producer = sealing.producer(client, forge, batch=4, linger=10, **config)
    with pytest.raises(
        ConfigurationError, match="begin and end transactions by the producer"
    ):
        await done(sealing.send(producer, "orders", b"0"))
    await done(producer.begin_transaction())
    for body in (b"0", b"1"):
        await done(sealing.send(producer, "orders", body))
    await done(producer.commit_transaction())
    assert [sent["value"] for sent in client.sent] == [b"0", b"1"]
    await done(producer.begin_transaction())
    client.outcomes = [sealing.at_once(sealing.errors["too large"])]
    await done(sealing.send(producer, "orders", b"2"))
    with sealing.raises("too large"):
        await done(producer.commit_transaction())
    await done(producer.abort_transaction())
    assert client.calls == ["begin", "commit", "begin", "abort"]


@pytest.mark.parametrize("batch", [1, 2])
async def test_debug_says_no_body(
    batch: int, sealing: LogLeaf, forge: Forge, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither token nor body is in what is logged at debug level."""
    caplog.set_level(logging.DEBUG)
    result = await done(
        sealing.send(
            sealing.producer(sealing.client(), forge, batch=batch),
            "orders",
            b"a secret body",
        )
    )
    await done(result.result())
    assert "secret" not in caplog.text
    assert "eyJ" not in caplog.text


# Dead letters, audit records, answers


async def test_letter_settings_refused(leaf: LogLeaf) -> None:
    """No topic, no time and an unknown way with what is too large are refused."""
    client = leaf.confirming()
    plain = {"config": {}} if leaf is CONFLUENT else {}
    for kind in (leaf.module.DeadLetters, leaf.module.AuditTopic):
        for topic, timeout in (("", 1.0), ("dead", 0.0)):
            with pytest.raises(ConfigurationError):
                kind(client, topic, timeout=timeout, **plain)
    with pytest.raises(ConfigurationError):
        leaf.letters(client, oversize_letters="drop")


_NOT_ALL: list[dict[str, Any]] = [
    {"acks": 1}, {"acks": "0"}, {"request.required.acks": 1}, {"request_required_acks": 1},
    {"default.topic.config": {"acks": 1}}, {"transactional.id": "t"}, {"transactional_id": "t"},
]  # fmt: skip


@pytest.mark.parametrize(
    ("leaf", "client", "config"),
    [
        *(
            (leaf, partial, {})
            for leaf, extra in (
                (LEAVES["kafka-python"], {"value_serializer": str.encode}),
                (AIOKAFKA, None),
            )
            for partial in (
                {"acks": 1},
                {"acks": 0},
                {"acks": "all", "enable_idempotence": True},
                extra,
            )
            if partial is not None
        ),
        *((CONFLUENT, {}, {"config": config}) for config in _NOT_ALL),
    ],
    ids=str,
)
async def test_unconfirmed_refused(
    leaf: LogLeaf, client: dict[str, Any], config: Any
) -> None:
    """Letters and audit records go by no client that confirms less than all, or fails for good at a refusal."""
    made = leaf.client(
        **({} if leaf is CONFLUENT else {"enable_idempotence": False} | client)
    )
    for make in (leaf.letters, leaf.audit):
        with pytest.raises(ConfigurationError, match=r"confirms need|serializer"):
            make(made, **config)


@pytest.mark.parametrize(
    "config",
    [{}, {"acks": "all"}, {"acks": -1}, {"request.required.acks": "-1"}],
    ids=str,
)
def test_confirmed_taken(config: dict[str, Any]) -> None:
    """What every replica confirms is taken; it is librdkafka's default."""
    assert CONFLUENT.letters(ConfluentClient(), config=config).name == "dead"


async def test_letter(leaf: LogLeaf) -> None:
    """A letter is confirmed by its report alone, and has body and key of its message."""
    client = leaf.confirming()
    await done(leaf.letters(client).publish(letter()))
    (sent,) = client.sent
    assert (sent["topic"], sent["value"], sent["key"]) == ("dead", b"x", b"k")


async def test_letter_unconfirmed(sealing: LogLeaf) -> None:
    """A letter without an answer is not one yet; it is waited for again, and not sent twice."""
    client = sealing.confirming()
    sink = sealing.letters(client, 0.01)
    client.deaf = True
    once = letter()
    for _ in range(2):
        with pytest.raises(Unavailable, match=r"TimeoutError|_TIMED_OUT"):
            await done(sink.publish(once))
    if sealing is AIOKAFKA:
        client.open[0].set_result(None)
    client.deaf = False
    await done(sink.publish(once))
    assert len(client.sent) == 1


@pytest.mark.parametrize("at_once", [False, True], ids=["by the broker", "by the client"])
async def test_letter_too_large(at_once: bool, leaf: LogLeaf) -> None:
    """A form that is too large for the client or the broker makes room for a smaller one."""
    client, error = leaf.confirming(), leaf.errors["too large"]
    leaf.expects(client, (leaf.at_once if at_once else leaf.later)(error))
    await done(leaf.letters(client).publish(letter(b"x" * 1000)))
    assert len(client.sent) == (1 if at_once else 2)
    assert len(client.sent[-1]["value"] or b"") != 1000


@pytest.mark.parametrize("at_once", [False, True], ids=["by the broker", "by the client"])
@pytest.mark.parametrize("name", ["refused", "late"])
async def test_letter_refused(name: str, at_once: bool, leaf: LogLeaf) -> None:
    """A letter that is refused, or lost, at once or later, is named so and sent anew."""
    client, error = leaf.confirming(), leaf.errors[name]
    leaf.expects(client, (leaf.at_once if at_once else leaf.later)(error))
    sink = leaf.letters(client)
    with pytest.raises(Unavailable) as caught:
        await done(sink.publish(letter()))
    assert caught.value.cause is Cause.DEAD_LETTER_UNAVAILABLE
    assert caught.value.detail == (
        error.name() if leaf is CONFLUENT else type(error).__name__
    )
    await done(sink.publish(letter()))
    assert len(client.sent) == (1 if at_once else 2)


@pytest.mark.parametrize("name", [None, "late", "unknown topic", "too large"])
async def test_answers(name: str | None, sealing: LogLeaf, forge: Forge) -> None:
    """An answer waits for its ack: out of reach it puts its request off, and one that is refused fails it."""
    request: Any = SimpleNamespace(
        properties={"reply-to": "answers", "correlation-id": "7"}
    )
    client = sealing.client()
    replies = sealing.replies(sealing.producer(client, forge))
    if name is not None:
        sealing.expects(client, sealing.later(sealing.errors[name]))
    answering = replies(request, b"yes")
    with (
        nullcontext()
        if name is None
        else pytest.raises(RetryLater)
        if name == "late"
        else sealing.raises(name)
    ):
        await (answering if sealing is AIOKAFKA else asyncio.to_thread(answering.get, 1))
    assert client.sent[0]["topic"] == "answers"
    assert dict(client.sent[0]["headers"])["correlation-id"] == b"7"


# Transactional letters


def transactional(leaf: LogLeaf, timeout: float = 1, **config: Any) -> tuple[Any, Any]:
    """Return transactional letters and their first client."""
    if leaf is AIOKAFKA:
        client: Any = AioClient(**({"transactional_id": "a"} | config))
        return aiokafka.TransactionalDeadLetters(lambda: client, "dead", timeout), client
    client = ConfluentClient()
    config = {"transactional.id": "a"} | {
        name.replace("_", "."): value for name, value in config.items()
    }
    return confluent.TransactionalDeadLetters(
        lambda: client, "dead", timeout, config=config
    ), client


def content(leaf: LogLeaf, *bodies: bytes) -> tuple[Any, ...]:
    """Return letters with the offset that they are committed with."""
    where: Any = TopicPartition("orders", 0) if leaf is AIOKAFKA else Place("orders", 0)
    member: Any = Membership("billing", 3, "me") if leaf is AIOKAFKA else "member"
    letters = [letter(body) for body in bodies]
    return letters, {where: Committed(4, METADATA)}, member


async def test_transactional_letters(sealing: LogLeaf) -> None:
    """A transaction has its letters and then its offsets; a client that failed is thrown away, and made anew."""
    sink, client = transactional(sealing, transaction_timeout_ms=5000)

    def once() -> None:
        sink.prepare()
        sink.write(*content(sealing, b"x"))
        sink.commit()
        sink.discard()

    await asyncio.to_thread(once)
    offset = (
        ("orders", Committed(4, METADATA))
        if sealing is AIOKAFKA
        else ("orders", 4, METADATA)
    )
    assert client.calls == [
        "start",
        "begin",
        [offset],
        "commit",
        "stop" if sealing is AIOKAFKA else "purge",
    ]
    assert (sink.client, sink.longest, [sent["topic"] for sent in client.sent]) == (
        None,
        5,
        ["dead"],
    )
    await asyncio.to_thread(sink.prepare)
    assert client.calls[-1] == "start"
    if sealing is AIOKAFKA:
        await sink.closed()


async def test_transaction_too_large(sealing: LogLeaf) -> None:
    """Where all letters of a request fail for the largest of them, that one alone is made smaller."""
    sink, client = transactional(sealing)
    client.outcomes = [sealing.errors["too large"]] * 2
    both = content(sealing, b"x", b"x" * 5000)
    with pytest.raises(sink.too_large):
        await asyncio.to_thread(sink.write, *both)
    await asyncio.to_thread(sink.write, *both)
    assert [len(sent["value"]) == 5000 for sent in client.sent] == [
        False,
        True,
        False,
        False,
    ]
    assert client.sent[2]["value"] == b"x"


@pytest.mark.parametrize("fenced", [False, True])
async def test_what_follows_a_letter_too_large(fenced: bool, sealing: LogLeaf) -> None:
    """A letter that is too large is made smaller where what follows it is refused, but for a fenced producer's."""
    sink, client = transactional(sealing)
    fence = (
        aio_errors.ProducerFenced()
        if sealing is AIOKAFKA
        else KafkaError(KafkaError._FENCED)
    )
    client.outcomes = [
        sealing.errors["too large"],
        fence if fenced else sealing.errors["refused"],
    ]
    both = content(sealing, b"x" * 5000, b"x")
    with pytest.raises(Exception) as caught:  # noqa: PT011 - of two clients
        await asyncio.to_thread(sink.write, *both)
    assert (sink.fenced(caught.value), isinstance(caught.value, sink.too_large)) == (
        fenced,
        not fenced,
    )
    if not fenced:
        await asyncio.to_thread(sink.write, *both)
        assert [len(sent["value"]) == 5000 for sent in client.sent] == [
            True,
            False,
            False,
            False,
        ]


@pytest.mark.parametrize(
    ("leaf", "error", "first", "fenced"),
    [
        (AIOKAFKA, aio_errors.ProducerFenced(), None, True),
        (AIOKAFKA, aio_errors.KafkaTimeoutError(), aio_errors.ProducerFenced(), True),
        (AIOKAFKA, aio_errors.KafkaTimeoutError(), None, False),
        (CONFLUENT, kafka_error(KafkaError._FENCED), None, True),
        (CONFLUENT, kafka_error(KafkaError.PRODUCER_FENCED), None, True),
        (CONFLUENT, kafka_error(KafkaError._TIMED_OUT), None, False),
    ],
)
async def test_fenced(leaf: LogLeaf, error: Exception, first: Any, fenced: bool) -> None:
    """What another producer with the same transactional id does is told from an outage."""
    sink, client = transactional(leaf)
    if leaf is AIOKAFKA:
        client._message_accumulator._exception = first
    assert sink.fenced(error) is fenced


async def test_transactional_letters_refused(sealing: LogLeaf, guard: Pipeline) -> None:
    """No transactional id, a consumer that reads open transactions, a letter without its offset: refused."""
    with pytest.raises(ConfigurationError, match=r"transactional[._]id"):
        transactional(
            sealing, **{"transactional_id": None if sealing is AIOKAFKA else ""}
        )
    sink, _ = transactional(sealing)
    with pytest.raises(
        ConfigurationError, match=r"commits the offsets|mqauth's Consumer"
    ):
        sink.publish(letter())
    topics: dict[str, Any]
    if sealing is AIOKAFKA:
        client: Any = AIOKafkaConsumer("orders", group_id="g", enable_auto_commit=False)
        client._closed, topics = True, {}
        client._coordinator = SimpleNamespace(generation=3)
    else:
        config = {
            "group.id": "g", "enable.auto.offset.store": False, "isolation.level": "read_uncommitted",
        } | QUIET  # fmt: skip
        client, topics = Consumer(config), {"topics": ["orders"], "config": config}
    with pytest.raises(ConfigurationError, match="read_committed"):
        sealing.module.Consumer(client, guard, print, dead_letters=sink, **topics)
