"""Transactions of a wrapped ``KafkaProducer``: what waits to be sealed is part of them."""

from __future__ import annotations

from typing import Any

from mqauth.brokers.kafka.sealing import Sealing
from mqauth.errors import ConfigurationError


class Atomic:
    """A producer that can make several records one."""

    client: Any
    _sealing: Sealing | None
    _began = False

    def begin_transaction(self) -> None:
        """Begin a transaction of a client that has a ``transactional_id``."""
        self._settle()
        self.client.begin_transaction()
        if self._sealing is not None:
            self._sealing.failure = None
        self._began = True

    def commit_transaction(self) -> None:
        """Seal and send what waits, and commit; a transaction that lacks a record is not committed.

        Raises:
            Exception: why a record of it was not sealed or sent: abort it.
        """
        self._settle()
        if self._sealing is not None and self._sealing.failure is not None:
            raise self._sealing.failure
        self.client.commit_transaction()
        self._began = False

    def abort_transaction(self) -> None:
        """Abort the transaction, with what waits."""
        self._settle()
        self.client.abort_transaction()
        self._began = False

    def _settle(self, timeout: float | None = None) -> float | None:
        """Seal and send what waits; return the seconds that are left."""
        raise NotImplementedError

    def _refuse_unbegun(self) -> None:
        """Refuse a batch in a transaction of which we know nothing."""
        if self.client.config.get("transactional_id") and not self._began:
            raise ConfigurationError("with batches, begin and end transactions by the producer, not its client")
