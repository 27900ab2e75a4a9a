"""The keys of a remote issuer, in a cache where a known key never waits, and which outlives an outage.

``rules`` decides, as pure functions; ``fetch`` makes the requests. This module joins them with one
background thread, which serves callers with and without an event loop alike.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from mqauth.audit.disk import is_missing
from mqauth.clock import SYSTEM_CLOCK, SYSTEM_RANDOMNESS, Clock, Randomness
from mqauth.errors import (
    Cause,
    ConfigurationError,
    Unavailable,
    words_of,
)
from mqauth.flow import Flow, arun, call, run
from mqauth.http.connection import Endpoint, FetchFailed, tls_context
from mqauth.keystore.remote import rules
from mqauth.keystore.remote.fetch import (
    DiscoveredFetch,
    Ended,
    Fetch,
    ThreadRefresher,
    URLFetch,
    load_snapshot,
    save_snapshot,
)
from mqauth.logs import emit
from mqauth.threads import Closing, after_fork, in_event_loop
from mqauth.wire.jwk import Svid
from mqauth.wire.keys import KeySet
from mqauth.wire.memo import Recent

_LEVELS: Final = {"refreshed": logging.INFO, "emptied": logging.CRITICAL}


class JWKS(Closing):
    """The keys at a URL, as a ``KeySource``; it fetches nothing before its first use or ``start``.

    Args:
        url: https; http only on loopback and with ``unsafe_http_loopback``. Redirects are not followed.
        discovery: the URL is an issuer's, whose OpenID configuration names that of its keys, and has to repeat the
            issuer exactly (OpenID Connect Discovery, section 4.3).
        max_stale: seconds for which the last good set is used after it was asked for.
        publish_delay: seconds for which the issuer publishes a key before it signs with it. A longer delay that
            the document announces (``mqauth_publish_delay``) takes precedence.
        fresh: seconds for which a set is fresh without a ``Cache-Control``; with one, it is fresh between a fifth
            and three times as long. It is refreshed ahead of time.
        wait: seconds for which a caller waits for one attempt, at most 2.
        timeout: seconds for a whole attempt, at most 5.
        ca: a PEM file of the CAs to trust instead of the system's.
        snapshot: a file for the last good set (mode 0600), which is read at the start.
        unsafe_http_loopback: allow http to this machine.
        svid: of a SPIFFE bundle, read the keys of this use, too: ``"wit-svid"`` for a ``TrustDomain``,
            ``"jwt-svid"`` for credentials of an authority, and nowhere else.
        clock: tells the time.
        randomness: spreads the refreshes of many consumers.
        fetch: makes an attempt, in place of HTTP.
        refresher: makes the object that does the work when it is due, in place of a thread; for tests.

    Raises:
        ConfigurationError: the URL or a bound is not allowed.
    """

    def __init__(
        self,
        url: str,
        *,
        discovery: bool = False,
        max_stale: float = 3600,
        publish_delay: float = 30,
        fresh: float = 300,
        wait: float = 2,
        timeout: float = 5,
        ca: str | Path | None = None,
        snapshot: str | Path | None = None,
        unsafe_http_loopback: bool = False,
        svid: Svid | None = None,
        clock: Clock = SYSTEM_CLOCK,
        randomness: Randomness = SYSTEM_RANDOMNESS,
        fetch: Fetch | None = None,
        refresher: Callable[
            [threading.Condition, Callable[[], float]], ThreadRefresher
        ] = ThreadRefresher,
    ) -> None:
        self._limits = rules.Limits(
            max_stale=max_stale,
            publish_delay=publish_delay,
            fresh=fresh,
            wait=wait,
        )
        endpoint = Endpoint.parse(url, unsafe_http_loopback=unsafe_http_loopback)
        context = tls_context(ca) if endpoint.tls or discovery else None
        given: dict[str, Any] = {"timeout": timeout, "context": context, "clock": clock}
        self._fetch = fetch or (
            DiscoveredFetch(url, unsafe_http_loopback=unsafe_http_loopback, **given)
            if discovery
            else URLFetch(endpoint, svid=svid, **given)
        )
        self.source = self.where = endpoint.shown
        self.svid = svid
        # A snapshot has no uses any more: what a trust domain kept is none for an issuer of the direct form.
        self._kept_of = f"{self.source} {svid}" if svid else self.source
        self._snapshot = None if snapshot is None else Path(snapshot)
        # Only the thread that fetches keys counts, so the counters need no lock.
        self._counters = Counter[str]()
        self._listeners: dict[object, Callable[[KeySet], None]] = {}
        self._clock = clock
        self._randomness = randomness
        self._cache = rules.Cache()
        self._absent = Recent[str, float](rules.ABSENT_KIDS)
        self._closed = False
        self._make_refresher = refresher
        self.forked()
        after_fork(self)
        if self._snapshot is None or is_missing(self._snapshot):
            return
        try:
            keys, age, delay = load_snapshot(
                self._snapshot, source=self._kept_of, now=clock.now(), max_age=max_stale
            )
        except ConfigurationError as refused:
            self._report(("snapshot_failed", f"refused: {refused}"))
        else:
            # The set may be used, and a refresh is due at once.
            asked = clock.monotonic() - age
            self._cache = rules.Cache(
                keys=keys,
                asked=asked,
                origin=asked,
                fresh_until=asked,
                publish_delay=delay,
            )
            self._report(("refreshed", f"from the snapshot, {age:.0f} s old"))

    def forked(self) -> None:
        """Make what a child after a fork lacks: lock and thread, and the attempt that its parent was making."""
        self._condition, self._ended = threading.Condition(), Ended()
        self._refresher = self._make_refresher(self._condition, self._work)
        if self._closed:
            self._refresher.close()
        if self._cache.in_flight or self._cache.keys is None:
            self._cache = replace(
                self._cache, in_flight=False, attempt=rules.NEVER, due=rules.NEVER
            )

    def __enter__(self) -> JWKS:
        self.start()
        return self

    def __repr__(self) -> str:
        return f"JWKS({self.source!r})"

    def start(self) -> None:
        """Fetch now, and from now on in the background. The first use does the same."""
        self._refresher.ensure()

    def close(self) -> None:
        """Stop refreshing; the set is used on until it is too old.

        Waits for an attempt in flight, at most for its timeout.
        """
        with self._condition:
            self._closed = True
        self._refresher.close()

    def key_set(self) -> KeySet:
        """Return the set in use; never waits, and takes no lock.

        Raises:
            Unavailable: ``keys_unavailable``: there is no set that may still be used.
        """
        now = self._clock.monotonic()
        if now >= self._cache.due:
            self._refresher.ensure()
        cache = self._cache
        keys = rules.usable(cache, now, self._limits)
        if keys is None:
            raise rules.unavailable(cache)
        return keys

    def refresh(self, kid: str, received: float, /) -> KeySet:
        """Look again for a kid that the set lacks. Blocks for ``wait`` seconds at most, and no event loop.

        Args:
            kid: the key id in a token.
            received: UTC seconds at which its message was received.

        Raises:
            Unavailable: ``key_pending`` while the issuer is out of reach, ``keys_unavailable`` without a set.
        """
        return run(self._looking(kid, received, waits=not in_event_loop()))

    async def arefresh(self, kid: str, received: float, /) -> KeySet:
        """Do the same as ``refresh``, and let the event loop run meanwhile."""
        return await arun(self._looking(kid, received))

    def subscribe(self, listener: Callable[[KeySet], None]) -> Callable[[], object]:
        """Have a function called with each set that differs from the last one, on the background thread.

        A message that was deferred for an unknown kid can be judged again then. In asyncio, pass a function that
        calls ``loop.call_soon_threadsafe``.

        Returns:
            A function that ends the subscription.
        """
        mark = object()
        self._listeners[mark] = listener
        return partial(self._listeners.pop, mark, None)

    def health(self) -> rules.Health:
        """Return the state of the cache, its ages and its counters."""
        return rules.health_of(
            self._cache,
            source=self.source,
            now=self._clock.monotonic(),
            limits=self._limits,
            counters=self._counters,
        )

    def _looking(self, kid: str, received: float, *, waits: bool = True) -> Flow[KeySet]:
        """Look again for a kid, by rulings until one is final; where nobody ``waits`` the first one is."""
        # The time of receipt in monotonic seconds, because a wall clock may be set forward or back.
        since = self._clock.monotonic() - max(0.0, self._clock.now() - received)
        while True:
            ruling, ended, seconds = self._rule(kid, since)
            if ruling is not rules.Ruling.WAIT or not waits:
                return self._settle(ruling, kid)
            yield from call(
                self._refresher.wait, ended, seconds, twin=self._refresher.pause
            )

    def _rule(self, kid: str, since: float) -> tuple[rules.Ruling, Ended, float]:
        """Return the ruling on a kid, the end of the attempt in flight, and the seconds to wait for it.

        Begins an attempt where the ruling is to ask.
        """
        with self._condition:
            now = self._clock.monotonic()
            ruling = rules.rule(
                self._cache,
                kid,
                received=since,
                now=now,
                limits=self._limits,
                absent=self._absent,
            )
            if ruling is rules.Ruling.ANSWER and rules.asked_in_vain(
                self._cache, kid, since
            ):
                self._absent.keep(kid, self._cache.origin)
            if ruling is not rules.Ruling.ASK:
                return ruling, self._ended, self._cache.attempt + self._limits.wait - now
            if self._closed:
                return rules.Ruling.PENDING, self._ended, 0
            self._begin(now)
            self._refresher.wake()
            return self._rule(kid, since)

    def _settle(self, ruling: rules.Ruling, kid: str) -> KeySet:
        """Turn a ruling on a kid into a set or a deferral."""
        now = self._clock.monotonic()
        keys = rules.answer_on(self._cache, kid, now, self._limits)
        if ruling is rules.Ruling.ANSWER:
            return keys
        raise Unavailable(Cause.KEY_PENDING, "the issuer has not answered yet")

    def _begin(self, now: float) -> None:
        self._cache = rules.begin(self._cache, now)
        self._ended = Ended()

    def _work(self) -> float:
        """Make the attempt that is asked for or due, if any; return the seconds until the next one is due."""
        with self._condition:
            now = self._clock.monotonic()
            if not self._cache.in_flight:
                if now < self._cache.due:
                    return self._cache.due - now
                self._begin(now)
            # A contradiction is confirmed by a full answer, which an entity tag might prevent.
            etag = None if self._cache.suspects else self._cache.etag
        self._counters["attempts"] += 1
        answer: rules.Answer | str
        try:
            answer = self._fetch(etag)
        except FetchFailed as error:
            answer = str(error)
        # Whatever goes wrong is a failure of this attempt. The thread goes on, and tries again.
        except Exception as error:
            emit("keys.fetch_failed", "%s: the fetch broke", self.source, error=error)
            answer = f"the fetch broke: {type(error).__name__}"
        # Nobody else changes the state while an attempt is in flight, so it needs no lock until the change.
        jitter, before = self._randomness(1)[0] / 256, self._cache
        if isinstance(answer, str):
            after, notes = rules.failed(before, answer, jitter=jitter)
        else:
            after, notes = rules.answered(
                before, answer, limits=self._limits, jitter=jitter
            )
        changed = after.keys is not before.keys
        with self._condition:
            self._cache = after
            if changed:
                self._absent.clear()
            self._ended.set_result(None)
        self._report(*notes)
        if (
            after.asked != before.asked
            and self._snapshot is not None
            and after.keys is not None
        ):
            wall = self._clock.now() - (self._clock.monotonic() - after.asked)
            # A full disk is no reason to stop using the keys.
            try:
                save_snapshot(
                    self._snapshot,
                    after.keys,
                    source=self._kept_of,
                    asked=wall,
                    publish_delay=after.publish_delay,
                )
            except OSError as error:
                self._report(("snapshot_failed", f"not written: {words_of(error)}"))
        if changed and after.keys is not None:
            for listener in list(self._listeners.values()):
                # A mistake in a function of the owner must not end the thread that fetches keys.
                try:
                    listener(after.keys)
                except Exception as error:
                    emit(
                        "keys.callback_failed",
                        "%s: a function of the owner raised",
                        self.source,
                        error=error,
                    )
        return self._cache.due - self._clock.monotonic()

    def _report(self, *notes: rules.Note) -> None:
        for kind, detail in notes:
            self._counters[kind] += 1
            level = _LEVELS.get(kind)
            emit("keys.changed", "%s: %s %s", self.source, kind, detail, level=level)
