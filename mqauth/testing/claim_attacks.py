"""Attacks on what a token claims, and on the message that it binds.

Like ``ATTACKS``, each turns an honest, unsigned message into the message that is published in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from mqauth.errors import Reason
from mqauth.testing.forge import REMOVED, Forge, with_token, without_token
from mqauth.testing.token_attacks import Attack, on_wire
from mqauth.wire.message import TOKEN_HEADER, Message

_BENT: Final = Reason.CLAIMS_MALFORMED
_OTHER: Final = Reason.HEADERS_MISMATCH
_NEVER: Final = 2**53 - 1
_DEEP: Final = 20_000
Edit = Callable[[Message], Message]


def _claim(name: str, story: str, reason: Reason = _BENT, **claims: Any) -> Attack:
    """Return an attack that claims something else, signed by the honest key."""
    return Attack(
        name=name,
        story=story,
        reason=reason,
        mount=lambda forge, message: forge.seal(message, claims=claims),
    )


def _without(claim: str, story: str) -> Attack:
    """Return an attack that leaves a claim out."""
    return _claim(f"no-{claim}", story, Reason.CLAIM_MISSING, **{claim: REMOVED})


def _edited(
    name: str,
    story: str,
    reason: Reason,
    edit: Edit,
    before: Edit = lambda message: message,
    **other: Any,
) -> Attack:
    """Return an attack that edits an honest message after it was signed."""
    return Attack(
        name=name,
        story=story,
        reason=reason,
        **other,
        mount=lambda forge, message: edit(forge.seal(before(message))),
    )


def _bound(name: str, story: str, reason: Reason = _BENT, **binding: Any) -> Attack:
    """Return an attack on what a single message's token binds; a batch has its own."""
    return Attack(
        name=name,
        story=story,
        reason=reason,
        mount=lambda forge, message: with_token(
            message, forge.jws(message, claims={"mqa": _bent(forge, message, binding)})
        ),
    )


def _bent(forge: Forge, message: Message, binding: dict[str, Any]) -> dict[str, Any]:
    members = Forge.mqa(forge, message) | binding
    return {name: value for name, value in members.items() if value is not REMOVED}


def with_property(name: str, value: str) -> Edit:
    """Return an edit that gives a message a property, which is a header on Kafka."""

    def edit(message: Message) -> Message:
        if message.destination.startswith("kafka:"):
            return replace(message, headers=(*message.headers, (name, value.encode())))
        return replace(message, properties={**message.properties, name: value})

    return edit


def with_header(name: str, value: str) -> Edit:
    """Return an edit that adds a header."""
    return lambda message: replace(
        message, headers=(*message.headers, (name, on_wire(message, value)))
    )


def _renamed(forge: Forge, message: Message) -> Message:
    """Move the token to a header of an older scheme, in the hope that it is read and trusted."""
    return replace(
        message,
        headers=(
            *message.headers,
            ("authorization", on_wire(message, forge.token(message))),
        ),
    )


def _names_its_keys(forge: Forge, message: Message) -> Message:
    """Name the place of the attacker's keys in a header that the token covers."""
    named = with_header("mqauth-keys-url", "https://evil.example/jwks.json")(message)
    return forge.seal(named, key=forge.stranger)


def _as_the_producer(forge: Forge, message: Message) -> Message:
    """Sign as a neighbour, and name the honest producer in headers."""
    named = with_header("producer", forge.subject)(
        with_property("app-id", forge.subject)(message)
    )
    return forge.seal(named, key=forge.neighbour, claims={"sub": forge.neighbour_subject})


def _republished_letter(forge: Forge, message: Message) -> Message:
    """Publish a dead letter again, as a re-drive of other systems would: without its token."""
    letter = without_token(forge.seal(message))
    return with_header("mqauth-dead-reason", "token_missing")(
        with_header("mqauth-dead-audit", "0")(letter)
    )


def _forged_release(forge: Forge, message: Message) -> Message:
    """Release a message oneself: the producer's key signs in place of a reviewer's."""
    sealed = forge.seal(message)
    release = Forge.jws(forge, message, header={"typ": "mqauth-release+jwt"})
    return with_token(sealed, release, name="mqauth-release")


def _key_to_body(message: Message) -> Message:
    """Move the last byte of the record key to the front of the body: the same bytes, joined."""
    key, body = message.key or b"", message.body or b""
    return replace(message, key=key[:-1], body=key[-1:] + body)


def _first_renamed(message: Message) -> Message:
    (name, value), *others = message.headers
    return replace(message, headers=((name[:-1], value), *others))


def _first_twice(message: Message) -> Message:
    return replace(message, headers=(message.headers[0], *message.headers))


