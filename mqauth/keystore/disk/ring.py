"""The life of a producer's keys, as pure functions from a ring and a moment to the next ring.

``pending`` (published, not yet signing) -> ``active`` (one) -> ``retired`` (still verifies what it signed)
-> gone; ``revoked`` at any time. Publish, then use: a key signs only once consumers can have it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from mqauth.errors import ConfigurationError
from mqauth.wire import strict_json as strictjson
from mqauth.wire.claims import is_name
from mqauth.wire.jwk import load_key
from mqauth.wire.keys import Key, Revocation, public_members, thumbprint

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


VERSION: Final = 1
_DEPTH: Final = 6
_RING: Final = frozenset(("version", "publish_delay", "retain", "keys"))
_TIMES: Final = ("created", "ready", "activated", "retired", "revoked")
_KEY: Final = frozenset(("kid", "algorithm", "state", "subjects", *_TIMES, "revocation", "public"))
_REACHED: Final = {State.ACTIVE: "activated", State.RETIRED: "retired", State.REVOKED: "revoked"}


def describe(key: RingKey) -> dict[str, Any]:
    """Return a key's state for people and programs: everything but its public half."""
    revocation = key.revocation
    return {
        "kid": key.kid,
        "algorithm": key.key.algorithm,
        "state": key.state.value,
        **{name: getattr(key, name) for name in _TIMES},
        "subjects": None if key.key.subjects is None else sorted(key.key.subjects),
        "revocation": None
        if revocation is None
        else {"revoked_at": revocation.revoked_at, "reason": revocation.reason},
    }


def dump(ring: KeyRing) -> bytes:
    """Return a ring as the text of ``keyset.json``, one key a line."""
    lines = [strictjson.dumps(describe(key) | {"public": public_members(key.key.public)}) for key in ring.keys]
    head = f'{{"version":{VERSION},"publish_delay":{ring.publish_delay},"retain":{ring.retain},"keys":['
    return head.encode("ascii") + b"\n" + b",\n".join(lines) + b"\n]}\n"


def load(raw: bytes, *, name: str) -> KeyRing:
    """Return the ring of a ``keyset.json``.

    Args:
        raw: the bytes of the file.
        name: stands in errors.

    Raises:
        ConfigurationError: the text is not what ``dump`` writes.
    """
    try:
        return _ring(strictjson.loads(raw, depth=_DEPTH))
    except (strictjson.StrictJSONError, ConfigurationError) as error:
        raise ConfigurationError(f"{name}: {error}") from error


def _ring(found: Any) -> KeyRing:
    """Return the ring of a parsed document."""
    if not isinstance(found, dict) or found.keys() != _RING or found["version"] != VERSION:
        raise ConfigurationError(f"no keyset of version {VERSION}")
    if not isinstance(found["keys"], list):
        raise ConfigurationError("keys is no list")
    return KeyRing(
        keys=tuple(_key(members) for members in found["keys"]),
        publish_delay=_number(found, "publish_delay"),
        retain=_number(found, "retain"),
    )


def _key(members: Any) -> RingKey:
    """Return one key of a parsed document."""
    if not isinstance(members, dict) or members.keys() != _KEY or not isinstance(members["public"], dict):
        raise ConfigurationError("a key has not exactly its members")
    public = {**members["public"], "kid": members["kid"], "alg": members["algorithm"]}
    if members["subjects"] is not None:
        public["mqauth_sub"] = members["subjects"]
    key = load_key(public)
    if thumbprint(key.public) != key.kid:
        raise ConfigurationError("a kid is not the thumbprint of its key")
    state = _state(members)
    times = {name: None if members[name] is None else _number(members, name) for name in _TIMES[2:]}
    return RingKey(
        key=key, state=state, created=_number(members, "created"), ready=_number(members, "ready"),
        revocation=_revocation(members["revocation"], state), **times,
    )  # fmt: skip


def _state(members: Mapping[str, Any]) -> State:
    """Return a state that has its time."""
    try:
        state = State(members["state"])
    except ValueError as error:
        raise ConfigurationError("a state is pending, active, retired or revoked") from error
    reached = _REACHED.get(state)
    if reached is not None and members[reached] is None:
        raise ConfigurationError(f"a key is {state.value} and does not say since when")
    return state


def _revocation(found: Any, state: State) -> Revocation | None:
    """Return a revocation, which a revoked key has and no other."""
    if (found is not None) != (state is State.REVOKED):
        raise ConfigurationError("a revoked key, and no other, has a revocation")
    if found is None:
        return None
    if not isinstance(found, dict) or found.keys() != {"revoked_at", "reason"}:
        raise ConfigurationError("a revocation has revoked_at and reason")
    if found["reason"] != "" and not is_name(found["reason"]):
        raise ConfigurationError("a reason is one line of at most 256 characters")
    return Revocation(revoked_at=_number(found, "revoked_at"), reason=found["reason"])


def _number(found: Mapping[str, Any], name: str) -> int:
    """Return a number of seconds."""
    value = found[name]
    if type(value) is not int or value < 0:
        raise ConfigurationError(f"{name} is no number of seconds")
    return value
