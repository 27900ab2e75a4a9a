"""A consuming service on pika: what its pages tell users to do, in the event loop of a simulated process."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Final

from pika.exceptions import AMQPError

from mqauth import Pipeline
from mqauth.brokers.pika import Consumer, DeadLetters, Producer
from mqauth.brokers.pika import link as pika_link
from mqauth.judging.verified import Verified
from tests.simulation.determinism import OrderedSet
from tests.simulation.pika_client import connect
from tests.simulation.process import Process
from tests.simulation.services import CONNECT_TIMEOUT, ConsumerService
from tests.simulation.world import DEAD, SOURCE

AGAIN_AFTER: Final = 1.0
"""Seconds after which a service connects anew."""
pika_link.set = OrderedSet  # type: ignore[attr-defined]
"""Links are left in the same order in every run."""


class PikaConsumerService(ConsumerService):
    """One consuming service on pika: its consumer ends with its connection, and is made anew on the next one.

    ``Consumer.run`` makes an event loop of its own for its coroutine; here that is awaited in the process's.
    """

    async def _consume(self, process: Process) -> None:
        guard = self._pipeline(process)
        while not self._asked.is_set():
            try:
                await self._connected(process, guard)
            except (AMQPError, OSError) as error:
                self._world.note(process.name, f"the consumer ends: {error!r}")
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._asked.wait(), AGAIN_AFTER)
            except Exception as error:
                self._world.note(process.name, f"the consumer ends: {error!r}")
                if not self._deployment.finishing:
                    self._world.ledger.problem("no consumer dies", f"{process.name}: {error!r}")
                raise

    async def _connected(self, process: Process, guard: Pipeline) -> None:
        """Consume on two new connections until asked to stop, or until one of them is lost."""
        heartbeat = self._deployment.settings.heartbeat
        connection = await connect(heartbeat, CONNECT_TIMEOUT)
        try:
            letters_connection = await connect(heartbeat, CONNECT_TIMEOUT)
            try:
                await self._consumed(process, guard, connection, letters_connection)
            finally:
                await letters_connection.left()
        finally:
            await connection.left()

    async def _consumed(self, process: Process, guard: Pipeline, connection: Any, letters_connection: Any) -> None:
        settings, handler = self._deployment.settings, self._deployment.handlers.of(process)

        async def handle(verified: Verified) -> None:
            await handler(verified)

        self.consumer: Any = Consumer(
            connection, SOURCE, guard, handle,
            dead_letters=DeadLetters(letters_connection, DEAD), prefetch=settings.prefetch,
            coalesce_acks=settings.coalesce, grace=settings.grace, hold=settings.hold,
            replies=Producer(letters_connection, "", self._deployment.forge.signer(clock=process.clock)),
        )  # fmt: skip
        running = asyncio.create_task(pika_link.driving(self.consumer._run(signals=False)))
        asked = asyncio.create_task(self._asked.wait())
        await asyncio.wait((running, asked), return_when=asyncio.FIRST_COMPLETED)
        if not asked.done():
            # A consumer whose connection is lost has ended, and nobody confirms later what its store did not take.
            now = self._world.agenda.now
            self._world.ledger.stops.append((process.name, now, now))
        self.consumer.stop()
        asked.cancel()
        await running
