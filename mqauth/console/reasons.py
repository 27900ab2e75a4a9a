"""Explains every reason: which step failed, what that means, and what to look at next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mqauth.errors import Reason


@dataclass(frozen=True, slots=True)
class Advice:
    """The explanation of one reason: the step that failed, what that means, and what to do next."""

    step: str
    meaning: str
    next: str


_FORGED: Final = "Discard it, and look who can write to this destination."
_PRODUCER: Final = "Look at how the producer makes its messages; they have to be sent again."
_TIME: Final = "If the delay was ours and the message is still wanted, redrive it and waive this reason."
_TOKEN: Final = "Reading the token"
_KEY: Final = "Finding the key"
_CLAIMS: Final = "Checking the claims"
_BINDING: Final = "Comparing the token with the message"

EXPLANATIONS: Final[dict[str, Advice]] = {
    Reason.TOKEN_MISSING: Advice(_TOKEN, "The message has no token: nobody vouches for it.", _PRODUCER),
    Reason.TOKEN_REPEATED: Advice(_TOKEN, "The message has several tokens; none of them is believed.", _FORGED),
    Reason.TOKEN_OVERSIZE: Advice(_TOKEN, "The token is longer than any token may be.", _FORGED),
    Reason.TOKEN_MALFORMED: Advice(_TOKEN, "The token's header holds something that is no token.", _FORGED),
    Reason.TOKEN_TYPE: Advice(_TOKEN, "It is a token, but one made for another purpose than messages.", _FORGED),
    Reason.HEADER_FORBIDDEN: Advice(_TOKEN, "The token's JOSE header has a member that is not allowed.", _FORGED),
    Reason.ALGORITHM_FORBIDDEN: Advice(
        _TOKEN, "The token is signed with an algorithm that is not accepted.", "Compare the producer's algorithm."
    ),
    Reason.KEY_UNKNOWN: Advice(
        _KEY, "The token names a key that the issuer's key set did not hold.",
        "Often a rotation: judge again once the key is published. One that never appears is a forgery.",
    ),
    Reason.KEY_REVOKED: Advice(_KEY, "The key was revoked: whoever holds it may not be the producer.", _FORGED),
    Reason.KEY_EXPIRED: Advice(_KEY, "The key had expired.", _TIME),
    Reason.SIGNATURE_INVALID: Advice(
        "Verifying the signature", "The signature does not hold: the token was edited or forged.", _FORGED
    ),
    Reason.CLAIMS_MALFORMED: Advice(_CLAIMS, "The claims of the token do not have the required form.", _PRODUCER),
    Reason.CLAIM_MISSING: Advice(_CLAIMS, "A claim that every token needs is missing.", _PRODUCER),
    Reason.ISSUER_UNTRUSTED: Advice(
        _CLAIMS, "The token names an issuer that this consumer does not know.", "Compare the consumer's issuers."
    ),
    Reason.AUDIENCE_MISMATCH: Advice(_CLAIMS, "The token is meant for another audience.", _PRODUCER),
    Reason.SUBJECT_MISMATCH: Advice(_CLAIMS, "The key does not speak for the named producer.", _FORGED),
    Reason.ISSUED_IN_FUTURE: Advice(
        _CLAIMS, "The token was issued in the future.", "Compare the clocks of producer and consumer; judge again."
    ),
    Reason.NOT_YET_VALID: Advice(_CLAIMS, "The token was not valid yet.", "Judge again: it may be valid by now."),
    Reason.EXPIRED: Advice(_CLAIMS, "The token had expired when the message was received.", _TIME),
    Reason.LIFETIME_EXCESSIVE: Advice(_CLAIMS, "The token lives longer than this consumer allows.", _TIME),
    Reason.QUEUE_AGE_EXCEEDED: Advice(_CLAIMS, "The message waited longer than this consumer allows.", _TIME),
    Reason.DESTINATION_MISMATCH: Advice(
        _BINDING, "The message was signed for another destination, and moved here.", _FORGED
    ),
    Reason.BODY_MISMATCH: Advice(_BINDING, "The body is not the one that was signed.", _FORGED),
    Reason.RECORD_KEY_MISMATCH: Advice(_BINDING, "The record key is not the one that was signed.", _FORGED),
    Reason.HEADERS_MISMATCH: Advice(_BINDING, "A signed header or property was changed.", _FORGED),
    Reason.COVERAGE_INSUFFICIENT: Advice(_BINDING, "The token leaves out what it must cover.", _PRODUCER),
    Reason.PRODUCER_FORBIDDEN: Advice(
        "Asking the policy", "The producer is genuine, but may not write to this destination.",
        "If it should, change the policy and judge again.",
    ),
    Reason.REPLAYED: Advice(
        "Claiming the message", "The same token was handled before: this is a copy, or was sent twice.",
        "Discard it, unless you know that the first one was lost.",
    ),
    Reason.PROOF_INVALID: Advice(
        "Checking the proof", "The proof that ties the message to its batch is wrong.", _FORGED
    ),
    Reason.RELEASE_INVALID: Advice("Checking the release", "A release came with it that is not valid.", _FORGED),
    Reason.MESSAGE_MALFORMED: Advice("Reading the message", "The broker's message cannot be read.", _PRODUCER),
    Reason.HANDLER_FAILED: Advice(
        "Handling the message", "The message was verified, and its handler failed on it.",
        "Look at the consumer's log; once it is repaired, redrive.",
    ),
}  # fmt: skip
UNKNOWN: Final = Advice("Unknown", "The letter names no reason that mqauth gives: it may be forged.", _FORGED)


def explain(reason: str) -> Advice:
    """Return the explanation of a reason, also of one that a forged letter invented."""
    return EXPLANATIONS.get(reason, UNKNOWN)
