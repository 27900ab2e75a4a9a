"""The keys of a remote issuer: a cache that never makes a known key wait and outlives the issuer for a while.

Rules: ``rules`` (pure). Requests: ``http``. This module joins them, with one background thread
that serves synchronous and asynchronous consumers alike.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypedDict, Unpack

from mqauth.clock import SYSTEM_CLOCK, SYSTEM_RANDOMNESS, Clock, Randomness
from mqauth.errors import Cause, Reason, Rejection, Unavailable
from mqauth.keystore.disk import files
from mqauth.keystore.remote import rules
from mqauth.keystore.remote import snapshot as jwks_snapshot
from mqauth.keystore.remote.connection import Endpoint, FetchFailed, trust
from mqauth.keystore.remote.events import Announcer, Event, EventKind, Health, Listener, OnEvent
from mqauth.keystore.remote.fetch import DiscoveredFetch, Fetch, URLFetch
from mqauth.keystore.remote.refresher import Refresher, ThreadRefresher, Waiters, in_event_loop
from mqauth.keystore.remote.rules import AbsentKids, Answer, Cache, Limits, Ruling, Wish
from mqauth.wire.keys import KeySet

_LOG: Final = logging.getLogger("mqauth.keys")


class JWKS:
    """The keys at a URL, as a ``KeySource``; nothing is fetched before its first use or ``start``.

    Args:
        url: https; http only on loopback and with ``unsafe_http_loopback``. Redirects are not followed.
        max_stale: seconds the last good set serves after it was asked for; finite.
        publish_delay: seconds the issuer publishes a key before it signs with it; a longer delay that
            the document announces (``mqauth_publish_delay``) counts instead.
        fresh: seconds a set is fresh where ``Cache-Control`` does not say; with it, between a fifth and
            three times that. Refreshed ahead of time.
        max_hold: seconds a message with an unknown kid is deferred while the issuer is out of reach.
        wait: seconds anybody waits for one attempt, at most 2.
        timeout: seconds for a whole attempt, at most 5.
        ca: PEM file of the CAs to trust instead of the system's.
        snapshot: file for the last good set (0600), read when starting while the issuer is down.
        on_event: called with each ``Event``, mostly on the background thread; what it raises is logged.
        unsafe_http_loopback: allow http to this machine.
        clock: tells the time.
        randomness: spreads the refreshes of many consumers.
        fetch: makes an attempt, in place of HTTP.
        refresher: makes what does the work when it is due, in place of a thread; for tests.

    Raises:
        ConfigurationError: the URL or a bound is not allowed.
    """

    def __init__(
        self,
        url: str,
        *,
        max_stale: float = 3600,
        publish_delay: float = 30,
        fresh: float = 300,
        max_hold: float = 60,
        wait: float = 2,
        timeout: float = 5,
        ca: str | Path | None = None,
        snapshot: str | Path | None = None,
        on_event: OnEvent | None = None,
        unsafe_http_loopback: bool = False,
        clock: Clock = SYSTEM_CLOCK,
        randomness: Randomness = SYSTEM_RANDOMNESS,
        fetch: Fetch | None = None,
        refresher: Callable[[threading.Condition, Callable[[], float]], Refresher] | None = None,
    ) -> None:
        self._limits = Limits(
            max_stale=max_stale, publish_delay=publish_delay, fresh=fresh, max_hold=max_hold, wait=wait
        )
        endpoint = Endpoint.parse(url, unsafe_http_loopback=unsafe_http_loopback)
        self._fetch = fetch or URLFetch(
            endpoint, timeout=timeout, context=trust(ca) if endpoint.tls else None, clock=clock
        )
        self.source = endpoint.shown
        self._snapshot = None if snapshot is None else Path(snapshot)
        self._announcer = Announcer(self.source, on_event)
        self._clock = clock
        self._randomness = randomness
        self._cache = Cache()
        self._absent = AbsentKids()
        self._condition = threading.Condition()
        self._waiters = Waiters()
        self._closed = False
        self._refresher = (refresher or ThreadRefresher)(self._condition, self._work)
        self._restore()

    def __enter__(self) -> JWKS:
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"JWKS({self.source!r})"

    def start(self) -> None:
        """Fetch now and from now on in the background; the first use does it too."""
        self._refresher.ensure()

    def close(self) -> None:
        """Stop refreshing; waits for an attempt in flight, at most its timeout. The set serves on until stale."""
        with self._condition:
            self._closed = True
        self._refresher.close()

    def key_set(self) -> KeySet:
        """Return the set in use; never waits, and takes no lock.

        Raises:
            Unavailable: ``keys_unavailable``, there is no set that may still be used.
        """
        now = self._clock.monotonic()
        if now >= self._cache.due:
            self._refresher.ensure()
        cache = self._cache
        keys = rules.usable(cache, now, self._limits)
        if keys is None:
            raise self._unavailable(cache)
        return keys

    def refresh(self, kid: str, received: float, /) -> KeySet:
        """Look again for a kid the set lacks; blocks at most ``wait`` seconds an attempt, and no event loop.

        Args:
            kid: the key id a token named.
            received: UTC seconds at which its message was received.

        Raises:
            Unavailable: ``key_pending`` while the issuer is out of reach, ``keys_unavailable`` without a set.
            Rejection: ``key_unknown``, it has been out of reach for longer than messages are held.
        """
        wish = self._wish(kid, received)
        with self._condition:
            while True:
                ruling, seconds = self._rule(wish)
                if ruling is not Ruling.WAIT or in_event_loop():
                    return self._settle(ruling)
                self._refresher.wait(seconds)

    async def arefresh(self, kid: str, received: float, /) -> KeySet:
        """Do as ``refresh`` does, and let the event loop run meanwhile."""
        wish = self._wish(kid, received)
        while True:
            with self._condition:
                ruling, seconds = self._rule(wish)
                if ruling is not Ruling.WAIT:
                    return self._settle(ruling)
                ended = self._waiters.add()
            await self._refresher.pause(ended, seconds)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Have a function called, on the background thread, with each set that differs from the last.

        What was deferred for an unknown kid can be judged again then. From asyncio, hand in a function that
        does ``loop.call_soon_threadsafe``.

        Returns:
            A function that ends the subscription.
        """
        return self._announcer.subscribe(listener)

    def health(self) -> Health:
        """Return the cache's state, ages and counters."""
        now = self._clock.monotonic()
        return health(self._cache, self.source, now, self._limits, self._announcer.counters())

    def _rule(self, wish: Wish) -> tuple[Ruling, float]:
        """Rule on a kid, begin an attempt where that is wished, and return how long to wait for it."""
        now = self._clock.monotonic()
        ruling = rules.rule(self._cache, wish, now=now, limits=self._limits, absent=self._absent)
        if ruling is Ruling.ANSWER and rules.in_vain(self._cache, wish):
            self._absent.add(wish.kid, self._cache.origin)
        if ruling is not Ruling.ASK:
            return ruling, self._cache.attempt + self._limits.wait - now
        if self._closed:
            return Ruling.PENDING, 0
        self._cache = rules.begin(self._cache, now)
        self._refresher.wake()
        return self._rule(wish)

    def _settle(self, ruling: Ruling) -> KeySet:
        """Turn a ruling into a set, a rejection or a deferral."""
        cache = self._cache
        keys = rules.usable(cache, self._clock.monotonic(), self._limits)
        if keys is None:
            raise self._unavailable(cache)
        if ruling is Ruling.ANSWER:
            return keys
        if ruling is Ruling.OUTLIVED:
            raise Rejection(
                Reason.KEY_UNKNOWN, "not in the last good set, and the issuer has long been out of reach"
            )
        raise Unavailable(Cause.KEY_PENDING, cache.failure or "the issuer has not answered yet")

    def _unavailable(self, cache: Cache) -> Unavailable:
        """Return the error of a cache without a set that may serve."""
        return Unavailable(Cause.KEYS_UNAVAILABLE, cache.failure or "no key set was fetched yet")

    def _wish(self, kid: str, received: float) -> Wish:
        """Put a moment of the wall clock into the cache's own seconds, for a stepped clock must not fool it."""
        return Wish(kid, self._clock.monotonic() - max(0.0, self._clock.now() - received))

    def _work(self) -> float:
        """Make the attempt that is wished for or due, if any; return the seconds until the next is due."""
        with self._condition:
            now = self._clock.monotonic()
            if not self._cache.in_flight:
                if now < self._cache.due:
                    return self._cache.due - now
                self._cache = rules.begin(self._cache, now)
            asked, etag = self._cache.attempt, rules.validator(self._cache)
            self._announcer.count("attempts")
        self._take(self._attempt(etag), asked)
        return self._cache.due - self._clock.monotonic()

    def _attempt(self, etag: str | None) -> Answer | str:
        """Fetch; whatever goes wrong is a failure of the attempt and never of the thread."""
        try:
            return self._fetch(etag)
        except FetchFailed as error:
            return str(error)
        except Exception as error:
            _LOG.exception("%s: the fetch broke", self.source)
            return f"the fetch broke: {type(error).__name__}"

    def _take(self, result: Answer | str, asked: float) -> None:
        """Swap the state, wake who waits, and tell; only this thread changes the state of an attempt in flight."""
        jitter, before = self._randomness(1)[0] / 256, self._cache
        if isinstance(result, str):
            now = self._clock.monotonic()
            after, events = rules.failed(before, result, asked=asked, now=now, limits=self._limits, jitter=jitter)
        else:
            after, events = rules.answered(before, result, asked=asked, limits=self._limits, jitter=jitter)
        changed = after.keys is not before.keys
        with self._condition:
            self._cache = after
            if changed:
                self._absent.clear()
            self._waiters.release()
            self._condition.notify_all()
        self._announcer.publish(events, after.keys)
        if after.asked != before.asked:
            self._save(after)
        if changed and after.keys is not None:
            self._announcer.announce(after.keys)

    def _save(self, cache: Cache) -> None:
        """Write the snapshot, if one is wished; a disk that refuses is told of and changes nothing."""
        if self._snapshot is None or cache.keys is None:
            return
        asked = self._clock.now() - (self._clock.monotonic() - cache.asked)
        kept = jwks_snapshot.Snapshot(
            source=self.source, keys=cache.keys, asked=asked, publish_delay=cache.publish_delay
        )
        try:
            jwks_snapshot.save(self._snapshot, kept)
        except OSError as error:
            self._tell(Event(kind=EventKind.SNAPSHOT_FAILED, detail=error.strerror or "not written"))

    def _restore(self) -> None:
        """Start from the snapshot, if there is one that may be used."""
        if self._snapshot is None or files.is_missing(self._snapshot):
            return
        now = self._clock.now()
        try:
            found = jwks_snapshot.load(self._snapshot, source=self.source, now=now, max_age=self._limits.max_stale)
        except jwks_snapshot.SnapshotRefused as refused:
            self._tell(Event(kind=EventKind.SNAPSHOT_REFUSED, detail=str(refused)))
            return
        age = max(0.0, now - found.asked)
        self._cache = rules.restored(found.keys, self._clock.monotonic() - age, found.publish_delay)
        self._tell(Event(kind=EventKind.SNAPSHOT_LOADED, detail=f"{age:.0f} s old"))

    def _tell(self, event: Event) -> None:
        """Publish one event."""
        self._announcer.publish((event,), self._cache.keys)


