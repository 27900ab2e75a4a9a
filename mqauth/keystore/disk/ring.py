"""The keys of one producer and their states, as pure functions from a ring and a moment to the next ring.

A key is ``pending`` (published, but not signing yet), then ``active`` (one key signs), then ``retired`` (what it
signed is still accepted), and then gone. It may be ``revoked`` at any time. A key is published before it signs,
so that consumers have it when its first message arrives.

``dump`` and ``load`` convert a ring to the text of ``keyset.json`` and back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, Final

from mqauth.errors import ConfigurationError, refusing, require
from mqauth.wire import claims, jwk, strict_json
from mqauth.wire.keys import Key, Revocation, public_members, thumbprint

DEFAULT_PUBLISH_DELAY: Final = 600
MAX_PUBLISH_DELAY: Final = 30 * 86_400
MAX_OVERLAP: Final = 86_400
RETIREMENT_GRACE: Final = 300
"""Seconds for which consumers accept new tokens of a key after its retirement. Within that time running producers
notice the retirement (60 s at most), and their messages reach the broker, which counts with ``at="append"``; the
rest
is for clocks that differ. A key that may be stolen is revoked instead."""
VERSION: Final = 1
MAX_URI: Final = 1024
_TIMES: Final = ("created", "ready", "activated", "retired", "revoked")
_KEY: Final = frozenset(
    ("kid", "algorithm", "state", "subjects", *_TIMES, "revocation", "public")
)


class State(StrEnum):
    """The state of a key; the strings stand in ``keyset.json``."""

    PENDING = "pending"
    ACTIVE = "active"
    RETIRED = "retired"
    REVOKED = "revoked"


_REACHED: Final = {
    State.ACTIVE: "activated",
    State.RETIRED: "retired",
    State.REVOKED: "revoked",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RingKey:
    """One key of a ring; times are UTC seconds.

    Args:
        key: its public half, with algorithm and subjects.
        state: its state.
        created: when it was made.
        ready: from when on it may sign.
        activated, retired, revoked: when it came into that state, ``None`` where it did not.
        revocation: the moment from which it is revoked, and the reason.
        uri: where its private half is, if that is not a PEM file of the folder: in an HSM, for example.

    Raises:
        ConfigurationError: the URI is no URI of at most 1,024 ASCII characters.
    """

    key: Key
    state: State
    created: int
    ready: int
    activated: int | None = None
    retired: int | None = None
    revoked: int | None = None
    revocation: Revocation | None = None
    uri: str | None = None

    def __post_init__(self) -> None:
        require(
            self.uri is None
            or (
                len(self.uri) <= MAX_URI
                and re.fullmatch(r"[a-z][a-z0-9+.-]*:[!-~]+", self.uri, re.ASCII)
            ),
            f"a uri is a scheme, a colon and more, of at most {MAX_URI} ASCII characters",
        )

    @property
    def kid(self) -> str:
        """The key id."""
        return self.key.kid


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRing:
    """All keys of one producer, in the order in which they were made.

    Args:
        keys: the keys; no kid stands twice, and at most one key is active.
        publish_delay: seconds for which a new key stays pending.
        retain: seconds for which a retired key stays published after its end.
        overlap: seconds by which the end of a retired key comes later: the life of what an authority vouched for.

    Raises:
        ConfigurationError: a kid stands twice, two keys are active, or a delay is out of bounds.
    """

    keys: tuple[RingKey, ...] = ()
    publish_delay: int = DEFAULT_PUBLISH_DELAY
    # Longer than a message of a week's backlog waits with the life of its token.
    retain: int = 8 * 86_400
    overlap: int = 0

    def __post_init__(self) -> None:
        require(
            len({key.kid for key in self.keys}) == len(self.keys),
            "a kid stands for two keys",
        )
        require(
            sum(key.state is State.ACTIVE for key in self.keys) <= 1,
            "two keys are active",
        )
        require(
            0 <= self.publish_delay <= MAX_PUBLISH_DELAY and self.retain >= 0,
            f"publish_delay is 0 to {MAX_PUBLISH_DELAY} seconds, retain at least 0",
        )
        require(
            0 <= self.overlap <= MAX_OVERLAP, f"overlap is 0 to {MAX_OVERLAP} seconds"
        )

    @property
    def active(self) -> RingKey | None:
        """The key that signs, if there is one."""
        return next((key for key in self.keys if key.state is State.ACTIVE), None)

    @property
    def grace(self) -> int:
        """Seconds from the retirement of a key to its end: until then consumers take what it signs as new."""
        return RETIREMENT_GRACE + self.overlap

    @property
    def published(self) -> tuple[Key, ...]:
        """The keys as consumers get them, each with its end and its revocation."""
        return tuple(
            replace(
                key.key.public_only,
                revocation=key.revocation,
                expires=None if key.retired is None else key.retired + self.grace,
            )
            for key in self.keys
        )

    def get(self, kid: str) -> RingKey:
        """Return the key with a kid.

        Raises:
            ConfigurationError: there is none.
        """
        by_kid = {key.kid: key for key in self.keys}
        require(kid in by_kid, f"no key has the kid {kid!r}")
        return by_kid[kid]


def add(
    ring: KeyRing,
    key: Key,
    now: int,
    *,
    pending: bool = False,
    announced: int = 0,
    uri: str | None = None,
) -> KeyRing:
    """Return the ring with a new key. The first key is active at once, unless ``pending``; later keys wait.

    Args:
        ring: the ring, with the publish delay that applies from now on.
        key: the new key.
        now: UTC seconds.
        pending: make a first key wait, too.
        announced: the publish delay that consumers know, in seconds. They call a new kid unknown for so
            long, so that a lower delay has to wait until they can know it.
        uri: where its private half is, if that is no PEM file.
    """
    waits = bool(ring.keys) or pending
    # No key is ready before the keys that were made before it.
    ready = (
        max(
            now + max(ring.publish_delay, announced), *(key.ready for key in ring.keys), 0
        )
        if waits
        else now
    )
    new = RingKey(
        key=key.public_only,
        state=State.PENDING if waits else State.ACTIVE,
        created=now,
        ready=ready,
        activated=None if waits else now,
        uri=uri,
    )
    return replace(ring, keys=(*ring.keys, new))


def rotate(ring: KeyRing, now: int) -> KeyRing:
    """Return the ring with every key moved on to the state that is due; a second call changes nothing more.

    The newest pending key whose delay has passed becomes active, and the keys before it retire. A key that has
    been retired for longer than ``retain`` goes.
    """
    # A revoked key stays published for good, so that its tokens are rejected as key_revoked.
    keys = tuple(
        key
        for key in ring.keys
        if key.state is not State.RETIRED
        or key.retired is None
        or now < key.retired + ring.grace + ring.retain
    )
    ring = replace(ring, keys=keys)
    while (promoted := _promote(ring, now)) != ring:
        ring = promoted
    return ring


def retire(ring: KeyRing, kid: str, now: int) -> KeyRing:
    """Return the ring with a key retired; a key that is retired or revoked already stays as it is.

    Raises:
        ConfigurationError: there is no such key, or no key could sign in its place.
    """
    key = ring.get(kid)
    if key.state not in (State.PENDING, State.ACTIVE):
        return ring
    ended = _with(ring, replace(key, state=State.RETIRED, retired=now))
    if key.state is State.PENDING:
        return ended
    promoted = _promote(ended, now)
    require(
        promoted.active,
        "it is the active key and no pending key is ready to sign in its place",
    )
    return promoted


def revoke(ring: KeyRing, kid: str, now: int, *, reason: str, since: int = 0) -> KeyRing:
    """Return the ring with a key revoked from ``since`` on (UTC seconds, 0 for wholly); a ready key takes over.

    Unlike ``retire`` it needs no successor: a stolen key must stop at once.

    Raises:
        ConfigurationError: there is no such key.
    """
    key = ring.get(kid)
    ended = _with(
        ring,
        replace(
            key,
            state=State.REVOKED,
            revoked=now,
            revocation=Revocation(revoked_at=since, reason=reason),
        ),
    )
    return _promote(ended, now) if key.state is State.ACTIVE else ended


def _promote(ring: KeyRing, now: int) -> KeyRing:
    """Return the ring with the oldest ready key active, if a key is ready."""
    ready = next(
        (key for key in ring.keys if key.state is State.PENDING and key.ready <= now),
        None,
    )
    if ready is None:
        return ring
    if ring.active is not None:
        ring = _with(ring, replace(ring.active, state=State.RETIRED, retired=now))
    return _with(ring, replace(ready, state=State.ACTIVE, activated=now))


def _with(ring: KeyRing, changed: RingKey) -> KeyRing:
    """Return the ring with one key replaced."""
    return replace(
        ring, keys=tuple(changed if key.kid == changed.kid else key for key in ring.keys)
    )


def describe(key: RingKey) -> dict[str, Any]:
    """Return the state of a key as JSON values, without the public key itself."""
    return {
        "kid": key.kid,
        "algorithm": key.key.algorithm,
        "state": key.state.value,
        **{name: getattr(key, name) for name in _TIMES},
        "subjects": None if key.key.subjects is None else sorted(key.key.subjects),
        "revocation": None if key.revocation is None else asdict(key.revocation),
        **({} if key.uri is None else {"uri": key.uri}),
    }


def dump(ring: KeyRing) -> bytes:
    """Return a ring as the text of ``keyset.json``, with one key on each line."""
    lines = [
        strict_json.dumps(describe(key) | {"public": public_members(key.key.public)})
        for key in ring.keys
    ]
    overlap = f'"overlap":{ring.overlap},' if ring.overlap else ""
    head = f'{{"version":{VERSION},"publish_delay":{ring.publish_delay},"retain":{ring.retain},{overlap}"keys":['
    return head.encode("ascii") + b"\n" + b",\n".join(lines) + b"\n]}\n"


def load(raw: bytes, *, name: str) -> KeyRing:
    """Return the ring of a ``keyset.json``.

    Args:
        raw: the content of the file.
        name: the name of the file in errors.

    Raises:
        ConfigurationError: ``dump`` cannot have written the text.
    """
    with refusing(
        (strict_json.StrictJSONError, ConfigurationError),
        lambda error: f"{name}: {error}",
    ):
        document = strict_json.loads(raw, depth=6)
        require(
            isinstance(document, dict)
            and document.keys() - {"overlap"}
            == {"version", "publish_delay", "retain", "keys"}
            and document["version"] == VERSION,
            f"not a keyset of version {VERSION}",
        )
        require(isinstance(document["keys"], list), "keys is not a list")
        return KeyRing(
            keys=tuple(_key(members) for members in document["keys"]),
            publish_delay=_seconds(document, "publish_delay"),
            retain=_seconds(document, "retain"),
            overlap=_seconds({"overlap": 0} | document, "overlap"),
        )


def _key(members: Any) -> RingKey:
    require(
        isinstance(members, dict)
        and members.keys() - {"uri"} == _KEY
        and isinstance(members["public"], dict),
        f"a key must have exactly the members {', '.join(sorted(_KEY))}, and may have uri",
    )
    require(isinstance(members.get("uri", ""), str), "a uri is no text")
    public = {**members["public"], "kid": members["kid"], "alg": members["algorithm"]}
    if members["subjects"] is not None:
        public["mqauth_sub"] = members["subjects"]
    key = jwk.load_key(public)
    # The kid becomes the name of a file, and a thumbprint has neither a slash nor a dot.
    require(thumbprint(key.public) == key.kid, "a kid is not the thumbprint of its key")
    require(members["state"] in tuple(State), f"a state is {', '.join(State)}")
    state = State(members["state"])
    require(
        state not in _REACHED or members[_REACHED[state]] is not None,
        f"a key is {state.value} and does not say since when",
    )
    revocation, revoked = None, members["revocation"]
    require(
        (revoked is not None) == (state is State.REVOKED),
        "a revoked key, and no other, has a revocation",
    )
    if revoked is not None:
        require(
            isinstance(revoked, dict) and revoked.keys() == {"revoked_at", "reason"},
            "a revocation has revoked_at and reason",
        )
        require(
            claims.is_name(revoked["reason"], 0),
            "a reason is one line of at most 256 characters",
        )
        revocation = Revocation(
            revoked_at=_seconds(revoked, "revoked_at"), reason=revoked["reason"]
        )
    optional = {
        name: None if members[name] is None else _seconds(members, name)
        for name in _TIMES[2:]
    }
    return RingKey(
        key=key,
        state=state,
        created=_seconds(members, "created"),
        ready=_seconds(members, "ready"),
        revocation=revocation,
        uri=members.get("uri"),
        **optional,
    )


def _seconds(members: Mapping[str, Any], name: str) -> int:
    value = members[name]
    require(type(value) is int and value >= 0, f"{name} is not a number of seconds")
    return int(value)
