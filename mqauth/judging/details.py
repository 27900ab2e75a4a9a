"""Why a message was rejected, in both its halves: what the message said, and what is configured.

Worked out once a message is rejected, from what its verdict left in the delivery: no step of a verdict pays for
it. What a message said (*found*) is escaped and bounded, and claimed until the signature held. What is configured
(*expected*) goes to log and audit, never to a dead letter: letters travel.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

from mqauth.audit.record import iso_time
from mqauth.errors import SIGNED_REASONS, Reason
from mqauth.judging.delivery import Delivery
from mqauth.judging.policy import Allow, Policy, local_rules
from mqauth.judging.verifier import Candidate, Verifier
from mqauth.logs import harmless
from mqauth.wire import base64url, envelope, strict_json
from mqauth.wire.claims import Claims
from mqauth.wire.keys import Key, KeySet
from mqauth.wire.message import TOKEN_HEADER, Message, fold, form_of

MAX_VALUE: Final = 64
"""Characters of a value."""
_COMPARED: Final = 32
"""Names of headers that are compared letter by letter with that of the token: each takes 30 us."""


def explain(delivery: Delivery, verifier: Verifier, policy: Policy) -> None:
    """Say in the rejection of a delivery what was found and what was expected; for nobody else's rejection.

    Args:
        delivery: rejected.
        verifier: which judged it.
        policy: likewise.
    """
    rejection = delivery.rejection
    if rejection is None or rejection.found or rejection.expected:
        return
    tell = _TELLERS.get(rejection.reason)
    # It explains a verdict that stands. What a message holds must not keep it from being recorded.
    with suppress(Exception):
        if tell is not None:
            case = _Case(delivery, verifier, policy)
            actual, expected = tell(case)
            rejection.found = _bounded(actual)
            rejection.expected = _bounded(expected) | _differs(rejection.found, expected)
            rejection.is_claimed = rejection.reason not in SIGNED_REASONS


@dataclass(frozen=True, slots=True)
class _Case:
    """What a verdict left behind."""

    delivery: Delivery
    verifier: Verifier
    policy: Policy

    @property
    def message(self) -> Message:
        return self.delivery.message

    @property
    def candidate(self) -> Candidate:
        candidate = self.delivery.candidate
        if candidate is None:
            raise LookupError
        return candidate

    @property
    def claims(self) -> Claims:
        return self.candidate.token.claims

    @property
    def kid(self) -> str:
        return self.candidate.token.opened.kid

    @property
    def keys(self) -> tuple[Key, ...]:
        """The keys of the issuer that are at hand."""
        with suppress(Exception):
            key_set = self.verifier.issuers[self.claims.iss].keys.key_set()
            if isinstance(key_set, KeySet):
                return key_set.keys
        return ()

    @property
    def key(self) -> Key | None:
        return next((key for key in self.keys if key.kid == self.kid), None)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the message's headers, each once."""
        # Of so many as no honest message has, the first thousand are looked at.
        return tuple(dict.fromkeys(form_of(self.message)[1]))[:1000]


Both = tuple[dict[str, Any], dict[str, Any]]


def _token_missing(case: _Case) -> Both:
    names = {fold(name)[:MAX_VALUE]: name for name in case.names[:_COMPARED]}
    near = get_close_matches(TOKEN_HEADER, names, 1, 0.7)
    nearest = {"nearest": names[near[0]]} if near else {}
    return {"headers": len(case.message.headers)} | nearest | {"names": case.names}, {
        "header": TOKEN_HEADER
    }


def _token_header(case: _Case) -> Both:
    """Say which parameters a token has that was refused for them, or for its algorithm."""
    key = None if case.delivery.candidate is None else case.key
    if key is not None:
        return {"alg": case.candidate.token.opened.algorithm, "kid": case.kid}, {
            "alg": key.algorithm
        }
    segment = envelope.token_of(case.message).split(b".")[0]
    parameters = strict_json.loads(base64url.decode(segment), depth=4)
    shown = {name: parameters.get(name) for name in ("typ", "alg") if name in parameters}
    return {"parameters": tuple(parameters)} | shown, {}


def _key_unknown(case: _Case) -> Both:
    kids = tuple(key.kid for key in case.keys)
    where = getattr(case.verifier.issuers[case.claims.iss].keys, "where", None)
    return {"issuer": case.claims.iss, "kid": case.kid}, {
        "kid": kids,
        "keys": len(kids) or None,
        "read from": where if isinstance(where, str) else None,
    }


def _key_revoked(case: _Case) -> Both:
    revoked = (
        None
        if case.key is None or case.key.revocation is None
        else case.key.revocation.revoked_at
    )
    return {"kid": case.kid, "issued": _time(case.claims.iat)}, {
        "revoked": _time(revoked)
    }


def _subject(case: _Case) -> Both:
    user, issuer = (
        case.message.properties.get("user-id"),
        case.verifier.issuers[case.claims.iss],
    )
    shown = {"subject": case.claims.sub, "kid": case.kid}
    speaks_for = () if case.key is None else issuer.subjects_of(case.key)
    return shown | ({} if user is None else {"user-id": user}), {
        "subject": tuple(sorted(speaks_for))
    }


