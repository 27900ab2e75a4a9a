"""A consumer process that kills itself with SIGKILL at a chosen moment, by any client.

``python -m integration.victim JSON``: the members of ``Orders``. It ends on SIGTERM.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial, wraps
from pathlib import Path
from typing import Any, Final, Literal

from integration.forked import ROOT, words
from mqauth import Allow, AuditFile, FileReplayStore, Issuer, Pipeline, Verified, Verifier
from mqauth.brokers.event_loop import on_thread
from mqauth.testing.forge import AUDIENCE, ISSUER, SUBJECT
from mqauth.wire.jwk import load_key_set

Moment = Literal[
    "handler", "confirm", "audit", "letter", "written", "committing", "committed", "never"
]
RABBIT: Final = "faststream.rabbit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What a consumer process is to do.

    Args:
        client: by which it consumes, a key of ``CLIENTS`` or a package of FastStream.
        url: of the broker.
        destination: of the messages, as tokens name it.
        source: the queue or topic to consume.
        dead: the queue or topic of dead letters.
        keys: file of the issuer's public keys.
        handled: file that the bodies of handled messages are appended to, a line each.
        audit: file of the audit.
        group: the consumer group, of Kafka.
        moment: after which it dies: the handler, the claim's confirm, the audit's record, the dead letter's
            confirm; of a transaction its letters, or around its commit; or never.
        after: how many times the moment comes.
        transactional: the id of transactions for dead letters, of Kafka.
        redis: URL of the replay store; else it is a file beside the audit.
        verifier: further settings of the verifier.
        work: seconds that a handler takes.
        reread: what is done with what was done before: ``handle`` or ``duplicate``.
        at_once: records of one poll, or deliveries at once.
        session: seconds within which Kafka misses it.
        assigned: folder of files by process id that say how many partitions each consumer has, of kafka-python.
        lease: seconds of a claim.
        hold: seconds a deferred delivery is kept, of aio-pika.
    """

    client: str
    url: str
    destination: str
    source: str
    dead: str
    keys: str
    handled: str
    audit: str
    group: str = ""
    moment: Moment = "never"
    after: int = 0
    transactional: str = ""
    redis: str = ""
    verifier: dict[str, Any] = field(default_factory=dict)
    work: float = 0.0
    reread: Literal["handle", "duplicate"] = "handle"
    at_once: int = 8
    session: float = 6.0
    assigned: str = ""
    lease: float = 60
    hold: float = 60

    @property
    def command(self) -> list[str]:
        """The words that start the process."""
        return [sys.executable, "-m", "integration.victim", json.dumps(asdict(self))]

    def process(self, **settings: Any) -> subprocess.Popen[bytes]:
        """Start the process; its settings are those of ``Popen``."""
        return subprocess.Popen(self.command, **settings)

    def fork(self, **settings: Any) -> subprocess.Popen[bytes]:
        """Start it as a fork that has imported what it needs, for a test that needs no process id of it."""
        program = "from integration.victim import start; start()"
        command = [*words("python"), "-c", program, json.dumps(asdict(self))]
        return subprocess.Popen(command, cwd=ROOT, **settings)