class JWKSSettings(TypedDict, total=False):
    """Settings of ``JWKS`` that discovery hands through."""

    max_stale: float
    publish_delay: float
    fresh: float
    max_hold: float
    wait: float
    snapshot: str | Path | None
    on_event: OnEvent | None
    randomness: Randomness


def discover(
    issuer: str,
    *,
    timeout: float = 5,
    ca: str | Path | None = None,
    unsafe_http_loopback: bool = False,
    clock: Clock = SYSTEM_CLOCK,
    **settings: Unpack[JWKSSettings],
) -> JWKS:
    """Return the keys of an issuer that publishes an OpenID configuration; nothing is fetched yet.

    Args:
        issuer: its https URL, exactly as tokens name it.
        timeout: seconds for a whole attempt, both documents together, at most 5.
        ca: PEM file of the CAs to trust instead of the system's, for both.
        unsafe_http_loopback: allow http to this machine.
        clock: tells the time.
        settings: as for ``JWKS``.

    Raises:
        ConfigurationError: the issuer is no https URL, or a bound is not allowed.
    """
    fetch = DiscoveredFetch(
        issuer, unsafe_http_loopback=unsafe_http_loopback, timeout=timeout, context=trust(ca), clock=clock
    )
    return JWKS(
        issuer, fetch=fetch, unsafe_http_loopback=unsafe_http_loopback, timeout=timeout, clock=clock, **settings
    )


def health(cache: Cache, source: str, now: float, limits: Limits, counters: Mapping[str, int]) -> Health:
    """Return the health of a cache at a moment."""
    keys = rules.usable(cache, now, limits)
    fetched = None if cache.keys is None else now - cache.asked
    return Health(
        source=source,
        state=rules.condition(cache, now, limits),
        version=None if keys is None else keys.version,
        keys=0 if keys is None else len(keys.keys),
        age=fetched,
        serves_for=None if keys is None else cache.asked + limits.max_stale - now,
        attempt_age=None if cache.attempt == rules.NEVER else now - cache.attempt,
        failing_for=None if cache.failing_since is None else now - cache.failing_since,
        last_failure=cache.failure,
        held=tuple(sorted(cache.suspects)),
        skipped=() if cache.keys is None else cache.keys.skipped,
        counters=counters,
    )
