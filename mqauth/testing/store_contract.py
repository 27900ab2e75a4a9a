"""The store contract: the promises of every replay store, row by row of the claim table.

Inherit ``StoreContract`` in a test class, or ``BatchStoreContract`` for a store with batches, and provide two
fixtures: ``clock``, a ``FakeClock``, and ``store``, a fresh store that counts leases by it. An asynchronous store
    is adapted by ``store_blocking.Blocking``. ``store_machine`` compares a store with the claim table in any order
    of calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final, Literal

import pytest

from mqauth.replay.rules import ClaimRequest, ClaimStatus, batch_id
from mqauth.testing.clock import START, FakeClock
from mqauth.testing.store_blocking import PlainBatchStore, PlainStore
from mqauth.wire.message import Place

LEASE: Final = 30.0
HERE: Final[Place] = ("cluster", "orders", 0, 7)
THERE: Final[Place] = ("cluster", "orders", 0, 8)
FRESH, REREAD, HELD = ClaimStatus.FRESH, ClaimStatus.REREAD, ClaimStatus.HELD
DUPLICATE, REPLAYED, LOST = ClaimStatus.DUPLICATE, ClaimStatus.REPLAYED, ClaimStatus.LOST


def wish(owner: str = "first", **changes: Any) -> ClaimRequest:
    """Return a claim on one message in scope ``billing``, by default without a place."""
    request = ClaimRequest(
        scope="billing",
        id=bytes(range(16)),
        owner=owner,
        place=None,
        redelivered=False,
        lease=LEASE,
        expires=START + 3600,
    )
    return replace(request, **changes)


def sibling(
    index: int, owner: str = "first", *, token: bytes = bytes(range(16)), **changes: Any
) -> ClaimRequest:
    """Return a claim on one message of a batch, by default of a token with the id of ``wish()``."""
    return wish(owner, id=batch_id(token, index), index=index, **changes)


State = Literal["unseen", "held", "lapsed", "done"]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table: the state before, the places of both deliveries, and the answer for the second one."""

    state: State
    first: Place | None
    second: Place | None
    redelivered: bool
    expected: ClaimStatus

    def __str__(self) -> str:
        broker = (
            "rabbitmq"
            if self.second is None
            else "kafka-same"
            if self.second == self.first
            else "kafka-other"
        )
        return f"{self.state}-{broker}-{'redelivered' if self.redelivered else 'new'}"


_KAFKA: Final[list[tuple[State, Place, ClaimStatus]]] = [
    ("unseen", HERE, FRESH),
    ("held", HERE, FRESH),
    ("lapsed", HERE, FRESH),
    ("held", THERE, REPLAYED),
    ("lapsed", THERE, REPLAYED),
    ("done", HERE, REREAD),
    ("done", THERE, REPLAYED),
]
_RABBITMQ: Final[list[tuple[State, bool, ClaimStatus]]] = [
    ("unseen", False, FRESH),
    ("unseen", True, FRESH),
    ("held", False, REPLAYED),
    ("held", True, HELD),
    ("lapsed", False, REPLAYED),
    ("lapsed", True, FRESH),
    ("done", False, REPLAYED),
    ("done", True, DUPLICATE),
]
# On Kafka neither the lease nor the hint counts: the place tells a redelivery exactly.
ROWS: Final = [
    *(
        Row(state, HERE, place, hint, status)
        for state, place, status in _KAFKA
        for hint in (False, True)
    ),
    *(Row(state, None, None, hint, status) for state, hint, status in _RABBITMQ),
]


ODD_PLACES: Final[list[Place]] = [
    ("", "", 0, 0),
    ("a", "b", 0, 2**47),
    ("a", "b", 0, 2**48),
    ("a", "b", 0, 2**63 - 1),
    ("a", "b", 7, 0),
    ("\ud800", "b", 0, 7),
    ("a/b", "", 0, 7),
    ("a" * 300, "b", 2**31 - 1, 7),
]


def confirm_all(store: Any, requests: Sequence[ClaimRequest]) -> None:
    """Confirm claims, together where the store can."""
    together = getattr(store, "confirm_many", lambda each: [*map(store.confirm, each)])
    together(requests)


