"""How a new answer changes the set in use: new keys count at once, a suspicious loss only when seen twice.

An answer may be a mishap of the issuer, or an old copy, if it is empty, lacks most of the keys, or is dated
before the answer in use. The keys that it adds are believed. A key that it lacks goes when the next answer lacks
it, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mqauth.keystore.remote.events import Event, EventKind
from mqauth.wire.keys import Key, KeySet, thumbprint

Suspects = Mapping[str, str]
"""How the last answer contradicted keys in use, by kid: ``ABSENT``, or the version of the key it had instead."""
ABSENT = ""


@dataclass(frozen=True, slots=True)
class Merged:
    """The set to use from now on, the contradictions that the next answer has to confirm, and the events."""

    keys: KeySet
    suspects: Suspects
    events: tuple[Event, ...]


def merge(current: KeySet, answer: KeySet, suspects: Suspects, *, outdated: bool) -> Merged:
    """Merge an answer into the set in use.

    Args:
        current: the set in use, empty at first.
        answer: the keys of a good answer.
        suspects: the contradictions that the last answer left to be confirmed.
        outdated: whether the answer is dated before the one in use.
    """
    lost = sum(answer.get(key.kid) is None for key in current)
    guarded = outdated or 2 * lost > len(current.keys)
    held: dict[str, str] = {}
    for old in current:
        doubt = _doubt(old, answer.get(old.kid), guarded=guarded, outdated=outdated)
        if doubt is not None and suspects.get(old.kid) != doubt:
            held[old.kid] = doubt
    fresh = [key for key in answer if key.kid not in held]
    keys = KeySet([*fresh, *(key for key in current if key.kid in held)], answer.skipped)
    events = (*_alarms(held), *_differences(current, keys))
    # The very same object tells everybody that nothing has changed.
    if keys.version == current.version and keys.skipped == current.skipped:
        keys = current
    return Merged(keys, held, events)


def _doubt(old: Key, new: Key | None, *, guarded: bool, outdated: bool) -> str | None:
    """Return the contradiction that must be seen twice, ``None`` where the answer counts at once."""
    if new is None:
        return ABSENT if guarded else None
    # A revocation and other new terms of the same public key count at once, but not those of an old copy.
    if thumbprint(new.public) != thumbprint(old.public) or (outdated and new != old):
        return KeySet([new]).version
    return None


def _alarms(held: Suspects) -> Iterable[Event]:
    absent = sorted(kid for kid, doubt in held.items() if doubt == ABSENT)
    if absent:
        yield Event(kind=EventKind.LOSS_HELD, detail=f"{len(absent)} keys missing, kept until seen twice")
    for kid in sorted(held.keys() - absent):
        yield Event(
            kind=EventKind.KEY_CONFLICT, kid=kid, detail="another key came under this kid; the old one stays"
        )


def _differences(old: KeySet, new: KeySet) -> Iterable[Event]:
    """Yield an event for each key that came, went, changed, or cannot be used."""
    for kid in sorted(new.by_kid.keys() - old.by_kid.keys()):
        yield Event(kind=EventKind.KEY_ADDED, kid=kid)
    for kid in sorted(old.by_kid.keys() - new.by_kid.keys()):
        yield Event(kind=EventKind.KEY_REMOVED, kid=kid)
    for kid in sorted(old.by_kid.keys() & new.by_kid.keys()):
        if old.by_kid[kid] != new.by_kid[kid]:
            yield Event(kind=EventKind.KEY_CHANGED, kid=kid, detail=_change(old.by_kid[kid], new.by_kid[kid]))
    for line in new.skipped:
        if line not in old.skipped:
            yield Event(kind=EventKind.KEY_SKIPPED, detail=line)


def _change(old: Key, new: Key) -> str:
    """Return the names of what differs between two keys of one kid."""
    named = {
        "public key": thumbprint(old.public) != thumbprint(new.public),
        "algorithm": old.algorithm != new.algorithm,
        "subjects": old.subjects != new.subjects,
        "end": old.expires != new.expires,
        "revocation": old.revocation != new.revocation,
    }
    return ", ".join(name for name, differs in named.items() if differs)
