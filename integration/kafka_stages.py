"""Stages of several consumers on a real Kafka, each behind a relay of its own: aiokafka's and confluent's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final

from aiokafka.errors import CommitFailedError
from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka.aio import AIOConsumer

from integration.relay_kafka import Relay
from mqauth.brokers import aiokafka, confluent
from mqauth.brokers.event_loop import on_thread
from mqauth.judging.pipeline import Handler, Pipeline
from mqauth.letters.dead_letter import DeadLetter
from mqauth.testing.loop_thread import LoopThread, ThreadedConsumer
from mqauth.testing.stage import PATIENCE
from mqauth.testing.stage_aiokafka import AiokafkaClients
from mqauth.testing.stage_confluent import ConfluentClients
from tests.kit.stage_kafka_log import (
    HEARTBEAT_MS,
    SESSION_MS,
    GoneError,
    KafkaLogStage,
    Letters,
    LogMember,
)

AIOKAFKA_TIMES = {"session_timeout_ms": SESSION_MS, "heartbeat_interval_ms": HEARTBEAT_MS}


class AsyncLetters(Letters):
    """The wrapper's own sink, which can lose letters on their way, without a confirm."""

    async def publish(self, letter: DeadLetter, /) -> None:
        """Publish a letter, or lose it."""
        self._stage.count_letter()
        await self._sink.publish(letter)


class AiokafkaMember(LogMember):
    """A consumer in the background, behind a relay of its own.

    Args:
        stage: its stage.
        make: makes the wrapper of a client and a sink.
    """

    def __init__(
        self, stage: AiokafkaLogStage, make: Callable[[Any, Any], aiokafka.Consumer]
    ) -> None:
        self._stage = stage
        self._relay = Relay(stage.servers[0])
        self._thread = LoopThread()
        self._dead = False
        # Joining waits for the others of the group, each of which may be busy beside other sessions.
        self._thread.call(self._start(make), 3 * PATIENCE)

    async def _start(self, make: Callable[[Any, Any], aiokafka.Consumer]) -> None:
        stage = self._stage
        clients = AiokafkaClients([self._relay.server], stage.group)
        self._client = await clients.consumer(
            stage.topic, **(AIOKAFKA_TIMES | stage.settings)
        )
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
        await asyncio.to_thread(
            self._stage.observe, {place: commit[0] for place, commit in offsets.items()}
        )
        await self._calls[1](offsets)

    def close(self) -> None:
        """Stop it in order, and leave the group."""
        try:
            self._thread.call(self._consumer.__aexit__(None, None, None))
        finally:
            self.leave()

    def kill(self) -> None:
        """Let nothing of it reach the broker any more."""
        self._dead = True
        self._relay.close()
        # Its handler may go on for as long as it likes: nobody waits for a process that was killed.
        threading.Thread(target=self._bury, daemon=True).start()

    def _bury(self) -> None:
        with suppress(BaseException):
            self._thread.call(self._consumer.stop())
        self.leave()

    def cut(self) -> None:
        """Have the wire stand still."""
        self._relay.stand_still()

    def heal(self) -> None:
        """Let it go on."""
        self._relay.go_on()

    def leave(self) -> None:
        """Close the clients, and end the loop."""
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
                client,
                guard,
                on_thread(handler),
                dead_letters=letters,
                workers=workers,
                backoff=backoff,
            )

        return AiokafkaMember(self, make)


SESSION_MS: Final = 4000
"""A member that is cut off is missed after so long: less than brokers allow as they come, but ours allows it
(``group.min.session.timeout.ms`` in ``integration/services/kafka.py``), and tests wait for it."""
POLLING: Final = {"max_poll_interval_ms": 10_000}
"""For so long a rebalance waits for a member that is in the middle of one and dies."""


