"""What a remote key cache tells its owner: events as they happen, counters, and its health when asked."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, Literal, TypeVar

from mqauth.wire.keys import KeySet


class EventKind(StrEnum):
    """What happened to a key cache; the strings are stable, metrics key on them."""

    REFRESHED = "refreshed"
    """A good answer; its detail is ``unchanged`` where it brought nothing new."""
    FAILED = "failed"
    """The issuer gave no good answer; the detail says how."""
    STALE = "stale"
    """The set is older than it should be, and serves on."""
    UNAVAILABLE = "unavailable"
    """There is no set that may still serve: messages are deferred."""
    KEY_ADDED = "key_added"
    KEY_REMOVED = "key_removed"
    KEY_CHANGED = "key_changed"
    """The same public key under other terms: its end, revocation, subjects or algorithm."""
    KEY_CONFLICT = "key_conflict"
    """Alarm: a known kid came with another public key; the old one stays until that is seen twice."""
    KEY_SKIPPED = "key_skipped"
    """A key of the document cannot be used."""
    LOSS_HELD = "loss_held"
    """Alarm: an answer without most of the keys; they stay until that is seen twice."""
    SNAPSHOT_LOADED = "snapshot_loaded"
    SNAPSHOT_REFUSED = "snapshot_refused"
    SNAPSHOT_FAILED = "snapshot_failed"


ALARMS: Final = frozenset(
    (EventKind.FAILED, EventKind.STALE, EventKind.UNAVAILABLE, EventKind.KEY_CONFLICT, EventKind.KEY_SKIPPED,
     EventKind.LOSS_HELD, EventKind.SNAPSHOT_REFUSED, EventKind.SNAPSHOT_FAILED)
)  # fmt: skip
"""Kinds that are logged as warnings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened to a key cache.

    Args:
        kind: what.
        source: whose keys: the URL without its query.
        version: of the set in use afterwards, ``None`` where there is none.
        kid: the key it is about.
        detail: one line for people; holds no key.
    """

    kind: EventKind
    source: str = ""
    version: str | None = None
    kid: str | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The state of a key cache; ages in seconds, ``None`` where it never happened.

    Args:
        source: whose keys: the URL without its query.
        state: ``"fresh"``; ``"stale"``, old and still serving; ``"unavailable"``, nothing may serve.
        version: of the set in use.
        keys: how many it holds.
        age: since the last good answer was asked for.
        serves_for: until the set may no longer serve, unless a good answer comes.
        attempt_age: since the last attempt.
        failing_for: since the first failed attempt of the present outage.
        last_failure: how the last failed attempt failed; ``None`` once a good answer came.
        held: kids kept only because their loss or change was seen once.
        skipped: keys of the last document that cannot be used, a line each.
        counters: events by kind, and ``attempts``, since the start.
    """

    source: str
    state: Literal["fresh", "stale", "unavailable"]
    version: str | None
    keys: int
    age: float | None
    serves_for: float | None
    attempt_age: float | None
    failing_for: float | None
    last_failure: str | None
    held: tuple[str, ...]
    skipped: tuple[str, ...]
    counters: Mapping[str, int]


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