class StoreContract:
    """What every replay store must do; the docstring of each test is the promise."""

    @pytest.mark.parametrize("row", ROWS, ids=str)
    @pytest.mark.parametrize(
        "index", [None, 0, 1023], ids=["single", "first of a batch", "last of a batch"]
    )
    def test_row(
        self, store: PlainStore, clock: FakeClock, row: Row, index: int | None
    ) -> None:
        """A second delivery finds what the table says, single or in a batch."""
        name: dict[str, Any] = (
            {} if index is None else {"id": batch_id(bytes(16), index), "index": index}
        )
        first = wish(place=row.first, **name)
        if row.state != "unseen":
            assert store.claim(first) is FRESH
        if row.state == "lapsed":
            clock.advance(LEASE)
        if row.state == "done":
            store.confirm(first)
        second = wish("second", place=row.second, redelivered=row.redelivered, **name)
        assert store.claim(second) is row.expected

    @pytest.mark.parametrize("place", [HERE, None], ids=["kafka", "rabbitmq"])
    def test_claim_repeated(self, store: PlainStore, place: Place | None) -> None:
        """The same owner may claim again, so that a lost answer condemns nobody."""
        assert [store.claim(wish(place=place)) for _ in range(3)] == [FRESH] * 3

    def test_claim_repeated_lengthens(self, store: PlainStore, clock: FakeClock) -> None:
        """A repeated claim begins its lease anew."""
        store.claim(wish())
        clock.advance(LEASE - 1)
        store.claim(wish())
        clock.advance(LEASE - 1)
        assert store.claim(wish("second", redelivered=True)) is HELD

    def test_lease(self, store: PlainStore, clock: FakeClock) -> None:
        """A lease holds until its last moment and no longer."""
        store.claim(wish())
        clock.advance(LEASE - 1)
        assert store.claim(wish("second", redelivered=True)) is HELD
        clock.advance(1)
        assert store.claim(wish("second", redelivered=True)) is FRESH

    def test_lapsed_is_taken_once(self, store: PlainStore, clock: FakeClock) -> None:
        """Of two consumers that wait for a lease to end, one gets the claim."""
        store.claim(wish())
        clock.advance(LEASE)
        taken = [
            store.claim(wish(owner, redelivered=True)) for owner in ("second", "third")
        ]
        assert taken == [FRESH, HELD]

    def test_renewal(self, store: PlainStore, clock: FakeClock) -> None:
        """A renewed lease holds for its full length from the renewal."""
        store.claim(wish())
        clock.advance(LEASE - 1)
        assert store.claim(wish(renew=True)) is FRESH
        clock.advance(LEASE - 1)
        assert store.claim(wish("second", redelivered=True)) is HELD

    def test_renewal_after_the_end(self, store: PlainStore, clock: FakeClock) -> None:
        """A lease that is over may be renewed if nobody else took the claim."""
        store.claim(wish())
        clock.advance(LEASE + 1)
        assert store.claim(wish(renew=True)) is FRESH
        assert store.claim(wish("second", redelivered=True)) is HELD

    @pytest.mark.parametrize("place", [HERE, None], ids=["kafka", "rabbitmq"])
    def test_renewal_by_former_owner(
        self, store: PlainStore, clock: FakeClock, place: Place | None
    ) -> None:
        """A former owner's renewal finds its claim lost and takes nothing back."""
        store.claim(wish(place=place))
        clock.advance(LEASE)
        store.claim(wish("second", place=place, redelivered=True))
        assert store.claim(wish(place=place, renew=True)) is LOST
        assert store.claim(wish("second", place=place, renew=True)) is FRESH

    def test_renewal_of_nothing(self, store: PlainStore) -> None:
        """A renewal claims nothing that is unseen, released or done."""
        assert store.claim(wish(renew=True)) is LOST
        assert store.claim(wish("second")) is FRESH
        store.release(wish("second"))
        assert store.claim(wish("second", renew=True)) is LOST
        store.claim(wish("third"))
        store.confirm(wish("third"))
        assert store.claim(wish("third", renew=True)) is LOST

    @pytest.mark.parametrize("place", [HERE, None], ids=["kafka", "rabbitmq"])
    def test_end_by_former_owner(
        self, store: PlainStore, clock: FakeClock, place: Place | None
    ) -> None:
        """A former owner's confirm and release do nothing."""
        store.claim(wish(place=place))
        clock.advance(LEASE)
        store.claim(wish("second", place=place, redelivered=True))
        store.confirm(wish(place=place))
        store.release(wish(place=place))
        assert store.claim(wish("second", place=place, renew=True)) is FRESH

    def test_end_by_stranger(self, store: PlainStore) -> None:
        """Confirm and release of what was never claimed do nothing."""
        store.confirm(wish())
        store.release(wish())
        assert store.claim(wish()) is FRESH

    @pytest.mark.parametrize("place", [HERE, None], ids=["kafka", "rabbitmq"])
    def test_release(self, store: PlainStore, place: Place | None) -> None:
        """What was released is unseen, for any delivery."""
        store.claim(wish(place=place))
        store.release(wish(place=place))
        assert store.claim(wish("second", place=place and THERE)) is FRESH

    def test_done_for_ever(self, store: PlainStore, clock: FakeClock) -> None:
        """A claim that is done stays done after repeated releases and confirms, and after its lease."""
        store.claim(wish())
        for _ in range(2):
            store.confirm(wish())
            store.release(wish())
        clock.advance(3500)
        assert store.claim(wish("second")) is REPLAYED
        assert store.claim(wish()) is REPLAYED

    def test_place_survives_takeover(self, store: PlainStore) -> None:
        """A claim taken over after a crash keeps its place through confirm."""
        store.claim(wish(place=HERE))
        store.claim(wish("second", place=HERE))
        store.confirm(wish("second", place=HERE))
        assert store.claim(wish("third", place=HERE)) is REREAD
        assert store.claim(wish("third", place=THERE)) is REPLAYED

    @pytest.mark.parametrize("index", [None, 1], ids=["single", "batch"])
    @pytest.mark.parametrize("place", ODD_PLACES, ids=str)
    def test_odd_places(self, store: PlainStore, place: Place, index: int | None) -> None:
        """Every place differs from every other, whatever its log is called and however large its offset is."""
        name: dict[str, Any] = (
            {} if index is None else {"id": batch_id(bytes(16), index), "index": index}
        )
        for number in (0, 2):
            before = sibling(number, place=HERE, token=bytes(16))
            store.claim(before)
            store.confirm(before)
        store.claim(wish(place=place, **name))
        store.confirm(wish(place=place, **name))
        assert store.claim(wish("second", place=place, **name)) is REREAD
        assert store.claim(wish("second", place=("a", "b", 0, 7), **name)) is REPLAYED
        assert store.claim(wish("second", **name)) is REPLAYED
        assert store.claim(sibling(2, "second", place=HERE, token=bytes(16))) is REREAD
        assert store.claim(sibling(0, "second", place=place, token=bytes(16))) is REPLAYED

    def test_odd_names(self, store: PlainStore) -> None:
        """Scopes and owners may hold any text."""
        odd = ["", " ", "}", "{}", "9 x", "ключ", "\ud800", "\x00", "a" * 300]
        for scope in odd:
            for number, owner in enumerate(odd):
                request = wish(owner, scope=scope, id=bytes([number]) * 16, place=HERE)
                assert store.claim(request) is FRESH
                assert store.claim(replace(request, renew=True)) is FRESH
                store.confirm(request)
                assert store.claim(replace(request, owner="other")) is REREAD

    def test_scopes_apart(self, store: PlainStore) -> None:
        """Each scope may handle a message once."""
        scopes = ["billing", "shipping", "billing:1", "bill"]
        assert [store.claim(wish(scope=scope)) for scope in scopes] == [FRESH] * 4
        assert [store.claim(wish("second", scope=scope)) for scope in scopes] == [
            REPLAYED
        ] * 4

    def test_ids_apart(self, store: PlainStore) -> None:
        """Ids that differ in one bit, the first or the last, are different messages."""
        ids = [
            bytes(16),
            b"\x80" + bytes(15),
            bytes(15) + b"\x01",
            b"\n" * 16,
            b"\xff" * 16,
        ]
        assert [store.claim(wish(id=identity)) for identity in ids] == [FRESH] * 5
        assert [store.claim(wish("second", id=identity)) for identity in ids] == [
            REPLAYED
        ] * 5

    def test_siblings_apart(self, store: PlainStore) -> None:
        """Each message of a batch counts by itself, and so does a single message whose token has the same id."""
        siblings = [sibling(index) for index in (0, 1, 2, 63, 64, 255, 256, 1023)]
        everyone = [
            wish(),
            wish(id=bytes(17) + b"\x01"),
            *siblings,
            sibling(1, token=b"\x01" * 16),
        ]
        assert [store.claim(one) for one in everyone] == [FRESH] * 11
        for one in everyone[::2]:
            store.confirm(one)
        for one in everyone[1::2]:
            store.release(one)
        again = [store.claim(replace(one, owner="second")) for one in everyone]
        assert again == [REPLAYED, FRESH] * 5 + [REPLAYED]

    @pytest.mark.parametrize("step", [1, -1], ids=["in order", "backwards"])
    def test_siblings_by_place(self, store: PlainStore, step: int) -> None:
        """Each done message of a batch is a re-read at its own place and a replay at its siblings'."""
        batch = [
            sibling(7 * n, f"{n}", place=("c", "orders", n % 3, 100 - n))
            for n in range(9)
        ]
        for one in batch[::step]:
            assert store.claim(one) is FRESH
        confirm_all(store, batch[::-step])
        assert [store.claim(replace(one, owner="again")) for one in batch] == [REREAD] * 9
        moved = [
            replace(one, owner="again", place=two.place) for one, two in pairwise(batch)
        ]
        assert [store.claim(one) for one in moved] == [REPLAYED] * 8

    def test_siblings_with_and_without_place(self, store: PlainStore) -> None:
        """A message of a batch that is done without a place keeps none, whatever its siblings have."""
        batch = [sibling(n, place=HERE if n % 2 else None) for n in range(6)]
        for one in batch:
            store.claim(one)
            store.confirm(one)
        statuses = [store.claim(replace(one, owner="again", place=HERE)) for one in batch]
        assert statuses == [REPLAYED, REREAD] * 3
        assert store.claim(sibling(0, "again", redelivered=True)) is DUPLICATE

    def test_redelivery_storm(self, store: PlainStore, clock: FakeClock) -> None:
        """A message redelivered five times is handled and never condemned; its copies are never handled."""
        for number in range(20):
            identity = number.to_bytes(16, "big")
            first = wish(f"{number}", id=identity)
            assert store.claim(first) is FRESH
            again = [replace(first, owner=f"r{n}", redelivered=True) for n in range(5)]
            assert [*map(store.claim, again)] == [HELD] * 5
            store.confirm(first)
            assert [*map(store.claim, again)] == [DUPLICATE] * 5
            assert [store.claim(replace(first, owner=f"c{n}")) for n in range(5)] == [
                REPLAYED
            ] * 5


