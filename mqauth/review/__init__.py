"""Review of dead letters: read them, judge them again, send them back or discard them, and account for all.

A ``LetterBox`` is a dead-letter queue or topic (``mqauth.review.letterbox``, ``.rabbitmq``, ``.kafka``).
``fill`` reads it into an ``Index``, ``Index.freeze`` takes a selection from that, and ``act`` redrives or discards
the selection. These functions are flows: ``mqauth.flow.run`` or ``arun`` runs them. A ``Session`` holds what one
reviewer works with and runs the flows; ``mqauth dlq`` and the console both work through it.
"""

from mqauth.review.acts import (
    ACTS,
    DISCARD,
    REDRIVE,
    Account,
    Plan,
    SharedAuditFile,
    act,
    rehearse,
    waivable,
)
from mqauth.review.index import ALL, DIMENSIONS, LARGEST, QUEUE, Filter, Index, Order
from mqauth.review.letter import Letter, Reading, read, time_text
from mqauth.review.letterbox import Judge, LetterBox, fill, judge, take_in
from mqauth.review.session import (
    Ledger,
    MakeReleaser,
    Session,
    account,
    reviewers_releaser,
)

__all__ = [
    "ACTS",
    "ALL",
    "DIMENSIONS",
    "DISCARD",
    "LARGEST",
    "QUEUE",
    "REDRIVE",
    "Account",
    "Filter",
    "Index",
    "Judge",
    "Ledger",
    "Letter",
    "LetterBox",
    "MakeReleaser",
    "Order",
    "Plan",
    "Reading",
    "Session",
    "SharedAuditFile",
    "account",
    "act",
    "fill",
    "judge",
    "read",
    "rehearse",
    "reviewers_releaser",
    "take_in",
    "time_text",
    "waivable",
]
