"""The facilities and the invariants of the log engine's simulation, without a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

from mqauth.clock import Clock
from mqauth.delivery.assignment import Assignment
from mqauth.delivery.partition import Partition
from mqauth.errors import Cause, Reason, Rejection, Unavailable
from mqauth.judging.pipeline import Delivery, Outcome, Step, Verdict
from mqauth.judging.policy import Decision
from mqauth.judging.token import Times
from mqauth.replay.rules import ClaimRequest, ClaimStatus, judge
from mqauth.testing.clock import FakeClock
from mqauth.wire.keys import KeySet
from mqauth.wire.message import Message, Origin
from tests.simulation.broken import Broken

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

    __slots__ = (
        "content",
        "done",
        "id",
        "kind",
        "letters",
        "message",
        "misbehaves",
        "missed",
        "offset",
        "place",
    )
    shape, opened, claims, proof, index, learnt, wit = (
        PLAIN,
        OPENED,
        CLAIMS,
        None,
        None,
        True,
        None,
    )
    destination = "kafka:orders"

    def __init__(
        self, place: At, offset: int, content: int, kind: str, misbehaves: int
    ) -> None:
        self.place = place
        self.offset = offset
        self.content = content
        self.kind = kind
        self.misbehaves = misbehaves
        self.id = content.to_bytes(16, "big")
        self.done = self.missed = False
        self.letters = 0
        origin = Origin(scope="g", topic=TOPIC, partition=place.partition, offset=offset)
        self.message = Message(
            destination=self.destination, body=self.id, origin=origin, native=self
        )

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

    def verify(
        self, message: Message, _candidate: Any, _keys: KeySet, _received: float
    ) -> Any:
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
        self._confirm([request])

    def _confirm(self, requests: Sequence[ClaimRequest]) -> None:
        self._facilities.ask("store", _STORE)
        for request in requests:
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
                self.entries[request.id] = Claim(
                    request.owner, request.place, now + request.lease
                )
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

    def confirm_many(self, requests: Sequence[ClaimRequest], /) -> None:
        """Make each done."""
        self._confirm(requests)


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


if TYPE_CHECKING:
    from tests.simulation.log_workers import Worker

FIRST: Final = 0.5
"""Seconds of the first back-off."""
LONGEST: Final = 8.0
"""Seconds of the longest back-off."""
LEASE: Final = 60.0


class LogInvariants:
    """Records what happens to each record, and raises ``Broken`` at the first step that breaks an invariant.

    Args:
        tell: receives each line of the trace; ``None`` for no trace.

    Attributes:
        log: the records of each partition.
        contents: the records of each content: an original and its copies.
        committed: the group's committed offset of each partition, as the broker has it; 0 where there is none.
        metadata: of those commits, by the partitions that the group has begun.
        count: how many partitions the topic has by now.
        at_first: how many it had when the group began.
        owned: partitions that the broker assigns to this member.
        held: partitions that the client believes to be its own.
        excused: ids of claims that were left behind by a process that could not release them.
        loose: contents that two members handled at a time, so that their claims prove nothing.
    """

    assignment: Assignment
    facilities: Facilities
    store: Store

    def __init__(self, tell: Callable[[str], None] | None) -> None:
        self.tell = tell
        self.clock = FakeClock()
        self.log: dict[At, list[Entry]] = {place: [] for place in PLACES}
        self.prefix = dict.fromkeys(PLACES, 0)
        self.contents: list[list[Entry]] = []
        self.handled_at: dict[int, tuple[At, int]] = {}
        self.committed: dict[At, int] = dict.fromkeys(PLACES, 0)
        self.metadata: dict[At, str] = {}
        self.ends: dict[At, int] = dict.fromkeys(PLACES, 0)
        self.count, self.at_first = len(PLACES), 0
        self.owned: set[At] = set()
        self.held: set[At] = set()
        self.excused: set[bytes] = set()
        self.loose: set[int] = set()
        self.healed = False
        self.workers: list[Worker] = []
        self.forget_consumer()

    def forget_consumer(self) -> None:
        """Forget what is known of the last consumer."""
        self.stopping = self.holding = False
        self.suspended: set[At] = set()
        self.doubted: float | None = None
        self.beat: float | None = None
        self.serial = dict.fromkeys(PLACES, 0)
        self.known: dict[Partition, int] = {}
        self.astray: set[Partition] = set()
        self.receipts: dict[Partition, dict[int, float]] = {}
        self.settled: dict[Partition, int] = {}
        self.waits: dict[Partition, tuple[float, int]] = {}
        self.doubtful: set[int] = set()

    def note(self, text: str) -> None:
        """Add a line to the trace; check ``tell`` before a line that is costly to build."""
        if self.tell is not None:
            self.tell(f"{self.clock.monotonic():8.2f}  {text}")

    def require(self, holds: bool, invariant: str, text: Any) -> None:
        """Raise ``Broken`` if an invariant does not hold."""
        if not holds:
            self.fail(invariant, str(text))

    def fail(self, invariant: str, text: str) -> None:
        """Raise ``Broken`` for an invariant."""
        raise Broken(invariant, text)

    # One delivery

    def picked(self, assignment: Assignment, part: Partition, delivery: Delivery) -> None:
        """Check a delivery that begins, or begins again."""
        entry: Entry = delivery.message.native  # type: ignore[assignment]
        if assignment is not self.assignment:
            return self.fail("nothing begins after a stop", str(entry))
        place = entry.place
        self.require(
            place in self.metadata, "nothing begins before its start is committed", entry
        )
        self.require(not self.stopping, "nothing begins after a stop", entry)
        self.require(not self.holding, "nothing begins before a rebalance", entry)
        self.require(self.is_ours(part), "nothing begins after a loss", entry)
        self.require(
            place not in self.suspended, "nothing begins while it is revoked", entry
        )
        log, at = self.log[place], self.first_open(place)
        ordered = part in self.astray or at >= len(log) or log[at].offset >= entry.offset
        self.require(ordered, "order within a partition", entry)
        if place in self.owned:
            self.require(
                entry.offset >= self.committed[place],
                "what is committed is not begun",
                entry,
            )
        first = self.receipts[part][entry.offset]
        self.require(
            delivery.received == first,
            "the time of receipt is kept",
            f"{entry} {delivery.received}",
        )
        self.require(id(delivery) not in self.doubtful, "in doubt nothing begins", entry)
        due, _ = self.waits.get(part, (0.0, 0))
        self.require(
            self.clock.monotonic() >= due, "the back-off is kept", f"{entry} {due}"
        )

    def attempted(self, part: Partition, delivery: Delivery, outcome: Outcome) -> None:
        """Check the outcome of a delivery."""
        entry: Entry = delivery.message.native  # type: ignore[assignment]
        if self.tell:
            self.note(
                f"{entry}: {outcome.verdict.value} {outcome.cause or outcome.reason or ''}"
            )
        if outcome.verdict is Verdict.DEFERRED:
            self.deferred(part)
            return
        self.require(entry.done, "settled is handled or buried", entry)
        self.settled[part] = entry.offset
        self.waits.pop(part, None)

    def deferred(self, part: Partition) -> None:
        """Note that a partition waits."""
        count = self.waits.get(part, (0.0, 0))[1] + 1
        least = min(FIRST * 2.0 ** (count - 1), LONGEST) / 2
        self.waits[part] = (self.clock.monotonic() + least, count)

    def handled(self, entry: Entry) -> None:
        """Note that some member handled a record."""
        entry.done = True
        at = self.handled_at.setdefault(entry.content, (entry.place, entry.offset))  # type: ignore[arg-type]
        once = at == (entry.place, entry.offset) or entry.content in self.loose
        self.require(once, "a copy is not handled", entry)

    def lettered(self, entry: Entry) -> None:
        """Note that a letter was confirmed."""
        if self.tell:
            self.note(f"buried {entry}")
        entry.done = True
        entry.letters += 1
        if (
            entry.kind in ("honest", "later", "flaky", "aborts")
            and len(self.contents[entry.content]) == 1
        ):
            self.require(entry.kind == "flaky", "condemned", entry)

    def is_ours(self, part: Partition) -> bool:
        """Tell whether a partition is still ours as far as the engine was told."""
        return (
            part.topic_partition in self.held
            and self.known.get(part) == self.serial[part.topic_partition]
        )

    def first_open(self, place: At) -> int:
        """Return the index of the first record that is neither handled nor buried."""
        log, at = self.log[place], self.prefix[place]
        while at < len(log) and log[at].done:
            at += 1
        self.prefix[place] = at
        return at

    def begun(self, place: At, offset: int, metadata: str) -> None:
        """Check the first commit of a partition, and note what the group does not get of it."""
        self.require(place not in self.metadata, "a partition begins once", place)
        self.at_first = self.at_first or self.count
        added = place.partition >= self.at_first
        self.require(
            offset == (0 if added else offset),
            "what is added begins at its beginning",
            offset,
        )
        self.require(
            offset <= self.ends[place],
            "a partition begins with what comes",
            f"{offset} of {place}",
        )
        for entry in self.log[place]:
            if entry.offset < offset:
                entry.done = entry.missed = True
        self.committed[place], self.metadata[place] = offset, metadata

    # Claims

    def forget(self, places: set[At]) -> None:
        """Note that the state of partitions is out of date."""
        for place in places:
            self.serial[place] += 1
        self.excuse()

    def excuse(self) -> None:
        """Note the claims of a process that had no time to release them."""
        self.excused.update(
            name for name, claim in self.store.entries.items() if claim.owner is not None
        )

    def look_at_leases(self) -> None:
        """Check that the claims of long handlers are renewed."""
        now = self.clock.monotonic()
        reached = "store" not in self.facilities.out
        if self.stopping:
            return
        for worker in self.workers:
            if worker.entry is None or worker.assignment is not self.assignment:
                continue
            if worker.seen is None:
                worker.seen = now
            elif now - worker.seen >= LEASE / 3:
                # Put off and begun again, a handler's claim may be renewed earlier than counted from here.
                asked = self.store.renewed.get(worker.entry.id, -1.0)
                self.require(
                    now - asked < LEASE / 3 or not reached,
                    "a claim is renewed",
                    worker.entry,
                )
                worker.seen = now

    def look_at_claim(self, delivery: Delivery) -> None:
        """Check that the claim of an unhandled record was released."""
        entry: Entry = delivery.message.native  # type: ignore[assignment]
        claim = self.store.entries.get(entry.id)
        if (
            claim is None
            or claim.owner is None
            or claim.owner != delivery.owner
            or entry.done
        ):
            return
        if delivery.step in (Step.JUDGE, Step.HANDLE):
            self.fail("no claim outlives a stop", str(entry))

    # The end

    def at_rest(self) -> bool:
        """Tell whether everything is settled and committed."""
        done = all(self.first_open(place) == len(self.log[place]) for place in PLACES)
        return done and not self.stopping and self.metadata.keys() == set(PLACES[: self.count]) and all(
            self.committed[place] >= (self.log[place][-1].offset + 1 if self.log[place] else 0) for place in PLACES
        )  # fmt: skip

    def look_at_the_end(self) -> None:
        """Check that no claim is left, and that each record was handled or buried."""
        for entries in self.contents:
            first = entries[0]
            claim = self.store.entries.get(first.id)
            left = (
                claim is not None
                and claim.owner is not None
                and first.id not in self.excused
            )
            self.require(not left, "no claim is left", first)
            if first.kind in ("honest", "later", "aborts") and not first.missed:
                self.require(
                    first.content in self.handled_at,
                    "every honest record is handled",
                    first,
                )
            if first.kind == "forged":
                for entry in entries:
                    buried = (
                        entry.letters > 0 or entry.missed or entry.place not in self.held
                    )
                    self.require(buried, "the forged are buried", entry)
