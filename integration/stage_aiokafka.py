"""The stage of several consumers on a real Kafka for aiokafka's leaf, each on an event loop of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from aiokafka.errors import CommitFailedError

from integration.relay_kafka import Relay
from mqauth.brokers import aiokafka
from mqauth.brokers.event_loop import on_thread
from mqauth.judging.pipeline import Handler, Pipeline
from mqauth.letters.dead_letter import DeadLetter
from mqauth.testing.loop_thread import LoopThread
from mqauth.testing.stage import PATIENCE
from mqauth.testing.stage_aiokafka import AiokafkaClients
from tests.kit.stage_kafka_log import HEARTBEAT_MS, SESSION_MS, GoneError, KafkaLogStage, Letters

TIMES = {"session_timeout_ms": SESSION_MS, "heartbeat_interval_ms": HEARTBEAT_MS}


class AsyncLetters(Letters):
    """The wrapper's own sink, which can lose letters on their way, without a confirm."""

    async def publish(self, letter: DeadLetter, /) -> None:
        """Publish a letter, or lose it."""
        self._stage.count_letter()
        await self._sink.publish(letter)


class AiokafkaMember:
    """A consumer in the background, behind a relay of its own.

    Args:
        stage: its stage.
        make: makes the wrapper of a client and a sink.
    """

    def __init__(self, stage: AiokafkaLogStage, make: Callable[[Any, Any], aiokafka.Consumer]) -> None:
        self._stage = stage
        self._relay = Relay(stage.servers[0])
        self._thread = LoopThread()
        self._dead = False
        # Joining waits for the others of the group, each of which may be busy beside other sessions.
        self._thread.call(self._start(make), 3 * PATIENCE)

    async def _start(self, make: Callable[[Any, Any], aiokafka.Consumer]) -> None:
        stage = self._stage
        clients = AiokafkaClients([self._relay.server], stage.group)
        self._client = await clients.consumer(stage.topic, **(TIMES | stage.settings))
        self._letters = await clients.producer()
        self._calls = self._client.getmany, self._client.commit
        self._client.getmany, self._client.commit = self._getmany, self._commit  # type: ignore[method-assign]
        sink = aiokafka.DeadLetters(self._letters, stage.dead, timeout=10)
        self._consumer = await make(self._client, AsyncLetters(stage, sink)).__aenter__()

    async def _getmany(self, *places: Any, **settings: Any) -> Any:
        """Get records, while alive."""
        if self._dead:
            raise GoneError
        return await self._calls[0](*places, **settings)

    async def _commit(self, offsets: Any = None) -> None:
        """Commit, while alive and not refused, and once it was told."""
        if self._dead or self._stage.refuses_commits:
            raise CommitFailedError
        # In a thread: reading the letters takes seconds on a busy machine, and the loop has heartbeats to send.
        await asyncio.to_thread(self._stage.observe, {place: commit[0] for place, commit in offsets.items()})
        await self._calls[1](offsets)

    @property
    def failed(self) -> bool:
        """Whether it ended with an error."""
        return self._consumer.failed

    def health(self) -> Any:
        """Return its state."""
        return self._consumer.health()

    def close(self) -> None:
        """Stop it in order, and leave the group."""
        try:
            self._thread.call(self._consumer.__aexit__(None, None, None))
        finally:
            self._leave()

    def kill(self) -> None:
        """Let nothing of it reach the broker any more."""
        self._dead = True
        self._relay.close()
        # Its handler may go on for as long as it likes: nobody waits for a process that was killed.
        threading.Thread(target=self._bury, daemon=True).start()

    def _bury(self) -> None:
        with suppress(BaseException):
            self._thread.call(self._consumer.stop())
        self._leave()

    def cut(self) -> None:
        """Have the wire stand still."""
        self._relay.stand_still()

    def heal(self) -> None:
        """Let it go on."""
        self._relay.go_on()

    def _leave(self) -> None:
        for client in (self._client, self._letters):
            ending: Coroutine[Any, Any, None] = client.stop()
            with suppress(BaseException):
                self._thread.call(ending, PATIENCE)
        self._relay.close()
        self._thread.close()


class AiokafkaLogStage(KafkaLogStage):
    """A source of four partitions and one group, on a broker that runs already.

    Args:
        url: ``kafka://host:port``, more servers after commas.
    """

    def second(self, guard: Pipeline, handler: Handler, *, workers: int = 1) -> Any:
        """Start one more consumer of the group."""
        backoff = aiokafka.Backoff(first=0.3, longest=1)

        def make(client: Any, letters: Any) -> aiokafka.Consumer:
            return aiokafka.Consumer(
                client, guard, on_thread(handler), dead_letters=letters, workers=workers, backoff=backoff
            )

        return AiokafkaMember(self, make)
