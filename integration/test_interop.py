"""What we sign is judged alike in Go, and what Go signs here: vectors, identities, over both brokers."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple

import aio_pika
import kafka as kafka_python
import pytest
from aio_pika.abc import AbstractExchange, AbstractQueue
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from kafka import TopicPartition

from integration import interop
from integration.services import Kafka, RabbitMQ
from mqauth.brokers import kafka as kafka_wrapper
from mqauth.brokers import rabbitmq as rabbitmq_wrapper
from mqauth.errors import Rejection
from mqauth.flow import run
from mqauth.judging.pipeline import Pipeline
from mqauth.replay.memory import MemoryReplayStore
from mqauth.testing import ATTACKS, BATCH_ATTACKS, BatchForge, Forge
from mqauth.testing.attacks import Attack, honest_message
from mqauth.testing.forge import AUDIENCE, ISSUER, NEIGHBOUR, REMOVED, SUBJECT, with_token
from mqauth.testing.identity import (
    OTHER_WORKLOAD,
    TRUST_DOMAIN,
    WORKLOAD,
    BatchIdentityForge,
    IdentityForge,
)
from mqauth.testing.stage_kafka import KafkaStage
from mqauth.wire import destination, jwk
from mqauth.wire.json_form import from_form, to_form
from mqauth.wire.keys import Key, KeySet
from mqauth.wire.message import Message

VECTORS: Final = Path(__file__).parent.parent / "tests" / "vectors"
PLACES: Final = ("kafka:orders", "rabbitmq:shop/orders.created")


def consumer(keys: KeySet) -> str:
    """Return the consumer that both implementations are, as a line."""
    said = {
        "issuer": ISSUER, "audience": AUDIENCE, "leeway": 5, "max_lifetime": 3600, "jwks": jwk.dump_key_set(keys),
        "allow": {SUBJECT: PLACES, NEIGHBOUR: ["kafka:stock"]},
    }  # fmt: skip
    return json.dumps(said)


def line(message: Message) -> str:
    """Return a message as one line of JSON."""
    return json.dumps(to_form(message))


def deliveries(name: str) -> int:
    """Return how many deliveries a file of vectors has."""
    found: Any = json.loads((VECTORS / name).read_text("ascii"))
    return len(found["vectors"]) + sum(
        len(sequence["deliveries"]) for sequence in found["sequences"]
    )


def test_every_vector_passes_in_go() -> None:
    """Verdicts, digests, ids, key sets, forms and trees are those of our files."""
    (*failed, count) = interop.ask("vectors", str(VECTORS), lines=[])
    assert failed == []
    passed, _, rest = count.partition(" ")
    assert rest == "passed, 0 failed"
    assert int(passed) > 1000 + deliveries("identity.json")


@pytest.mark.parametrize("forge", [Forge(), BatchForge()], ids=["single", "batch"])
def test_what_we_sign_is_judged_alike(forge: Forge) -> None:
    """Honest messages are accepted there, and every attack meets the reason that it meets here."""
    attacks = ATTACKS if type(forge) is Forge else (*ATTACKS, *BATCH_ATTACKS)
    mounted: list[tuple[Attack | None, str]] = [
        (attack, place) for attack in (None, *attacks) for place in PLACES
    ]
    mounted = [
        (attack, place)
        for attack, place in mounted
        if attack is None or attack.fits(place)
    ]
    messages = [
        forge.seal(honest_message(place))
        if attack is None
        else attack.mount(forge, honest_message(place))
        for attack, place in mounted
    ]
    expected = [
        "accepted" if attack is None else f"rejected {attack.reason.value}"
        for attack, _ in mounted
    ]
    assert (
        interop.ask("verify", lines=[consumer(forge.keys), *map(line, messages)])
        == expected
    )


def values() -> list[Message]:
    """Return the messages of the vectors of the digest: every type of value, absent, empty and null."""
    found: Any = json.loads((VECTORS / "hds.json").read_text("ascii"))
    return [from_form(vector["message"]) for vector in found["vectors"]]


@pytest.mark.parametrize("form", ["single", "batch"])
def test_what_go_signs_is_verified_here(form: str) -> None:
    """Its tokens bind what ours bind, whatever the values; another body is refused."""
    private = ed25519.Ed25519PrivateKey.generate()
    key = Key.from_private(private, subjects=[SUBJECT])
    messages = (
        values()
        if form == "single"
        else [honest_message(PLACES[0], number) for number in range(7)]
    )
    tokens = interop.ask(
        "sign", private.private_bytes_raw().hex(), key.kid, ISSUER, SUBJECT, AUDIENCE, form,
        lines=list(map(line, messages)),
    )  # fmt: skip
    verifier = Forge().verifier(keys={ISSUER: KeySet([key])})
    for message, token in zip(messages, tokens, strict=True):
        sealed = with_token(message, token)
        now = Forge().clock.now()
        verified = verifier.verify(sealed, verifier.open(sealed), KeySet([key]), now)
        assert verified.subject == SUBJECT
        other = replace(sealed, body=b"another")
        opened = verifier.open(other)
        with pytest.raises(Rejection, match="body_mismatch"):
            verifier.verify(other, opened, KeySet([key]), now)


PLACE: Final = "kafka:orders"
WITS: Final[tuple[dict[str, Any], ...]] = (
    {}, {"header": {"alg": "none"}}, {"header": {"kid": "another"}}, {"header": {"kid": REMOVED}},
    {"header": {"jku": "x"}}, {"header": {"typ": "WIT+JWT"}}, {"claims": {"sub": "wimse://other.example/a"}},
    {"claims": {"sub": OTHER_WORKLOAD}}, {"claims": {"exp": 1}}, {"claims": {"exp": 2**53}},
    {"claims": {"aud": "x"}}, {"claims": {"fill": "f" * 3000}}, {"jwk": {"alg": "Ed25519"}},
    {"jwk": {"x": "A" * 43}}, {"jwk": {"d": "AA"}}, {"signature": b""},
)  # fmt: skip
PROOFS: Final[tuple[dict[str, Any], ...]] = (
    {}, {"header": {"typ": "wit+jwt"}}, {"header": {"alg": "Ed25519"}}, {"header": {"alg": "PS256"}},
    {"header": {"kid": "k"}}, {"claims": {"iss": "x"}}, {"claims": {"wth": REMOVED}},
    {"claims": {"wth": "A" * 43}}, {"claims": {"mqa": {}}}, {"claims": {"exp": 1}},
    {"claims": {"aud": "another"}}, {"signature": b""},
)  # fmt: skip
SHAPES: Final = (
    "{wit}~{proof}", "{wit}", "{wit}~", "{proof}~{wit}", "{wit}=~{proof}", "{wit}.~{proof}", "{wit}~{proof}=",
    "{wit}~{proof}~0.AAAA", "{wit}~{proof}~a~b", "{wit}\u00e9~{proof}",
)  # fmt: skip


def faulty(forge: IdentityForge, number: int, random: Random) -> Message:
    """Return a message whose WIT, proof and shape each may have a fault."""

    def chosen(faults: Any) -> Any:
        return random.choice(faults) if random.random() < 0.5 else faults[0]

    message = honest_message(PLACE, number)
    wit = forge.wit(**chosen(WITS))
    proof = forge.token(message, wit=wit, **chosen(PROOFS)).removeprefix(f"{wit}~")
    return with_token(message, chosen(SHAPES).format(wit=wit, proof=proof))


def identity_consumer(forge: IdentityForge) -> str:
    """Return the identity_consumer that both implementations are, as a line."""
    rule = {"subject": WORKLOAD, "issuer": TRUST_DOMAIN, "destinations": [PLACE]}
    said = {
        "issuer": "https://auth.example", "jwks": {"keys": []}, "audience": AUDIENCE, "leeway": 5,
        "max_lifetime": 3600, "max_identity_lifetime": 3600, "trust_domain": TRUST_DOMAIN,
        "authority_jwks": jwk.dump_key_set(forge.keys), "allow": [rule],
    }  # fmt: skip
    return json.dumps(said)


@pytest.mark.parametrize(
    "forge", [IdentityForge(), BatchIdentityForge()], ids=["single", "batch"]
)
def test_faults_are_judged_alike(forge: IdentityForge) -> None:
    """Of two or three faults at once both implementations name the same one."""
    random = Random(16)
    messages = [faulty(forge, number, random) for number in range(400)]
    pipeline = Pipeline(
        verifier=forge.verifier(), policy=forge.policy(PLACE), replay=MemoryReplayStore()
    )
    here = [run(pipeline.judge(pipeline.receive(message))) for message in messages]
    expected = [
        " ".join(filter(None, (outcome.verdict.value, outcome.reason)))
        for outcome in here
    ]
    lines = [
        identity_consumer(forge),
        *(json.dumps(to_form(message)) for message in messages),
    ]
    assert interop.ask("verify", lines=lines) == expected
    assert len(set(expected)) > 12


_PYTHON: Any = kafka_python
SIZE: Final = 8
PORTABLE: Final[dict[str, Any]] = {
    "text": "ü€😀", "nothing": "", "raw": b"\xff\x00", "true": True, "false": False, "null": None, "zero": 0,
    "most": 2**53, "least": -(2**53), "small": -5, "list": (1, "x", None, (True,)),
    "table": {"b": {"a": (1,)}, "": 0},
}  # fmt: skip
"""Headers of every type that the profile calls portable on RabbitMQ."""
RECORD: Final = (
    ("text", "ü€😀".encode()),
    ("raw", b"\xff\x00"),
    ("null", None),
    ("twice", b"1"),
    ("twice", b""),
)
"""Headers of every kind on Kafka."""


class Sent(NamedTuple):
    """What was published, by whom, and what each side must say of it."""

    kind: str
    said: str


def portable(place: str) -> list[Message]:
    """Return unsigned messages with every portable header, empty bodies and keys and a tombstone among them."""
    if place.startswith("rabbitmq:"):
        full = honest_message(place)
        full = replace(
            full, properties={**full.properties, "correlation-id": "é", "type": "t"}
        )
        made = [
            replace(full, headers=tuple(PORTABLE.items())),
            replace(full, body=b""),
            replace(full, headers=()),
        ]
        made += [replace(full, headers=(pair,)) for pair in PORTABLE.items()]
    else:
        full = replace(honest_message(place), headers=RECORD)
        made = [
            full,
            replace(full, body=b""),
            replace(full, body=None),
            replace(full, key=b""),
        ]
        made += [replace(full, key=None), replace(full, headers=())]
    return [*made, *(honest_message(place, number) for number in range(SIZE))]


def form_of(messages: Iterable[Message]) -> list[str]:
    """Return messages as lines of JSON."""
    return [json.dumps(to_form(message)) for message in messages]


def attacks(place: str) -> list[tuple[Message, Sent]]:
    """Return every attack of the suites that a client can publish there, single and in batches."""
    found = []
    for form, forge, suite in (
        ("single", FORGE, ATTACKS),
        ("batch", BATCH, (*ATTACKS, *BATCH_ATTACKS)),
    ):
        for attack in suite:
            if attack.fits(place):
                said = f"rejected {attack.reason.value}"
                found.append(
                    (
                        attack.mount(forge, honest_message(place)),
                        Sent(f"attack, {form}", said),
                    )
                )
    return found


def batch_forge(forge: Forge) -> BatchForge:
    """Return a forge of batches with the keys of another forge."""
    made = BatchForge(lifetime=600)
    vars(made).update(vars(forge))
    return made


FORGE: Final = Forge(lifetime=600)
BATCH: Final = batch_forge(FORGE)


def consumer_at(place: str) -> str:
    """Return the consumer_at that both implementations are, as a line."""
    return json.dumps({
        "issuer": ISSUER, "audience": AUDIENCE, "leeway": 5, "max_lifetime": 3600,
        "jwks": jwk.dump_key_set(FORGE.keys), "allow": {SUBJECT: [place], NEIGHBOUR: ["kafka:stock"]},
    })  # fmt: skip


def identity(form: str) -> list[str]:
    """Return the arguments by which Go signs with the honest producer's key."""
    private: Any = FORGE.key.private
    raw = private.private_bytes(
        serialization.Encoding.Raw,
        serialization.PrivateFormat.Raw,
        serialization.NoEncryption(),
    )
    return [raw.hex(), FORGE.key.kid, ISSUER, SUBJECT, AUDIENCE, form]


