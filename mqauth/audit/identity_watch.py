"""Three detectors of an authority, over its records ``identity_issued``; memory is bounded.

A key that two subjects have: somebody enrolled another's key, or one process has two names. A subject with more
identities alive than it has instances: somebody else asks for them, too. A subject that comes by another
credential than ever: a thief has found another way in, or somebody has moved a service.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Final, TypeVar

from mqauth.audit.record import Record, claims_of, member

INSTANCES: Final = 64
"""Identities of a subject that are alive at once, beyond which an alert is given; a process has two at a time."""
_KEYS: Final = 4
_TEXT: Final = 256
_MOST: Final = 1024
T = TypeVar("T")
Found = tuple[str, int, Mapping[str, str]]
"""The kind of an alert, a count, and what it is about."""


class IdentityWatch:
    """Reads records in order.

    Args:
        capacity: subjects that are remembered, and a fourth of the keys.
        instances: identities of one subject that may be alive at once.
    """

    def __init__(self, capacity: int, instances: int = INSTANCES) -> None:
        self._capacity = capacity
        self._instances = min(instances, _MOST)
        self._owners: OrderedDict[str, str] = OrderedDict()
        self._alive: OrderedDict[str, list[int]] = OrderedDict()
        self._credentials: OrderedDict[str, str] = OrderedDict()

    def observe(self, record: Record, now: float) -> Iterator[Found]:
        """Yield what a record shows; ``now`` is its time, UTC seconds."""
        if record.get("verdict") != "identity_issued":
            return
        said = claims_of(record)
        subject, jkt = str(said.get("sub"))[:_TEXT], str(member(said, "identity").get("jkt"))[:_TEXT]
        owner = _remember(self._owners, jkt, subject, _KEYS * self._capacity)
        if owner != subject:
            yield "shared_identity_key", 2, {"sub": subject, "jkt": jkt}
        ends = said.get("exp")
        alive = [end for end in _remember(self._alive, subject, [], self._capacity) if end > now]
        alive = [*alive, ends if type(ends) is int else 0][-self._instances - 1 :]
        self._alive[subject] = alive
        if len(alive) > self._instances:
            yield "many_identities", len(alive), {"sub": subject}
        yield from self._by_another(subject, member(member(record, "asked"), "credential"))

    def _by_another(self, subject: str, credential: Record) -> Iterator[Found]:
        """Notice a subject whose credential is of another issuer or another name than the first one."""
        names = (str(credential.get(name))[:_TEXT] for name in ("name", "sub"))
        came_by = " ".join(names) if credential else "command"
        known = _remember(self._credentials, subject, came_by, self._capacity)
        if came_by != known:
            self._credentials[subject] = came_by
            yield "new_credential", 1, {"sub": subject}


def _remember(held: OrderedDict[str, T], key: str, value: T, capacity: int) -> T:
    """Return what is held under a key, the given value where there is nothing; the oldest goes."""
    found = held.setdefault(key, value)
    held.move_to_end(key)
    if len(held) > capacity:
        held.popitem(last=False)
    return found
