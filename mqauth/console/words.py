"""Every reason in words: which step failed, what that means, and what to look at next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mqauth.errors import Reason


@dataclass(frozen=True, slots=True)
class Words:
    """One reason explained: the step that failed, what it means, what to do."""

    step: str
    meaning: str
    next: str


_FORGED: Final = "Discard it, and look who can write to this destination."
_PRODUCER: Final = "Look at how the producer makes its messages; they have to be sent anew."
_TIME: Final = "If the delay was ours and the message is still wanted, redrive it and waive this reason."
_TOKEN: Final = "Reading the token"
_KEY: Final = "Finding the key"
_CLAIMS: Final = "Checking the claims"
_BINDING: Final = "Comparing the token with the message"

WORDS: Final[dict[str, Words]] = {
    Reason.TOKEN_MISSING: Words(_TOKEN, "The message came without a token: nobody vouches for it.", _PRODUCER),
    Reason.TOKEN_REPEATED: Words(_TOKEN, "The message carries several tokens, and none is believed.", _FORGED),
    Reason.TOKEN_OVERSIZE: Words(_TOKEN, "The token is longer than any token may be.", _FORGED),
    Reason.TOKEN_MALFORMED: Words(_TOKEN, "What stands in the token's place is no token.", _FORGED),
    Reason.TOKEN_TYPE: Words(_TOKEN, "It is a token, but made for something else than messages.", _FORGED),
    Reason.HEADER_FORBIDDEN: Words(_TOKEN, "The token's header holds what none may hold.", _FORGED),
    Reason.ALGORITHM_FORBIDDEN: Words(
        _TOKEN, "The token is signed with an algorithm that is not accepted.", "Compare the producer's algorithm."
    ),
    Reason.KEY_UNKNOWN: Words(
        _KEY, "The token names a key that the issuer's key set did not hold.",
        "Often a rotation: judge again once the key is published. One that never appears is a forgery.",
    ),
    Reason.KEY_REVOKED: Words(_KEY, "The key was revoked: whoever holds it may not be the producer.", _FORGED),
    Reason.KEY_EXPIRED: Words(_KEY, "The key was past its time.", _TIME),
    Reason.SIGNATURE_INVALID: Words(
        "Verifying the signature", "The signature does not hold: the token was edited or forged.", _FORGED
    ),
    Reason.CLAIMS_MALFORMED: Words(_CLAIMS, "The token's claims are not in their form.", _PRODUCER),
    Reason.CLAIM_MISSING: Words(_CLAIMS, "A claim that every token needs is missing.", _PRODUCER),
    Reason.ISSUER_UNTRUSTED: Words(
        _CLAIMS, "The token names an issuer that this consumer does not know.", "Compare the consumer's issuers."
    ),
    Reason.AUDIENCE_MISMATCH: Words(_CLAIMS, "The token is meant for another audience.", _PRODUCER),
    Reason.SUBJECT_MISMATCH: Words(_CLAIMS, "The key does not speak for the named producer.", _FORGED),
    Reason.ISSUED_IN_FUTURE: Words(
        _CLAIMS, "The token was issued in the future.", "Compare the clocks of producer and consumer; judge again."
    ),
    Reason.NOT_YET_VALID: Words(_CLAIMS, "The token was not valid yet.", "Judge again: it may be valid by now."),
    Reason.EXPIRED: Words(_CLAIMS, "The token had expired when the message was received.", _TIME),
    Reason.LIFETIME_EXCESSIVE: Words(_CLAIMS, "The token lives longer than this consumer allows.", _TIME),
    Reason.QUEUE_AGE_EXCEEDED: Words(_CLAIMS, "The message waited longer than this consumer allows.", _TIME),
    Reason.DESTINATION_MISMATCH: Words(
        _BINDING, "The message was signed for another destination, and moved here.", _FORGED
    ),
    Reason.BODY_MISMATCH: Words(_BINDING, "The body is not the one that was signed.", _FORGED),
    Reason.RECORD_KEY_MISMATCH: Words(_BINDING, "The record key is not the one that was signed.", _FORGED),
    Reason.HEADERS_MISMATCH: Words(_BINDING, "A signed header or property was changed.", _FORGED),
    Reason.COVERAGE_INSUFFICIENT: Words(_BINDING, "The token leaves out what it must cover.", _PRODUCER),
    Reason.PRODUCER_FORBIDDEN: Words(
        "Asking the policy", "The producer is genuine, but may not write to this destination.",
        "If it should, change the policy and judge again.",
    ),
    Reason.REPLAYED: Words(
        "Claiming the message", "The same token was handled before: this is a copy, or was sent twice.",
        "Discard it, unless you know that the first one was lost.",
    ),
    Reason.PROOF_INVALID: Words("Checking the proof", "The producer's proof of its key does not hold.", _FORGED),
    Reason.RELEASE_INVALID: Words("Checking the release", "A release came with it that does not hold.", _FORGED),
    Reason.MESSAGE_MALFORMED: Words("Reading the message", "The broker's message cannot be read.", _PRODUCER),
    Reason.HANDLER_FAILED: Words(
        "Handling the message", "The message was verified, and its handler failed on it.",
        "Look at the consumer's log; once it is mended, redrive.",
    ),
}  # fmt: skip
UNKNOWN: Final = Words("Unknown", "The letter names no reason that mqauth gives: it may be forged.", _FORGED)


def explain(reason: str) -> Words:
    """Return a reason in words."""
    return WORDS.get(reason, UNKNOWN)
