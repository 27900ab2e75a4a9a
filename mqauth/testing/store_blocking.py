"""Replay stores as the store contract calls them, without awaiting; ``Blocking`` adapts an asynchronous store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from mqauth.flow import arun, call
from mqauth.replay.rules import ClaimRequest, ClaimStatus


class PlainStore(Protocol):
    """A store that is called without awaiting."""

    def claim(self, request: ClaimRequest, /) -> ClaimStatus:
        """Claim a message, or renew its claim."""
        ...

    def confirm(self, request: ClaimRequest, /) -> None:
        """Mark a claim as done."""
        ...

    def release(self, request: ClaimRequest, /) -> None:
        """Forget a claim."""
        ...


class PlainBatchStore(PlainStore, Protocol):
    """A store of batches that is called without awaiting."""

    def claim_many(self, requests: Sequence[ClaimRequest], /) -> list[ClaimStatus]:
        """Claim each message, in order."""
        ...


class Blocking:
    """A store that is called in an event loop, and can be called here without awaiting.

    Args:
        store: the store, made for the runner's loop.
        runner: runs its coroutines.
    """

    def __init__(self, store: Any, runner: asyncio.Runner) -> None:
        self._store = store
        self._runner = runner

    def claim(self, request: ClaimRequest, /) -> ClaimStatus:
        """Claim a message, or renew its claim."""
        status: ClaimStatus = self._runner.run(arun(call(self._store.claim, request)))
        return status

    def confirm(self, request: ClaimRequest, /) -> None:
        """Mark a claim as done."""
        self._runner.run(arun(call(self._store.confirm, request)))

    def release(self, request: ClaimRequest, /) -> None:
        """Forget a claim."""
        self._runner.run(arun(call(self._store.release, request)))

    def claim_many(self, requests: Sequence[ClaimRequest], /) -> list[ClaimStatus]:
        """Claim each message, in order."""
        return self._runner.run(arun(call(self._store.claim_many, requests)))

    def confirm_many(self, requests: Sequence[ClaimRequest], /) -> None:
        """Mark each claim as done."""
        self._runner.run(arun(call(self._store.confirm_many, requests)))
