"""Who is told what a remote key cache does: counters, log, the owner's function, subscribers; and its health."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Final, TypeVar

from mqauth.keystore.remote import rules
from mqauth.keystore.remote.events import ALARMS, Event, Health
from mqauth.keystore.remote.rules import Cache, Limits
from mqauth.wire.keys import KeySet

OnEvent = Callable[[Event], None]
Listener = Callable[[KeySet], None]
T = TypeVar("T")
_LOG: Final = logging.getLogger("mqauth.keys")


class Announcer:
    """Counts, logs and hands on; what an owner's function raises is logged and changes nothing.

    Args:
        source: whose keys, as shown.
        on_event: the owner's function.
    """

    def __init__(self, source: str, on_event: OnEvent | None) -> None:
        self._source = source
        self._on_event = on_event
        self._listeners: tuple[Listener, ...] = ()
        self._counters: Counter[str] = Counter()
        self._lock = threading.Lock()

    def count(self, name: str) -> None:
        """Count one more."""
        with self._lock:
            self._counters[name] += 1

    def counters(self) -> dict[str, int]:
        """Return the counters as they stand."""
        with self._lock:
            return dict(self._counters)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Add a listener for new sets; the function returned takes it away."""
        with self._lock:
            self._listeners = (*self._listeners, listener)

        def unsubscribe() -> None:
            with self._lock:
                self._listeners = tuple(found for found in self._listeners if found is not listener)

        return unsubscribe

    def publish(self, events: Iterable[Event], keys: KeySet | None) -> None:
        """Tell of events, and of the version in use after them."""
        for event in events:
            self.count(event.kind.value)
            level = logging.WARNING if event.kind in ALARMS else logging.INFO
            _LOG.log(level, "%s: %s %s %s", self._source, event.kind.value, event.kid or "", event.detail)
            if self._on_event is not None:
                version = None if keys is None else keys.version
                self._call(self._on_event, replace(event, source=self._source, version=version))

    def announce(self, keys: KeySet) -> None:
        """Tell the listeners of a new set."""
        for listener in self._listeners:
            self._call(listener, keys)

    def _call(self, function: Callable[[T], None], argument: T) -> None:
        """Call an owner's function."""
        try:
            function(argument)
        except Exception:
            _LOG.exception("%s: a function of the owner raised", self._source)


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
