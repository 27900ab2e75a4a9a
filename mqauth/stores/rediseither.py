"""The replay store a configuration file names: a URL does not say which colour its consumer has."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any

from mqauth.replay.rules import ClaimRequest, ClaimStatus
from mqauth.stores.redis import AsyncRedisReplayStore, RedisReplayStore


class EitherRedisReplayStore:
    """Claims in Redis for a consumer of either colour: awaited where an event loop runs, plain elsewhere.

    Args:
        url: as for ``RedisReplayStore.from_url``; nothing is connected before the first claim.
        settings: likewise.

    Raises:
        ConfigurationError: the URL is none, or it turns verification off.
    """

    def __init__(self, url: str, **settings: Any) -> None:
        self._plain = RedisReplayStore.from_url(url, **settings)
        self._awaited = AsyncRedisReplayStore.from_url(url, **settings)

    def claim(self, request: ClaimRequest, /) -> ClaimStatus | Awaitable[ClaimStatus]:
        """Take the lease where the table allows it; one round trip.

        Raises:
            Unavailable: ``replay_store_unavailable`` or ``replay_store_full``.
        """
        return self._store().claim(request)

    def confirm(self, request: ClaimRequest, /) -> Awaitable[None] | None:
        """Make the claim done, if this owner still holds it."""
        return self._store().confirm(request)

    def release(self, request: ClaimRequest, /) -> Awaitable[None] | None:
        """Forget the claim, if this owner still holds it."""
        return self._store().release(request)

    def claim_many(self, requests: Sequence[ClaimRequest], /) -> list[ClaimStatus] | Awaitable[list[ClaimStatus]]:
        """Claim each, in order, in one round trip for every 1,000."""
        return self._store().claim_many(requests)

    def _store(self) -> RedisReplayStore | AsyncRedisReplayStore:
        """Return the store of this thread's colour."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return self._plain
        return self._awaited
