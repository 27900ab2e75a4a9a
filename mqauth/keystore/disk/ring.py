"""The life of a producer's keys, as pure functions from a ring and a moment to the next ring.

``pending`` (published, not yet signing) -> ``active`` (one) -> ``retired`` (still verifies what it signed)
-> gone; ``revoked`` at any time. Publish, then use: a key signs only once consumers can have it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from mqauth.errors import ConfigurationError
from mqauth.wire.keys import Key, Revocation

DEFAULT_PUBLISH_DELAY: Final = 600
MAX_PUBLISH_DELAY: Final = 30 * 86_400
DEFAULT_RETAIN: Final = 7 * 86_400
PICKUP: Final = 300
"""Seconds for which a retired key's tokens are still accepted as new ones: until running producers have noticed
(at most 60), their messages have reached the broker (which counts with ``at="append"``), and for clocks that
differ. A key that is feared for is revoked, not retired."""


class State(StrEnum):
    """Where a key is in its life; the strings stand in ``keyset.json``."""

    PENDING = "pending"
    ACTIVE = "active"
    RETIRED = "retired"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True, kw_only=True)
class RingKey:
    """One key of a ring; times are UTC seconds.

    Args:
        key: its public half, with algorithm and subjects.
        state: where it is in its life.
        created: when it was made.
        ready: from when it may sign.
        activated, retired, revoked: when it came into that state, if it did.
        revocation: from which moment it is revoked, and why.
    """

    key: Key
    state: State
    created: int
    ready: int
    activated: int | None = None
    retired: int | None = None
    revoked: int | None = None
    revocation: Revocation | None = None

    @property
    def kid(self) -> str:
        """The key id."""
        return self.key.kid

    @property
    def published(self) -> Key:
        """The key as consumers see it, with its end."""
        expires = None if self.retired is None else self.retired + PICKUP
        return replace(self.key.public_only, expires=expires, revocation=self.revocation)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRing:
    """All keys of one producer, in the order they were made.

    Args:
        keys: none of them twice, at most one active.
        publish_delay: seconds a new key stays pending.
        retain: seconds a retired key stays published.

    Raises:
        ConfigurationError: a kid stands twice, two keys are active, or a delay is out of bounds.
    """

    keys: tuple[RingKey, ...] = ()
    publish_delay: int = DEFAULT_PUBLISH_DELAY
    retain: int = DEFAULT_RETAIN

    def __post_init__(self) -> None:
        if len({key.kid for key in self.keys}) != len(self.keys):
            raise ConfigurationError("a kid stands for two keys")
        if sum(key.state is State.ACTIVE for key in self.keys) > 1:
            raise ConfigurationError("two keys are active")
        if not 0 <= self.publish_delay <= MAX_PUBLISH_DELAY or self.retain < 0:
            raise ConfigurationError(f"publish_delay is 0 to {MAX_PUBLISH_DELAY} seconds, retain at least 0")

    @property
    def active(self) -> RingKey | None:
        """The key that signs, if there is one."""
        return next((key for key in self.keys if key.state is State.ACTIVE), None)

    def get(self, kid: str) -> RingKey:
        """Return the key of this kid.

        Raises:
            ConfigurationError: there is none.
        """
        found = next((key for key in self.keys if key.kid == kid), None)
        if found is None:
            raise ConfigurationError(f"no key has the kid {kid!r}")
        return found


def add(ring: KeyRing, key: Key, now: int, *, pending: bool = False, told: int = 0) -> KeyRing:
    """Return the ring with a new key: the first is active at once unless ``pending``, later ones wait.

    Args:
        ring: with the publish delay from now on.
        key: the new one.
        now: UTC seconds.
        pending: let a first key wait, too.
        told: the publish delay consumers know of, seconds; a lower one they have to hear of first.
    """
    if ring.keys or pending:
        ready = max(now + max(ring.publish_delay, told), *(key.ready for key in ring.keys), 0)
        new = RingKey(key=key.public_only, state=State.PENDING, created=now, ready=ready)
    else:
        new = RingKey(key=key.public_only, state=State.ACTIVE, created=now, ready=now, activated=now)
    return replace(ring, keys=(*ring.keys, new))


def rotate(ring: KeyRing, now: int) -> KeyRing:
    """Return the ring with every key advanced by its clock; repeating it changes nothing more.

    The newest pending key whose delay is over becomes active, and the active one and those before it retire;
    what has been retired longer than ``retain`` goes.
    """
    kept = tuple(key for key in ring.keys if not _is_gone(key, now, ring.retain))
    ring = replace(ring, keys=kept)
    while (promoted := _promote(ring, now)) != ring:
        ring = promoted
    return ring


def retire(ring: KeyRing, kid: str, now: int) -> KeyRing:
    """Return the ring with a key retired; what has ended already stays as it is.

    Raises:
        ConfigurationError: no such key, or nothing could sign in its place.
    """
    key = ring.get(kid)
    if key.state not in (State.PENDING, State.ACTIVE):
        return ring
    ended = _with(ring, replace(key, state=State.RETIRED, retired=now))
    if key.state is State.PENDING:
        return ended
    promoted = _promote(ended, now)
    if promoted.active is None:
        raise ConfigurationError("it is the active key and no pending key is ready to sign in its place")
    return promoted


def revoke(ring: KeyRing, kid: str, now: int, *, reason: str, since: int = 0) -> KeyRing:
    """Return the ring with a key revoked, from ``since`` (UTC seconds) or wholly; a ready key takes over.

    Raises:
        ConfigurationError: no such key.
    """
    key = ring.get(kid)
    revocation = Revocation(revoked_at=since, reason=reason)
    ended = _with(ring, replace(key, state=State.REVOKED, revoked=now, revocation=revocation))
    return _promote(ended, now) if key.state is State.ACTIVE else ended


def _promote(ring: KeyRing, now: int) -> KeyRing:
    """Return the ring with the oldest ready key active, if one is ready."""
    ready = next((key for key in ring.keys if key.state is State.PENDING and key.ready <= now), None)
    if ready is None:
        return ring
    active = ring.active
    if active is not None:
        ring = _with(ring, replace(active, state=State.RETIRED, retired=now))
    return _with(ring, replace(ready, state=State.ACTIVE, activated=now))


def _with(ring: KeyRing, changed: RingKey) -> KeyRing:
    """Return the ring with one key in its new state."""
    return replace(ring, keys=tuple(changed if key.kid == changed.kid else key for key in ring.keys))


def _is_gone(key: RingKey, now: int, retain: int) -> bool:
    """Tell whether a retired key has been published long enough; a revoked one stays for good."""
    return key.state is State.RETIRED and key.retired is not None and now >= key.retired + PICKUP + retain
