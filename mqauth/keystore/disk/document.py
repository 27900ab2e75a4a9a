"""``keyset.json``: a ring as JSON, written plainly and read strictly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mqauth.errors import ConfigurationError
from mqauth.keystore.disk.ring import KeyRing, RingKey, State
from mqauth.wire import strict_json as strictjson
from mqauth.wire.claims import is_name
from mqauth.wire.jwk import load_key
from mqauth.wire.keys import Revocation, public_members, thumbprint

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
