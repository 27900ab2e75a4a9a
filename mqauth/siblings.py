"""What was found right of one message of a batch, and holds for its siblings of the same form.

Messages of one token and one form differ in body, record key, header values and proof: those are judged for
each. All else was judged for the first, and stands at the times it was found right for, while the issuer's keys
are the same, under rules that do not change.

Only the plain case ends here. What is not plain, or not right, is left to the steps of ``judge``, which reject
and defer; the tests hold the two together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, NamedTuple

from mqauth import batch
from mqauth.flow import is_async
from mqauth.form import Form, form_of, is_small
from mqauth.judging.delivery import Delivery
from mqauth.knowntokens import Standing
from mqauth.message import Message
from mqauth.policy import Allow, Policy
from mqauth.verified import Verified, make_verified
from mqauth.verifier import Candidate, Verifier

_REMEMBERED: Final = 1024


class Course(NamedTuple):
    """How messages of one form are judged, once one of them was found right.

    Args:
        first: the first of them, but for its proof the candidate of all.
        standing: by which keys, from when and until when all that is not the message's own was found right.
        keys: returns the keys of the issuer now.
        leaf: returns the hash of a message's leaf.
    """

    first: Candidate
    standing: Standing
    keys: Callable[[], Any]
    leaf: Callable[[Message], bytes]


class Siblings:
    """Judges siblings: steps 1 to 12, in the plain case.

    Args:
        verifier: judged the first of them, and remembers its token.
        policy: permitted it; only of ``Allow`` it is known that it says the same again.
    """

    def __init__(self, verifier: Verifier, policy: Policy) -> None:
        self._verifier = verifier
        self._constant = type(policy) is Allow
        self._courses: dict[tuple[bytes, Form], Course] = {}

    def judge(self, delivery: Delivery, token: bytes, behind: bytes) -> Verified | None:
        """Return the verified message, noted in its delivery; ``None`` where it is not the plain case.

        Args:
            delivery: not judged yet.
            token: its message's.
            behind: the proof behind it.

        Raises:
            Exception: whatever is wrong with the proof or the message; the steps of ``judge`` say what.
        """
        message, received = delivery.message, delivery.received
        known = self._verifier.known.get(token)
        if known is None or message.malformed is not None:
            return None
        course = self._courses.get((token, form_of(message)))
        if course is None or not _stands(course, received):
            return None
        place, _, path = batch.place_of(behind, known.proven.size)
        if not known.proven.proves(course.leaf(message), place, path):
            return None
        version = course.standing.keys.version
        delivery.candidate, delivery.key_set = course.first, version
        delivery.verified = found = make_verified(
            message, known.claims, known.opened.kid, version, received, None, place
        )
        return found

    def learn(self, delivery: Delivery) -> None:
        """Note the course of a message that was verified and permitted, by no release, for its siblings."""
        candidate, message = delivery.candidate, delivery.message
        if candidate is None or candidate.proof is None or not self._constant:
            return
        known, keys = self._verifier.known.get(candidate.token), self._verifier.source(candidate).key_set
        form = form_of(message)
        if known is None or known.standing is None or is_async(keys) or not is_small(form):
            return
        if len(self._courses) >= _REMEMBERED:  # copies with other names that nobody covered get here too
            self._courses.clear()
        leaf = batch.leaf_hashes(message, known.claims.mqa.hdr)
        first = replace(candidate, known=None)  # a course keeps no tree alive
        self._courses[candidate.token, form] = Course(first, known.standing, keys, leaf)


def _stands(course: Course, received: float) -> bool:
    """Tell whether what was found right of the first stands for a message received now."""
    standing = course.standing
    return standing.since <= received < standing.until and course.keys() is standing.keys
