"""A Hypothesis state machine that drives a replay store and the pure claim table side by side.

``machine(open_store).TestCase`` is a test class. It makes claims, renewals, confirms and releases and lets time
pass, in any order, and compares each answer with the table's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from mqauth.replay.rules import ClaimRequest, ClaimStatus, Entry, batch_id, judge
from mqauth.testing.clock import FakeClock
from mqauth.testing.store_contract import FRESH, HERE, THERE, wish

_NAMES: Final[list[dict[str, Any]]] = [
    *({"id": bytes([n]) * 16, "index": None} for n in (0, 1)),
    *({"id": batch_id(bytes(16), index), "index": index} for index in (0, 1, 70)),
    {"id": batch_id(b"\x01" * 16, 1), "index": 1},
]
_REQUESTS: Final = st.builds(
    lambda name, **given: wish(**name, **given),
    name=st.sampled_from(_NAMES),
    owner=st.sampled_from(["a", "b", "c"]),
    scope=st.sampled_from(["billing", "billing", "shipping"]),
    place=st.sampled_from([None, None, HERE, THERE, ("", "odd", 7, 2**60)]),
    redelivered=st.booleans(),
    lease=st.sampled_from([5.0, 10.0]),
    renew=st.sampled_from([False, False, True]),
)


class StoreMachine(RuleBasedStateMachine):
    """Calls the store in any order, and compares each answer with the claim table's."""

    open_store: Callable[[FakeClock], Any]

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.store = type(self).open_store(self.clock)
        self.model: dict[tuple[str, bytes], Entry] = {}

    @rule(request=_REQUESTS)
    def claim(self, request: ClaimRequest) -> None:
        """Claim a message, or renew its claim."""
        assert self.store.claim(request) is self._claimed(request)

    @rule(request=_REQUESTS)
    def confirm(self, request: ClaimRequest) -> None:
        """Mark a claim as done."""
        self.store.confirm(request)
        self._confirmed(request)

    @rule(request=_REQUESTS)
    def release(self, request: ClaimRequest) -> None:
        """Forget a claim."""
        self.store.release(request)
        if self._owned(request) is not None:
            del self.model[(request.scope, request.id)]

    @precondition(lambda self: hasattr(self.store, "claim_many"))
    @rule(requests=st.lists(_REQUESTS, max_size=4))
    def claim_many(self, requests: list[ClaimRequest]) -> None:
        """Claim several messages."""
        assert self.store.claim_many(requests) == [
            self._claimed(request) for request in requests
        ]

    @precondition(lambda self: hasattr(self.store, "confirm_many"))
    @rule(requests=st.lists(_REQUESTS, max_size=4))
    def confirm_many(self, requests: list[ClaimRequest]) -> None:
        """Mark several claims as done."""
        self.store.confirm_many(requests)
        for request in requests:
            self._confirmed(request)

    @rule(seconds=st.integers(1, 12))
    def pass_time(self, seconds: int) -> None:
        """Let time pass."""
        self.clock.advance(seconds)

    def _claimed(self, request: ClaimRequest) -> ClaimStatus:
        now, key = self.clock.monotonic(), (request.scope, request.id)
        entry = self.model.get(key)
        status = judge(entry, request, now)
        if status is FRESH:
            place = request.place if entry is None else entry.place
            self.model[key] = Entry(request.owner, place, now + request.lease)
        return status

    def _confirmed(self, request: ClaimRequest) -> None:
        entry = self._owned(request)
        if entry is not None:
            self.model[request.scope, request.id] = entry._replace(owner=None)

    def _owned(self, request: ClaimRequest) -> Entry | None:
        entry = self.model.get((request.scope, request.id))
        return entry if entry is not None and entry.owner == request.owner else None


def machine(open_store: Callable[[FakeClock], Any]) -> type[StoreMachine]:
    """Return a state machine that drives a store and the pure claim table side by side.

    Args:
        open_store: returns a fresh store that counts leases by the clock it is given.
    """
    return type("Machine", (StoreMachine,), {"open_store": staticmethod(open_store)})
