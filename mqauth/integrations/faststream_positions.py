"""Where the partitions of a FastStream subscriber begin, and where they stand (``mqauth.delivery.start``).

FastStream owns the client and tells of no rebalance. So a task looks at the assignment, and a record of a
partition that was not begun waits until it is.
"""

from __future__ import annotations

import asyncio
from collections import ChainMap
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from mqauth.brokers.log.offsets import beginning
from mqauth.clock import Clock
from mqauth.delivery.assignment import COMMIT_RETRY, RENEWAL
from mqauth.delivery.start import Committed
from mqauth.errors import MqauthError
from mqauth.flow import arun, settled
from mqauth.logs import emit

WATCH: Final = 0.1
"""Seconds between two looks at the assignment."""
LOOK: Final = 1.0
"""Seconds between two looks at where the client stands."""


@dataclass(slots=True)
class Position:
    """Where a partition stands.

    Attributes:
        expected: the offset that is read next.
        commit: what is committed.
        sought: whether the client was told to read there, and no record has come since.
        looked: what was expected at the last look.
    """

    expected: int
    commit: Committed
    sought: bool
    looked: int | None = None


class Positions:
    """Begins the partitions of one subscriber, commits for it, and sees that none is read from the end.

    Args:
        client: calls of its client (``Records``).
        clock: tells the time.

    Attributes:
        running: how many of its records are being handled.
    """

    def __init__(self, client: Any, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._places: dict[Any, Position] = {}
        self._early: dict[Any, int] = {}
        self._waiting: dict[Any, int] = {}
        self._generation: object = None
        self._lock = asyncio.Lock()
        self._begins_at = self._looks_at = self._renewed_at = clock.monotonic()
        self._task: asyncio.Task[None] | None = None
        self.running = 0

    async def ready(self, place: Any, offset: int) -> bool:
        """Wait until a partition has begun; return whether its record is the one to handle next.

        Raises:
            OffsetsRefusedError: the broker does not let the group commit.
        """
        self._waiting[place] = offset
        try:
            await self._see_assignment()
            while (position := self._places.get(place)) is None:
                if place not in self._client.held:
                    return False
                await self.begin()
                if place not in self._places:
                    await asyncio.sleep(WATCH)
        finally:
            self._waiting.pop(place, None)
        if position.sought:
            # It may have been at hand already when the client was told where to read: then it comes once more.
            position.sought = not await self._client.seek(place, position.expected)
            return False
        while offset != position.expected:
            try:
                if await self._went_on(place, position, offset):
                    return False
                break
            except self._client.lost as error:
                emit(
                    "client.poll_failed",
                    "looking for what is left failed with %s",
                    type(error).__name__,
                )
                await asyncio.sleep(LOOK)
        position.expected = offset + 1
        return True

    def read_again(self, place: Any, offset: int) -> None:
        """Note that a partition is read from an offset again."""
        if place in self._places:
            self._places[place].expected = offset

    async def begin(self) -> None:
        """Begin the partitions that were just assigned.

        Raises:
            OffsetsRefusedError: the broker does not let the group commit.
            ConfigurationError: a partition has no offset, and ``auto_offset_reset`` is ``none``.
        """
        async with self._lock:
            await self._see_assignment()
            client, generation = self._client, self._generation
            new = client.held - self._places.keys()
            if not new or self._clock.monotonic() < self._begins_at:
                return
            # A record may come to wait meanwhile.
            starts = await arun(
                beginning(
                    client.offsets(),
                    new,
                    ChainMap(self._early, self._waiting),
                    lambda: True,
                )
            )
            await self._see_assignment()
            if self._generation != generation:
                return
            for place, start in starts.items():
                self._early.pop(place, None)
                sought = start.seek and start.offset != self._waiting.get(place)
                if (
                    not sought or await client.seek(place, start.offset)
                ) and self._generation == generation:
                    self._places[place] = Position(start.offset, start.committed, sought)
            if len(starts) < len(new):
                self._begins_at = self._clock.monotonic() + COMMIT_RETRY

    async def commit(self, place: Any, offset: int) -> bool:
        """Commit what is before an offset; return ``False`` where the client cannot."""
        async with self._lock:
            position = self._places.get(place)
            if position is None:
                return False
            position.commit = position.commit._replace(offset=offset)
            return await self._commit({place: position.commit})

    async def started(self) -> None:
        """Begin what was assigned by now, and watch the assignment from now on; may be called again.

        Raises:
            OffsetsRefusedError: the broker does not let the group commit.
        """
        if self._task is None:
            await self.begin()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch())

    async def stopping(self) -> None:
        """Stop watching; what was assigned a moment ago is begun, since its next owner goes on from there."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))
            with suppress(MqauthError, *self._client.lost):
                await self.begin()

    async def _see_assignment(self) -> None:
        await self._client.look()
        # After a rebalance others may have had any of them.
        if self._client.generation != self._generation:
            self._places, self._early, self._generation = {}, {}, self._client.generation
        self._places = {
            place: self._places[place]
            for place in self._places.keys() & self._client.held
        }

    async def _watch(self) -> None:
        while True:
            try:
                await self.begin()
                # Everything is committed again: offsets expire at the broker.
                if (now := self._clock.monotonic()) - self._renewed_at >= RENEWAL:
                    async with self._lock:
                        offsets = {
                            place: position.commit
                            for place, position in self._places.items()
                        }
                        if not offsets or await self._commit(offsets):
                            self._renewed_at = now
                # See whether the client has gone to the end of a partition that brings nothing.
                if now >= self._looks_at and not self.running:
                    self._looks_at = now + LOOK
                    for place, position in list(self._places.items()):
                        if position.expected == position.looked:
                            await self._went_on(place, position, None)
                        position.looked = position.expected
            except MqauthError as error:
                emit("consumer.failed", "the subscriber stops: %s", error)
                await self._client.end()
                return
            except self._client.lost as error:
                emit(
                    "client.poll_failed",
                    "looking at partitions failed with %s",
                    type(error).__name__,
                )
            await asyncio.sleep(WATCH)

    async def _went_on(self, place: Any, position: Position, offset: int | None) -> bool:
        """Go back to what is left, where the client has left something out; return whether it does."""
        expected = position.expected
        first = await self._client.left_out(place, expected, offset)
        if first is None or position.expected != expected:
            return False
        emit(
            "client.offset_out_of_range",
            "offset %d of %s-%d is out of range, its records are lost; it goes on at %d",
            expected,
            *place,
            first,
            partition=place[1],
            offset=first,
        )
        position.expected = first
        if first == offset:
            return False
        position.sought = offset is None
        return bool(await self._client.seek(place, first))

    async def _commit(self, offsets: Mapping[Any, Committed]) -> bool:
        try:
            calls = self._client.offsets()
            failure: str | None = await settled(calls.here(calls.send_commit, offsets))
        except self._client.lost as error:
            failure = type(error).__name__
        if failure is not None:
            emit(
                "client.commit_failed",
                "commit failed, what is not committed comes again: %s",
                failure,
            )
            # Soon with all the others: no further record may come, whose commit would cover it.
            self._renewed_at = self._clock.monotonic() - RENEWAL + COMMIT_RETRY
        return failure is None
