"""An issuer in another process, both brokers behind one face, and consumers with the real cache."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Final, Self

import aio_pika
import pytest

from integration.forked import words
from integration.services.machine import Port
from mqauth import (
    JWKS,
    ActiveKey,
    Allow,
    AuditFile,
    MemoryReplayStore,
    Message,
    Pipeline,
    Signer,
    Verified,
    Verifier,
)
from mqauth.brokers import kafka, rabbitmq
from mqauth.brokers.log.records import dead_letter_headers
from mqauth.keystore import Keystore
from mqauth.keystore.disk import ring
from mqauth.keystore.remote import rules as jwks_rules
from mqauth.testing.forge import AUDIENCE, ISSUER, SUBJECT
from mqauth.testing.stage_kafka import KafkaStage
from mqauth.testing.stage_rabbitmq import RabbitMQStage
from mqauth.wire.keys import Key, SigningKey, SigningKeySource

STARTS_WITHIN = 60.0


class IssuerProcess:
    """An issuer's key server; a context manager.

    Args:
        folders: the keystores it publishes.
        options: further options of the command.
    """

    def __init__(self, folders: Sequence[Path], *options: str) -> None:
        self._folders = [word for folder in folders for word in ("--dir", str(folder))]
        self._options = options
        self._process: subprocess.Popen[str] | None = None
        self._port = Port()  # while the server is down, no client's socket takes it
        self.url = ""

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()
        self._port.release()

    def up(self) -> None:
        """Start it, always at the same port."""
        where = [*self._folders, "--port", str(self._port.number)]
        command = [*words("mqauth"), "keys", "serve", "--json", *where, *self._options]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the key server did not start"
        self.url = json.loads(line)["url"]

    def down(self) -> None:
        """Stop it in order; it must end well."""
        assert self._end(signal.SIGTERM) in (0, None)

    def kill(self) -> None:
        """End it without warning."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        process.send_signal(number)
        code = process.wait(STARTS_WITHIN)
        assert process.stdout is not None
        process.stdout.close()
        return code


Handler = Callable[[Verified], None]
_PREFETCH = 100


class RabbitMQLane:
    """A lane on RabbitMQ."""

    name = "rabbitmq"

    def __init__(self, url: str) -> None:
        self.stage = RabbitMQStage(url, prefetch=_PREFETCH)
        self.destination = self.stage.destination

    def send(self, signer: Signer, bodies: Sequence[bytes]) -> None:
        """Publish side by side, each confirmed."""
        self.stage._call(self._send(signer, bodies))

    async def _send(self, signer: Signer, bodies: Sequence[bytes]) -> None:
        exchange = await self.stage._channel.get_exchange(
            self.stage._exchange, ensure=False
        )
        producer = rabbitmq.Producer(exchange, signer)
        await asyncio.gather(
            *(
                producer.publish(aio_pika.Message(body), "orders.created")
                for body in bodies
            )
        )

    def inject(self, messages: Sequence[Message]) -> None:
        """Publish messages as they are, side by side."""

        async def publish() -> None:
            await asyncio.gather(*(self.stage._inject(message) for message in messages))

        self.stage._call(publish())

    @contextmanager
    def consuming(self, guard: Pipeline, handler: Handler) -> Iterator[Any]:
        """Run the consumer on the stage's loop."""
        consumer = self.stage._call(self.stage._consumer(guard, handler))
        try:
            yield consumer
        finally:
            self.stage._call(consumer.__aexit__(None, None, None))

    def letters(self) -> list[Message]:
        """Browse the dead-letter queue."""
        return self.stage.letters()

    def close(self) -> None:
        """Delete the queues."""
        self.stage.close()


