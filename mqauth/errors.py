"""Every error that mqauth raises, by whose fault it is.

``Rejection`` is the fault of the message, and for ever. ``Unavailable`` means that something is out of reach;
the message is tried again. ``ConfigurationError`` and ``MalformedMessage`` are the caller's fault. No text of an
error ever holds a token, a body or a key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any, ClassVar, TypeVar

T = TypeVar("T")
Errors = type[Exception] | tuple[type[Exception], ...]


class Verdict(Enum):
    """What a delivery came to; compared by identity."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    DEFERRED = "deferred"
    DUPLICATE = "duplicate"
    UNVERIFIED = "unverified"


class Reason(StrEnum):
    """Why a message was rejected. The set is closed, and its strings are a contract (wire profile, section 8)."""

    TOKEN_MISSING = "token_missing"
    TOKEN_REPEATED = "token_repeated"
    TOKEN_OVERSIZE = "token_oversize"
    TOKEN_MALFORMED = "token_malformed"
    TOKEN_TYPE = "token_type"
    HEADER_FORBIDDEN = "header_forbidden"
    ALGORITHM_FORBIDDEN = "algorithm_forbidden"
    KEY_UNKNOWN = "key_unknown"
    KEY_REVOKED = "key_revoked"
    KEY_EXPIRED = "key_expired"
    SIGNATURE_INVALID = "signature_invalid"
    CLAIMS_MALFORMED = "claims_malformed"
    CLAIM_MISSING = "claim_missing"
    ISSUER_UNTRUSTED = "issuer_untrusted"
    AUDIENCE_MISMATCH = "audience_mismatch"
    SUBJECT_MISMATCH = "subject_mismatch"
    ISSUED_IN_FUTURE = "issued_in_future"
    NOT_YET_VALID = "not_yet_valid"
    EXPIRED = "expired"
    LIFETIME_EXCESSIVE = "lifetime_excessive"
    QUEUE_AGE_EXCEEDED = "queue_age_exceeded"
    APPEND_TIME_MISSING = "append_time_missing"
    DESTINATION_MISMATCH = "destination_mismatch"
    BODY_MISMATCH = "body_mismatch"
    RECORD_KEY_MISMATCH = "record_key_mismatch"
    HEADERS_MISMATCH = "headers_mismatch"
    COVERAGE_INSUFFICIENT = "coverage_insufficient"
    PRODUCER_FORBIDDEN = "producer_forbidden"
    REPLAYED = "replayed"
    PROOF_INVALID = "proof_invalid"
    RELEASE_INVALID = "release_invalid"
    IDENTITY_INVALID = "identity_invalid"
    IDENTITY_MISMATCH = "identity_mismatch"
    MESSAGE_MALFORMED = "message_malformed"
    HANDLER_FAILED = "handler_failed"


SIGNED_REASONS: frozenset[Reason] = frozenset(
    (
        Reason.KEY_EXPIRED,
        Reason.AUDIENCE_MISMATCH,
        Reason.SUBJECT_MISMATCH,
        Reason.ISSUED_IN_FUTURE,
        Reason.NOT_YET_VALID,
        Reason.EXPIRED,
        Reason.LIFETIME_EXCESSIVE,
        Reason.QUEUE_AGE_EXCEEDED,
        Reason.APPEND_TIME_MISSING,
        Reason.DESTINATION_MISMATCH,
        Reason.BODY_MISMATCH,
        Reason.RECORD_KEY_MISMATCH,
        Reason.HEADERS_MISMATCH,
        Reason.COVERAGE_INSUFFICIENT,
        Reason.PRODUCER_FORBIDDEN,
        Reason.REPLAYED,
        Reason.HANDLER_FAILED,
    )
)
"""Reasons that only a token whose signature holds can meet; its claims are what the signer wrote."""


class Cause(StrEnum):
    """Why a verdict was deferred; it is never the fault of the message."""

    KEYS_UNAVAILABLE = "keys_unavailable"
    KEY_PENDING = "key_pending"
    REPLAY_STORE_UNAVAILABLE = "replay_store_unavailable"
    REPLAY_STORE_FULL = "replay_store_full"
    CLAIM_HELD = "claim_held"
    POLICY_UNAVAILABLE = "policy_unavailable"
    APPEND_TIME_UNAVAILABLE = "append_time_unavailable"
    AUDIT_UNAVAILABLE = "audit_unavailable"
    DEAD_LETTER_UNAVAILABLE = "dead_letter_unavailable"
    HANDLER_DEFERRED = "handler_deferred"
    BROKER_UNAVAILABLE = "broker_unavailable"
    """Only in a consumer's ``health()``: it does not consume although nothing is deferred."""


