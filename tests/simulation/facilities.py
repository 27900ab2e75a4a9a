"""The services beside the broker: store, audit, policy and keys, each of which can be out of reach."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mqauth import Allow, Cause, MemoryReplayStore, Unavailable
from mqauth.audit.record import AuditRecord
from mqauth.replay.rules import ClaimRequest, ClaimStatus
from mqauth.wire.keys import KeySet
from tests.simulation.ledger import Claim

if TYPE_CHECKING:
    from tests.simulation.process import Process
    from tests.simulation.world import World

TIMEOUT = 2.0
"""Seconds after which a client of a facility gives up."""


class SharedStore:
    """A replay store of all processes, on a host of its own: each call is a round trip.

    Args:
        process: who asks.
        core: the store of all.
    """

    def __init__(self, process: Process, core: MemoryReplayStore) -> None:
        self._process = process
        self._world = process.world
        self._core = core

    async def claim(self, request: ClaimRequest, /) -> ClaimStatus:
        """Take a lease."""
        sent = self._world.agenda.now
        return await self._ask(
            lambda: noted_claim(self._process, self._core, request, sent)
        )  # type: ignore[no-any-return]

    async def confirm(self, request: ClaimRequest, /) -> None:
        """Make a claim done."""
        await self._ask(lambda: self._end(self._core.confirm, request))

    async def release(self, request: ClaimRequest, /) -> None:
        """Forget a claim."""
        await self._ask(lambda: self._end(self._core.release, request))

    def _end(self, act: Callable[[ClaimRequest], Any], request: ClaimRequest) -> None:
        act(request)
        self._world.ledger.unclaimed(
            claim_key(request), request.owner, self._world.agenda.now
        )

    async def _ask(self, act: Callable[[], Any]) -> Any:
        """Make a round trip; the store acts when the request arrives, even if the answer is lost."""
        mode = self._world.outage("store", self._process.name)
        if mode == "refused":
            await asyncio.sleep(self._world.network.delay())
            raise ConnectionRefusedError(111, "the replay store refuses connections")
        loop = self._process.loop
        answer: asyncio.Future[Any] = loop.create_future()
        if mode != "silent":
            self._world.agenda.after(
                self._world.network.delay(), lambda: self._arrive(act, answer, mode)
            )
        try:
            async with asyncio.timeout(TIMEOUT):
                return await answer
        except TimeoutError:
            raise Unavailable(
                Cause.REPLAY_STORE_UNAVAILABLE, "no answer in time"
            ) from None

    def _arrive(
        self, act: Callable[[], Any], answer: asyncio.Future[Any], mode: str | None
    ) -> None:
        """Perform a request at the store, and send the answer back."""
        if self._world.outage("store", self._process.name) in ("refused", "silent"):
            return
        result = act()
        if mode != "answer lost":
            self._world.agenda.after(
                self._world.network.delay(), lambda: self._answer(answer, result)
            )

    def _answer(self, answer: asyncio.Future[Any], result: Any) -> None:
        """Hand an answer to the process, which reads it at its next turn."""
        if self._process.alive:
            self._process.loop.call_soon(
                lambda: None if answer.done() else answer.set_result(result)
            )


class OwnStore:
    """A replay store in the process's own memory: answers at once, and dies with it.

    Args:
        process: whose it is.
    """

    in_process = True

    def __init__(self, process: Process) -> None:
        self._process = process
        self._core = MemoryReplayStore(clock=process.clock)

    def claim(self, request: ClaimRequest, /) -> ClaimStatus:
        """Take a lease."""
        self._check()
        return noted_claim(
            self._process, self._core, request, self._process.world.agenda.now
        )

    def confirm(self, request: ClaimRequest, /) -> None:
        """Make a claim done."""
        self._check()
        self._core.confirm(request)
        world = self._process.world
        world.ledger.unclaimed(claim_key(request), request.owner, world.agenda.now)

    def release(self, request: ClaimRequest, /) -> None:
        """Forget a claim."""
        self._check()
        self._core.release(request)
        world = self._process.world
        world.ledger.unclaimed(claim_key(request), request.owner, world.agenda.now)

    def _check(self) -> None:
        if self._process.world.outage("store", self._process.name):
            raise Unavailable(Cause.REPLAY_STORE_FULL, "full")


class Audit:
    """An audit sink on a disk that can be full.

    Args:
        process: who writes.
    """

    def __init__(self, process: Process) -> None:
        self._process = process

    def write(self, record: AuditRecord, /) -> None:
        """Keep a record."""
        world = self._process.world
        if world.outage("audit", self._process.name):
            raise OSError(28, "No space left on device")
        world.records.append(record.as_dict())


class SlowAudit(Audit):
    """An asynchronous audit sink."""

    async def write(self, record: AuditRecord, /) -> None:  # type: ignore[override]
        """Keep a record, later."""
        await asyncio.sleep(self._process.world.network.delay())
        super().write(record)


class Rules:
    """A policy on another host.

    Args:
        process: who asks.
        rules: what it says.
        asynchronous: whether the answer is awaited.
    """

    def __init__(self, process: Process, rules: Allow, *, asynchronous: bool) -> None:
        self._process = process
        self._rules = rules
        self._asynchronous = asynchronous
        self.version = rules.version

    def decide(self, verified: Any, /) -> Any:
        """Return the decision, or an awaitable of it."""
        if self._asynchronous:
            return self._later(verified)
        self._check()
        return self._rules.decide(verified)

    async def _later(self, verified: Any) -> Any:
        await asyncio.sleep(self._process.world.network.delay())
        self._check()
        return self._rules.decide(verified)

    def _check(self) -> None:
        if self._process.world.outage("policy", self._process.name):
            raise Unavailable(Cause.POLICY_UNAVAILABLE, "no answer")


class Keys:
    """A source of keys that can be out of reach.

    Args:
        process: who asks.
        keys: what it has.
    """

    def __init__(self, process: Process, keys: KeySet) -> None:
        self._process = process
        self._keys = keys

    def key_set(self) -> KeySet:
        """Return the keys."""
        if self._process.world.outage("keys", self._process.name):
            raise Unavailable(Cause.KEYS_UNAVAILABLE, "no keys yet")
        return self._keys

    def refresh(self, _kid: str, _received: float, /) -> KeySet:
        """Return the same keys."""
        return self.key_set()


def claim_key(request: ClaimRequest) -> Any:
    """Return the key under which the ledger knows a claim."""
    return (request.scope, request.id, request.index)


def noted_claim(
    process: Process, core: MemoryReplayStore, request: ClaimRequest, sent: float
) -> ClaimStatus:
    """Claim at a store, and note it in the ledger; the request was sent at a time."""
    world: World = process.world
    status = core.claim(request)
    world.note(
        "store", f"{'renew' if request.renew else 'claim'} {process.name}: {status.value}"
    )
    if status is ClaimStatus.FRESH:
        claim = Claim(request.owner, process.name, world.agenda.now)
        world.ledger.claimed(claim_key(request), claim, sent)
    return status
