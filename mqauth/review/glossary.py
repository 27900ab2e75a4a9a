"""The words for dead letters, said once: the terms, what screens call things, and each reason explained.

The console, ``mqauth dlq`` and the manual take them from here. A test finds the words that they replaced.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mqauth.errors import Reason

TERMS: Final[dict[str, str]] = {
    "dead letter": "A message that a consumer rejected, kept in a queue or topic until somebody reviews it.",
    "group": "Dead letters with the same reason, issuer, key, producer, destination and error id.",
    "reason": "Why the consumer rejected the message.",
    "verdict now": "What the verifier says of the message today. It may differ from the reason.",
    "check again": "Asks the verifier for its verdict now. It changes nothing.",
    "redrive": "Sends the message back to its destination with a release, and removes the dead letter.",
    "discard": "Removes the dead letter for good.",
    "release": "A reviewer's signature on a message that is sent back. The producer's token stays as it was.",
    "waive": "Accept one named fault of a message under a release, for example that it has expired.",
    "selection": "Dead letters chosen for an act, by their ids. What arrives later is not in it.",
    "preview": "Shows what an act would do, and does nothing.",
    "refresh": "Reads all dead letters from the broker again, and removes none.",
    "balance": "Rejected = open + redriven + discarded, from the audit files and the queue or topic.",
    "missing": "On record as rejected, but neither open nor on record as redriven or discarded.",
    "unknown": "Open, but no audit record says that it was rejected.",
    "unproven": "Named only by dead letters that are not intact.",
    "intact": "The message could be restored, and its digest and id are the ones that the dead letter names.",
    "claimed": "Stands in the message, and nothing proves it.",
    "verified": "The signature was found valid, so the signer said it.",
    "producer": "The subject of the token: who signed the message, or claims to have.",
    "metadata": "The properties that the broker carries beside body and headers.",
    "audit record": "One line of an audit file: a verdict, or what a reviewer did.",
    "chain": "Each audit record holds the hash of the one before it, so an edited or removed record is found.",
    "error id": "Names a fault of a handler: the same exception from the same functions has the same id.",
    "rate limit": "Dead letters an act may take in a second.",
    "viewer": "A person who can look, refresh and recalculate the balance.",
    "reviewer": "A person who can also check again, redrive and discard.",
}
"""Each term with its meaning in one or two sentences."""

LABELS: Final[dict[str, str]] = {
    "letters": "Dead letters",
    "letter": "Dead letter",
    "groups": "Groups",
    "balance": "Balance",
    "refresh": "Refresh",
    "check": "Check again",
    "now": "Verdict now",
    "unchecked": "Not checked",
    "preview": "Preview",
    "cancel": "Cancel",
    "progress": "Show progress",
    "recalculate": "Recalculate",
    "uncalculated": "Not calculated yet",
    "metadata": "Metadata",
    "intact": "Intact",
    "why": "Reason (kept in the audit log)",
    "waive": "Waive if needed",
    "rate": "Rate limit (dead letters per second)",
    "none": "No dead letters match",
    "lost": "Cannot reach the broker",
    "refused": "Will not be redriven",
    "sign_in": "Sign in",
    "sign_out": "Sign out",
    "switch": "Switch user",
    "redrive": "Redrive",
    "discard": "Discard",
    "places": "Queues and topics",
    "chosen": "Chosen dead letters",
    "trail": "Audit record",
}
"""What screens call things, by short names."""


@dataclass(frozen=True, slots=True)
class Advice:
    """The explanation of one reason: the step that failed, what that means, and what to do next."""

    step: str
    meaning: str
    next: str


_FORGED: Final = "Discard it, and find out who can write to this destination."
_PRODUCER: Final = (
    "Look at how the producer makes its messages. They have to be sent again."
)
_TIME: Final = "If the delay was ours and the message is still wanted, redrive it and waive this reason."
_TOKEN: Final = "Reading the token"
_KEY: Final = "Finding the key"
_CLAIMS: Final = "Checking the claims"
_BINDING: Final = "Comparing the token with the message"

EXPLANATIONS: Final[dict[str, Advice]] = {
    Reason.TOKEN_MISSING: Advice(
        _TOKEN, "The message has no token, so nothing says who sent it.", _PRODUCER
    ),
    Reason.TOKEN_REPEATED: Advice(
        _TOKEN, "The message has several tokens, and none of them is used.", _FORGED
    ),
    Reason.TOKEN_OVERSIZE: Advice(
        _TOKEN, "The token is longer than any token may be.", _FORGED
    ),
    Reason.TOKEN_MALFORMED: Advice(
        _TOKEN, "The token's header holds something else than a token.", _FORGED
    ),
    Reason.TOKEN_TYPE: Advice(
        _TOKEN, "It is a token, but one made for another purpose than messages.", _FORGED
    ),
    Reason.HEADER_FORBIDDEN: Advice(
        _TOKEN, "The token's JOSE header has a member that is not allowed.", _FORGED
    ),
    Reason.ALGORITHM_FORBIDDEN: Advice(
        _TOKEN,
        "The token is signed with an algorithm that is not accepted.",
        "Compare the producer's algorithm.",
    ),
    Reason.KEY_UNKNOWN: Advice(
        _KEY,
        "The token names a key that the issuer's key set did not hold.",
        "Often a rotation: check again once the key is published. A key that never appears is a forgery.",
    ),
    Reason.KEY_REVOKED: Advice(
        _KEY, "The key was revoked: its holder may not be the producer.", _FORGED
    ),
    Reason.KEY_EXPIRED: Advice(_KEY, "The key had expired.", _TIME),
    Reason.SIGNATURE_INVALID: Advice(
        "Verifying the signature",
        "The signature is not valid: the token was edited or forged.",
        _FORGED,
    ),
    Reason.CLAIMS_MALFORMED: Advice(
        _CLAIMS, "The claims of the token do not have the required form.", _PRODUCER
    ),
    Reason.CLAIM_MISSING: Advice(
        _CLAIMS, "A claim that every token needs is missing.", _PRODUCER
    ),
    Reason.ISSUER_UNTRUSTED: Advice(
        _CLAIMS,
        "The token names an issuer that this consumer does not know.",
        "Compare the consumer's issuers.",
    ),
    Reason.AUDIENCE_MISMATCH: Advice(
        _CLAIMS, "The token is meant for another audience.", _PRODUCER
    ),
    Reason.SUBJECT_MISMATCH: Advice(
        _CLAIMS, "The key does not speak for the named producer.", _FORGED
    ),
    Reason.ISSUED_IN_FUTURE: Advice(
        _CLAIMS,
        "The token was issued in the future.",
        "Compare the clocks of producer and consumer; check again.",
    ),
    Reason.NOT_YET_VALID: Advice(
        _CLAIMS, "The token was not valid yet.", "Check again: it may be valid by now."
    ),
    Reason.EXPIRED: Advice(
        _CLAIMS, "The token had expired when the message was received.", _TIME
    ),
    Reason.LIFETIME_EXCESSIVE: Advice(
        _CLAIMS, "The token lives longer than this consumer allows.", _TIME
    ),
    Reason.QUEUE_AGE_EXCEEDED: Advice(
        _CLAIMS, "The message waited longer than this consumer allows.", _TIME
    ),
    Reason.APPEND_TIME_MISSING: Advice(
        _CLAIMS, "The broker never said when it took the message.", _TIME
    ),
    Reason.DESTINATION_MISMATCH: Advice(
        _BINDING,
        "The message was signed for another destination, and moved here.",
        _FORGED,
    ),
    Reason.BODY_MISMATCH: Advice(
        _BINDING, "The body is not the one that was signed.", _FORGED
    ),
    Reason.RECORD_KEY_MISMATCH: Advice(
        _BINDING, "The record key is not the one that was signed.", _FORGED
    ),
    Reason.HEADERS_MISMATCH: Advice(
        _BINDING, "A signed header or property was changed.", _FORGED
    ),
    Reason.COVERAGE_INSUFFICIENT: Advice(
        _BINDING, "The token leaves out what it must cover.", _PRODUCER
    ),
    Reason.PRODUCER_FORBIDDEN: Advice(
        "Asking the policy",
        "The producer is genuine, but may not write to this destination.",
        "If it should, change the policy and check again.",
    ),
    Reason.REPLAYED: Advice(
        "Claiming the message",
        "The same token was handled before: this is a copy, or was sent twice.",
        "Discard it, unless you know that the first one was lost.",
    ),
    Reason.PROOF_INVALID: Advice(
        "Checking the batch",
        "The message is not at the place in its batch that the token names for it.",
        _FORGED,
    ),
    Reason.IDENTITY_INVALID: Advice(
        _KEY,
        "The identity that came with the message does not have the required form.",
        _FORGED,
    ),
    Reason.IDENTITY_MISMATCH: Advice(
        _KEY, "The proof was made for another identity than the one beside it.", _FORGED
    ),
    Reason.RELEASE_INVALID: Advice(
        "Checking the release", "A release came with it that is not valid.", _FORGED
    ),
    Reason.MESSAGE_MALFORMED: Advice(
        "Reading the message", "The broker's message cannot be read.", _PRODUCER
    ),
    Reason.HANDLER_FAILED: Advice(
        "Handling the message",
        "The message was verified, and its handler failed on it.",
        "Look at the consumer's log. Redrive once the handler is repaired.",
    ),
}
UNKNOWN: Final = Advice(
    "Unknown", "The dead letter names no reason of mqauth. It may be forged.", _FORGED
)


def explain(reason: str) -> Advice:
    """Return the explanation of a reason, also of one that a forged letter invented."""
    return EXPLANATIONS.get(reason, UNKNOWN)
