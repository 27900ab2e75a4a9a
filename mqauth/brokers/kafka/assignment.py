"""What kafka-python's rebalances tell the book."""

from __future__ import annotations

from typing import Any

from kafka import ConsumerRebalanceListener

from mqauth.brokers.kafka import repair as kafka_repair
from mqauth.delivery.book import Book
from mqauth.errors import ConfigurationError


class Listener(ConsumerRebalanceListener):
    """Tells the book; runs on kafka-python's I/O thread, never raises, never commits.

    Args:
        client: the ``KafkaConsumer``.
        book: the partitions.
        theirs: the listener the client had before; still called, its errors logged.
    """

    def __init__(self, client: Any, book: Book, theirs: Any = None) -> None:
        self._client = client
        self._book = book
        self.theirs = theirs

    def on_partitions_revoked(self, revoked: Any) -> None:
        """Drop what was taken away; suspend what may come back."""
        self._book.revoking(revoked, kafka_repair.held(self._client))
        kafka_repair.tell(self.theirs, "on_partitions_revoked", revoked)

    def on_partitions_assigned(self, assigned: Any) -> None:
        """Go on with what came back; drop what did not."""
        self._book.assigned(kafka_repair.held(self._client))
        kafka_repair.tell(self.theirs, "on_partitions_assigned", assigned)

    def on_partitions_lost(self, lost: Any) -> None:
        """Drop what was lost; somebody else has it already."""
        self._book.lost(lost)
        kafka_repair.tell(self.theirs, "on_partitions_lost", lost)


def listen(client: Any, book: Book) -> None:
    """Register a ``Listener`` with a subscribed client; one with partitions assigned by hand needs none.

    Raises:
        ConfigurationError: nothing is subscribed, or the client has an asynchronous listener.
    """
    topics = client.subscription()
    if topics is None:
        if not client.assignment():
            raise ConfigurationError("subscribe the KafkaConsumer to a topic first")
        return
    state: Any = getattr(client, "_subscription", None)
    theirs = getattr(state, "rebalance_listener", None)
    if theirs is not None and not isinstance(theirs, ConsumerRebalanceListener):
        raise ConfigurationError("an asynchronous rebalance listener cannot be kept: give a synchronous one")
    listener = Listener(client, book, theirs.theirs if isinstance(theirs, Listener) else theirs)
    if hasattr(state, "rebalance_listener"):
        state.rebalance_listener = listener  # subscribe() would warn that nothing changed
    else:
        client.subscribe(topics=sorted(topics), listener=listener)
