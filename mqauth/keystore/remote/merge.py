"""A new answer laid over the set in use: what is gained counts at once, a suspicious loss must be seen twice.

An answer that is empty, lacks most of the keys, or is dated before the one in use may be a mishap of the
issuer or an old copy. What it adds is believed; what it takes away goes when the next answer lacks it too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mqauth.keystore.remote.events import Event, EventKind
from mqauth.wire.keys import Key, KeySet, thumbprint

Suspects = Mapping[str, str]
"""A kid, to how the last answer contradicted the key in use: ``""`` lacked it, else that key's fingerprint."""
ABSENT = ""


@dataclass(frozen=True, slots=True)
class Merged:
    """The set to use from now on, what is to be confirmed by the next answer, and what to tell."""

    keys: KeySet
    suspects: Suspects
    events: tuple[Event, ...]


def merge(current: KeySet, answer: KeySet, suspects: Suspects, *, outdated: bool) -> Merged:
    """Lay an answer over the set in use.

    Args:
        current: the set in use.
        answer: the keys of a good answer.
        suspects: what the last answer left to be confirmed.
        outdated: the answer is dated before the one in use.
    """
    guarded = outdated or _loses_most(current, answer)
    held: dict[str, str] = {}
    kept: list[Key] = []
    for old in current:
        doubt = _doubt(old, answer.get(old.kid), guarded=guarded, outdated=outdated)
        if doubt is not None and suspects.get(old.kid) != doubt:
            held[old.kid] = doubt
            kept.append(old)
    fresh = [key for key in answer if key.kid not in held]
    keys = KeySet([*fresh, *kept], answer.skipped)
    events = (*_alarms(held), *_differences(current, keys), *_skips(current, keys))
    if keys.version == current.version and keys.skipped == current.skipped:
        keys = current
    return Merged(keys, held, events)


def first(answer: KeySet) -> Merged:
    """Take a first answer as it is."""
    nothing = KeySet([])
    return Merged(answer, {}, (*_differences(nothing, answer), *_skips(nothing, answer)))


def _loses_most(current: KeySet, answer: KeySet) -> bool:
    """Tell whether more than half of the keys would go."""
    lost = sum(1 for key in current if answer.get(key.kid) is None)
    return 2 * lost > len(current.keys)


def _doubt(old: Key, new: Key | None, *, guarded: bool, outdated: bool) -> str | None:
    """Return how an answer contradicts a key in a way that must be seen twice, ``None`` where it does not."""
    if new is None:
        return ABSENT if guarded else None
    if thumbprint(new.public) != thumbprint(old.public) or (outdated and new != old):
        return _fingerprint(new)
    return None


def _fingerprint(key: Key) -> str:
    """Return what tells a key and its terms apart from every other."""
    return KeySet([key]).version


def _alarms(held: Suspects) -> Iterable[Event]:
    """Yield what an owner should be woken for."""
    absent = sorted(kid for kid, doubt in held.items() if doubt == ABSENT)
    if absent:
        yield Event(kind=EventKind.LOSS_HELD, detail=f"{len(absent)} keys missing, kept until seen twice")
    for kid in sorted(held.keys() - absent):
        yield Event(
            kind=EventKind.KEY_CONFLICT, kid=kid, detail="another key came under this kid; the old one stays"
        )


def _differences(old: KeySet, new: KeySet) -> Iterable[Event]:
    """Yield an event for each key that came, went or changed."""
    for kid in sorted(new.by_kid.keys() - old.by_kid.keys()):
        yield Event(kind=EventKind.KEY_ADDED, kid=kid)
    for kid in sorted(old.by_kid.keys() - new.by_kid.keys()):
        yield Event(kind=EventKind.KEY_REMOVED, kid=kid)
    for kid in sorted(old.by_kid.keys() & new.by_kid.keys()):
        if old.by_kid[kid] != new.by_kid[kid]:
            yield Event(kind=EventKind.KEY_CHANGED, kid=kid, detail=_change(old.by_kid[kid], new.by_kid[kid]))


def _change(old: Key, new: Key) -> str:
    """Name what differs between two keys of one kid."""
    named = {
        "public key": thumbprint(old.public) != thumbprint(new.public),
        "algorithm": old.algorithm != new.algorithm,
        "subjects": old.subjects != new.subjects,
        "end": old.expires != new.expires,
        "revocation": old.revocation != new.revocation,
    }
    return ", ".join(name for name, differs in named.items() if differs)


def _skips(old: KeySet, new: KeySet) -> Iterable[Event]:
    """Yield an event for each key that cannot be used, once."""
    for line in new.skipped:
        if line not in old.skipped:
            yield Event(kind=EventKind.KEY_SKIPPED, detail=line)
