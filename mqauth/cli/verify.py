"""``mqauth verify``: messages in the JSON form in, a verdict for each out, as a consumer would give it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import mqauth
from mqauth.audit.record import harmless
from mqauth.cli.messages import Text, read_texts, standard_input
from mqauth.cli.output import print_json
from mqauth.errors import MalformedMessage, Reason
from mqauth.flow import Flow, run
from mqauth.judging.pipeline import Delivery, Outcome, Pipeline, Verdict
from mqauth.wire import json_form as jsonform

_EXIT: Final = ((Verdict.REJECTED, 1), (Verdict.DEFERRED, 3), (Verdict.DUPLICATE, 3))
"""Exit codes, the first that any message calls for."""


def verify_forms(config: Path, *, lines: bool) -> int:
    """Judge what standard input holds; with ``lines`` the messages share one replay store.

    Args:
        config: the configuration file.
        lines: one message a line; blank lines are skipped.

    Returns:
        1 where a message was rejected, else 3 where one was deferred or a duplicate, else 0.

    Raises:
        ConfigurationError: the file, or its ``[consumer]``, cannot be used.
    """
    guard = mqauth.load(config).judge
    verdicts: set[Verdict] = set()
    for text in read_texts(standard_input(), lines=lines):
        outcome = verify_text(guard, text)
        print_json(describe(outcome))
        verdicts.add(outcome.verdict)
    return next((code for verdict, code in _EXIT if verdict in verdicts), 0)


def verify_text(guard: Pipeline, text: Text) -> Outcome:
    """Return the verdict on one text; what is no message is rejected like any other."""
    try:
        message = jsonform.from_form(text.parse())
    except MalformedMessage as error:
        return Outcome(verdict=Verdict.REJECTED, reason=Reason.MESSAGE_MALFORMED, detail=str(error))
    return run(_consume(guard, guard.receive(message)))


def describe(outcome: Outcome) -> dict[str, Any]:
    """Return a verdict as JSON; claims stand in it only where they were verified and accepted."""
    accepted = outcome.verdict is Verdict.ACCEPTED and outcome.verified is not None
    reason = outcome.cause if outcome.verdict is Verdict.DEFERRED else outcome.reason
    return {
        "verdict": outcome.verdict.value,
        "reason": None if reason is None else reason.value,
        "detail": None if outcome.detail is None else harmless(outcome.detail),
        "claims": outcome.verified.claims.as_dict() if accepted and outcome.verified is not None else None,
    }


def _consume(guard: Pipeline, delivery: Delivery) -> Flow[Outcome]:
    """Claim and confirm as a consumer whose handler succeeds."""
    outcome = yield from guard.judge(delivery)
    if outcome.verdict is not Verdict.ACCEPTED:
        return outcome
    return (yield from guard.confirm(delivery))
