"""Reviewing dead letters, one core for every broker: look, group, judge, redrive, discard, account.

A ``LetterBox`` is a dead-letter queue or topic (``mqauth.review.memory``, ``.rabbitmq``, ``.kafka``). ``survey``
gives an ``Index`` of it; ``Index.freeze`` a selection; ``redrive`` and ``discard`` act on that. All are flows:
``mqauth.flow.run`` or ``arun`` runs them.
"""

from mqauth.review.account import Ledger, account
from mqauth.review.acts import discard, redrive, rehearse
from mqauth.review.filters import ALL, Filter, Selection
from mqauth.review.index import Group, Index, Row
from mqauth.review.judge import Judge, judge
from mqauth.review.letter import Letter, Reading, read, restore
from mqauth.review.letterbox import LetterBox
from mqauth.review.recall import Originals
from mqauth.review.survey import fill, survey
from mqauth.review.terms import Account, Pace, Reviewer, Terms
from mqauth.review.transfer import take_in

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
    "Originals",
    "Pace",
    "Reading",
    "Reviewer",
    "Row",
    "Selection",
    "Terms",
    "account",
    "discard",
    "fill",
    "judge",
    "read",
    "redrive",
    "rehearse",
    "restore",
    "survey",
    "take_in",
]
