"""One attempt to get a JWK Set: from its URL, or from the URL in an issuer's OpenID configuration.

A remote key cache makes its attempts on a background thread, for which callers wait with or without an event loop.

The last good set is kept on the disk, for a consumer that starts while its issuer is down. A digest finds a file
that is torn or damaged. It does not prove who wrote the file: its mode 0600 keeps others out.

Source: OpenID Connect Discovery 1.0, section 4.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import hashlib
import os
import ssl
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from mqauth.audit.disk import read_bounded, undone_on_error
from mqauth.clock import Clock
from mqauth.errors import ConfigurationError, refusing, require
from mqauth.http.connection import (
    MAX_TIMEOUT,
    Deadline,
    Dial,
    Endpoint,
    FetchFailed,
    expect,
)
from mqauth.http.exchange import Response, request
from mqauth.keystore.remote.rules import Answer, publish_delay_of
from mqauth.wire import jwk, strict_json
from mqauth.wire.keys import KeySet

WELL_KNOWN: Final = "/.well-known/openid-configuration"
REDISCOVER: Final = 3600.0
Fetch = Callable[[str | None], Answer]
"""Makes one attempt, bounded in time and bytes, or raises ``FetchFailed``. It takes the entity tag of the set that
is in use, so that the answer may say that nothing changed."""


class URLFetch:
    """Fetches a JWK Set from one URL.

    Args:
        endpoint: the URL.
        timeout: seconds for a whole attempt.
        context: the TLS settings.
        clock: tells the time.
        dial: opens connections, in place of ``connect``.
        svid: the set may be a SPIFFE bundle, of which the keys of this use are read.

    Raises:
        ConfigurationError: the timeout is not above 0 and at most 5 s.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        timeout: float,
        context: ssl.SSLContext | None,
        clock: Clock,
        dial: Dial | None = None,
        svid: jwk.Svid | None = None,
    ) -> None:
        number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
        require(
            number and 0 < timeout <= MAX_TIMEOUT,
            f"timeout is more than 0 and at most {MAX_TIMEOUT:g} seconds, not {timeout!r}",
        )
        self._endpoint = endpoint
        self._timeout = timeout
        self._context = context
        self._clock = clock
        self._dial = dial
        self._svid = svid

    def __call__(self, etag: str | None, /) -> Answer:
        """Fetch the set within the timeout."""
        response = self._get(self._endpoint, Deadline(self._clock, self._timeout), etag)
        return _answer(response, self._svid)

    def _get(self, endpoint: Endpoint, deadline: Deadline, etag: str | None) -> Response:
        return request(
            endpoint, deadline=deadline, context=self._context, etag=etag, dial=self._dial
        )


class DiscoveredFetch(URLFetch):
    """Fetches a JWK Set from the URL that the issuer's OpenID configuration names.

    The configuration is read again every hour, and after each failure.

    Args:
        issuer: the issuer; the configuration must repeat it exactly (OpenID Connect Discovery 1.0, section 4.3).
        unsafe_http_loopback: allow http on loopback, for both documents.
        timeout: seconds for a whole attempt, both documents together.
        context: the TLS settings.
        clock: tells the time.
        dial: opens connections, in place of ``connect``.

    Raises:
        ConfigurationError: the issuer is not an https URL without query, or the timeout is out of range.
    """

    def __init__(
        self,
        issuer: str,
        *,
        unsafe_http_loopback: bool,
        timeout: float,
        context: ssl.SSLContext | None,
        clock: Clock,
        dial: Dial | None = None,
    ) -> None:
        require(
            isinstance(issuer, str) and "?" not in issuer,
            "an issuer to be discovered is an https URL without query",
        )
        super().__init__(
            Endpoint.parse(
                issuer.removesuffix("/") + WELL_KNOWN,
                unsafe_http_loopback=unsafe_http_loopback,
            ),
            timeout=timeout,
            context=context,
            clock=clock,
            dial=dial,
        )
        self._issuer = issuer
        self._loopback = unsafe_http_loopback
        self._found: Endpoint | None = None
        self._found_at = 0.0

    def __call__(self, etag: str | None, /) -> Answer:
        """Fetch the set within the timeout."""
        deadline = Deadline(self._clock, self._timeout)
        before = self._found
        try:
            # The configuration is read again after an hour.
            now = self._clock.monotonic()
            if self._found is None or now - self._found_at >= REDISCOVER:
                configuration = self._get(self._endpoint, deadline, None).document or {}
                expect(
                    configuration.get("issuer") == self._issuer,
                    "the OpenID configuration is another issuer's",
                )
                why = "the jwks_uri of the OpenID configuration is no https URL"
                with refusing(ConfigurationError, why, FetchFailed):
                    self._found = Endpoint.parse(
                        configuration.get("jwks_uri", ""),
                        unsafe_http_loopback=self._loopback,
                    )
                self._found_at = now
            where = self._found
            # An entity tag means something only at the URL where it was given.
            return _answer(self._get(where, deadline, etag if where == before else None))
        except FetchFailed:
            # The keys may have moved.
            self._found_at -= REDISCOVER
            raise


