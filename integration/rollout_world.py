"""A live queue and a live topic for a rollout: producers that sign or do not, and what became of all messages."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import urlsplit

import aio_pika
import kafka as kafka_python
import pytest

from integration.every_client import Consuming, Wiring
from mqauth import Pipeline, Unverified, Verified
from mqauth.audit.misuse import Alert
from mqauth.brokers import kafka, rabbitmq
from mqauth.brokers.rabbitmq.translate import from_native
from mqauth.cli import rollout as rollout_command
from mqauth.cli.app import run as command
from mqauth.config.load import load
from mqauth.testing.forge import Forge
from mqauth.testing.loop_thread import LoopThread
from mqauth.testing.stage import wait_until
from mqauth.testing.stage_kafka import KafkaStage
from mqauth.wire import destination
from mqauth.wire.jwk import dump_key_set
from mqauth.wire.message import TOKEN_HEADER

SIGNS, SILENT, STRIPPED = "signed", "silent", "stripped"
"""How a message is published: with a token, without one, and with one that somebody took off on the way."""
HOUR: Final = 3600.0
AT_ONCE: Final = 500
_KAFKA: Any = kafka_python
APPEND: Final = 'at = "append"\nmax_queue_age = 604800'
CONSUME: Final = "max_lifetime = 86400"
"""How times are judged where the broker's configuration is ours, and where it is not."""
_FILE: Final = """\
[broker]
url = "{url}"
{login}
[consumer]
scope = "{scope}"
audience = "billing"
issuers = [{{ issuer = "https://auth.example", file = "jwks.json" }}]
allow = [{{ subject = "orders-api", destinations = ["{place}"] }}]
{times}
[audit]
file = "audit-{{host}}-{{pid}}.jsonl"

[check]
consumers = 1

[[rollout]]  # the orders
destinations = ["{place}"]
rung = "off"            # climbs in this test
since = {since}
until = {until}
owner = "orders-team"
window = "1h"
"""


class Shifted:
    """The machine's clock, set back or forward by hours: windows pass, and nobody waits."""

    def __init__(self) -> None:
        self.hours = 0.0

    def now(self) -> float:
        """Return UTC seconds."""
        return time.time() + self.hours * HOUR

    def monotonic(self) -> float:
        """Return seconds that jump with the hours."""
        return time.monotonic() + self.hours * HOUR


class Run(NamedTuple):
    """One run of a handler: which handler, for what, and what ``enforce`` would have said."""

    verified: bool
    body: bytes
    would: str | None


class Live(Protocol):
    """A queue or topic with messages, and its dead letters."""

    destination: str
    url: str
    scope: str
    """The consumer group or queue."""
    times: str
    """Lines of the configuration: how times are judged."""

    def publish(self, app: str, bodies: Sequence[bytes], how: str) -> None:
        """Publish messages of an ``app-id``, and wait for the broker."""
        ...

    def consuming(self, guard: Pipeline, handler: Any, unverified: Any) -> AbstractContextManager[None]:
        """Consume within a ``with`` block, then stop in order."""
        ...

    def letters(self) -> Counter[tuple[bytes, str]]:
        """Return the bodies and reasons of all dead letters so far."""
        ...


