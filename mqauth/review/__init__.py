"""Review of dead letters: read them, judge them again, send them back or discard them, and account for all.

A ``LetterBox`` is a dead-letter queue or topic (``mqauth.review.letterbox``, ``.rabbitmq``, ``.kafka``).
``survey`` reads it into an ``Index``, ``Index.freeze`` takes a selection from that, and ``redrive`` and
``discard`` act on the selection. These functions are flows: ``mqauth.flow.run`` or ``arun`` runs them. A
``Session`` holds what one reviewer works with and runs the flows; ``mqauth dlq`` and the console both work through
it.
"""

from mqauth.review.acts import discard, redrive, rehearse
from mqauth.review.index import ALL, Filter, Group, Index, Row, Selection
from mqauth.review.judge import Judge, judge
from mqauth.review.ledger import Ledger, account
from mqauth.review.letter import Letter, Reading, read, restore
from mqauth.review.letterbox import LetterBox, MemoryLetterBox, fill, survey, take_in
from mqauth.review.session import Session, reviewers_releaser
from mqauth.review.terms import Account, Pace, Plan, Reviewer, Terms

__all__ = [
    "ALL",
    "Account",
    "Filter",
    "Group",
    "Index",
    "Judge",
    "Ledger",
    "Letter",
    "LetterBox",
    "MemoryLetterBox",
    "Pace",
    "Plan",
    "Reading",
    "Reviewer",
    "Row",
    "Selection",
    "Session",
    "Terms",
    "account",
    "discard",
    "fill",
    "judge",
    "read",
    "redrive",
    "rehearse",
    "restore",
    "reviewers_releaser",
    "survey",
    "take_in",
]