class Doom:
    """Kills this process at the n-th time its moment comes."""

    def __init__(self, moment: str, after: int) -> None:
        self._moment = moment
        self._left = after

    def at(self, moment: str) -> None:
        """Die here, if this is the moment."""
        if moment != self._moment:
            return
        self._left -= 1
        if self._left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def upon(self, method: Callable[..., Any], moment: str) -> Any:
        """Return a method of either colour after whose work this process may die."""

        @wraps(method)
        async def acalled(*arguments: Any) -> Any:
            result = await method(*arguments)
            self.at(moment)
            return result

        @wraps(method)
        def called(*arguments: Any) -> Any:
            result = method(*arguments)
            if inspect.isawaitable(result):
                return then(result)
            self.at(moment)
            return result

        async def then(result: Any) -> None:
            await result
            self.at(moment)

        return acalled if inspect.iscoroutinefunction(method) else called

    def around_commits(self, letters: Any) -> None:
        """Let this process die around the commits of a sink, on whichever side of the broker's decision."""
        write = letters.write

        def written(*content: Any) -> None:
            write(*content)
            self.at("written")
            if self._moment == "committing" and self._left <= 1:
                threading.Timer(0.001, self.at, ("committing",)).start()
            else:
                self.at("committing")

        letters.write, letters.commit = written, self.upon(letters.commit, "committed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """What a client gets to consume with."""

    orders: Orders
    doom: Doom
    guard: Pipeline
    handler: Callable[[Verified], None]

    def doomed(self, letters: Any) -> Any:
        """Return a sink after whose confirm, or around whose commits, the process may die."""
        if self.orders.transactional:
            self.doom.around_commits(letters)
        else:
            letters.publish = self.doom.upon(letters.publish, "letter")
        return letters

    async def ahandler(self, verified: Verified) -> None:
        """Handle a message, and let the event loop go on meanwhile."""
        self.handler(verified)
        await asyncio.sleep(self.orders.work)


def kafka_python(life: Life) -> None:
    """Consume by kafka-python."""
    warnings.filterwarnings(
        "ignore", category=DeprecationWarning
    )  # it reads its schemas by deprecated functions
    python: Any = importlib.import_module("kafka")
    leaf: Any = importlib.import_module("mqauth.brokers.kafka")
    orders, servers = life.orders, life.orders.url.partition("://")[2].split(",")
    client = python.KafkaConsumer(
        bootstrap_servers=servers, group_id=orders.group, enable_auto_commit=False, auto_offset_reset="earliest",
        session_timeout_ms=int(orders.session * 1000), heartbeat_interval_ms=300, max_poll_records=orders.at_once,
        isolation_level="read_committed" if orders.transactional else "read_uncommitted",
    )  # fmt: skip
    herald = None
    if orders.assigned:
        place = Path(orders.assigned) / f"assigned.{os.getpid()}"

        class Herald(python.ConsumerRebalanceListener):  # type: ignore[misc]
            """Says in a file how many partitions this process has."""

            def on_partitions_revoked(self, revoked: Any) -> None:
                """Say nothing: an eager rebalance revokes everything, and assigns after."""

            def on_partitions_assigned(self, assigned: Any) -> None:
                """Say how many."""
                place.write_text(str(len(assigned)))

        herald = Herald()
    client.subscribe([orders.source], listener=herald)
    make: Any = partial(python.KafkaProducer, bootstrap_servers=servers)
    if orders.transactional:
        letters = leaf.TransactionalDeadLetters(
            lambda: make(transactional_id=orders.transactional), orders.dead, 10
        )
    else:
        letters = leaf.DeadLetters(
            make(enable_idempotence=False, acks="all", linger_ms=0), orders.dead
        )
    backoff = leaf.Backoff(first=0.1, longest=0.5)
    leaf.Consumer(
        client, life.guard, life.handler, dead_letters=life.doomed(letters), backoff=backoff
    ).run(signals=True)  # fmt: skip
    client.close()
    if not orders.transactional:
        letters.client.close()


def confluent(life: Life, *, aio: bool = False) -> None:
    """Consume by confluent-kafka, in an event loop or not."""
    theirs: Any = importlib.import_module("confluent_kafka")
    leaf: Any = importlib.import_module("mqauth.brokers.confluent")
    orders = life.orders
    servers = {"bootstrap.servers": orders.url.partition("://")[2], "log_level": 2}
    config = servers | {
        "group.id": orders.group, "enable.auto.offset.store": False, "auto.offset.reset": "earliest",
        "session.timeout.ms": int(orders.session * 1000), "heartbeat.interval.ms": 300,
    }  # fmt: skip
    if orders.transactional:
        writing = servers | {"transactional.id": orders.transactional}
        letters = leaf.TransactionalDeadLetters(
            lambda: theirs.Producer(writing), orders.dead, 10, config=writing
        )
    else:
        letters = leaf.DeadLetters(theirs.Producer(servers), orders.dead, config=servers)
    rest = {
        "config": config,
        "topics": [orders.source],
        "dead_letters": life.doomed(letters),
    }

    async def in_event_loop() -> None:
        async with importlib.import_module("confluent_kafka.aio").AIOConsumer(
            config
        ) as client:
            await leaf.AIOConsumer(
                client, life.guard, on_thread(life.handler), **rest
            ).run(signals=True)

    if aio:
        asyncio.run(in_event_loop())
    else:
        client = theirs.Consumer(config)
        leaf.Consumer(client, life.guard, life.handler, **rest).run(signals=True)
        client.close()
    if not orders.transactional:
        letters.client.close()


async def aiokafka(life: Life) -> None:
    """Consume by aiokafka."""
    theirs: Any = importlib.import_module("aiokafka")
    leaf: Any = importlib.import_module("mqauth.brokers.aiokafka")
    orders, servers = life.orders, life.orders.url.partition("://")[2]
    producer = theirs.AIOKafkaProducer(bootstrap_servers=servers, acks="all")
    letters = leaf.DeadLetters(producer, orders.dead)
    if orders.transactional:
        make = partial(theirs.AIOKafkaProducer, bootstrap_servers=servers)
        letters = leaf.TransactionalDeadLetters(
            lambda: make(transactional_id=orders.transactional), orders.dead, 10
        )
    client = theirs.AIOKafkaConsumer(
        orders.source, bootstrap_servers=servers, group_id=orders.group, enable_auto_commit=False,
        auto_offset_reset="earliest", session_timeout_ms=int(orders.session * 1000), heartbeat_interval_ms=300,
        max_poll_records=orders.at_once, isolation_level="read_committed",
    )  # fmt: skip
    async with producer, client:
        await leaf.Consumer(
            client, life.guard, life.ahandler, dead_letters=life.doomed(letters)
        ).run(signals=True)


def pika(life: Life) -> None:
    """Consume by pika, and connect anew where a connection is lost."""
    leaf: Any = importlib.import_module("mqauth.brokers.pika")
    stage: Any = importlib.import_module("mqauth.testing.stage_pika")
    lost = importlib.import_module("pika.exceptions").AMQPError
    orders = life.orders
    while True:
        with ExitStack() as undo:
            try:
                connections = [stage.connect(orders.url) for _ in range(2)]
                for connection in connections:
                    undo.callback(stage.close, connection)
                letters = life.doomed(leaf.DeadLetters(connections[1], orders.dead))
                return leaf.Consumer(  # type: ignore[no-any-return]
                    connections[0], orders.source, life.guard, life.handler, dead_letters=letters,
                    prefetch=orders.at_once,
                ).run(signals=True)  # fmt: skip
            except lost as error:
                print("connecting anew:", type(error).__name__, flush=True)


async def aio_pika(life: Life) -> None:
    """Consume by aio-pika."""
    theirs: Any = importlib.import_module("aio_pika")
    leaf: Any = importlib.import_module("mqauth.brokers.rabbitmq")
    orders = life.orders
    async with AsyncExitStack() as undo:
        channels = []
        for _ in range(2):
            connection = await theirs.connect_robust(orders.url, reconnect_interval=0.2)
            channels.append(await (await undo.enter_async_context(connection)).channel())
        source = await channels[0].get_queue(orders.source, ensure=False)
        await leaf.Consumer(
            source, life.guard, life.handler, dead_letters=life.doomed(leaf.DeadLetters(channels[1], orders.dead)),
            prefetch=orders.at_once, hold=orders.hold,
        ).run(signals=True)  # fmt: skip


def broker_of(package: str, url: str) -> Any:
    """Return a broker of one of FastStream's packages."""
    module = importlib.import_module(package)
    return (
        module.RabbitBroker(url)
        if package == RABBIT
        else module.KafkaBroker(url.partition("://")[2])
    )


def subscriber_of(broker: Any, package: str, source: str) -> Any:
    """Return the decorator of the handler of a queue or topic, declared by whoever made it."""
    if package == RABBIT:
        return broker.subscriber(
            importlib.import_module(package).RabbitQueue(source, declare=False)
        )
    return broker.subscriber(source, group_id=source, auto_offset_reset="earliest")


def letters_of(package: str, broker: Any, url: str, dead: str) -> Any:
    """Return what makes the dead letters."""

    async def rabbit() -> Any:
        leaf = importlib.import_module("mqauth.brokers.rabbitmq")
        return leaf.DeadLetters(await (await broker.connect()).channel(), dead)

    def topic() -> Any:
        python: Any = importlib.import_module("kafka")
        leaf = importlib.import_module("mqauth.brokers.kafka")
        servers = url.partition("://")[2].split(",")
        return leaf.DeadLetters(
            python.KafkaProducer(
                bootstrap_servers=servers, acks="all", enable_idempotence=False
            ),
            dead,
        )

    return rabbit if package == RABBIT else topic


async def faststream(life: Life) -> None:
    """Consume by FastStream, on the client of the package that is named."""
    ours: Any = importlib.import_module("mqauth.integrations.faststream")
    orders, package = life.orders, life.orders.client
    broker = broker_of(package, orders.url)
    ours.protect(
        broker,
        guard=life.guard,
        dead_letters=letters_of(package, broker, orders.url, orders.dead),
    )

    def handle(order: int, verified: Any) -> None:
        life.handler(verified)

    handle.__annotations__["verified"] = ours.VerifiedMessage
    subscriber_of(broker, package, orders.source)(handle)
    await importlib.import_module("faststream").FastStream(broker).run()


CLIENTS: Final[dict[str, Callable[[Life], Any]]] = {
    "kafka-python": kafka_python, "confluent": confluent, "confluent-aio": partial(confluent, aio=True),
    "aiokafka": aiokafka, "pika": pika, "aio-pika": aio_pika, RABBIT: faststream, "faststream.kafka": faststream,
    "faststream.confluent": faststream,
}  # fmt: skip


def main(orders: Orders) -> None:
    """Consume until told to end."""
    doom = Doom(orders.moment, orders.after)

    def handler(verified: Verified) -> None:
        os.write(handled, (verified.body or b"") + b"\n")
        doom.at("handler")
        if orders.client != "aiokafka":
            time.sleep(orders.work)

    with ExitStack() as undo:
        handled = os.open(orders.handled, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        undo.callback(os.close, handled)
        audit: Any = undo.enter_context(AuditFile(orders.audit, fsync=False))
        audit.write = doom.upon(audit.write, "audit")
        store: Any = (
            FileReplayStore(Path(orders.audit).with_suffix(".sqlite"))
            if not orders.redis
            else None
        )
        if orders.redis:
            stores: Any = importlib.import_module("mqauth.stores.redis")
            store = stores.RedisReplayStore.from_url(
                orders.redis, timeout=1, namespace=orders.source
            )
        # What is confirmed by itself goes that way, too.
        store.confirm_many = doom.upon(store.confirm_many, "confirm")
        keys = load_key_set(Path(orders.keys).read_bytes())
        guard = Pipeline(
            verifier=Verifier(keys={ISSUER: Issuer(keys=keys)}, audience=AUDIENCE, **orders.verifier),
            policy=Allow({SUBJECT: [orders.destination]}), replay=store, audit=audit, lease=orders.lease,
            reread=orders.reread,
        )  # fmt: skip
        consume = CLIENTS[orders.client]
        running = consume(Life(orders=orders, doom=doom, guard=guard, handler=handler))
        if inspect.isawaitable(running):
            asyncio.run(running)  # type: ignore[arg-type]


def start() -> None:
    """Consume as the argument of the command says."""
    logging.basicConfig(level=logging.WARNING)
    main(Orders(**json.loads(sys.argv[1])))


if __name__ == "__main__":
    start()
