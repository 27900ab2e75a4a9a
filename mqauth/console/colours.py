"""The colour and the pattern of each reason: the same in charts, tags and tables, on every page, after a restart.

A pattern stands beside the colour, because many people cannot tell all colours apart.
"""

from __future__ import annotations

import hashlib
from typing import Final

from mqauth.errors import Reason

COLOURS: Final = 8
PATTERNS: Final = ("plain", "stripes", "dots", "bars", "checks")
GREY: Final = (COLOURS, 0)
"""Of whatever is no reason of ours: a forged letter may name any, and a chart sums up the rare ones."""
REASONS: Final[dict[str, tuple[int, int]]] = {
    # What is seen most often has a plain colour of its own.
    Reason.EXPIRED: (0, 0),
    Reason.TOKEN_MISSING: (1, 0),
    Reason.KEY_UNKNOWN: (2, 0),
    Reason.SIGNATURE_INVALID: (3, 0),
    Reason.HANDLER_FAILED: (4, 0),
    Reason.REPLAYED: (5, 0),
    Reason.ISSUER_UNTRUSTED: (6, 0),
    Reason.PRODUCER_FORBIDDEN: (7, 0),
    Reason.QUEUE_AGE_EXCEEDED: (0, 1),
    Reason.TOKEN_MALFORMED: (1, 1),
    Reason.KEY_EXPIRED: (2, 1),
    Reason.BODY_MISMATCH: (3, 1),
    Reason.MESSAGE_MALFORMED: (4, 1),
    Reason.PROOF_INVALID: (5, 1),
    Reason.AUDIENCE_MISMATCH: (6, 1),
    Reason.DESTINATION_MISMATCH: (7, 1),
    Reason.LIFETIME_EXCESSIVE: (0, 2),
    Reason.TOKEN_REPEATED: (1, 2),
    Reason.KEY_REVOKED: (2, 2),
    Reason.HEADERS_MISMATCH: (3, 2),
    Reason.RELEASE_INVALID: (4, 2),
    Reason.CLAIM_MISSING: (5, 2),
    Reason.SUBJECT_MISMATCH: (6, 2),
    Reason.COVERAGE_INSUFFICIENT: (7, 2),
    Reason.NOT_YET_VALID: (0, 3),
    Reason.TOKEN_OVERSIZE: (1, 3),
    Reason.ALGORITHM_FORBIDDEN: (2, 3),
    Reason.RECORD_KEY_MISMATCH: (3, 3),
    Reason.HEADER_FORBIDDEN: (4, 3),
    Reason.CLAIMS_MALFORMED: (5, 3),
    Reason.TOKEN_TYPE: (6, 3),
    Reason.ISSUED_IN_FUTURE: (7, 3),
    Reason.IDENTITY_INVALID: (0, 4),
    Reason.IDENTITY_MISMATCH: (1, 4),
    Reason.APPEND_TIME_MISSING: (2, 4),
}
"""Each reason's number of a colour and of a pattern; no two reasons have both in common."""


def of_reason(reason: str) -> tuple[int, int]:
    """Return the numbers of the colour and of the pattern of a reason."""
    return REASONS.get(reason, GREY)


def of_producer(subject: str) -> int:
    """Return the number of the colour of a producer: of its name alone, so that it is always the same.

    Producers may share a colour. It helps to follow one down a table, and proves nothing.
    """
    return hashlib.sha256(subject.encode("utf-8", "backslashreplace")).digest()[0] % COLOURS
