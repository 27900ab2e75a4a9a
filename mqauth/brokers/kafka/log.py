"""Which log a record stands in: a topic's name is not enough where there are two clusters, or it was made anew.

The cluster's id and, from Kafka 2.8 on, the topic's id (KIP-516) come with every metadata response; the client has
them at hand, so that asking costs no request.
"""

from __future__ import annotations

import base64
from typing import Any
from uuid import UUID

from mqauth.brokers.log.records import NO_LOG, Log


class Logs:
    """Tells which log the records of a topic are in, by what a client's metadata say.

    What was known once stays until the metadata say something else: a response without an id, of a topic that is
    just being deleted or may not be seen for a moment, does not make another place of the records at hand.

    Args:
        client: a ``KafkaConsumer``.
    """

    def __init__(self, client: Any) -> None:
        self._metadata: Any = getattr(client, "_cluster", None)
        self._known: dict[str, Log] = {}

    def of(self, topic: str) -> Log:
        """Return the log of a topic; never asks the broker, and never raises."""
        before = self._known.get(topic, NO_LOG)
        found = Log(
            _cluster(self._metadata) or before.cluster, _topic_id(self._metadata, topic) or before.topic_id
        )
        if found != before:
            self._known[topic] = found
        return found


def _cluster(metadata: Any) -> str | None:
    """Return the id of the cluster, as far as the client knows it."""
    found = getattr(metadata, "cluster_id", None)
    return found if isinstance(found, str) and found else None


def _topic_id(metadata: Any, topic: str) -> str | None:
    """Return the id of a topic in Kafka's own spelling: base64url without padding, 22 characters."""
    ask = getattr(metadata, "topic_id", None)
    found = None if ask is None else ask(topic)
    if not isinstance(found, UUID) or not found.int:
        return None
    return base64.urlsafe_b64encode(found.bytes).rstrip(b"=").decode("ascii")