CLAIM_ATTACKS: Final = (
    _without("iss", "a token of nobody"),
    _without("sub", "a token of no producer"),
    _without("aud", "a token for everybody"),
    _without("iat", "a token without its time"),
    _without("jti", "a token without an id, so that a copy cannot be told"),
    _without("mqa", "a token that binds no message"),
    _claim(
        "issuer-list",
        "two issuers, one of them trusted",
        iss=["https://evil.example", "https://auth.example"],
    ),
    Attack(
        name="issuer-longer",
        story="the issuer's name with more behind it",
        reason=Reason.ISSUER_UNTRUSTED,
        mount=lambda forge, message: forge.seal(
            message, claims={"iss": forge.issuer + ".evil.example"}
        ),
    ),
    Attack(
        name="audience-list",
        story="many audiences, ours among them",
        reason=_BENT,
        mount=lambda forge, message: forge.seal(
            message, claims={"aud": [forge.audience, "shipping"]}
        ),
    ),
    _claim("audience-wildcard", "every audience", Reason.AUDIENCE_MISMATCH, aud="*"),
    _claim(
        "expiry-absurd",
        "an expiry after the end of the sun",
        Reason.LIFETIME_EXCESSIVE,
        exp=_NEVER,
    ),
    _claim("expiry-fraction", "an expiry that is no integer", exp=9_999_999_999.5),
    _claim("expiry-negative", "an expiry before 1970", exp=-1),
    _claim("expiry-true", "true, which is 1 in some languages", exp=True),
    _claim("id-empty", "an empty id", jti=""),
    _claim("id-null", "no id, said as null", jti=None),
    _claim(
        "subject-is-sql",
        "a subject that is SQL",
        Reason.SUBJECT_MISMATCH,
        sub="x' OR '1'='1",
    ),
    _claim(
        "subject-with-line-break",
        "a subject that forges a line of the log",
        sub="orders\nINFO accepted",
    ),
    Attack(
        name="subject-in-another-case",
        story="the producer's name in capitals",
        reason=Reason.SUBJECT_MISMATCH,
        mount=lambda forge, message: forge.seal(
            message, claims={"sub": forge.subject.upper()}
        ),
    ),
    _bound("body-not-bound", "a token that leaves the body open", bod=REMOVED),
    _bound(
        "body-bound-to-nothing",
        "a token for a message without a body",
        Reason.BODY_MISMATCH,
        bod=None,
    ),
    _bound(
        "headers-not-bound",
        "a token that leaves the headers open",
        hdr=REMOVED,
        hds=REMOVED,
    ),
    _bound("destination-not-bound", "a token for any destination", dst=REMOVED),
    _bound(
        "destination-wildcard",
        "a token for every exchange",
        Reason.CLAIMS_MALFORMED,
        dst="*",
    ),
    _bound("older-scheme", "a profile before the first", v=0),
    _bound("version-text", "a version that is text", v="1"),
    _bound("version-fraction", "a version that is a fraction", v=1.0),
    Attack(
        name="token-renamed",
        story="an honest token in another header",
        reason=Reason.TOKEN_MISSING,
        mount=_renamed,
    ),
    Attack(
        name="token-in-body",
        story="an honest token in the body",
        reason=Reason.TOKEN_MISSING,
        mount=lambda forge, message: replace(message, body=forge.token(message).encode()),
    ),
    Attack(
        name="token-empty",
        story="an empty token",
        reason=Reason.TOKEN_MALFORMED,
        mount=lambda forge, message: with_token(message, ""),
    ),
    Attack(
        name="token-null",
        story="a token that is null",
        reason=Reason.TOKEN_MALFORMED,
        mount=lambda forge, message: replace(
            message, headers=(*message.headers, (TOKEN_HEADER, None))
        ),
    ),
    Attack(
        name="keys-named-by-message",
        story="a header says where the keys are",
        reason=Reason.KEY_UNKNOWN,
        mount=_names_its_keys,
    ),
    Attack(
        name="producer-by-header",
        story="a neighbour names the producer in headers",
        reason=Reason.PRODUCER_FORBIDDEN,
        mount=_as_the_producer,
    ),
    Attack(
        name="letter-republished",
        story="a dead letter, published again",
        reason=Reason.TOKEN_MISSING,
        mount=_republished_letter,
    ),
    Attack(
        name="release-forged",
        story="a release that no reviewer signed",
        reason=Reason.RELEASE_INVALID,
        mount=_forged_release,
    ),
    Attack(
        name="bomb-unsigned",
        story="a body that breaks parsers",
        reason=Reason.TOKEN_MISSING,
        mount=lambda forge, message: replace(message, body=b"[" * _DEEP),
    ),
    _edited(
        "reply-to-added",
        "answers are sent to the attacker",
        _OTHER,
        with_property("reply-to", "evil"),
    ),
    _edited(
        "type-added", "another kind of message", _OTHER, with_property("type", "refund")
    ),
    _edited(
        "encoding-added",
        "another decoder",
        _OTHER,
        with_property("content-encoding", "gzip"),
    ),
    _edited(
        "correlation-added",
        "the answer to another question",
        _OTHER,
        with_property("correlation-id", "7"),
    ),
    _edited(
        "header-renamed", "a letter of a header's name moved", _OTHER, _first_renamed
    ),
    _edited(
        "header-twice", "a covered header twice", _OTHER, _first_twice, scheme="kafka"
    ),
    _edited(
        "body-reserialised",
        "the same JSON in other bytes",
        Reason.BODY_MISMATCH,
        lambda message: replace(message, body=(message.body or b"").replace(b": ", b":")),
    ),
    _edited(
        "body-emptied",
        "no bytes in place of the body",
        Reason.BODY_MISMATCH,
        lambda message: replace(message, body=b""),
    ),
    _edited(
        "body-appended",
        "a byte more",
        Reason.BODY_MISMATCH,
        lambda message: replace(message, body=(message.body or b"") + b" "),
    ),
    _edited(
        "tombstone",
        "a deletion in place of an empty body",
        Reason.BODY_MISMATCH,
        scheme="kafka",
        edit=lambda message: replace(message, body=None),
        before=lambda message: replace(message, body=b""),
    ),
    _edited(
        "record-key-emptied",
        "an empty key in place of none",
        Reason.RECORD_KEY_MISMATCH,
        scheme="kafka",
        edit=lambda message: replace(message, key=b""),
        before=lambda message: replace(message, key=None),
    ),
    _edited(
        "key-moved-to-body",
        "a byte moved from the key to the body",
        Reason.RECORD_KEY_MISMATCH,
        _key_to_body,
        scheme="kafka",
    ),
)
"""Attacks on what is claimed and bound."""
