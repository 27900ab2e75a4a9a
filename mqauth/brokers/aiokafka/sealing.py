"""Batches of an aiokafka producer: records that are sealed together, and given to the client in their order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from mqauth.brokers.event_loop import signed
from mqauth.brokers.log.sealing import sealed_headers
from mqauth.errors import ConfigurationError, MalformedMessage
from mqauth.logs import emit
from mqauth.signer import Prepared, Signer

Outcome: TypeAlias = asyncio.Future[Any]


@dataclass(frozen=True, slots=True)
class WaitingRecord:
    """A record that waits to be sealed.

    Args:
        prepared: its message.
        topic: its topic.
        rest: the other arguments of the client's ``send``.
        outcome: the future that its sender has.
    """

    prepared: Prepared
    topic: str
    rest: Mapping[str, Any]
    outcome: Outcome


class Sealing:
    """Seals the records of one producer and sends them; who completes a batch waits until it is with the client.

    Args:
        client: the ``AIOKafkaProducer``.
        signer: signs each batch.
        batch: how many records are sealed together.
        linger: seconds a record waits at most for others.

    Attributes:
        failure: why the first record failed that could not be sealed or sent, since this was last set to ``None``.
    """

    def __init__(self, client: Any, signer: Signer, *, batch: int, linger: float) -> None:
        self._client = client
        self._signer = signer
        self._batch = batch
        self._linger = linger
        self._open: list[WaitingRecord] = []
        self._timer: asyncio.TimerHandle | None = None
        # The lock is fair: batches reach the client in the order in which they were closed.
        self._order = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._in_flight = 0
        self._ended = False
        self.failure: BaseException | None = None

    async def add(self, prepared: Prepared, topic: str, rest: Mapping[str, Any]) -> Outcome:
        """Have a record sealed and sent; return the future of its outcome.

        Raises:
            ConfigurationError: closed.
        """
        if self._ended:
            raise ConfigurationError("the producer is closed")
        outcome: Outcome = asyncio.get_running_loop().create_future()
        alone = not self._in_flight
        self._in_flight += 1
        outcome.add_done_callback(self._over)
        self._open.append(WaitingRecord(prepared, topic, rest, outcome))
        if alone or len(self._open) >= self._batch:
            await self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._linger, self._close)
        return outcome

    async def flush(self) -> None:
        """Seal what waits, and return once all of it is with the client; its caller's end changes nothing."""
        self._close()
        if self._tasks:
            await asyncio.shield(asyncio.gather(*self._tasks))

    def end(self) -> None:
        """Take no more records."""
        self._ended = True

    def _close(self) -> None:
        """Close the open batch; a task of its own seals and sends it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._open:
            closed, self._open = self._open, []
            task = asyncio.create_task(self._send_all(closed))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _send_all(self, records: list[WaitingRecord]) -> None:
        async with self._order:
            try:
                prepared = [record.prepared for record in records]
                tokens = await signed(self._signer, self._signer.tokens, prepared)
            except Exception as error:
                emit("producer.unsent", "%d records not sent: %s", len(records), type(error).__name__)
                return self._fail(records, error)
            for record, token in zip(records, tokens, strict=True):
                if isinstance(token, MalformedMessage):
                    self._fail([record], token)
                else:
                    await self._send(record, token)

    async def _send(self, record: WaitingRecord, token: str) -> None:
        message = record.prepared.message
        headers = sealed_headers(record.prepared, token)
        try:
            sent = await self._client.send(
                record.topic, message.body, key=message.key, headers=headers, **record.rest
            )
        except Exception as error:
            return self._fail([record], error)
        sent.add_done_callback(_telling(record.outcome))

    def _fail(self, records: list[WaitingRecord], error: BaseException) -> None:
        self.failure = self.failure or error
        for record in records:
            if not record.outcome.done():
                record.outcome.set_exception(error)

    def _over(self, _outcome: Outcome) -> None:
        self._in_flight -= 1


def _telling(outcome: Outcome) -> Callable[[Outcome], None]:
    """Return what passes the outcome of the client's future on."""

    def tell(sent: Outcome) -> None:
        if outcome.done():
            return
        if sent.cancelled():
            outcome.cancel()
        elif (error := sent.exception()) is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(sent.result())

    return tell
