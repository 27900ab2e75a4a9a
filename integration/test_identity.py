"""Identities of an authority on real brokers: every attack of the vectors, among honest messages of both forms."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import aio_pika
import kafka as kafka_python
import pytest

from mqauth import AuditFile, MemoryReplayStore, Pipeline
from mqauth.brokers import kafka as kafka_wrapper
from mqauth.brokers import rabbitmq as rabbitmq_wrapper
from mqauth.errors import Verdict
from mqauth.judging.delivery import Outcome
from mqauth.judging.policy import Allow, Rule
from mqauth.signer import Signer
from mqauth.testing import FakeClock
from mqauth.testing.stage_kafka import KafkaStage
from mqauth.testing.stage_rabbitmq import RabbitMQStage
from mqauth.testing.token_attacks import honest_message
from mqauth.wire import destination
from mqauth.wire.message import Message
from tests.test_identity_vectors import FILE
from tests.vectors import identities, spire
from tests.vectors.identities import BATCH, SINGLE, Case
from tests.vectors.identity_consumer import Authority, settings, verifier_of
from tests.vectors.world import FORGE, NOW, STOCK

_PYTHON: Any = kafka_python
NUMBER: Final = "x-case"
"""A header that no token covers; it says which case a message is."""
EACH: Final = 16
SIZE: Final = 8
NOT_CARRIED: Final = "at append"
"""A consumer that goes by append time: a broker stamps today, and the vectors are of another year."""


class RealKafka(KafkaStage):
    """A topic on a real Kafka."""

    def publish(self, signer: Signer, messages: list[Message], batch: int) -> None:
        """Publish through the producer, so many under one signature."""
        client = _PYTHON.KafkaProducer(bootstrap_servers=self.servers)
        producer = kafka_wrapper.Producer(client, signer, batch=batch, linger=0.05)
        for message in messages:
            producer.send(self.topic, message.body, message.key, list(message.headers))
        producer.flush(30)
        client.close()


class RealRabbitMQ(RabbitMQStage):
    """A queue on a real RabbitMQ."""

    def __init__(self, url: str) -> None:
        super().__init__(url, prefetch=50)
        self._url = url

    def publish(self, signer: Signer, messages: list[Message], batch: int) -> None:
        """Publish through the producer, so many under one signature."""

        async def publish() -> None:
            _, name, key = destination.parse(self.destination)
            async with await aio_pika.connect(self._url) as connection:
                exchange = await (await connection.channel()).get_exchange(name)
                producer = rabbitmq_wrapper.Producer(
                    exchange, signer, batch=batch, linger=0.05
                )
                await asyncio.gather(
                    *(producer.publish(_native(message), key) for message in messages)
                )
                await producer.close()

        asyncio.run(publish())


def _native(message: Message) -> aio_pika.Message:
    headers: dict[str, Any] = dict(message.headers)
    return aio_pika.Message(
        message.body or b"", headers=headers, content_type="application/json"
    )


@dataclass(slots=True)
class Seen:
    """What became of the messages of a consumer, by the number of their case."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    handled: Counter[str] = field(default_factory=Counter)

    def observer(self, outcome: Outcome, message: Message, _seconds: float) -> None:
        """Note an outcome."""
        self.outcomes[_number(message)] = outcome

    def handler(self, verified: Any) -> None:
        """Note a handled message, by its body and form."""
        self.handled["identity" if verified.identity is not None else "direct"] += 1


def _number(message: Message) -> str:
    (found,) = (value for name, value in message.headers if name == NUMBER)
    return found.decode() if isinstance(found, bytes) else str(found)


def numbered(message: Message, number: object) -> Message:
    """Return a message with the number of its case."""
    text: Any = (
        str(number).encode() if message.destination.startswith("kafka:") else str(number)
    )
    return replace(message, headers=(*message.headers, (NUMBER, text)))


