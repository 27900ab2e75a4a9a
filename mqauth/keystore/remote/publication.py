"""What an issuer publishes of its keystores: one JWK Set, and for how long it may be cached; pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from mqauth.errors import ConfigurationError
from mqauth.keystore.disk.ring import PICKUP, KeyRing, RingKey, State
from mqauth.keystore.remote.rules import MAX_PUBLISH_DELAY
from mqauth.wire import strict_json as strictjson
from mqauth.wire.jwk import MAX_DOCUMENT, dump_key_set, load_key_set
from mqauth.wire.keys import KeySet

MAX_AGE: Final = 300
"""Seconds; the longest time any copy may be taken for fresh, and so the longest time to a revocation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """A JWK Set as it goes out.

    Args:
        body: the document.
        etag: strong entity tag; the same document has the same in every process.
        keys: how many keys it holds.
        active: how many of them sign.
    """

    body: bytes
    etag: str
    keys: int
    active: int


def publish(rings: Sequence[KeyRing]) -> Publication:
    """Return the JWK Set of one or more keystores, with the ``mqauth_publish_delay`` all of them keep.

    Raises:
        ConfigurationError: a kid stands twice, the document is over 256 KiB, or a consumer would not read from
            it exactly what is meant; above all, a private member.
    """
    keys = KeySet(key.published for ring in rings for key in ring.keys)
    document = dump_key_set(keys) | {"mqauth_publish_delay": publish_delay(rings)}
    read = load_key_set(document)
    if read.skipped or read.version != keys.version:
        raise ConfigurationError(f"not fit to be published: {(*read.skipped, 'it reads as another set')[0]}")
    body = strictjson.dumps(document)
    if len(body) > MAX_DOCUMENT:
        raise ConfigurationError(f"not fit to be published: over {MAX_DOCUMENT} bytes")
    active = sum(ring.active is not None for ring in rings)
    digest = hashlib.sha256(body).hexdigest()[:32]
    return Publication(body=body, etag=f'"{digest}"', keys=len(keys.keys), active=active)


def publish_delay(rings: Sequence[KeyRing]) -> int:
    """Return the seconds for which every new key is published before it signs."""
    waits = [key.ready - key.created for ring in rings for key in ring.keys if key.state is State.PENDING]
    return min([*waits, *(ring.publish_delay for ring in rings), int(MAX_PUBLISH_DELAY)])


def max_age(rings: Sequence[KeyRing], now: float) -> int:
    """Return the seconds for which a copy taken now is fresh.

    Until the next change that is known, and never beyond ``publish_delay``, so that a key published right after
    is known everywhere before it signs.
    """
    ahead = [moment - now for moment in _changes(rings) if moment > now]
    return int(min([*ahead, publish_delay(rings), MAX_AGE]))


def _changes(rings: Iterable[KeyRing]) -> Iterator[int]:
    """Yield the moments at which keys begin to sign, end, or go, UTC seconds."""
    for ring in rings:
        for key in ring.keys:
            yield from _changes_of(key, ring.retain)


def _changes_of(key: RingKey, retain: int) -> Iterator[int]:
    """Yield the moments of one key."""
    if key.state is State.PENDING:
        yield key.ready
    if key.retired is not None:
        yield from (key.retired + PICKUP, key.retired + PICKUP + retain)
    if key.revocation is not None:
        yield key.revocation.revoked_at