def judged_here(place: str, messages: Sequence[Message]) -> list[str]:
    """Return what our pipeline says of messages as the broker has delivered them."""
    pipeline = Pipeline(
        verifier=FORGE.verifier(), policy=FORGE.policy(place), replay=MemoryReplayStore()
    )
    found = []
    for message in messages:
        outcome = run(pipeline.judge(pipeline.receive(message)))
        found.append(
            " ".join(
                filter(
                    None, [outcome.verdict.value, outcome.reason and outcome.reason.value]
                )
            )
        )
    return found


def publish_all(
    url: str, place: str, ours: Callable[[list[Message], int], None]
) -> list[Sent]:
    """Publish honest messages of both implementations and every attack; return what each side must say, in order.

    Args:
        url: of the broker, as Go's client has it.
        place: the destination.
        ours: publishes messages through our producer, so many under one signature.
    """
    messages, sent = portable(place), list[Sent]()
    for form in ("single", "batch"):
        interop.ask("sign-and-send", *identity(form), url, lines=form_of(messages))
        sent += [Sent(f"Go signs, {form}", "accepted")] * len(messages)
        ours(messages, 1 if form == "single" else SIZE)
        sent += [Sent(f"mqauth signs, {form}", "accepted")] * len(messages)
    mounted = attacks(place)
    interop.ask("send", url, lines=form_of(message for message, _ in mounted))
    return [*sent, *(what for _, what in mounted)]


