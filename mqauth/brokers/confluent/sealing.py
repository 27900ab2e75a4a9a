"""Batches of a confluent-kafka producer: gives sealed records to the client, and reports those that failed.

``mqauth.brokers.log.sealing`` decides when a batch is sealed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import Context, copy_context
from typing import Any, Final, TypeAlias

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import Message as Report

from mqauth.brokers.confluent.client import error_of
from mqauth.brokers.log.sealing import RecordSealing, sealed_headers
from mqauth.errors import ConfigurationError
from mqauth.logs import emit
from mqauth.signer import Prepared, Signer

PATIENCE: Final = 60.0
"""Most seconds that a thread waits while another one sends."""
Record: TypeAlias = tuple[str, Mapping[str, Any], Context]
"""A record's topic, the other arguments of ``produce``, and the context of its sender, in which it is traced."""
Failures: TypeAlias = list[tuple[Record, Exception]]


class Sealing(RecordSealing):
    """The sender of one producer's ``Batches``.

    Args:
        client: the ``confluent_kafka.Producer``.
        signer: signs each batch.
        give: gives a record to the client.
        batch: how many records are sealed together.
        linger: seconds a record waits at most for others.
    """

    def __init__(
        self, client: Any, signer: Signer, give: Callable[..., None], *, batch: int, linger: float
    ) -> None:
        self._client = client
        self._give = give
        super().__init__(signer, batch=batch, linger=linger, patience=PATIENCE)

    def add(self, prepared: Prepared, topic: str, rest: Mapping[str, Any]) -> None:
        """Have a record sealed and sent.

        Raises:
            ConfigurationError: closed.
        """
        if self.batches.add(prepared, lambda _: (topic, rest, copy_context())) is None:
            raise ConfigurationError("the producer is closed")

    def begin(self) -> Failures:
        """Return the list of a batch's failures."""
        return []

    def idle(self) -> bool:
        """Return whether nothing is in flight."""
        return not len(self._client)

    def send(self, prepared: Prepared, record: Record, token: str, /) -> BaseException | None:
        """Give a record to the client; return its error, or ``None``."""
        topic, rest, context = record
        message = prepared.message
        headers = sealed_headers(prepared, token)
        try:
            context.run(self._give, topic, message.body, key=message.key, headers=headers, **rest)
        except Exception as error:
            return self.failed(error)  # type: ignore[no-any-return]
        return None

    def handed(self, common: Failures, records: Sequence[Record], outcomes: Sequence[Any], /) -> None:
        """Note the records of a batch that were not sent."""
        common += [(record, error) for record, error in zip(records, outcomes, strict=True) if error is not None]

    def tell(self, common: Failures, /) -> None:
        """Call the delivery reports of the records that were not sent."""
        for (topic, rest, context), error in common:
            emit("producer.unsent", "a record to %s was not sent: %s", topic, type(error).__name__)
            if rest["on_delivery"] is not None:
                found = error_of(error) if isinstance(error, KafkaException) else _local(error)
                context.run(rest["on_delivery"], found, Report(topic=topic, error=found))


def _local(error: BaseException) -> KafkaError:
    code = KafkaError._QUEUE_FULL if isinstance(error, BufferError) else KafkaError._FAIL
    return KafkaError(code, f"{type(error).__name__}: {error}")