class WatchedConsumer(Consumer):
    """A client whose commits can be refused and watched, and that can be killed."""

    def __init__(self, stage: ConfluentLogStage, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        self._stage = stage
        self.dead = False

    def consume(self, num_messages: int = 1, timeout: float = -1) -> Any:
        """Consume, while alive."""
        if self.dead:
            raise GoneError
        return super().consume(num_messages, timeout)

    def commit(self, *, offsets: Any, asynchronous: Any) -> Any:  # type: ignore[override]
        """Commit, while alive and not refused, and once it was told."""
        if self.dead or self._stage.refuses_commits:
            raise KafkaException(KafkaError(KafkaError.UNKNOWN_MEMBER_ID))
        self._stage.observe({each: each.offset for each in offsets})
        return super().commit(offsets=offsets, asynchronous=asynchronous)


class ConfluentMember(LogMember):
    """A consumer in the background, behind a relay of its own."""

    def __init__(self, stage: ConfluentLogStage, consumer: Callable[..., Any]) -> None:
        self._relay = Relay(stage.servers[0])
        clients = ConfluentClients([self._relay.server], stage.group)
        config = clients.consumer_settings(**stage.times, **stage.settings)
        self._client = WatchedConsumer(stage, config)
        self._letters = clients.letters(stage.dead)
        super().__init__(
            consumer(
                self._client, dead_letters=Letters(stage, self._letters), config=config
            )
        )

    def kill(self) -> None:
        """Let nothing of it reach the broker any more."""
        self._client.dead = True
        self._relay.close()
        self._consumer.stop()
        # The client waits for ever where it is closed while another thread commits: librdkafka drops that commit.
        threading.Thread(target=self._bury, daemon=True).start()

    def cut(self) -> None:
        """Have the wire stand still."""
        self._relay.stand_still()

    def heal(self) -> None:
        """Let it go on."""
        self._relay.go_on()

    def _bury(self) -> None:
        with suppress(BaseException):
            self._consumer.__exit__(None, None, None)
        self.leave()

    def leave(self) -> None:
        """Close the clients."""
        self._client.close()
        self._letters.client.close()
        self._relay.close()


class WatchedAIOConsumer(AIOConsumer):
    """A ``confluent_kafka.aio.AIOConsumer`` around a client of ours."""

    def __init__(self, client: Consumer) -> None:
        self._consumer = client


class ConfluentLogStage(KafkaLogStage):
    """A source of four partitions and one group, on a broker that runs already.

    Args:
        url: ``kafka://host:port``, more servers after commas.
        settings: of the consumers' clients, names with ``_`` for dots.
    """

    times: Mapping[str, Any] = {
        "session_timeout_ms": SESSION_MS,
        "heartbeat_interval_ms": HEARTBEAT_MS,
        **POLLING,
    }
    loses_commits = True

    def second(self, guard: Pipeline, handler: Handler, *, workers: int = 1) -> Any:
        """Start one more consumer of the group."""
        backoff = confluent.Backoff(first=0.3, longest=1)
        settings: Any = {"topics": [self.topic], "workers": workers, "backoff": backoff}
        return ConfluentMember(self, partial(self.wrapper, guard, handler, settings))

    def wrapper(
        self,
        guard: Pipeline,
        handler: Handler,
        settings: dict[str, Any],
        client: Any,
        **made: Any,
    ) -> Any:
        """Return the wrapper of a client."""
        return confluent.Consumer(client, guard, handler, **made, **settings)

    def rebalance(self) -> None:
        """Have a stranger join the group, and leave it."""
        clients = ConfluentClients(self.servers, self.group)
        stranger = Consumer(
            clients.consumer_settings(session_timeout_ms=SESSION_MS, **self.settings)
        )
        stranger.subscribe([self.topic])
        try:
            while not stranger.assignment():
                stranger.consume(1, 1.0)
        finally:
            stranger.close()


class AIOConfluentLogStage(ConfluentLogStage):
    """The same with consumers in event loops."""

    def wrapper(
        self,
        guard: Pipeline,
        handler: Handler,
        settings: dict[str, Any],
        client: Any,
        **made: Any,
    ) -> Any:
        """Return the wrapper of a client."""
        return ThreadedConsumer(
            lambda: confluent.AIOConsumer(
                WatchedAIOConsumer(client), guard, on_thread(handler), **made, **settings
            )
        )