def attacks(place: str, monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    """Return every case of the vectors that a broker can carry, for a destination."""
    for module in (identities, spire):
        monkeypatch.setattr(
            module, "kafka", lambda **changes: replace(honest_message(place), **changes)
        )
    monkeypatch.setattr(identities, "rabbit", lambda: honest_message(place))
    found = [*identities.cases(SINGLE), *identities.cases(BATCH), *spire.cases()]
    # A broker delivers to one destination; what was meant for another one is published here.
    elsewhere = STOCK if place.startswith("kafka:") else "rabbitmq:shop/stock"
    found = [
        case
        for case in found
        if case.message.destination == place and case.consumer != NOT_CARRIED
    ]
    for forge in (SINGLE, BATCH):
        moved = replace(forge.seal(honest_message(elsewhere)), destination=place)
        found.append(
            Case(
                f"{forge.form}: signed for another destination",
                moved,
                "destination_mismatch",
            )
        )
    return found


def guard(
    case: Case, place: str, seen: Seen, audit: AuditFile, store: MemoryReplayStore
) -> Pipeline:
    """Return the pipeline of a case's consumer, which reads from a destination."""
    said, authority = settings(FILE, case.consumer), Authority(FILE, "honest")
    if case.key_set is not None:
        authority.turn(case.key_set)
    rules = [
        Rule(**rule | {"destinations": _here(rule["destinations"], place)})
        for rule in said["allow"]
    ]
    return Pipeline(
        verifier=verifier_of(said, authority), policy=Allow(rules), replay=store, audit=audit,
        clock=FakeClock(case.received), observers=[seen.observer],
    )  # fmt: skip


def _here(places: list[str], place: str) -> tuple[str, ...]:
    return tuple("kafka:elsewhere" if each == STOCK else place for each in places)


def consume(
    stage: Any, cases: list[Case], tmp_path: Path, store: MemoryReplayStore
) -> tuple[Seen, int]:
    """Have a consumer read what is there until each case has an outcome; return them, and the records written."""
    seen = Seen()
    path = tmp_path / f"audit-{len(list(tmp_path.iterdir()))}.jsonl"
    with AuditFile(path, fsync=False) as audit:
        pipeline = guard(cases[0], stage.destination, seen, audit, store)
        stage.consume(
            pipeline, seen.handler, until=lambda: len(seen.outcomes) == len(cases)
        )
    return seen, path.read_bytes().count(b"\n")


def publish_honest(stage: Any) -> list[Case]:
    """Publish honest messages of both forms, single and in batches, through producers; return them as cases."""
    cases: list[Case] = []
    for form, forge in (("direct", FORGE), ("identity", SINGLE)):
        for batch in (1, SIZE):
            first = len(cases)
            messages = [
                numbered(
                    honest_message(stage.destination, first + at), f"{form} {batch} {at}"
                )
                for at in range(EACH)
            ]
            # The number stands outside of what is signed, as for attacks.
            stage.publish(forge.signer(leave_unsigned=[NUMBER]), messages, batch)
            cases += [
                Case(f"honest, {form}, batch {batch}", message) for message in messages
            ]
    return cases


def faults(cases: list[Case], seen: Seen) -> Iterator[str]:
    """Yield each case whose verdict or reason is another one than it should be."""
    for case in cases:
        found = seen.outcomes[_number(case.message)]
        wanted = (
            (Verdict.ACCEPTED, None)
            if case.reason is None
            else (Verdict.REJECTED, case.reason)
        )
        if (found.verdict, found.reason and found.reason.value) != wanted:
            yield f"{case.name}: {found.verdict.value} {found.reason} {found.detail}"


@pytest.mark.slow
@pytest.mark.parametrize("broker", ["rabbitmq", "kafka"])
def test_no_attack_on_identities_gets_through(
    broker: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Each attack is dead-lettered for its reason, and each honest message of either form is handled once."""
    stage: Any = _stage(broker, request)
    store, counts, reasons = (
        MemoryReplayStore(clock=FakeClock(NOW)),
        Counter[str](),
        Counter[str](),
    )
    try:
        hostile = attacks(stage.destination, monkeypatch)
        hostile = [
            case._replace(message=numbered(case.message, at))
            for at, case in enumerate(hostile)
        ]
        honest, found = publish_honest(stage), list[str]()
        # Those of the usual consumer come first, among the honest ones; the others each at a consumer of theirs.
        for kind, group in _groups(hostile):
            for case in group:
                stage.inject(case.message)
            mixed = [*honest, *group]
            seen, records = consume(stage, mixed, tmp_path, store)
            rejected = [case for case in mixed if case.reason is not None]
            found += faults(mixed, seen)
            assert records == len(rejected), kind
            counts["attacks"] += len(rejected)
            counts["honest"] += len(mixed) - len(rejected)
            counts["handled"] += seen.handled.total()
            counts["accepted"] += sum(
                seen.outcomes[_number(case.message)].verdict is Verdict.ACCEPTED
                for case in rejected
            )
            reasons.update(case.reason for case in rejected)
            honest = []
        letters = len(stage.letters())
    finally:
        stage.close()
    with capsys.disabled():
        print(
            f"\n{broker}: {counts['attacks']} attacks on identities, accepted {counts['accepted']}, "
            f"{len(reasons)} reasons, dead letters {letters}; {counts['honest']} honest messages, "
            f"handled {counts['handled']}"
        )
    assert not found
    assert (counts["accepted"], letters) == (0, counts["attacks"])
    assert counts["handled"] == counts["honest"]
    assert len(reasons) > 20


def _groups(cases: list[Case]) -> Iterator[tuple[tuple[str, str, int], list[Case]]]:
    def kind(case: Case) -> tuple[str, str, int]:
        return case.consumer, case.key_set or "", case.received

    usual = ("common", "", NOW)
    ordered = sorted(cases, key=lambda case: (kind(case) != usual, kind(case)))
    yield from ((name, list(group)) for name, group in groupby(ordered, kind))


def _stage(broker: str, request: pytest.FixtureRequest) -> Any:
    make: Callable[..., Any] = {"rabbitmq": RealRabbitMQ, "kafka": RealKafka}[broker]
    return make(request.getfixturevalue(broker).url)
