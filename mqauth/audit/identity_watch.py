"""Three detectors of an authority, over its records ``identity_issued``; memory is bounded.

A key that two subjects have: somebody enrolled another's key, or one process has two names. A subject with more
identities alive than it has instances: somebody else asks for them, too. A subject that comes by another
credential than ever: a thief has found another way in, or somebody has moved a service.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, TypeVar

from mqauth.audit.query import Record, claims_of, member
from mqauth.wire.memo import Recent

INSTANCES: Final = 64
"""Identities of a subject that are alive at once, beyond which an alert is given; a process has two at a time."""
_TEXT: Final = 256
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
        self._instances = min(instances, 1024)
        self._owners = Recent[str, str](4 * capacity)
        self._alive = Recent[str, list[int]](capacity)
        self._credentials = Recent[str, str](capacity)

    def observe(self, record: Record, now: float) -> Iterator[Found]:
        """Yield what a record shows; ``now`` is its time, UTC seconds."""
        if record.get("verdict") != "identity_issued":
            return
        claims = claims_of(record)
        subject, jkt = str(claims.get("sub"))[:_TEXT], str(member(claims, "identity").get("jkt"))[:_TEXT]
        owner = _remember(self._owners, jkt, subject)
        if owner != subject:
            yield "shared_identity_key", 2, {"sub": subject, "jkt": jkt}
        ends = claims.get("exp")
        alive = [end for end in _remember(self._alive, subject, []) if end > now]
        alive = [*alive, ends if type(ends) is int else 0][-self._instances - 1 :]
        self._alive[subject] = alive
        if len(alive) > self._instances:
            yield "many_identities", len(alive), {"sub": subject}
        # A credential of another issuer or another name than the one before.
        credential = member(member(record, "asked"), "credential")
        names = (str(credential.get(name))[:_TEXT] for name in ("name", "sub"))
        came_by = " ".join(names) if credential else "command"
        known = _remember(self._credentials, subject, came_by)
        if came_by != known:
            self._credentials[subject] = came_by
            yield "new_credential", 1, {"sub": subject}


def _remember(held: Recent[str, T], key: str, value: T) -> T:
    """Return what is held under a key, the given value where there is nothing; it is the newest now."""
    known = held.get(key, value)
    held.keep(key, known)
    return known