class BatchStoreContract(StoreContract):
    """What every replay store with batches must do; the docstring of each test is the promise."""

    def test_batch(self, store: PlainBatchStore) -> None:
        """The claims of a batch are judged in order, including a copy within the batch."""
        batch = [
            wish(f"{n}", id=bytes([n % 3]) * 16, place=("c", "orders", 0, n))
            for n in range(5)
        ]
        assert store.claim_many(batch) == [FRESH, FRESH, FRESH, REPLAYED, REPLAYED]
        confirm_all(store, batch[:2])
        assert store.claim_many([replace(one, owner="again") for one in batch]) == [
            REREAD,
            REREAD,
            FRESH,
            REPLAYED,
            REPLAYED,
        ]

    def test_batch_of_siblings(self, store: PlainBatchStore) -> None:
        """Messages of two batches, single ones between them and a copy of each are judged in order."""
        poll = [
            one
            for n in range(6)
            for one in (
                sibling(n, f"{n}", token=bytes(16), place=("c", "orders", 0, 3 * n)),
                sibling(
                    n, f"{n}", token=b"\x01" * 16, place=("c", "orders", 0, 3 * n + 1)
                ),
                wish(f"{n}", id=bytes([n]) * 16, place=("c", "orders", 0, 3 * n + 2)),
            )
        ]
        copies = [replace(one, owner="copy", place=("c", "orders", 1, 0)) for one in poll]
        assert store.claim_many(poll + copies) == [FRESH] * 18 + [REPLAYED] * 18
        confirm_all(store, poll[::2] + copies)
        assert (
            store.claim_many([replace(one, owner="again") for one in poll])
            == [REREAD, FRESH] * 9
        )

    def test_batch_repeated(self, store: PlainBatchStore) -> None:
        """A batch whose answer was lost may be claimed again."""
        batch = [wish(f"{n}", id=bytes([n]) * 16) for n in range(5)]
        store.claim_many(batch[:3])
        assert store.claim_many(batch) == [FRESH] * 5

    def test_batch_empty(self, store: PlainBatchStore) -> None:
        """An empty batch has an empty answer."""
        assert store.claim_many([]) == []

    def test_batch_large(self, store: PlainBatchStore) -> None:
        """A batch may be larger than any poll: 2,500 claims are judged in order."""
        batch = [
            wish(id=n.to_bytes(16, "big"), place=("c", "orders", 0, n))
            for n in range(2500)
        ]
        assert store.claim_many(batch) == [FRESH] * 2500
        confirm_all(store, batch)
        assert (
            store.claim_many([replace(one, owner="again") for one in batch])
            == [REREAD] * 2500
        )
