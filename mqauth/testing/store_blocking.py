"""A replay store as the store contract calls it: never awaited; ``Blocking`` makes one of an asynchronous one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from mqauth.replay.rules import ClaimRequest, ClaimStatus


class PlainStore(Protocol):
    """A store driven in plain calls."""

    def claim(self, request: ClaimRequest, /) -> ClaimStatus:
        """Claim."""
        ...

    def confirm(self, request: ClaimRequest, /) -> None:
        """Confirm."""
        ...

    def release(self, request: ClaimRequest, /) -> None:
        """Release."""
        ...


class PlainBatchStore(PlainStore, Protocol):
    """A store of batches driven in plain calls."""

    def claim_many(self, requests: Sequence[ClaimRequest], /) -> list[ClaimStatus]:
        """Claim each."""
        ...


class Blocking:
    """An asynchronous store driven in plain calls.

    Args:
        store: the store, made for the runner's loop.
        runner: runs its coroutines.
    """

    def __init__(self, store: Any, runner: asyncio.Runner) -> None:
        self._store = store
        self._runner = runner

    def claim(self, request: ClaimRequest, /) -> ClaimStatus:
        """Claim."""
        status: ClaimStatus = self._runner.run(self._store.claim(request))
        return status

    def confirm(self, request: ClaimRequest, /) -> None:
        """Confirm."""
        self._runner.run(self._store.confirm(request))

    def release(self, request: ClaimRequest, /) -> None:
        """Release."""
        self._runner.run(self._store.release(request))

    def claim_many(self, requests: Sequence[ClaimRequest], /) -> list[ClaimStatus]:
        """Claim each."""
        statuses: list[ClaimStatus] = self._runner.run(self._store.claim_many(requests))
        return statuses
