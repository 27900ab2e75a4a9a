"""What a remote key cache reports: its events as they happen, counters, and its health on request."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal, TypeVar

from mqauth.logs import emit
from mqauth.wire.keys import KeySet

T = TypeVar("T")


class EventKind(StrEnum):
    """The kind of an event; the strings are stable, and metrics use them. All but the first are warnings."""

    REFRESHED = "refreshed"
    """A good answer; the detail says which keys it added, removed or changed."""
    FAILED = "failed"
    """The issuer gave no good answer; the detail says why."""
    STALE = "stale"
    """The set is older than it should be, and is used nevertheless."""
    UNAVAILABLE = "unavailable"
    """There is no set that may be used: messages are deferred."""
    LOSS_HELD = "loss_held"
    """An answer lacks most of the keys, or is an old one. They stay until that is seen twice."""
    KEY_SKIPPED = "key_skipped"
    """A key of the document cannot be used."""
    SNAPSHOT_FAILED = "snapshot_failed"
    """The snapshot was refused, or could not be written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a key cache.

    Args:
        kind: the kind of event.
        source: the URL of the key set, without its query.
        version: the version of the set in use afterwards, ``None`` where there is none.
        detail: one line for people; it never holds a key.
    """

    kind: EventKind
    source: str = ""
    version: str | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The state of a key cache. Ages are in seconds, ``None`` where the event never happened.

    Args:
        source: the URL of the key set, without its query.
        state: ``"fresh"``; ``"stale"``, old but in use; or ``"unavailable"``, no set may be used.
        version: the version of the set in use.
        keys: the number of keys in it.
        age: the time since the last good answer was asked for.
        serves_for: the time until the set may no longer be used, unless a good answer comes.
        attempt_age: the time since the last attempt.
        failing_for: the time since the first failed attempt of the present outage.
        last_failure: the failure of the last attempt, ``None`` after a good answer.
        held: kids that are kept only because their loss or change was seen just once.
        skipped: the keys of the last document that cannot be used, one line each.
        counters: the number of events by kind, and of ``attempts``, since the start.
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


class Announcer:
    """Counts and logs events, and passes them to the owner's function; passes new sets to subscribers.

    Args:
        source: the URL of the key set, as shown.
        on_event: the owner's function.
    """

    def __init__(self, source: str, on_event: OnEvent | None) -> None:
        self._source = source
        self._on_event = on_event
        self._listeners: tuple[Listener, ...] = ()
        # Only the thread that fetches keys counts, so the counters need no lock.
        self.counters: Counter[str] = Counter()
        self._lock = threading.Lock()

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Add a listener for new sets, and return the function that removes it."""
        with self._lock:
            self._listeners = (*self._listeners, listener)

        def unsubscribe() -> None:
            with self._lock:
                self._listeners = tuple(each for each in self._listeners if each is not listener)

        return unsubscribe

    def publish(self, events: Iterable[Event], keys: KeySet | None) -> None:
        """Report events, with the version of the set that is in use after them."""
        for event in events:
            self.counters[event.kind.value] += 1
            level = logging.INFO if event.kind is EventKind.REFRESHED else logging.WARNING
            emit("keys.changed", "%s: %s %s", self._source, event.kind.value, event.detail, level=level)
            if self._on_event is not None:
                self._call(
                    self._on_event,
                    replace(event, source=self._source, version=None if keys is None else keys.version),
                )

    def announce(self, keys: KeySet) -> None:
        """Pass a new set to the subscribers."""
        for listener in self._listeners:
            self._call(listener, keys)

    def _call(self, function: Callable[[T], None], argument: T) -> None:
        # A mistake in a function of the owner must not end the thread that fetches keys.
        try:
            function(argument)
        except Exception as error:
            emit("keys.callback_failed", "%s: a function of the owner raised", self._source, error=error)
