"""The attack suite: what somebody who may write to the broker can try, and the reason each attempt must meet.

Every attack turns an honest, unsigned message into the message that is published in its place, with the keys of a
``Forge``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from mqauth.errors import Reason
from mqauth.testing.forge import REMOVED, SUBJECT, Forge, with_token
from mqauth.wire.message import HeaderValue, Message

_YEAR: Final = 365 * 24 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One attack and the reason for which it must be rejected.

    Args:
        name: stable, for tests and tables.
        story: one line for people.
        reason: why the consumer must reject it.
        mount: turns the honest message into the hostile one.
        scheme: the only broker on which it can be mounted, ``None`` for every broker.
    """

    name: str
    story: str
    reason: Reason
    mount: Callable[[Forge, Message], Message]
    scheme: str | None = None

    def fits(self, destination: str) -> bool:
        """Tell whether the attack can be mounted on the broker of a destination."""
        return self.scheme is None or destination.startswith(self.scheme + ":")


def on_wire(message: Message, text: str) -> HeaderValue:
    """Return the text of a header's value in the type that the message's broker carries."""
    return text.encode() if message.destination.startswith("kafka:") else text


def changed_header(message: Message, value: str) -> Message:
    """Return the message with another value of its first header."""
    (name, _), *others = message.headers
    return replace(message, headers=((name, on_wire(message, value)), *others))


def _changed_content_type(message: Message) -> Message:
    if not message.destination.startswith("kafka:"):
        return replace(
            message,
            properties={**message.properties, "content-type": "application/x-evil"},
        )
    kept = tuple(pair for pair in message.headers if pair[0] != "content-type")
    return replace(message, headers=(("content-type", b"application/x-evil"), *kept))


def _twice(forge: Forge, message: Message) -> Message:
    """Put two tokens on a message, the second in another spelling, so that an AMQP table can hold both."""
    return with_token(forge.seal(message), forge.token(message), name="MQAUTH-Token")


def _rerouted(forge: Forge, message: Message) -> Message:
    """Move an honest message for another destination here."""
    elsewhere = message.destination.replace("orders", "refunds")
    return replace(
        forge.seal(replace(message, destination=elsewhere)),
        destination=message.destination,
    )


def _stripped(forge: Forge, message: Message) -> Message:
    """Remove a covered header after signing."""
    sealed = forge.seal(message)
    return replace(sealed, headers=sealed.headers[1:])


