"""The calls of an ``AIOKafkaConsumer`` that say and move where its group stands (``OffsetCalls``)."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import Any, Final

from aiokafka import TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError

from mqauth.brokers.aiokafka import client as aiokafka_client
from mqauth.brokers.dead_letters import Errors
from mqauth.delivery.start import Committed

COMMIT_TIMEOUT: Final = 5.0
"""Most seconds of one call: aiokafka itself tries for ever."""


class Offsets:
    """Those calls, for a leaf that has the client as ``_client``."""

    _client: Any
    failed: Errors = (KafkaError, TimeoutError)

    async def send_commit(self, offsets: Mapping[Any, Committed], /) -> str | None:
        """Commit offsets by partition; return the name of an error that passes."""
        try:
            async with asyncio.timeout(COMMIT_TIMEOUT):
                await self._client.commit(dict(offsets))
        except self.failed as error:
            if not self.passes(error):
                raise
            return type(error).__name__
        return None

    async def committed(self, places: Collection[Any], /) -> dict[Any, Committed]:
        """Return the group's commits by partition."""
        async with asyncio.timeout(COMMIT_TIMEOUT):
            found = await aiokafka_client.committed(self._client, list(places))
        return {place: Committed(commit.offset, commit.metadata) for place, commit in found.items()}

    def places(self, topic: str, /) -> set[Any]:
        """Return all partitions of a topic that the client knows of."""
        return {TopicPartition(topic, number) for number in self._client.partitions_for_topic(topic) or ()}

    def position(self, place: Any, /) -> int | None:
        """Return the offset that is read next, ``None`` where there is none yet."""
        return aiokafka_client.position(self._client, place)

    async def bounds(self, places: Collection[Any], end: bool, /) -> dict[Any, int]:
        """Return the first offset of each partition, or the one behind the last record that may be read."""
        ask = self._client.end_offsets if end else self._client.beginning_offsets
        async with asyncio.timeout(COMMIT_TIMEOUT):
            return dict(await ask(list(places)))

    def passes(self, error: BaseException, /) -> bool:
        """Return whether the same call may succeed later."""
        if isinstance(error, (CommitFailedError, IllegalStateError, TimeoutError)):
            return True
        return isinstance(error, KafkaError) and bool(error.retriable)
