"""The keys of a configured party: those at hand, and another look at its source for a key that is missing."""

from __future__ import annotations

from typing import Any, Final

from mqauth.errors import Cause, Rejection, Unavailable
from mqauth.flow import OUR_FAULT, Flow, answered, call
from mqauth.wire.keys import KeySet, KeySource

_KEYS: Final = Cause.KEYS_UNAVAILABLE


def known(at_hand: Any) -> Flow[KeySet | None]:
    """Return the keys at hand, awaited; ``None`` if there are none yet."""
    try:
        keys = yield from answered(_KEYS, at_hand)
    except Unavailable:
        return None
    return keys if isinstance(keys, KeySet) else None


def looked_up(source: KeySource, kid: str, received: float, party: str) -> Flow[KeySet]:
    """Make the key source of a configured party look for a kid once more; it may decide that the kid is unknown.

    Raises:
        Unavailable: the source is out of reach. The error names the party, for messages of others need not wait.
    """
    twin = getattr(source, "arefresh", None)
    try:
        keys = yield from call(
            source.refresh,
            kid,
            received,
            twin=twin,
            cause=_KEYS,
            passing=(*OUR_FAULT, Rejection),
        )
    except Unavailable as error:
        raise Unavailable(error.cause, error.detail, party) from error
    if not isinstance(keys, KeySet):
        raise Unavailable(_KEYS, "the source's answer is no key set", party)
    return keys