def compare(
    broker: str,
    sent: list[Sent],
    here: list[str],
    there: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Hold both sides' verdicts against each other and against what they must be, and print the counts."""
    said = [what.said for what in sent]
    assert there == said
    assert here == said
    rows = Counter((what.kind, what.said.partition(" ")[0]) for what in sent)
    reasons = {what.said for what in sent if what.said != "accepted"}
    with capsys.disabled():
        print(f"\n{broker:<9} {'':<22} {'messages':>8}  mqauth and Go both say")
        for (kind, verdict), count in rows.items():
            print(f"{broker:<9} {kind:<22} {count:>8}  {verdict}")
        print(f"{broker:<9} {len(reasons)} reasons, each the same on both sides")


class Fanned:
    """An exchange on a real RabbitMQ whose one routing key leads to two queues: ours, and Go's."""

    def __init__(self, url: str) -> None:
        self.runner, self.url = asyncio.Runner(), url
        self.place = destination.rabbitmq(f"mqauth {uuid.uuid4().hex}", "orders.créés")
        self.runner.run(self._open())

    async def _open(self) -> None:
        _, exchange, key = destination.parse(self.place)
        self.connection = await aio_pika.connect(self.url)
        channel = await self.connection.channel()
        self.exchange: AbstractExchange = await channel.declare_exchange(
            exchange, auto_delete=True
        )
        self.queues: list[AbstractQueue] = []
        for name in ("ours", "theirs"):
            queue = await channel.declare_queue(f"{exchange} {name}", durable=True)
            await queue.bind(self.exchange, key)
            self.queues.append(queue)

    def publish(self, messages: list[Message], batch: int) -> None:
        """Publish through our producer."""

        async def publish() -> None:
            producer = rabbitmq_wrapper.Producer(
                self.exchange, FORGE.signer(), batch=batch, linger=0.05
            )
            await asyncio.gather(*(
                producer.publish(native(message), destination.parse(self.place)[2]) for message in messages
            ))  # fmt: skip
            await producer.close()

        self.runner.run(publish())

    def received(self, count: int) -> list[Message]:
        """Return so many messages as our wrapper has them."""

        async def received() -> list[Message]:
            found = []
            for _ in range(count):
                incoming = await self.queues[0].get(timeout=30)
                await incoming.ack()
                found.append(
                    rabbitmq_wrapper.from_native(incoming, queue=self.queues[0].name)
                )
            return found

        return self.runner.run(received())

    def close(self) -> None:
        """Delete the queues, and with them the exchange."""

        async def end() -> None:
            for queue in self.queues:
                await queue.delete(if_unused=False, if_empty=False)
            await self.connection.close()

        self.runner.run(end())
        self.runner.close()


def native(message: Message) -> aio_pika.Message:
    """Return a message as an application hands it to aio-pika."""
    properties: dict[str, Any] = {
        name.replace("-", "_"): text for name, text in message.properties.items()
    }
    return aio_pika.Message(
        message.body or b"", headers=plain(dict(message.headers)), **properties
    )


def plain(value: Any) -> Any:
    """Return a header as an application writes it for aio-pika, whose bytes are bytearrays."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return bytearray(value) if isinstance(value, bytes) else value


@pytest.mark.slow
def test_both_judge_alike_over_rabbitmq(
    rabbitmq: RabbitMQ, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over aio-pika and amqp091-go both accept every honest message, and refuse every attack for one reason."""
    fanned = Fanned(rabbitmq.url)
    try:
        sent = publish_all(rabbitmq.url, fanned.place, fanned.publish)
        there = interop.ask(
            "receive",
            rabbitmq.url,
            fanned.queues[1].name,
            str(len(sent)),
            lines=[consumer_at(fanned.place)],
        )
        here = judged_here(fanned.place, fanned.received(len(sent)))
    finally:
        fanned.close()
    compare("RabbitMQ", sent, here, there, capsys)


def test_both_judge_alike_over_kafka(
    kafka: Kafka, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over kafka-python and franz-go both accept every honest message, and refuse every attack for one reason."""
    stage = KafkaStage(kafka.url)
    client = _PYTHON.KafkaProducer(bootstrap_servers=stage.servers)
    reader = _PYTHON.KafkaConsumer(
        bootstrap_servers=stage.servers, auto_offset_reset="earliest"
    )

    def publish(messages: list[Message], batch: int) -> None:
        producer = kafka_wrapper.Producer(
            client, FORGE.signer(), batch=batch, linger=0.05
        )
        for message in messages:
            # kafka-python sends no null
            headers = [
                (name, value)
                for name, value in message.headers
                if isinstance(value, bytes)
            ]
            producer.send(stage.topic, message.body, message.key, headers)
        producer.flush(30)

    try:
        servers = ",".join(stage.servers)
        sent = publish_all(servers, stage.destination, publish)
        there = interop.ask(
            "receive",
            servers,
            stage.topic,
            str(len(sent)),
            lines=[consumer_at(stage.destination)],
        )
        here = judged_here(stage.destination, received(reader, stage.topic, len(sent)))
    finally:
        client.close()
        reader.close()
        stage.close()
    compare("Kafka", sent, here, there, capsys)


def received(reader: Any, topic: str, count: int) -> list[Message]:
    """Return so many records as our wrapper has them."""
    place = TopicPartition(topic, 0)
    reader.assign([place])
    reader.seek_to_beginning(place)
    records: list[Any] = []
    while len(records) < count:
        records += reader.poll(timeout_ms=1000).get(place, [])
    return [kafka_wrapper.from_native(record, scope="g") for record in records]
