"""For tests of handlers: a real ``Verified``, as there is no way to fake one, and an ``Unverified``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mqauth.errors import Cause, Reason, Verdict
from mqauth.judging.verified import Unverified, V, Verified, Would, equip, make_unverified
from mqauth.judging.verifier import Issuer, Verifier
from mqauth.signer import Signer
from mqauth.wire.keys import Key, KeySet
from mqauth.wire.message import HeaderPair, Message


def verified(
    *,
    body: bytes | None = b"",
    subject: str = "orders-api",
    issuer: str = "https://auth.example",
    audience: str = "billing",
    destination: str = "rabbitmq:shop/orders.created",
    key: bytes | None = None,
    headers: Iterable[HeaderPair] = (),
    properties: Mapping[str, str] | None = None,
    index: int | None = None,
    value: V | None = None,
) -> Verified[V]:
    """Return a message that was signed with a fresh key and verified.

    Args:
        body: the raw bytes.
        subject: the producer.
        issuer: ``iss`` of the token.
        audience: ``aud`` of the token.
        destination: canonical.
        key: the Kafka record key.
        headers: application headers, all covered.
        properties: AMQP properties by their hyphenated names.
        index: its place in a batch, 0 to 1,022; by default it has a token of its own.
        value: what ``decode=`` of your consumer makes of the body.

    Raises:
        MalformedMessage: such a message cannot be signed.
    """
    signing = Key.generate(subjects=[subject])
    signer = Signer(key=signing, issuer=issuer, subject=subject, audience=audience)
    message = Message(
        destination=destination,
        body=body,
        key=key,
        headers=tuple(headers),
        properties=dict(properties or {}),
    )
    sealed = (
        signer.sign(message)
        if index is None
        else signer.sign_many([message] * (index + 2))[index]
    )
    verifier = Verifier(keys={issuer: Issuer(keys=KeySet([signing]))}, audience=audience)
    candidate = verifier.open(sealed)
    return equip(
        verifier.verify(
            sealed, candidate, KeySet([signing]), float(candidate.token.claims.iat)
        ),
        value=value,
    )


def unverified(
    *,
    body: bytes | None = b"",
    destination: str = "rabbitmq:shop/orders.created",
    key: bytes | None = None,
    headers: Iterable[HeaderPair] = (),
    would: Reason | Cause | None = Reason.TOKEN_MISSING,
    native: object = None,
) -> Unverified:
    """Return a message that nobody proved, as a rung below ``enforce`` gives it to a handler.

    Args:
        body: the raw bytes.
        destination: canonical.
        key: the Kafka record key.
        headers: all headers.
        would: why ``enforce`` would have rejected or deferred it; ``None`` at ``off``.
        native: the message of a client library.
    """
    message = Message(
        destination=destination, body=body, key=key, headers=tuple(headers), native=native
    )
    if would is None:
        return make_unverified(message, None)
    if isinstance(would, Cause):
        return make_unverified(message, Would(Verdict.DEFERRED, cause=would))
    return make_unverified(message, Would(Verdict.REJECTED, would))