ATTACKS: Final = (
    Attack(
        name="no-token",
        story="a message without a token",
        reason=Reason.TOKEN_MISSING,
        mount=lambda forge, message: message,
    ),
    Attack(
        name="two-tokens",
        story="two tokens, to confuse readers",
        reason=Reason.TOKEN_REPEATED,
        mount=_twice,
    ),
    Attack(
        name="oversize-token",
        story="a token of 9 KiB",
        reason=Reason.TOKEN_OVERSIZE,
        mount=lambda forge, message: with_token(message, "A" * 9216),
    ),
    Attack(
        name="garbage-token",
        story="a token that is no JWS",
        reason=Reason.TOKEN_MALFORMED,
        mount=lambda forge, message: with_token(message, "not.a~token.at all"),
    ),
    Attack(
        name="other-type",
        story="an access token of the same issuer",
        reason=Reason.TOKEN_TYPE,
        mount=lambda forge, message: forge.seal(message, header={"typ": "at+jwt"}),
    ),
    Attack(
        name="own-key-url",
        story="the attacker names a key URL of his own",
        reason=Reason.HEADER_FORBIDDEN,
        mount=lambda forge, message: forge.seal(
            message, key=forge.stranger, header={"jku": "https://evil.example/jwks.json"}
        ),
    ),
    Attack(
        name="alg-none",
        story="an unsigned token",
        reason=Reason.ALGORITHM_FORBIDDEN,
        mount=lambda forge, message: forge.seal(
            message, header={"alg": "none"}, signature=b""
        ),
    ),
    Attack(
        name="alg-hmac",
        story="HMAC with the public key as the secret",
        reason=Reason.ALGORITHM_FORBIDDEN,
        mount=lambda forge, message: forge.seal(
            message, header={"alg": "HS256"}, signature=b"\x00" * 32
        ),
    ),
    Attack(
        name="alg-swap",
        story="another algorithm than the key has",
        reason=Reason.ALGORITHM_FORBIDDEN,
        mount=lambda forge, message: forge.seal(message, header={"alg": "RS256"}),
    ),
    Attack(
        name="claim-left-out",
        story="a token that never expires",
        reason=Reason.CLAIM_MISSING,
        mount=lambda forge, message: forge.seal(message, claims={"exp": REMOVED}),
    ),
    Attack(
        name="claims-bent",
        story="an expiry that is text",
        reason=Reason.CLAIMS_MALFORMED,
        mount=lambda forge, message: forge.seal(message, claims={"exp": "9999999999"}),
    ),
    Attack(
        name="foreign-issuer",
        story="a token of an issuer nobody trusts",
        reason=Reason.ISSUER_UNTRUSTED,
        mount=lambda forge, message: forge.seal(
            message, claims={"iss": "https://evil.example"}
        ),
    ),
    Attack(
        name="unknown-key",
        story="signed with a key the issuer does not have",
        reason=Reason.KEY_UNKNOWN,
        mount=lambda forge, message: forge.seal(message, key=forge.stranger),
    ),
    Attack(
        name="revoked-key",
        story="signed with a stolen, revoked key",
        reason=Reason.KEY_REVOKED,
        mount=lambda forge, message: forge.seal(message, key=forge.revoked),
    ),
    Attack(
        name="retired-key",
        story="signed with a retired key",
        reason=Reason.KEY_EXPIRED,
        mount=lambda forge, message: forge.seal(message, key=forge.retired),
    ),
    Attack(
        name="forged-signature",
        story="the honest kid, another key's signature",
        reason=Reason.SIGNATURE_INVALID,
        mount=lambda forge, message: forge.seal(
            message, key=forge.stranger, header={"kid": forge.key.kid}
        ),
    ),
    Attack(
        name="other-audience",
        story="a token meant for another service",
        reason=Reason.AUDIENCE_MISMATCH,
        mount=lambda forge, message: forge.seal(message, claims={"aud": "shipping"}),
    ),
    Attack(
        name="impersonation",
        story="a neighbour's key signs as the producer",
        reason=Reason.SUBJECT_MISMATCH,
        mount=lambda forge, message: forge.seal(message, key=forge.neighbour),
    ),
    Attack(
        name="from-the-future",
        story="issued an hour ahead",
        reason=Reason.ISSUED_IN_FUTURE,
        mount=lambda forge, message: forge.seal(message, claims=_shifted(forge, 3600)),
    ),
    Attack(
        name="too-early",
        story="not valid before an hour from now",
        reason=Reason.NOT_YET_VALID,
        mount=lambda forge, message: forge.seal(
            message, claims={"nbf": int(forge.clock.now()) + 3600}
        ),
    ),
    Attack(
        name="expired",
        story="captured an hour ago",
        reason=Reason.EXPIRED,
        mount=lambda forge, message: forge.seal(message, claims=_shifted(forge, -7200)),
    ),
    Attack(
        name="immortal",
        story="a token that lives a year",
        reason=Reason.LIFETIME_EXCESSIVE,
        mount=lambda forge, message: forge.seal(
            message, claims={"exp": int(forge.clock.now()) + _YEAR}
        ),
    ),
    Attack(
        name="rerouted",
        story="moved here from another destination",
        reason=Reason.DESTINATION_MISMATCH,
        mount=_rerouted,
    ),
    Attack(
        name="record-key-changed",
        story="moved to another partition by its key",
        reason=Reason.RECORD_KEY_MISMATCH,
        scheme="kafka",
        mount=lambda forge, message: replace(forge.seal(message), key=b"another"),
    ),
    Attack(
        name="body-changed",
        story="the body edited",
        reason=Reason.BODY_MISMATCH,
        mount=lambda forge, message: replace(
            forge.seal(message), body=b'{"amount": 1000000}'
        ),
    ),
    Attack(
        name="header-changed",
        story="a header edited",
        reason=Reason.HEADERS_MISMATCH,
        mount=lambda forge, message: changed_header(forge.seal(message), "evil"),
    ),
    Attack(
        name="header-stripped",
        story="a header removed",
        reason=Reason.HEADERS_MISMATCH,
        mount=_stripped,
    ),
    Attack(
        name="content-type-changed",
        story="the content type edited",
        reason=Reason.HEADERS_MISMATCH,
        mount=lambda forge, message: _changed_content_type(forge.seal(message)),
    ),
    Attack(
        name="forbidden-producer",
        story="a trusted neighbour publishes where it may not",
        reason=Reason.PRODUCER_FORBIDDEN,
        mount=lambda forge, message: forge.seal(
            message, key=forge.neighbour, claims={"sub": forge.neighbour_subject}
        ),
    ),
)
"""Every attack but the replay, which needs two messages: publish one honest message twice."""


def _shifted(forge: Forge, seconds: int) -> dict[str, int]:
    now = int(forge.clock.now()) + seconds
    return {"iat": now, "exp": now + forge.lifetime}


def honest_message(
    destination: str, number: int = 0, *, subject: str = SUBJECT
) -> Message:
    """Return an honest, unsigned message with a header, a content type and, on Kafka, a record key."""
    body = f'{{"order": {number}, "from": "{subject}"}}'.encode()
    if destination.startswith("kafka:"):
        headers = (("tenant", b"acme"), ("content-type", b"application/json"))
        return Message(
            destination=destination, key=str(number).encode(), body=body, headers=headers
        )
    return Message(
        destination=destination,
        body=body,
        properties={"content-type": "application/json"},
        headers=(("tenant", "acme"),),
    )
