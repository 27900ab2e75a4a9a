"""The partitions that are ours now; the one place that both the I/O thread and the polling thread touch."""

from __future__ import annotations

import logging
import threading
from typing import Any, Final

from kafka import ConsumerRebalanceListener

from mqauth.brokers.kafka_partition import Assigned
from mqauth.errors import ConfigurationError

_LOG: Final = logging.getLogger("mqauth.kafka")


class Assignment(ConsumerRebalanceListener):
    """Keeps an ``Assigned`` for each partition of which records came, until it is taken away.

    As a listener it runs on kafka-python's I/O thread: it only marks, never raises, never commits. An eager
    rebalance revokes everything and hands most of it back with its position kept, so those are *suspended*
    between the two calls; under the cooperative protocol (KIP-429) only what is really lost is revoked.

    Args:
        client: the ``KafkaConsumer``.
        theirs: the listener the client had before; still called, its errors logged.
    """

    def __init__(self, client: Any, theirs: Any = None) -> None:
        self._client = client
        self._theirs = theirs
        self._lock = threading.Lock()
        self._ours: dict[Any, Assigned] = {}

    def get(self, partition: Any) -> Assigned:
        """Return the state of an assigned partition, new where there is none."""
        with self._lock:
            return self._ours.setdefault(partition, Assigned(partition))

    def renew(self, partition: Any, offset: int) -> Assigned:
        """Return a new state for a partition whose log went back to an offset; the old one is dropped.

        Its letters from before that offset are kept: their records are not read again.
        """
        kept = [letter for letter in tuple(self.get(partition).letters) if letter[0] < offset]
        self._drop({partition})
        renewed = self.get(partition)
        renewed.letters.extend(kept)
        return renewed

    def all(self) -> list[Assigned]:
        """Return the states of all partitions of which records came."""
        with self._lock:
            return list(self._ours.values())

    def on_partitions_revoked(self, revoked: Any) -> None:
        """Drop what was taken away; suspend what may come back."""
        kept = self._held() & set(revoked)
        self._drop(set(revoked) - kept)
        with self._lock:
            for partition in kept & self._ours.keys():
                self._ours[partition].suspended = True
        self._tell("on_partitions_revoked", revoked)

    def on_partitions_assigned(self, assigned: Any) -> None:
        """Go on with what came back; drop what did not."""
        held = self._held()
        with self._lock:
            suspended = {partition for partition, state in self._ours.items() if state.suspended}
            for partition in suspended & held:
                self._ours[partition].suspended = False
        self._drop(suspended - held)
        self._tell("on_partitions_assigned", assigned)

    def on_partitions_lost(self, lost: Any) -> None:
        """Drop what was lost; somebody else has it already."""
        self._drop(set(lost))
        self._tell("on_partitions_lost", lost)

    def _held(self) -> set[Any]:
        """Return what the client holds right now."""
        try:
            return set(self._client.assignment())
        except Exception as error:
            _LOG.error("the assignment cannot be read: %s", type(error).__name__)
            return set()

    def _drop(self, partitions: set[Any]) -> None:
        """Forget partitions; what runs of them is not committed."""
        with self._lock:
            for partition in partitions & self._ours.keys():
                self._ours.pop(partition).alive = False

    def _tell(self, method: str, partitions: Any) -> None:
        """Call the listener the client had; what it raises would break every later ``poll()``."""
        try:
            if self._theirs is not None:
                getattr(self._theirs, method)(partitions)
        except Exception as error:
            _LOG.error("the client's own rebalance listener failed: %s", type(error).__name__)


def listen(client: Any) -> Assignment:
    """Register an ``Assignment`` with a subscribed client, or serve one with partitions assigned by hand.

    Raises:
        ConfigurationError: nothing is subscribed, or the client has an asynchronous listener.
    """
    topics = client.subscription()
    if topics is None:
        if not client.assignment():
            raise ConfigurationError("subscribe the KafkaConsumer to a topic first")
        return Assignment(client)
    state: Any = getattr(client, "_subscription", None)
    theirs = getattr(state, "rebalance_listener", None)
    if theirs is not None and not isinstance(theirs, ConsumerRebalanceListener):
        raise ConfigurationError("an asynchronous rebalance listener cannot be kept: give a synchronous one")
    if isinstance(theirs, Assignment):
        theirs = theirs._theirs
    assignment = Assignment(client, theirs)
    if hasattr(state, "rebalance_listener"):
        state.rebalance_listener = assignment  # subscribe() would warn that nothing changed
    else:
        client.subscribe(topics=sorted(topics), listener=assignment)
    return assignment
