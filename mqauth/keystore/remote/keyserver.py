"""An issuer's JWK Set over HTTP, as a plain ASGI application: no framework, two paths and a health check.

It follows its keystores: a rotation is out with the next request. What cannot be published is never served:
consumers go on with what they have. Sources: ASGI 3.0; RFC 7517, section 8.5; RFC 9110, sections 8.8 and 13.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.errors import ConfigurationError
from mqauth.keystore.disk.files import Stamp
from mqauth.keystore.disk.folder import Keystore
from mqauth.keystore.disk.ring import PICKUP, KeyRing, RingKey, State
from mqauth.keystore.remote.rules import MAX_PUBLISH_DELAY
from mqauth.wire import strict_json as strictjson
from mqauth.wire.jwk import MAX_DOCUMENT, dump_key_set, load_key_set
from mqauth.wire.keys import KeySet

PATHS: Final = ("/jwks.json", "/.well-known/jwks.json")
HEALTH: Final = "/healthz"
_SAY_EVERY: Final = 60.0
_LOG: Final = logging.getLogger("mqauth.keystore")
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = dict[bytes, bytes]
_NO_STORE: Final[Headers] = {b"cache-control": b"no-store"}


class KeyServer:
    """The ASGI application behind ``mqauth keys serve``; hand it to any ASGI server.

    Args:
        folders: the keystores; their keys are published as one set.
        clock: tells the time.

    Raises:
        ConfigurationError: one is no keystore, or the set cannot be published.
    """

    def __init__(self, folders: Iterable[str | Path], *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._keystores = [Keystore(folder=Path(folder), clock=clock) for folder in folders]
        self._clock = clock
        self._stamps: list[Stamp | None] = []
        self._rings: Sequence[KeyRing] = ()
        self._said = ("", 0.0)
        self.current = self._publication()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise RuntimeError("this application speaks HTTP only")
        status, headers, body = self._answer(scope)
        headers |= {b"content-length": str(len(body)).encode(), b"x-content-type-options": b"nosniff"}
        if status == 304:
            del headers[b"content-length"]
        await send({"type": "http.response.start", "status": status, "headers": list(headers.items())})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    def _answer(self, scope: Scope) -> tuple[int, Headers, bytes]:
        """Return status, headers and body."""
        if scope["path"] not in (*PATHS, HEALTH):
            return _problem(404, "no such page")
        if scope["method"] not in ("GET", "HEAD"):
            status, headers, body = _problem(405, "GET or HEAD")
            return status, headers | {b"allow": b"GET, HEAD"}, body
        try:
            self.current = self._publication()
        except ConfigurationError as error:
            self._say(str(error))
            return _problem(503 if scope["path"] == HEALTH else 500, "the keys cannot be published")
        return self._health() if scope["path"] == HEALTH else self._set(scope)

    def _set(self, scope: Scope) -> tuple[int, Headers, bytes]:
        """Return the JWK Set, or that the caller has it already."""
        seconds = max_age(self._rings, self._clock.now())
        headers = {
            b"cache-control": f"public, max-age={seconds}".encode(),
            b"etag": self.current.etag.encode(),
        }
        if _has(scope, self.current.etag):
            return 304, headers, b""
        return 200, headers | {b"content-type": b"application/jwk-set+json"}, self.current.body

    def _health(self) -> tuple[int, Headers, bytes]:
        """Return that the set can be published, and how many keys it has."""
        state = {"status": "ok", "keys": self.current.keys, "active": self.current.active}
        return 200, {b"content-type": b"application/json", **_NO_STORE}, strictjson.dumps(state)

    def _publication(self) -> Publication:
        """Return what is to be published now; the folders are read again where one changed."""
        stamps = [keystore.stamp() for keystore in self._keystores]
        if stamps == self._stamps and None not in stamps:
            return self.current
        self._stamps = []
        rings = [keystore.ring() for keystore in self._keystores]
        found = publish(rings)
        self._rings, self._stamps = rings, stamps
        return found

    def _say(self, text: str) -> None:
        """Log what keeps the keys from being published, the same once a minute."""
        said, at = self._said
        now = self._clock.monotonic()
        if text != said or now - at >= _SAY_EVERY:
            self._said = (text, now)
            _LOG.critical("%s; no keys are served", text)


def _problem(status: int, text: str) -> tuple[int, Headers, bytes]:
    """Return an answer that no cache keeps."""
    return status, {b"content-type": b"application/json", **_NO_STORE}, strictjson.dumps({"error": text})


def _has(scope: Scope, etag: str) -> bool:
    """Tell whether ``If-None-Match`` names the entity tag, compared weakly (RFC 9110, section 13.1.2)."""
    given = b",".join(value for name, value in scope["headers"] if name == b"if-none-match").decode("latin-1")
    return any(tag.strip().removeprefix("W/") in (etag, "*") for tag in given.split(","))


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
