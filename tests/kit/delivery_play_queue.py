"""One run of the queue delivery contract, with a replay store and a source of keys that can be unreachable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from mqauth import (
    Allow,
    Cause,
    Issuer,
    KeySet,
    MemoryReplayStore,
    RetryLater,
    Rule,
    Unavailable,
    Verified,
)
from mqauth.replay.rules import ClaimRequest, ClaimStatus
from mqauth.testing.forge import ISSUER, SUBJECT
from tests.kit.delivery_play import Play
from tests.kit.delivery_stage import Member, Steps

MOMENT: Final = 0.02
OTHER: Final = "https://other.example"
"""An issuer that cannot be reached."""


class Gate:
    """A replay store that one consumer can be kept from reaching.

    Args:
        store: the store of all consumers.
    """

    in_process = True

    def __init__(self, store: MemoryReplayStore) -> None:
        self._store = store
        self.away = False

    def claim(self, request: ClaimRequest, /) -> ClaimStatus:
        """Claim a message, or renew its claim."""
        return self._reached().claim(request)

    def confirm(self, request: ClaimRequest, /) -> None:
        """Mark a claim as done."""
        self._reached().confirm(request)

    def release(self, request: ClaimRequest, /) -> None:
        """Forget a claim."""
        self._reached().release(request)

    def _reached(self) -> MemoryReplayStore:
        if self.away:
            raise Unavailable(Cause.REPLAY_STORE_UNAVAILABLE, "away")
        return self._store


class Keys:
    """A source of keys that cannot be reached at first.

    Args:
        keys: the keys it has.
    """

    def __init__(self, keys: KeySet) -> None:
        self._keys = keys
        self.away = True

    def key_set(self) -> KeySet:
        """Return the keys."""
        if self.away:
            raise Unavailable(Cause.KEYS_UNAVAILABLE, "away")
        return self._keys

    def refresh(self, _kid: str, _received: float, /) -> KeySet:
        """Return the same keys."""
        return self.key_set()


@dataclass
class QueuePlay(Play):
    """One run on a queue stage."""

    stage: Any

    def __post_init__(self) -> None:
        super().__post_init__()
        self.calls: list[bytes] = []
        """The body of each attempt that ``later`` put off."""

    def send(self, count: int, *, sealed: bool = True, **identity: Any) -> list[bytes]:
        """Send ``count`` messages and return their bodies."""
        return [self.inject(sealed=sealed, **identity) for _ in range(count)]

    def handle(self, verified: Verified) -> Iterator[float]:
        """Handle a message for a moment."""
        yield MOMENT
        self.handled.append(verified)

    def later(self, *bodies: bytes) -> Steps:
        """Return a handler that puts off these messages, or every message if none is given."""

        def handler(verified: Verified) -> Iterator[float]:
            body = verified.body or b""
            if body in bodies or not bodies:
                self.calls.append(body)
                raise RetryLater("not now")
            yield from self.handle(verified)

        return handler

    def start(
        self,
        handler: Steps | None = None,
        *,
        prefetch: int = 10,
        grace: float = 10,
        **settings: Any,
    ) -> Member:
        """Start a consumer."""
        guard = self.guard(**settings)
        member = self.stage.second(
            guard, handler or self.handle, prefetch=prefetch, grace=grace
        )
        self.members.append(member)
        return member

    def two_issuers(self, keys: Keys) -> dict[str, Any]:
        """Return the arguments of a pipeline that trusts a second issuer, whose keys come from ``keys``."""
        issuers = {ISSUER: Issuer(keys=self.forge.keys), OTHER: Issuer(keys=keys)}
        places = (self.stage.destination,)
        rules = [
            Rule(subject=SUBJECT, destinations=places, issuer=issuer)
            for issuer in issuers
        ]
        return {
            "verifier": self.forge.verifier(leeway=0, keys=issuers),
            "policy": Allow(rules),
        }

    def wait(self, condition: Callable[[], bool], seconds: float | None = None) -> None:
        """Wait until a condition holds, as long as every consumer runs.

        Raises:
            TimeoutError: the condition did not hold in time, or a consumer ended.
        """

        def over() -> bool:
            return condition() or any(member.failed for member in self.members)

        self.stage.wait(over, self.stage.patience if seconds is None else seconds)
        if not condition():
            raise TimeoutError("the condition did not come to hold")

    def go_on(self, seconds: float) -> None:
        """Let everything run for some seconds."""
        self.stage.wait(lambda: False, seconds)

    def all_handled(self, bodies: list[bytes]) -> None:
        """Wait until all of these were handled."""
        self.wait(lambda: set(self.bodies) >= set(bodies))

    def deferred(self, cause: Cause) -> set[bytes]:
        """Return the bodies of all messages that were deferred for a cause."""
        return {body for body, outcome in list(self.outcomes) if outcome.cause is cause}

    def watch_acks(self) -> None:
        """Note a fault for each ack of a message that was neither handled nor dead-lettered."""

        def observe(body: bytes) -> None:
            if body not in self.bodies and body not in [
                letter.body for letter in self.stage.letters()
            ]:
                self.faults.append(f"{body!r} was acked unsettled")

        self.stage.watch(observe)

    def stop_all(self) -> None:
        """Stop every consumer in order."""
        while self.members:
            self.stop(self.members[-1])

    def mistakes(self, bodies: list[bytes]) -> list[str]:
        """Stop every consumer, and return what is wrong if exactly these were to be handled, once each."""
        self.stop_all()
        handled, due = Counter(self.bodies), Counter(bodies)
        found = [f"{body!r} was not handled" for body in due - handled]
        found += [f"{body!r} was handled {handled[body]} times" for body in handled - due]
        found += [f"a message is condemned as {reason}" for reason in self.reasons()]
        return found + [
            f"{left} messages are left" for left in [self.stage.left()] if left
        ]
