"""An issuer's JWK Set over HTTP, as a plain ASGI application: no framework, two paths and a health check.

It follows its keystores: a rotation is out with the next request. What cannot be published is never served:
consumers go on with what they have. Sources: ASGI 3.0; RFC 7517, section 8.5; RFC 9110, sections 8.8 and 13.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from pathlib import Path
from typing import Any, Final

from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.errors import ConfigurationError
from mqauth.keystore.disk.files import Stamp
from mqauth.keystore.disk.folder import Keystore
from mqauth.keystore.disk.ring import KeyRing
from mqauth.keystore.remote.publication import Publication, max_age, publish
from mqauth.wire import strict_json as strictjson

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