class MqauthError(Exception):
    """The root of every error of this library; ``code`` is stable, for programs."""

    code: ClassVar[str] = "error"


class Rejection(MqauthError):
    """The message is refused for good: something is wrong with the message itself.

    Args:
        reason: the stable reason.
        detail: one line for people, without a token, body or key.

    Attributes:
        found: what the message said, bounded and escaped; filled in once the message is rejected.
        expected: what is configured; not for dead letters, which travel.
        is_claimed: whether nobody has proved what was found.
    """

    code = "rejected"

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason.value}: {detail}" if detail else reason.value)
        self.reason = reason
        self.detail = detail
        self.found: Mapping[str, str] = {}
        self.expected: Mapping[str, str] = {}
        self.is_claimed = False

    def sentence(self, *, whole: bool = True) -> str:
        """Return the detail with what was found, and, if ``whole``, with what is configured."""
        claimed = " (claimed)" if self.is_claimed and self.found else ""
        halves = [self.detail, _listed(self.found) + claimed]
        configured = (
            [f"configured: {_listed(self.expected)}"] if whole and self.expected else []
        )
        return "; ".join(
            part for part in (": ".join(filter(None, halves)), *configured) if part
        )


def _listed(details: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {text}" for name, text in details.items())


class Unavailable(MqauthError):
    """No verdict can be reached now; the message is neither handled nor dead-lettered, and tried again later.

    Args:
        cause: what is out of reach.
        detail: one line for people.
        party: the configured issuer or release authority whose keys are out of reach; ``None`` for other causes.
    """

    code = "unavailable"

    def __init__(self, cause: Cause, detail: str = "", party: str | None = None) -> None:
        super().__init__(f"{cause.value}: {detail}" if detail else cause.value)
        self.cause = cause
        self.detail = detail
        self.party = party


class RetryLater(MqauthError):
    """Raised by a handler: not now. The message is deferred, and handled again when its broker retries it.

    Args:
        detail: one line for people, without a body or key.
    """

    code = "retry_later"

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail or "retry later")
        self.detail = detail


class RejectNow(MqauthError):
    """Raised by a handler: never. The message is dead-lettered as ``handler_failed`` without more attempts.

    Args:
        detail: one line for people, without a body or key; audit record and dead letter keep it.
    """

    code = "reject_now"

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail or "reject now")
        self.detail = detail


class StaleDelivery(MqauthError):
    """The delivery is ours no more: its channel ended or it was given back, and the broker delivers it again."""

    code = "stale_delivery"


class ConfigurationError(MqauthError):
    """Settings, keys or arguments are wrong or contradict each other; nothing was started."""

    code = "configuration"


def require(
    condition: T | None,
    refusal: str,
    error: Callable[[str], Exception] = ConfigurationError,
) -> T:
    """Refuse a setting, a key, an argument or an input unless a condition holds.

    Args:
        condition: what must be true, or an object that must be there.
        refusal: what was expected, or is wrong.
        error: makes the error that is raised with this text.

    Returns:
        The condition; the object, which is not ``None``.

    Raises:
        ConfigurationError: the condition does not hold, and no other ``error`` was named.
    """
    if not condition:
        raise error(refusal)
    return condition


@contextmanager
def refusing(
    kinds: Errors,
    refusal: str | Callable[[Any], str],
    error: Callable[[str], Exception] = ConfigurationError,
) -> Iterator[None]:
    """Turn errors of some kinds that are raised within the block into another one.

    Args:
        kinds: the errors that are turned.
        refusal: says what is wrong; or what makes that of the error.
        error: makes the other error, a ``ConfigurationError`` by default.
    """
    try:
        yield
    except kinds as cause:
        raise error(refusal if isinstance(refusal, str) else refusal(cause)) from cause


def words_of(error: OSError) -> str:
    """Return the system's words for an error, or Python's, or the name of its type."""
    return error.strerror or str(error) or type(error).__name__


def file_errors(path: str | Path) -> AbstractContextManager[None]:
    """Turn an ``OSError`` that is raised within the block into a ``ConfigurationError`` that names the path."""
    return refusing(OSError, lambda error: f"{path}: {words_of(error)}")


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Name the extra of mqauth that brings a library which cannot be imported.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        library = str(error.name).partition(".")[0]
        raise ModuleNotFoundError(
            f"no module {library!r}: pip install 'mqauth[{extra}]'", name=library
        ) from None


class KeyChanged(MqauthError):
    """A signing key was rotated and signs no more; its source has another."""

    code = "key_changed"


class MalformedMessage(MqauthError, ValueError):
    """A message that was to be signed, or was read from a file, cannot exist on the broker it names."""

    code = "message"
