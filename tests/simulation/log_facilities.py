"""The facilities of the log engine's simulation: keys, policy, store, audit and letters, without a network.

The pipeline, the judge and the table of claims are the real ones; signatures are not: a record says of itself
whether it is forged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar, Final, NamedTuple

from mqauth.clock import Clock
from mqauth.errors import Cause, Reason, Rejection, Unavailable
from mqauth.judging.policy import Decision
from mqauth.judging.token import Times
from mqauth.replay.rules import ClaimRequest, ClaimStatus, judge
from mqauth.wire.keys import KeySet
from mqauth.wire.message import Message, Origin

TOPIC: Final = "orders"
FAR: Final = 4_000_000_000


class Abort(BaseException):
    """A ``BaseException`` that ends a consumer."""


class At(NamedTuple):
    """A partition."""

    topic: str
    partition: int


PLACES: Final = tuple(At(TOPIC, number) for number in range(3))
PLAIN: Final = SimpleNamespace(released=False)
OPENED: Final = SimpleNamespace(kid="k", algorithm="EdDSA")
CLAIMS: Final = SimpleNamespace(iss="i", sub="s", aud="a", jti="j", iat=0, exp=FAR)


class Entry:
    """A record of a log; it is its own token, and knows what the verifier says of it.

    Args:
        place: its partition.
        offset: where it stands there.
        content: the number of what it says; a copy has its original's.
        kind: how it is to be taken, ``honest`` for example.
        misbehaves: how often its handler misbehaves.

    Attributes:
        missed: whether it was there before the group began with its partition, at the end.
    """

    __slots__ = ("content", "done", "id", "kind", "letters", "message", "misbehaves", "missed", "offset", "place")
    shape, opened, claims, proof, index, learnt, wit = PLAIN, OPENED, CLAIMS, None, None, True, None
    destination = "kafka:orders"

    def __init__(self, place: At, offset: int, content: int, kind: str, misbehaves: int) -> None:
        self.place = place
        self.offset = offset
        self.content = content
        self.kind = kind
        self.misbehaves = misbehaves
        self.id = content.to_bytes(16, "big")
        self.done = self.missed = False
        self.letters = 0
        origin = Origin(scope="g", topic=TOPIC, partition=place.partition, offset=offset)
        self.message = Message(destination=self.destination, body=self.id, origin=origin, native=self)

    @property
    def token(self) -> Entry:
        """Itself."""
        return self

    def __repr__(self) -> str:
        return f"{self.place.partition}/{self.offset} {self.kind}"


class Facilities:
    """Facilities that can be out of reach: they refuse, break, act and lose the answer, or abort once.

    Args:
        clock: the clock.
        between: called inside each call, where something else may happen.
    """

    retention = 60
    version = "1"
    issuers: ClassVar[dict[str, Any]] = {}
    aliases: ClassVar[dict[str, Any]] = {}
    ends: ClassVar[dict[str, int]] = {}
    times = Times()
    user_id: str | None = None

    def __init__(self, clock: Clock, between: Callable[[], None]) -> None:
        self._clock = clock
        self._between = between
        self.out: dict[str, str] = {}
        self.records = 0

    # The verifier

    def open(self, message: Message) -> Any:
        """Return the record."""
        return message.native

    def issuer(self, _claims: Any) -> Any:
        """Return whose keys a token is verified by."""
        return self

    @property
    def keys(self) -> Any:
        """Where its keys are."""
        return self

    def key_set(self) -> KeySet:
        """Return the keys."""
        self.ask("keys", Cause.KEYS_UNAVAILABLE)
        return _KEYS

    def refresh(self, _kid: str, _received: float) -> KeySet:
        """Look for keys."""
        self.ask("keys", Cause.KEYS_UNAVAILABLE)
        return _KEYS

    def verify(self, message: Message, _candidate: Any, _keys: KeySet, _received: float) -> Any:
        """Return what was verified."""
        entry = message.native
        if entry.kind == "forged":
            raise Rejection(Reason.SIGNATURE_INVALID, "forged")
        return entry

    # The policy, and audit

    def decide(self, _verified: Any, /) -> Decision:
        """Allow everything."""
        self.ask("policy", Cause.POLICY_UNAVAILABLE)
        return Decision.ALLOW

    def write(self, _record: Any, /) -> None:
        """Keep a record."""
        if self.ask("audit", Cause.AUDIT_UNAVAILABLE):
            self.records += 1

    def ask(self, name: str, cause: Cause) -> bool:
        """Call a facility: raise if it is out of reach, return ``True`` if it acts."""
        self._between()
        how = self.out.get(name)
        if how is None:
            return True
        if how == "breaks":
            raise OSError(28, "No space left on device")
        if how == "refuses":
            raise Unavailable(cause, "out of reach")
        if how == "aborts":
            del self.out[name]
            raise Abort
        return True

    def lose(self, name: str, cause: Cause) -> None:
        """Raise after a call that was done, if answers are lost now."""
        how = self.out.get(name)
        if how == "loses once":
            del self.out[name]
        if how in ("loses", "loses once"):
            raise Unavailable(cause, "no answer")


_KEYS: Final = KeySet(())
_KEYS.by_kid["k"] = OPENED  # type: ignore[index]
_STORE: Final = Cause.REPLAY_STORE_UNAVAILABLE


class Claim:
    """The store's entry for one content."""

    __slots__ = ("lease_ends", "owner", "place")

    def __init__(self, owner: str | None, place: Any, lease_ends: float) -> None:
        self.owner = owner
        self.place = place
        self.lease_ends = lease_ends


