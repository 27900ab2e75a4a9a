"""What audit says of a verdict."""

from __future__ import annotations

from typing import Any

from mqauth.audit import record as audit_records
from mqauth.audit.record import AuditRecord
from mqauth.errors import SIGNED_REASONS, Rejection
from mqauth.judging.delivery import Delivery
from mqauth.letters.dead_letter import letter_id
from mqauth.letters.release import Release
from mqauth.wire.envelope import token_of
from mqauth.wire.message import Message


def verdict_record(delivery: Delivery, *, scope: str, time: float, policy: str, instance: str) -> AuditRecord:
    """Return the record of a verdict.

    Args:
        delivery: judged to an end; its ``record_id`` is the record's.
        scope: on whose behalf it was judged.
        time: UTC seconds.
        policy: version of the rules.
        instance: this process.
    """
    message, rejection = delivery.message, delivery.rejection
    body = message.body
    return AuditRecord(
        id=delivery.record_id or "",
        time=time,
        verdict=delivery.verdict.value,
        reason=None if rejection is None else rejection.reason.value,
        detail=None if rejection is None else rejection.detail,
        scope=scope,
        broker=audit_records.broker_fields(message),
        token=_token_fields(delivery),
        body_sha256=None if body is None else audit_records.sha256(body),
        body_size=None if body is None else len(body),
        key_set=delivery.key_set,
        policy=policy,
        dead_letter=None if rejection is None else letter_id(message, scope, digest=delivery.content_digest()),
        instance=instance,
        extra={} if delivery.release is None else {"release": _release_fields(delivery.release)},
    )


def _token_fields(delivery: Delivery) -> dict[str, Any]:
    """Return what audit says of a token, and whether that was verified."""
    candidate, rejection, verified = delivery.candidate, delivery.rejection, delivery.verified
    opened = None if candidate is None else candidate.token.opened
    proof = None if candidate is None else candidate.proof
    return audit_records.token_fields(
        _token(delivery.message),
        None if opened is None else opened.kid,
        None if opened is None else opened.algorithm,
        None if candidate is None else candidate.token.claims,
        index=None if proof is None else proof.place,
        verified=verified is not None or (rejection is not None and rejection.reason in SIGNED_REASONS),
    )


def _release_fields(release: Release) -> dict[str, Any]:
    """Return what audit says of a verified release."""
    return {
        "iss": audit_records.harmless(release.iss), "sub": audit_records.harmless(release.sub),
        "jti": audit_records.harmless(release.jti), "letter": release.letter, "waive": sorted(release.waive),
        "scope": audit_records.harmless(release.scope),
    }  # fmt: skip


def _token(message: Message) -> bytes | None:
    """Return the token of a message for its thumbprint, if it has one."""
    try:
        return token_of(message)
    except Rejection:
        return None