def _times(case: _Case) -> Both:
    claims, times, received = case.claims, case.verifier.times, case.delivery.received
    appended = times.evidence(case.message)
    moment = received if appended is None else appended
    moments = {
        "iat": _time(claims.iat),
        "nbf": _time(claims.nbf),
        "exp": _time(claims.exp),
        "received" if appended is None else "appended": _time(moment),
        "since exp": f"{moment - claims.exp:.0f} s",
        "lifetime": f"{claims.exp - claims.iat} s",
        "waited": None if appended is None else f"{received - appended:.0f} s",
    }
    by = "this consumer's clock" if appended is None else "the broker's append time"
    limits = {
        "max_lifetime": times.max_lifetime,
        "leeway": times.leeway,
        "max_queue_age": times.max_queue_age,
    }
    retired = None if case.key is None else _time(case.key.expires)
    seconds = {
        name: None if value is None else f"{value} s" for name, value in limits.items()
    }
    return moments, {"at": times.at, "by": by, "key retired": retired} | seconds


def _destination(case: _Case) -> Both:
    # A batch has the digest of the destination alone.
    signed = getattr(case.claims.mqa, "dst", None)
    note = "a retry queue, a mirror or a shovel? See accept_as"
    return {"signed for": signed, "arrived at": case.message.destination}, {"note": note}


def _headers(case: _Case) -> Both:
    """Name the headers, never their values."""
    covered, names = case.claims.mqa.hdr, set(case.names)
    spellings = {fold(name) for name in covered}
    twins = [
        name for name in case.names if name not in covered and fold(name) in spellings
    ]
    absent = [name for name in covered if name not in names]
    changed = {} if absent or twins else {"a value changed of one of": len(covered)}
    return {"covered but absent": absent, "in another spelling": twins} | changed, {}


def _coverage(case: _Case) -> Both:
    covered = set(case.claims.mqa.hdr)
    return {"not covered": case.verifier.uncovered(case.message, covered)}, {
        "required": case.verifier.required
    }


def _producer(case: _Case) -> Both:
    rules = local_rules(case.policy)
    its = [
        destination
        for rule in rules or ()
        if rule.subject == case.claims.sub
        for destination in rule.destinations
    ]
    expected: dict[str, Any] = {} if rules is None else {"its rules": its or ["none"]}
    asked = {} if isinstance(case.policy, Allow) else {"policy": case.policy.version}
    return {
        "subject": case.claims.sub,
        "destination": case.message.destination,
    }, expected | asked


def _replayed(case: _Case) -> Both:
    origin = case.message.origin
    where = (
        None
        if origin.offset is None
        else f"{origin.topic}/{origin.partition}/{origin.offset}"
    )
    return {"this is": where, "jti": case.claims.jti}, {}


_TELLERS: Final[dict[Reason, Callable[[_Case], Both]]] = {
    Reason.TOKEN_MISSING: _token_missing,
    Reason.TOKEN_TYPE: _token_header,
    Reason.HEADER_FORBIDDEN: _token_header,
    Reason.ALGORITHM_FORBIDDEN: _token_header,
    Reason.ISSUER_UNTRUSTED: lambda case: (
        {"issuer": case.claims.iss},
        {"issuer": tuple(case.verifier.issuers)},
    ),
    Reason.KEY_UNKNOWN: _key_unknown,
    Reason.KEY_REVOKED: _key_revoked,
    Reason.KEY_EXPIRED: _times,
    Reason.AUDIENCE_MISMATCH: lambda case: (
        {"audience": case.claims.aud},
        {"audience": tuple(sorted(case.verifier.audiences))},
    ),
    Reason.SUBJECT_MISMATCH: _subject,
    Reason.ISSUED_IN_FUTURE: _times,
    Reason.NOT_YET_VALID: _times,
    Reason.EXPIRED: _times,
    Reason.LIFETIME_EXCESSIVE: _times,
    Reason.QUEUE_AGE_EXCEEDED: _times,
    Reason.APPEND_TIME_MISSING: _times,
    Reason.DESTINATION_MISMATCH: _destination,
    Reason.HEADERS_MISMATCH: _headers,
    Reason.COVERAGE_INSUFFICIENT: _coverage,
    Reason.PRODUCER_FORBIDDEN: _producer,
    Reason.REPLAYED: _replayed,
}


def _time(seconds: float | None) -> str | None:
    """Return a time, or the bare number where it is none: a token may claim any."""
    try:
        return None if seconds is None else iso_time(seconds)
    except (ValueError, OverflowError, OSError):
        return str(seconds)


def _bounded(details: dict[str, Any]) -> dict[str, str]:
    """Return the members that say something, as short harmless texts."""
    # Eight members at most; of what is configured five values are told, and how many more there are.
    texts = {
        name: _text(value, 5)
        for name, value in details.items()
        if value not in (None, (), [])
    }
    return dict(list(texts.items())[:8])


def _text(value: object, most: int) -> str:
    if isinstance(value, tuple | list):
        more = f" and {len(value) - most} more" if len(value) > most else ""
        return ", ".join(_text(each, most) for each in value[:most]) + more
    return harmless(str(value)[: 2 * MAX_VALUE], MAX_VALUE)


def _differs(actual: dict[str, str], expected: dict[str, Any]) -> dict[str, str]:
    """Return a note on the first value that is nearly one of those expected of its name."""
    for name, values in expected.items():
        for value in map(str, values if isinstance(values, tuple) else ()):
            claimed = actual.get(name, "")
            if claimed and claimed != value:
                if claimed.rstrip("/") == value.rstrip("/"):
                    return {"note": "differs by a trailing slash"}
                if claimed.strip().casefold() == value.strip().casefold():
                    return {"note": "differs in case or white space"}
    return {}
