"""The JWK Set of an issuer: what is published of its keystores, and an ASGI application that serves it.

The application needs no framework; it has two paths and a health check. It follows the keystores, so that a
rotation is published with the next request. A set that cannot be published is never served, and consumers go on
with the set that they have. Sources: ASGI 3.0; RFC 7517, section 8.5; RFC 9110, sections 8.8 and 13.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import (
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    MutableMapping,
    Sequence,
)
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mqauth.audit.disk import Stamp
from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.errors import ConfigurationError, require
from mqauth.keystore.disk.folder import CUTOFFS, Keystore
from mqauth.keystore.disk.ring import KeyRing, State
from mqauth.keystore.remote.rules import MAX_PUBLISH_DELAY
from mqauth.logs import Rate, emit
from mqauth.wire import jwk, strict_json
from mqauth.wire.keys import NO_CUTOFFS, Cutoff, KeySet

PATHS: Final = ("/jwks.json", "/.well-known/jwks.json")
HEALTH: Final = "/healthz"
MAX_AGE: Final = 300
"""Seconds; the longest time for which a copy is fresh, and so the longest time until a revocation is seen."""
Message = MutableMapping[str, Any]
Headers = dict[bytes, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """A JWK Set in the form in which it is served.

    Args:
        body: the document.
        etag: its strong entity tag; it is the same for the same document in every process.
        keys: the number of keys in it.
        active: the number of keys that sign.
    """

    body: bytes
    etag: str
    keys: int
    active: int


def publish(
    rings: Sequence[KeyRing], cutoffs: Mapping[str, Cutoff] = NO_CUTOFFS
) -> Publication:
    """Return the JWK Set of one or more keystores, with the ``mqauth_publish_delay`` that all of them keep.

    Args:
        rings: of the keystores.
        cutoffs: the subjects that are cut off.

    Raises:
        ConfigurationError: a kid stands twice, the document is over 256 KiB, or a consumer would not read from it
            exactly the keys that are meant.
    """
    keys = KeySet((key for ring in rings for key in ring.published), (), cutoffs)
    document = jwk.dump_key_set(keys) | {"mqauth_publish_delay": publish_delay(rings)}
    # Read it back as a consumer does: above all, that finds a private member, wherever it comes from.
    read = jwk.load_key_set(document)
    require(
        not read.skipped and read.version == keys.version,
        f"not fit to be published: {(*read.skipped, 'it reads as another set')[0]}",
    )
    body = strict_json.dumps(document)
    require(
        len(body) <= jwk.MAX_DOCUMENT,
        f"not fit to be published: over {jwk.MAX_DOCUMENT} bytes",
    )
    return Publication(
        body=body,
        etag=f'"{hashlib.sha256(body).hexdigest()[:32]}"',
        keys=len(keys.keys),
        active=sum(ring.active is not None for ring in rings),
    )


def publish_delay(rings: Sequence[KeyRing]) -> int:
    """Return the seconds for which every new key is published before it signs."""
    return min(
        int(MAX_PUBLISH_DELAY),
        *(
            key.ready - key.created
            for ring in rings
            for key in ring.keys
            if key.state is State.PENDING
        ),
        *(ring.publish_delay for ring in rings),
    )


def max_age(rings: Sequence[KeyRing], now: float, most: int = MAX_AGE) -> int:
    """Return the seconds for which a copy that is taken now is fresh, at most ``most``."""
    # Until a key begins to sign, ends, or goes. And never beyond the publish delay: a key that is published in a
    # moment must be known everywhere before it signs.
    changes: list[int] = []
    for ring in rings:
        for key in ring.keys:
            if key.state is State.PENDING:
                changes.append(key.ready)
            if key.retired is not None:
                changes += (
                    key.retired + ring.grace,
                    key.retired + ring.grace + ring.retain,
                )
            if key.revocation is not None:
                changes.append(key.revocation.revoked_at)
    return int(
        min(
            publish_delay(rings),
            most,
            *(moment - now for moment in changes if moment > now),
        )
    )


class KeyServer:
    """The ASGI application behind ``mqauth keys serve``; any ASGI server can run it.

    Args:
        folders: the keystores; their keys are published as one set.
        most: seconds for which a copy is fresh, at most.
        clock: tells the time.

    Raises:
        ConfigurationError: a folder is not a keystore, or the set cannot be published.
    """

    def __init__(
        self,
        folders: Iterable[str | Path],
        *,
        most: int = MAX_AGE,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._keystores = [
            Keystore(folder=Path(folder), clock=clock) for folder in folders
        ]
        self._clock = clock
        self._most = most
        self._stamps: list[Stamp | None] = []
        self._cut: list[Stamp | None] = [None] * len(self._keystores)
        self._rings: Sequence[KeyRing] = ()
        self._rate = Rate(clock)
        self.current = self._publication()

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Answer one request."""
        require(
            scope["type"] == "http", "this application speaks HTTP only", RuntimeError
        )
        status, headers, body = self._answer(scope)
        headers[b"x-content-type-options"] = b"nosniff"
        # A 304 has no body, and its content-length would be that of the 200 (RFC 9110, section 8.6).
        if status != 304:
            headers[b"content-length"] = str(len(body)).encode()
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": list(headers.items()),
            }
        )
        await send(
            {
                "type": "http.response.body",
                "body": b"" if scope["method"] == "HEAD" else body,
            }
        )

    def _answer(self, scope: Message) -> tuple[int, Headers, bytes]:
        """Return status, headers and body."""
        if scope["path"] not in (*PATHS, HEALTH):
            return _json(404, {"error": "no such page"})
        if scope["method"] not in ("GET", "HEAD"):
            return _json(405, {"error": "GET or HEAD"}, {b"allow": b"GET, HEAD"})
        try:
            self.current = self._publication()
        except ConfigurationError as error:
            why = f"{error}; no keys are served"
            if self._rate.admits("keys.kept", (why,), {}):
                emit("keys.kept", "%s", why, level=logging.CRITICAL)
            return _json(
                503 if scope["path"] == HEALTH else 500,
                {"error": "the keys cannot be published"},
            )
        if scope["path"] == HEALTH:
            return _json(
                200,
                {
                    "status": "ok",
                    "keys": self.current.keys,
                    "active": self.current.active,
                },
            )
        etag, seconds = (
            self.current.etag,
            max_age(self._rings, self._clock.now(), self._most),
        )
        headers = {
            b"cache-control": f"public, max-age={seconds}".encode(),
            b"etag": etag.encode(),
        }
        # If-None-Match compares weakly (RFC 9110, section 13.1.2).
        given = b",".join(
            value for name, value in scope["headers"] if name == b"if-none-match"
        ).decode("latin-1")
        if any(tag.strip().removeprefix("W/") in (etag, "*") for tag in given.split(",")):
            return 304, headers, b""
        return (
            200,
            headers | {b"content-type": b"application/jwk-set+json"},
            self.current.body,
        )

    def _publication(self) -> Publication:
        """Return the set to publish now; the folders are read again where one of them has changed."""
        keysets = [keystore.stamp() for keystore in self._keystores]
        stamps = [*keysets, *(keystore.cutoffs_stamp() for keystore in self._keystores)]
        if stamps == self._stamps and None not in keysets:
            return self.current
        # Who is cut off cannot be told without the file that said it: nobody is let in again by its loss.
        for keystore, before in zip(self._keystores, self._cut, strict=True):
            require(
                before is None or keystore.cutoffs_stamp() is not None,
                f"{keystore.folder / CUTOFFS}: it is gone",
            )
        # Until the folders were read, no stamp counts: a set that could not be published is tried again.
        self._stamps = []
        rings = [keystore.ring() for keystore in self._keystores]
        # A subject that two of them cut off is cut off until the later moment.
        cut = sorted(
            (item for each in self._keystores for item in each.cutoffs().items()),
            key=lambda item: item[1].before,
        )
        publication = publish(rings, dict(cut))
        self._rings, self._stamps = rings, stamps
        self._cut = stamps[len(keysets) :]
        return publication


def _json(
    status: int, members: dict[str, Any], more: Headers | None = None
) -> tuple[int, Headers, bytes]:
    """Return an answer that no cache keeps."""
    return (
        status,
        {
            b"content-type": b"application/json",
            b"cache-control": b"no-store",
            **(more or {}),
        },
        strict_json.dumps(members),
    )
