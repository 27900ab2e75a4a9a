"""The handler of the simulated service: it works, waits, retries, fails, blocks, or raises what it must not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mqauth import RetryLater, Verified
from tests.simulation.ledger import Handling

if TYPE_CHECKING:
    from tests.simulation.process import Process


class Abort(BaseException):
    """A ``BaseException`` that a handler must not raise, and does."""


class HandlerError(Exception):
    """An exception that a handler may raise."""


@dataclass(slots=True)
class Behaviour:
    """What the handler does with one order.

    Args:
        how: ``retry``, ``fail``, ``flaky``, ``slow``, ``block``, ``abort``, ``cancel`` or ``reply``.
        until: virtual seconds until which it asks for another time.
        seconds: how long it works or blocks.
        left: how often it still misbehaves.
    """

    how: str
    until: float = 0.0
    seconds: float = 0.0
    left: int = 1


@dataclass
class Handlers:
    """Makes the handler of each process, all with the same behaviour.

    Args:
        work: seconds of work, at least and at most; none where both are 0.
        asynchronous: whether the handler is a coroutine function.
        cleaning: seconds that its clean-up takes when it is cancelled.
    """

    work: tuple[float, float]
    asynchronous: bool
    cleaning: float
    behaviours: dict[int, Behaviour] = field(default_factory=dict)

    def of(self, process: Process) -> Callable[[Verified], Any]:
        """Return the handler of a process."""
        if self.asynchronous:
            return lambda verified: self._handle(process, verified)
        return lambda verified: self._handle_at_once(process, verified)

    async def _handle(self, process: Process, verified: Verified) -> None:
        """Handle a message; clean up when cancelled."""
        handling, behaviour = self._begun(process, verified)
        try:
            await self._work(process, verified, behaviour)
        except asyncio.CancelledError:
            handling.how = "cancelled"
            handling.cleaning = True
            process.world.note(process.name, f"handler cancelled {handling.label!r}")
            await asyncio.sleep(self.cleaning)
            handling.cleaning = False
            raise
        except BaseException as error:
            handling.how = type(error).__name__
            process.world.note(process.name, f"handler raises {handling.how} {handling.label!r}")
            raise
        self._ended(process, handling)

    async def _work(self, process: Process, verified: Verified, behaviour: Behaviour | None) -> None:
        """Work as the order's behaviour says."""
        if behaviour is not None:
            if behaviour.how == "slow":
                await asyncio.sleep(behaviour.seconds)
            else:
                self._misbehave(process, behaviour)
        if self.work[1]:
            await asyncio.sleep(process.world.pace.uniform(*self.work))
        if behaviour is not None and behaviour.how == "reply":
            await verified.reply(b"done")

    def _handle_at_once(self, process: Process, verified: Verified) -> None:
        """Handle a message without waiting for anything."""
        handling, behaviour = self._begun(process, verified)
        try:
            if behaviour is not None:
                self._misbehave(process, behaviour)
        except BaseException as error:
            handling.how = type(error).__name__
            process.world.note(process.name, f"handler raises {handling.how} {handling.label!r}")
            raise
        self._ended(process, handling)

    def _misbehave(self, process: Process, behaviour: Behaviour) -> None:
        """Do what the order's behaviour says."""
        if behaviour.how == "retry" and process.world.agenda.now < behaviour.until:
            raise RetryLater("the database is away")
        if behaviour.how == "fail":
            raise HandlerError("this order cannot be handled")
        if behaviour.left <= 0:
            return
        behaviour.left -= 1
        if behaviour.how == "block":
            process.block(behaviour.seconds)
        elif behaviour.how == "flaky":
            raise HandlerError("once more, please")
        elif behaviour.how == "abort":
            raise Abort("this must not be raised")
        elif behaviour.how == "cancel":
            raise asyncio.CancelledError

    def _begun(self, process: Process, verified: Verified) -> tuple[Handling, Behaviour | None]:
        """Note that a message is being handled."""
        world, label = process.world, verified.body or b""
        handling = Handling(label, process.name, process.time())
        world.ledger.handlings[label].append(handling)
        world.note(process.name, f"handles {label!r}")
        return handling, self.behaviours.get(order_of(label))

    def _ended(self, process: Process, handling: Handling) -> None:
        """Note that a message was handled."""
        handling.ended, handling.how = process.time(), "handled"
        process.world.note(process.name, f"handled {handling.label!r}")


def label_of(order: int, attempt: int) -> bytes:
    """Return the body of one attempt to publish an order."""
    return json.dumps({"order": order, "attempt": attempt}).encode()


def order_of(label: bytes) -> int:
    """Return the order's number, or -1 if the body is not an order's."""
    try:
        return int(json.loads(label)["order"])
    except (ValueError, KeyError, TypeError):
        return -1