class Ladder:
    """One destination that goes up the ladder, by a configuration file that ``mqauth rollout`` changes.

    Args:
        live: the broker's part.
        folder: for the files.
        patch: sets the clock of the command.
        forge: signs.
        clock: of the consumer and of the command.
    """

    def __init__(self, live: Live, folder: Path, patch: pytest.MonkeyPatch, forge: Forge, clock: Shifted) -> None:
        self.live = live
        self.place = live.destination
        self.clock = clock
        self.file = folder / "mqauth.toml"
        self.sent: dict[bytes, tuple[str, str]] = {}
        self.runs: list[Run] = []
        self.alerts: list[Alert] = []
        self.signing = {"orders-api": SIGNS, "crm-export": SILENT, "web-shop": SILENT, "till-7": SILENT}
        self._lock = threading.Lock()
        patch.setattr(rollout_command, "_now", self.clock.now)
        (folder / "jwks.json").write_text(json.dumps(dump_key_set(forge.keys)))
        today = datetime.now(UTC).date()
        term = {"since": today - timedelta(days=4), "until": today + timedelta(days=60)}
        found = urlsplit(live.url)
        login = 'user = "guest"\npassword_env = "MQAUTH_TEST_PASSWORD"\n' if found.password else ""
        patch.setenv("MQAUTH_TEST_PASSWORD", found.password or "")
        url = found._replace(netloc=found.netloc.rpartition("@")[2]).geturl()
        facts = {"place": self.place, "times": live.times, "url": url, "login": login, "scope": live.scope}
        self.file.write_text(_FILE.format(**facts, **term), "utf-8")

    # Producers

    def publish(self, app: str, number: int, how: str) -> list[bytes]:
        """Publish so many messages of a producer; return their bodies, which are all different."""
        with self._lock:
            bodies = [f"{app} {len(self.sent) + n}".encode() for n in range(number)]
            self.sent |= dict.fromkeys(bodies, (app, how))
        self.live.publish(app, bodies, how)
        return bodies

    @contextmanager
    def traffic(self, each: int) -> Iterator[None]:
        """Have each producer publish so many messages, in its own way, while the block runs."""
        threads = [
            threading.Thread(target=self.publish, args=(app, each, how)) for app, how in self.signing.items()
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            for thread in threads:
                thread.join()

    # Consumers

    @contextmanager
    def consumer(self, *, old_code: bool = True) -> Iterator[Pipeline]:
        """Start a consumer with the configuration as it is now; without old code it has one handler."""
        guard = load(self.file, clock=self.clock, on_alert=self.alerts.append).pipeline
        try:
            with self.live.consuming(guard, self.take_verified, self.take_unverified if old_code else None):
                yield guard
        finally:
            guard.audit.close()  # type: ignore[union-attr]

    def wait_for(self, bodies: Sequence[bytes] | None = None) -> None:
        """Wait until these messages, or all that were sent, were handled or dead-lettered."""
        wait_until(lambda: not set(self.sent if bodies is None else bodies) - self.ended)

    def consume_all(self, each: int, **settings: Any) -> list[Run]:
        """Consume all there is while the producers go on; return the runs."""
        before = len(self.runs)
        with self.consumer(**settings):
            with self.traffic(each):
                pass
            self.wait_for()
        return self.runs[before:]

    @property
    def handled(self) -> set[bytes]:
        """The messages that a handler got."""
        return {found.body for found in self.runs}

    @property
    def ended(self) -> set[bytes]:
        """The messages that were handled or dead-lettered."""
        return self.handled | {body for body, _ in self.live.letters()}

    def take_verified(self, message: Verified) -> None:
        """Handle what was verified."""
        self.runs.append(Run(True, message.body or b"", None))

    def take_unverified(self, message: Unverified) -> None:
        """Handle what was not, as before there was mqauth."""
        would = None if message.would is None else message.would.code
        self.runs.append(Run(False, message.body or b"", would))

    # The command

    def command(self, *arguments: str) -> tuple[int, str]:
        """Run ``mqauth rollout`` at the shifted time; return its exit code and what it printed."""
        out = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = command(["rollout", *arguments, "--config", str(self.file)])
        out.seek(0)
        return code, out.read()

    def status(self) -> dict[str, Any]:
        """Return the report on the destination; its exit code says whether it is safe."""
        code, printed = self.command("status", "--json")
        (found,) = json.loads(printed)
        assert (code == 0) is found["safe"], printed
        return dict(found)

    def missing(self) -> dict[str, int]:
        """Return how many messages of each producer would be refused, as the report has it."""
        return {group["app"]: group["count"] for group in self.status()["groups"]}

    def up(self, *arguments: str) -> str:
        """Go up one rung."""
        code, printed = self.command("up", self.place, "--yes", *arguments)
        assert code == 0, printed
        return printed

    @property
    def rung(self) -> str:
        """The rung in the file."""
        (line,) = [line for line in self.file.read_text("utf-8").splitlines() if line.startswith("rung")]
        return line.partition('"')[2].partition('"')[0]

    def unsigned(self, runs: Sequence[Run]) -> dict[str, int]:
        """Return how many unsigned messages of each producer are among some runs."""
        return dict(Counter(self.sent[found.body][0] for found in runs if found.would == "token_missing"))


class LiveQueue:
    """A quorum queue behind an exchange.

    Args:
        url: of a RabbitMQ.
        forge: signs.
        consuming: consumes, by one of its clients.
        managed: whether the broker has no interceptor.
    """

    def __init__(self, url: str, forge: Forge, consuming: Consuming, *, managed: bool = False) -> None:
        self.url = url
        self.times = CONSUME if managed else f'{APPEND}\nappend_evidence = "interceptor"'
        self.name = self.scope = f"rollout-{uuid.uuid4().hex[:8]}"
        self.key = "orders.created"
        self.destination = destination.rabbitmq(self.name, self.key)
        self._forge = forge
        self._consume = consuming
        self._letters: Counter[tuple[bytes, str]] = Counter()
        self._thread = LoopThread()
        self._call(self._open(url))

    def publish(self, app: str, bodies: Sequence[bytes], how: str) -> None:
        """Publish with confirms, many at once."""
        for start in range(0, len(bodies), AT_ONCE):
            self._call(self._publish(app, bodies[start : start + AT_ONCE], how))

    def consuming(self, guard: Pipeline, handler: Any, unverified: Any) -> AbstractContextManager[None]:
        """Consume by the client."""
        return self._consume(Wiring(
            url=self.url, source=self.name, dead=f"{self.name}.dead", scope=self.name, guard=guard,
            handler=handler, old=unverified,
        ))  # fmt: skip

    def letters(self) -> Counter[tuple[bytes, str]]:
        """Take what has come to the dead-letter queue, and return all of it."""
        self._call(self._read_letters())
        return self._letters

    def close(self) -> None:
        """Delete the queues."""
        self._call(self._strike())
        self._thread.close()

    def _call(self, work: Any) -> Any:
        return self._thread.call(work)

    async def _open(self, url: str) -> None:
        self._connection = await aio_pika.connect_robust(url)
        self._channel = await self._connection.channel()
        self._exchange = await self._channel.declare_exchange(self.name, aio_pika.ExchangeType.TOPIC)
        queue = await rabbitmq.declare_source(self._channel, self.name)
        await queue.bind(self._exchange, "#")
        self._dead = await rabbitmq.declare_dead_letters(await self._connection.channel(), f"{self.name}.dead")
        self._producer = rabbitmq.Producer(self._exchange, self._forge.signer())

    async def _publish(self, app: str, bodies: Sequence[bytes], how: str) -> None:
        messages = [aio_pika.Message(body, app_id=app, delivery_mode=2) for body in bodies]
        if how == SIGNS:
            await asyncio.gather(*(self._producer.publish(message, self.key) for message in messages))
            return
        if how == STRIPPED:
            messages = [self._producer.seal(message, self.key) for message in messages]
            for message in messages:
                del message.headers[TOKEN_HEADER]
        await asyncio.gather(*(self._exchange.publish(message, self.key) for message in messages))

    async def _read_letters(self) -> None:
        while (letter := await self._dead.get(no_ack=True, fail=False)) is not None:
            message = from_native(letter, queue=self._dead.name)
            self._letters[message.body or b"", str(dict(message.headers)["mqauth-dead-reason"])] += 1

    async def _strike(self) -> None:
        for queue in (self.name, f"{self.name}.unparseable", f"{self.name}.dead"):
            await self._channel.queue_delete(queue)
        await self._exchange.delete()
        await self._connection.close()


class LiveTopic:
    """A topic of three partitions.

    Args:
        url: of a Kafka.
        forge: signs.
        consuming: consumes, by one of its clients.
        managed: whether its records have the time that their sender wrote.
    """

    def __init__(self, url: str, forge: Forge, consuming: Consuming, *, managed: bool = False) -> None:
        stamps = {} if managed else {"message.timestamp.type": "LogAppendTime"}
        self.times = CONSUME if managed else APPEND
        self.stage = KafkaStage(url, partitions=3, config=stamps)
        self.url, self.scope = url, self.stage.group
        self.destination = self.stage.destination
        self._consume = consuming
        self._client = _KAFKA.KafkaProducer(bootstrap_servers=self.stage.servers, linger_ms=5)
        self._producer = kafka.Producer(self._client, forge.signer())

    def publish(self, app: str, bodies: Sequence[bytes], how: str) -> None:
        """Publish over all partitions, and wait for the broker."""
        send = self._producer.send if how == SIGNS else self._client.send
        futures = [
            send(self.stage.topic, value=body, headers=[("app-id", app.encode())], partition=number % 3)
            for number, body in enumerate(bodies)
        ]
        for future in futures:
            future.get(timeout=60)

    def consuming(self, guard: Pipeline, handler: Any, unverified: Any) -> AbstractContextManager[None]:
        """Consume by the client, as a member of the group."""
        return self._consume(Wiring(
            url=self.url, source=self.stage.topic, dead=self.stage.dead, scope=self.scope, guard=guard,
            handler=handler, old=unverified,
        ))  # fmt: skip

    def letters(self) -> Counter[tuple[bytes, str]]:
        """Return all of the dead-letter topic."""
        return Counter(
            (letter.body or b"", dict(letter.headers)["mqauth-dead-reason"].decode())  # type: ignore[union-attr]
            for letter in self.stage.letters()
        )

    def close(self) -> None:
        """Delete the topics."""
        self._client.close()
        self.stage.close()
