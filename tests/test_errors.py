"""Errors: whose fault, a stable code, and never more text than was given."""

from __future__ import annotations

import pytest

from mqauth import (
    Cause,
    MqauthError,
    Reason,
    Rejection,
    RejectNow,
    RetryLater,
    Unavailable,
    errors,
)

REASONS = [
    "token_missing",
    "token_repeated",
    "token_oversize",
    "token_malformed",
    "token_type",
    "header_forbidden",
    "algorithm_forbidden",
    "key_unknown",
    "key_revoked",
    "key_expired",
    "signature_invalid",
    "claims_malformed",
    "claim_missing",
    "issuer_untrusted",
    "audience_mismatch",
    "subject_mismatch",
    "issued_in_future",
    "not_yet_valid",
    "expired",
    "lifetime_excessive",
    "queue_age_exceeded",
    "append_time_missing",
    "destination_mismatch",
    "body_mismatch",
    "record_key_mismatch",
    "headers_mismatch",
    "coverage_insufficient",
    "producer_forbidden",
    "replayed",
    "proof_invalid",
    "release_invalid",
    "identity_invalid",
    "identity_mismatch",
    "message_malformed",
    "handler_failed",
]


def test_reasons_are_the_closed_set_of_the_profile() -> None:
    """The reasons are exactly those of the wire profile, whose strings are a contract."""
    assert [reason.value for reason in Reason] == REASONS


def test_every_error_has_one_root_and_a_code_of_its_own() -> None:
    """Every error derives from MqauthError and can be told from the others by its code."""
    found = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, Exception)
    ]
    assert all(issubclass(kind, MqauthError) for kind in found)
    assert len({kind.code for kind in found}) == len(found) == 9


@pytest.mark.parametrize(
    "error", [Rejection(Reason.EXPIRED, "late"), Unavailable(Cause.KEY_PENDING, "late")]
)
def test_the_text_of_a_verdict_is_its_code_and_detail(
    error: Rejection | Unavailable,
) -> None:
    """Rejection and Unavailable read as code, colon, detail."""
    code = error.reason if isinstance(error, Rejection) else error.cause
    assert str(error) == f"{code.value}: late"
    assert error.detail == "late"


def test_handler_signals_have_a_default_text() -> None:
    """RetryLater and RejectNow say what they ask for even without a detail."""
    assert (str(RetryLater()), str(RejectNow())) == ("retry later", "reject now")
    assert (RetryLater("a").detail, RejectNow("b").detail) == ("a", "b")