class KafkaLane:
    """A lane on Kafka, by default of one partition."""

    name = "kafka"

    def __init__(
        self, url: str, *, partitions: int = 1, config: dict[str, str] | None = None
    ) -> None:
        self.stage = KafkaStage(url, partitions=partitions, config=config)
        self._partitions = partitions
        self.destination = self.stage.destination

    def send(self, signer: Signer, bodies: Sequence[bytes]) -> None:
        """Send, and flush."""
        producer = kafka.Producer(self.stage._client, signer)
        futures: list[Any] = [
            producer.send(self.stage.topic, value=body, key=b"k") for body in bodies
        ]
        self.stage._client.flush()
        for future in futures:
            future.get(timeout=60)

    def inject(self, messages: Sequence[Message]) -> None:
        """Send messages as they are, over all partitions, and flush."""
        for number, message in enumerate(messages):
            self.stage._client.send(
                self.stage.topic, value=message.body, key=message.key, partition=number % self._partitions,
                headers=dead_letter_headers(message.headers),
            )  # fmt: skip
        self.stage._client.flush()

    def send_mixed(self, batches: Sequence[tuple[Signer, Sequence[bytes]]]) -> None:
        """Send the bodies of several signers spread among each other, and flush."""
        producers = [
            (kafka.Producer(self.stage._client, signer), iter(bodies))
            for signer, bodies in batches
        ]
        sizes = [len(bodies) for _, bodies in batches]
        for turn in range(max(sizes)):
            for (producer, bodies), size in zip(producers, sizes, strict=True):
                wanted = (turn + 1) * size // max(sizes) - turn * size // max(sizes)
                for body in islice(bodies, wanted):
                    producer.send(self.stage.topic, value=body, key=b"k")
        self.stage._client.flush()

    @contextmanager
    def consuming(
        self, guard: Pipeline, handler: Handler, **settings: Any
    ) -> Iterator[Any]:
        """Run the consumer on a thread."""
        client, letters = self.stage.consumer(), self.stage.dead_letter_client()
        consumer = kafka.Consumer(
            client,
            guard,
            handler,
            dead_letters=kafka.DeadLetters(letters, self.stage.dead, timeout=10),
            **settings,
        )
        try:
            with consumer:
                yield consumer
        finally:
            client.close()
            letters.close()

    def letters(self) -> list[Message]:
        """Read the dead-letter topic."""
        return self.stage.letters()

    def close(self) -> None:
        """Delete the topics."""
        self.stage.close()


Lane = RabbitMQLane | KafkaLane
"""A source with its dead letters on a real broker."""
LANES: Final = {"rabbitmq": RabbitMQLane, "kafka": KafkaLane}


COOLDOWN = 0.5
FRESH = 2.0
"""Seconds a set is fresh; by ``Cache-Control`` three times that at most."""
SEEN_WITHIN = 3 * FRESH
"""Seconds within which consumers see a revocation, for an attempt that succeeds at once."""
ATTEMPT = 5.0
PUBLISH_DELAY = 10


class Scene:
    """One issuer with one producer, and consumers of one lane.

    Args:
        lane: where messages go.
        folder: for keys, snapshots and audit.
        issuer: serves the keystore.
    """

    def __init__(
        self, lane: Lane, folder: Path, issuer: IssuerProcess, store: Keystore
    ) -> None:
        self.lane = lane
        self.issuer = issuer
        self.store = store
        self.active = ActiveKey(store.folder, look_every=0.5)
        self.handled: dict[bytes, str] = {}
        self.kids: dict[str, int] = {}
        self._snapshot = folder / "snapshot.json"
        self._audit = AuditFile(folder / "audit.jsonl", fsync=False)
        self._replay = MemoryReplayStore()

    def signer(
        self, key: Key | SigningKey | SigningKeySource | None = None, **settings: Any
    ) -> Signer:
        """Return a signer; the honest one unless told."""
        wanted: dict[str, Any] = {
            "issuer": ISSUER,
            "subject": SUBJECT,
            "audience": AUDIENCE,
            "lifetime": 3600,
        }
        return Signer(key=key or self.active, **(wanted | settings))

    @contextmanager
    def consumer(self, *, snapshot: bool) -> Iterator[JWKS]:
        """Run a new consumer with a new cache, as after a restart of its process."""
        keys = JWKS(
            self.issuer.url, fresh=FRESH, publish_delay=1, max_stale=300, unsafe_http_loopback=True,
            snapshot=self._snapshot if snapshot else None,
        )  # fmt: skip
        guard = Pipeline(
            verifier=Verifier(keys={ISSUER: keys}, audience=AUDIENCE),
            policy=Allow({SUBJECT: [self.lane.destination]}), replay=self._replay, audit=self._audit,
        )  # fmt: skip
        with keys, self.lane.consuming(guard, self._handle):
            yield keys

    def rotate(self) -> None:
        """Do as ``mqauth keys rotate``."""
        self.store.change(ring.rotate)

    def revoke(self, kid: str) -> None:
        """Do as ``mqauth keys revoke``."""
        self.store.change(
            lambda found, now: ring.revoke(found, kid, now, reason="stolen")
        )

    def close(self) -> None:
        """Close the audit file."""
        self._audit.close()

    def _handle(self, verified: Verified) -> None:
        body = verified.body or b""
        self.handled[body] = verified.kid
        self.kids[verified.kid] = self.kids.get(verified.kid, 0) + 1


@contextmanager
def staged(lane: Lane, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """Set a scene: a keystore with one active key, served."""
    monkeypatch.setattr(jwks_rules, "COOLDOWN", COOLDOWN)
    store = Keystore(folder=folder / "keys")
    store.create(publish_delay=PUBLISH_DELAY, subjects=[SUBJECT])
    with IssuerProcess([store.folder]) as issuer:
        scene = Scene(lane, folder, issuer, store)
        try:
            yield scene
        finally:
            scene.close()
