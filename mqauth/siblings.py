"""What was found right of one message of a batch, and holds for its siblings of the same form.

A *form* is a destination, and the names of headers and properties. Messages of one token and one form differ in
body, record key, header values and proof: those are judged for each. All else was judged for the first, and
stands at the times it was found right for, while the issuer's keys are the same, under rules that do not change.

Only the plain case ends here. What is not plain, or not right, is left to the steps of ``judge``, which reject
and defer; the tests hold the two together.
"""

from __future__ import annotations

from typing import Any, Final

from mqauth import batch
from mqauth.delivery import Delivery
from mqauth.destination import is_kafka
from mqauth.flow import is_async
from mqauth.jws import MAX_TOKEN
from mqauth.knowntokens import Course, Form
from mqauth.message import NO_PROPERTIES, TOKEN_HEADER, Message
from mqauth.policy import Allow, Policy
from mqauth.verified import Verified, make_verified
from mqauth.verifier import Candidate, Verifier

_NONE: Final[tuple[str, ...]] = ()
_SEPARATOR: Final = b"~"


class Siblings:
    """Judges siblings: steps 1 to 12, in the plain case.

    Args:
        verifier: judged the first of them, and remembers its token.
        policy: permitted it; only of ``Allow`` it is known that it says the same again.
    """

    def __init__(self, verifier: Verifier, policy: Policy) -> None:
        self._verifier = verifier
        self._constant = type(policy) is Allow

    def judge(self, delivery: Delivery) -> Verified | None:
        """Return the verified message, noted in its delivery; ``None`` where it is not the plain case."""
        try:
            return self._judge(delivery)
        except Exception:
            return None

    def _judge(self, delivery: Delivery) -> Verified | None:
        """Judge a message."""
        message, received = delivery.message, delivery.received
        token, _, text = _token(message).partition(_SEPARATOR)
        known = self._verifier.known.get(token)
        if known is None or message.malformed is not None:
            return None
        course = known.courses.get(_form(message))
        if course is None or not _stands(course, received):
            return None
        proof = batch.proof_of(text, known.claims)
        if proof is None or not known.proven.proves(course.leaf(message), proof.place, proof.path):
            return None
        version = course.standing.keys.version
        delivery.candidate, delivery.key_set = Candidate(known.opened, known.claims, proof, token, known), version
        delivery.verified = found = make_verified(
            message, known.claims, known.opened.kid, version, received, None, proof.place
        )
        return found

    def learn(self, delivery: Delivery) -> None:
        """Note the course of a message that was verified and permitted, by no release, for its siblings."""
        candidate, message = delivery.candidate, delivery.message
        if candidate is None or candidate.proof is None or not self._constant:
            return
        known, keys = self._verifier.known.get(candidate.token), self._verifier.source(candidate).key_set
        if known is None or known.standing is None or is_async(keys):
            return
        leaf = batch.leaf_hashes(message, known.claims.mqa.hdr)
        known.courses[_form(message)] = Course(known.standing, keys, leaf)


def _token(message: Message) -> bytes:
    """Return a token of a message; that it has no other is said by its form."""
    headers = message.headers
    token: Any = headers[-1][1] if headers[-1][0] == TOKEN_HEADER else dict(headers)[TOKEN_HEADER]
    if len(token) > MAX_TOKEN:
        return b""
    found: bytes = token if is_kafka(message.destination) else token.encode("ascii")
    return found


def _form(message: Message) -> Form:
    """Return the form of a message."""
    names = tuple([name for name, _ in message.headers])
    return message.destination, names, _NONE if message.properties is NO_PROPERTIES else tuple(message.properties)


def _stands(course: Course, received: float) -> bool:
    """Tell whether what was found right of the first stands for a message received now."""
    standing = course.standing
    return standing.since <= received < standing.until and course.keys() is standing.keys