def _answer(response: Response, svid: jwk.Svid | None = None) -> Answer:
    """Read a response as a JWK Set."""
    document, keys, publish_delay = response.document, None, None
    if document is not None:
        publish_delay = publish_delay_of(document)
        with refusing(
            ConfigurationError, "not a JSON object with a list of keys", FetchFailed
        ):
            keys = jwk.load_key_set(document, svid=svid)
        # A set without keys may be meant. One in which no key can be used is a mistake, as in a file.
        for line in () if keys.keys else keys.skipped:
            raise FetchFailed(f"no key that can be used: {line}")
    return Answer(
        keys=keys,
        publish_delay=publish_delay,
        max_age=response.max_age,
        age=response.age,
        date=response.date,
        etag=response.etag,
    )


def save_snapshot(
    path: Path, keys: KeySet, *, source: str, asked: float, publish_delay: float
) -> None:
    """Write a snapshot as a whole, or leave the file as it was.

    Args:
        path: the file.
        keys: the set.
        source: the URL it came from.
        asked: when it was asked for, UTC seconds.
        publish_delay: the publish delay that its issuer announced, seconds.

    Raises:
        OSError: the system refused.
    """
    content = {
        "v": 1,
        "source": source,
        "asked": asked,
        "publish_delay": publish_delay,
        "document": jwk.dump_key_set(keys),
    }
    # A name of its own for each writer, and mode 0600: several processes may write one snapshot at the same time.
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with undone_on_error(os.unlink, name):
        with os.fdopen(descriptor, "wb") as file:
            file.write(strict_json.dumps(content | {"sha256": _digest(content)}))
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)


def load_snapshot(
    path: Path, *, source: str, now: float, max_age: float
) -> tuple[KeySet, float, float]:
    """Read a snapshot.

    Args:
        path: the file.
        source: the URL that it must come from.
        now: UTC seconds.
        max_age: seconds; an older snapshot is refused.

    Returns:
        The set, its age in seconds, and the publish delay that its issuer announced.

    Raises:
        ConfigurationError: it may not be used: it cannot be read, is open to others, damaged, of another source,
            or too old.
    """
    # A file that another user owns, or may write, would let that user choose the keys.
    raw = read_bounded(path, 2 * jwk.MAX_DOCUMENT, private=True, own=True)
    with refusing(
        (ValueError, KeyError, AttributeError, TypeError, ConfigurationError),
        "it is damaged",
    ):
        content = strict_json.loads(raw, depth=10)
        require(
            content.pop("sha256") == _digest(content) and content["v"] == 1,
            "it is damaged",
        )
        keys, age = jwk.load_key_set(content["document"]), now - float(content["asked"])
        stored, publish_delay = content["source"], float(content["publish_delay"])
    require(stored == source, "it is of another source")
    require(-60.0 <= age <= max_age, "it is too old, or of the future")
    return keys, max(0.0, age), publish_delay


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(strict_json.dumps(content)).hexdigest()


Ended = concurrent.futures.Future[None]
"""Done when an attempt has ended. Threads and event loops wait for the same one."""


class ThreadRefresher:
    """One daemon thread, which starts when it is first needed, and again in a child after a fork.

    Args:
        condition: guards the cache.
        work: does what is due, and returns the seconds until there is more to do.
    """

    def __init__(self, condition: threading.Condition, work: Callable[[], float]) -> None:
        self._condition = condition
        self._work = work
        self._thread: threading.Thread | None = None
        self._closed = False
        self._woken = False

    def ensure(self) -> None:
        """Start the thread, unless it runs; takes no lock if it does."""
        if self._idle():
            with self._condition:
                if self._idle():
                    self._thread = threading.Thread(
                        target=self._run, name="mqauth-jwks", daemon=True
                    )
                    self._thread.start()

    def wake(self) -> None:
        """Let the thread look for work at once."""
        self.ensure()
        with self._condition:
            self._woken = True
            self._condition.notify_all()

    def wait(self, ended: Ended, seconds: float, /) -> None:
        """Block until an attempt has ended, for a number of seconds at most."""
        concurrent.futures.wait((ended,), timeout=seconds)

    async def pause(self, ended: Ended, seconds: float, /) -> None:
        """Wait until an attempt has ended, for a number of seconds at most, without blocking the event loop."""
        # Unlike wait_for, wait does not cancel the future: others wait for it, too.
        await asyncio.wait((asyncio.wrap_future(ended),), timeout=seconds)

    def close(self) -> None:
        """Stop the thread and wait for it; an attempt in flight ends by its own timeout."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        thread = self._thread
        # A subscriber may close the cache from this very thread.
        if thread is not None and thread is not threading.current_thread():
            # Longer than any attempt of ours takes.
            thread.join(6.0)

    def _idle(self) -> bool:
        return not self._closed and (self._thread is None or not self._thread.is_alive())

    def _run(self) -> None:
        while not self._closed:
            seconds = self._work()
            with self._condition:
                # A call of wake during the work must not be lost.
                if not self._closed and not self._woken:
                    # A machine that was suspended, or a clock that stepped, delays the work by a minute at most.
                    self._condition.wait(min(max(seconds, 0), 60.0))
                self._woken = False
