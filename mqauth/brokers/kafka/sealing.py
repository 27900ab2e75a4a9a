"""Records of a kafka-python producer that are sealed together: what its client is given, and says of topics.

When they are sealed is for ``log_sealing``.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import Context, copy_context
from functools import partial
from typing import Any, Final, TypeAlias

from kafka.errors import IllegalStateError, KafkaTimeoutError

from mqauth.brokers.kafka.future import Failed, RecordFuture, Stage
from mqauth.brokers.kafka.room import Room
from mqauth.brokers.log.sealing import Batches
from mqauth.signer import Prepared, Signer
from mqauth.wire.message import TOKEN_HEADER

MAX_TOPICS: Final = 10_000


Record: TypeAlias = tuple[str, int | None, int | None, Context, RecordFuture]
"""What is kept of a record: topic, partition, timestamp in UTC milliseconds, its sender's context, in which it is
sent and traced, and what its sender holds of it."""


class Sealing:
    """Seals and sends records of one producer; it is the sender that its ``batches`` ask.

    Args:
        client: the ``KafkaProducer``.
        signer: signs each batch.
        room: left by each record that was acknowledged or has failed.
        batch: how many records are sealed together.
        linger: seconds a record waits at most for others.
    """

    def __init__(self, client: Any, signer: Signer, room: Room, *, batch: int, linger: float) -> None:
        self._client = client
        self._room = room
        self._topics: set[str] = set()
        patience = client.config["max_block_ms"] / 1000
        self.batches = Batches(signer, self, batch=batch, linger=linger, patience=patience)
        self.failure: BaseException | None = None
        """The first record's that could not be sealed or sent, since this was last set to ``None``."""

    def knows(self, topic: str) -> bool:
        """Tell whether the client can send to a topic without having to wait for its metadata."""
        return topic in self._topics

    def learn(self, topic: str) -> None:
        """Note that the client has sent to a topic."""
        if len(self._topics) < MAX_TOPICS:
            self._topics.add(topic)

    def add(self, prepared: Prepared, topic: str, partition: int | None, timestamp_ms: int | None) -> RecordFuture:
        """Have a record sealed and sent; it has its place in ``room``, and gives it back whatever becomes of it.

        Raises:
            kafka.errors.IllegalStateError: closed.
        """
        context = copy_context()
        record = self.batches.add(
            prepared, lambda stage: (topic, partition, timestamp_ms, context, RecordFuture(stage))
        )
        if record is None:
            self._room.leave()
            raise IllegalStateError("Producer already closed!")
        return record[-1]

    def flush(self, timeout: float | None) -> None:
        """Seal and send what waits, and wait for what another thread is sending, at most so many seconds.

        Raises:
            kafka.errors.KafkaTimeoutError: another thread is still sending.
        """
        if not self.batches.flush(timeout):
            raise KafkaTimeoutError(f"records are still being sent after {timeout} s")

    def end(self) -> None:
        """Take no more records."""
        self.batches.end()

    def begin(self) -> Stage:
        """Return what the futures of one batch wait for."""
        return Stage()

    def idle(self) -> bool:
        """Tell whether nothing is in flight but the record that is being added."""
        return self._room.taken <= 1

    def send(self, prepared: Prepared, record: Record, token: str, /) -> Any:
        """Return the client's future of a record, or a failed one."""
        topic, partition, timestamp_ms, context, _ = record
        if topic not in self._topics:  # lost a moment ago: do not wait for it once a record
            return self.failed(KafkaTimeoutError("no metadata of the topic"))
        message = prepared.message
        headers = [*message.headers, (TOKEN_HEADER, token.encode("ascii"))]
        send = partial(self._client.send, topic, value=message.body, key=message.key, headers=headers)
        try:
            return context.run(send, partition=partition, timestamp_ms=timestamp_ms)
        except Exception as error:
            if isinstance(error, KafkaTimeoutError):
                self._topics.discard(topic)
            return self.failed(error)

    def failed(self, error: BaseException, /) -> Failed:
        """Return the future of a record that was not sent."""
        self.failure = self.failure or error
        return Failed(error)

    def handed(self, common: Stage, records: Sequence[Record], outcomes: Sequence[Any], /) -> None:
        """Give each future the client's, and its place back once that is done."""
        common.end(zip([record[-1] for record in records], outcomes, strict=True))
        self._room.leave_with(outcomes)

    def tell(self, common: Stage, /) -> None:
        """Call who waits for a batch."""
        common.call()