class Store:
    """A replay store with the real table of claims.

    Args:
        facilities: whether it is in reach.
        clock: counts leases.
    """

    def __init__(self, facilities: Facilities, clock: Clock) -> None:
        self._facilities = facilities
        self._clock = clock
        self.entries: dict[bytes, Claim] = {}
        self.renewed: dict[bytes, float] = {}

    def claim(self, request: ClaimRequest, /) -> ClaimStatus:
        """Take a lease."""
        self._facilities.ask("store", _STORE)
        status = self._claim(request)
        self._facilities.lose("store", _STORE)
        return status

    def confirm(self, request: ClaimRequest, /) -> None:
        """Make a claim done."""
        self._facilities.ask("store", _STORE)
        entry = self.entries.get(request.id)
        if entry is not None and entry.owner == request.owner:
            entry.owner = None
        self._facilities.lose("store", _STORE)

    def release(self, request: ClaimRequest, /) -> None:
        """Forget a claim."""
        self._facilities.ask("store", _STORE)
        entry = self.entries.get(request.id)
        if entry is not None and entry.owner == request.owner:
            del self.entries[request.id]
        self._facilities.lose("store", _STORE)

    def take_over(self, entry: Entry, *, fails: bool) -> bool:
        """Let another process judge a record; tell whether it was handled."""
        known = self.entries.get(entry.id)
        place = entry.message.origin.coordinates
        if known is not None and known.place != place:
            return False
        if fails:
            self.entries.pop(entry.id, None)
        else:
            self.entries[entry.id] = Claim(None, place, 0.0)
        return not fails

    def _claim(self, request: ClaimRequest) -> ClaimStatus:
        entry, now = self.entries.get(request.id), self._clock.monotonic()
        if request.renew:
            self.renewed[request.id] = now
        status = judge(entry, request, now)  # type: ignore[arg-type]
        if status is ClaimStatus.FRESH:
            if entry is None:
                self.entries[request.id] = Claim(request.owner, request.place, now + request.lease)
            else:
                entry.owner, entry.lease_ends = request.owner, now + request.lease
        return status


class BatchStore(Store):
    """A store that takes many claims in one call."""

    def claim_many(self, requests: Sequence[ClaimRequest], /) -> list[ClaimStatus]:
        """Claim each, in order."""
        self._facilities.ask("store", _STORE)
        statuses = [self._claim(request) for request in requests]
        self._facilities.lose("store", _STORE)
        return statuses


class NearStore(BatchStore):
    """A store in this process."""

    in_process = True


class Letters:
    """Where rejected records go.

    Args:
        facilities: whether it is in reach.
        told: called with the record of each letter that was confirmed.
    """

    name = "orders.dead"

    def __init__(self, facilities: Facilities, told: Callable[[Entry], None]) -> None:
        self._facilities = facilities
        self._told = told

    def publish(self, letter: Any, /) -> None:
        """Keep a letter."""
        self._facilities.ask("letters", Cause.DEAD_LETTER_UNAVAILABLE)
        self._told(letter.message.native)
        self._facilities.lose("letters", Cause.DEAD_LETTER_UNAVAILABLE)
