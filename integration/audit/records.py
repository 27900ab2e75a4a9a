"""Audit records to fill logs with."""

from __future__ import annotations

from typing import Any, Final

from mqauth.audit.record import AuditRecord

START: Final = 1_795_600_800.0


def record(number: int, **changes: Any) -> AuditRecord:
    """Return the record of a rejection, a second after the one before."""
    said = {"kid": "key-1", "alg": "EdDSA", "iss": "https://auth.example", "sub": "orders-api", "aud": "billing",
            "jti": f"jti-{number:016}", "iat": 1_795_600_000, "exp": 1_795_600_600}  # fmt: skip
    wanted: dict[str, Any] = {
        "id": f"01a2109a-0c51-7e4a-b0ad-{number:012x}", "time": START + number, "verdict": "rejected",
        "reason": "signature_invalid", "detail": "the signature does not hold", "scope": "billing",
        "broker": {"destination": "kafka:orders", "topic": "orders", "partition": 0, "offset": number},
        "token": {"claimed": said, "thumbprint": f"{number:064x}"},
        "body_sha256": f"{number:064x}", "body_size": 34, "key_set": "0151b4e86a7edc99",
        "policy": "46494bbf8a0a2adf", "dead_letter": f"{number:064x}", "instance": "me",
    }  # fmt: skip
    return AuditRecord(**(wanted | changes))
