"""The verified message: made by the verifier alone, and showing only what is covered."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest

from mqauth.errors import ConfigurationError
from mqauth.judging.verified import Verified
from mqauth.testing import Forge
from mqauth.wire.message import Message

Maker = Callable[..., Message]


def judged(forge: Forge, message: Message, cover: list[str] | None = None) -> Verified:
    """Seal and verify a message."""
    sealed = forge.seal(message, cover=cover)
    verifier = forge.verifier()
    return verifier.verify(sealed, verifier.open(sealed), forge.keys, forge.clock.now())


def test_a_handler_sees_what_was_signed(forge: Forge, kafka: Maker) -> None:
    """Body, key, claims, kid and covered headers are the message's, every occurrence in order."""
    found = judged(forge, kafka())
    assert (found.body, found.key, found.destination) == (b"hello", b"42", "kafka:orders")
    assert (found.issuer, found.subject, found.audience) == ("https://auth.example", "orders-api", "billing")
    assert (found.jti, found.kid, found.key_set) == (found.claims.jti, forge.key.kid, forge.keys.version)
    assert found.headers == (("tenant", b"acme"), ("tag", b"1"), ("tag", b"2"))
    assert (found.header("tag"), found.header("absent")) == (b"2", None)
    assert (found.received, found.origin, found.value) == (forge.clock.now(), kafka().origin, None)


def test_uncovered_headers_are_hidden(forge: Forge, rabbit: Maker) -> None:
    """A header the token does not cover is not shown, the token itself neither."""
    found = judged(forge, rabbit(native="the client's own"), cover=["tenant"])
    assert found.headers == (("tenant", "acme"),)
    assert found.header("count") is None
    assert found.native == "the client's own"


def test_it_cannot_be_made_changed_or_copied_into_another(forge: Forge, rabbit: Maker) -> None:
    """Only the verifier makes one, and nobody changes one."""
    found = judged(forge, rabbit())
    with pytest.raises(ConfigurationError):
        Verified(object(), found._facts)
    with pytest.raises(AttributeError):
        found.body = b"evil"
    with pytest.raises(AttributeError):
        del found.body
    with pytest.raises((AttributeError, TypeError)):
        copy.replace(found) if hasattr(copy, "replace") else copy.copy(found)
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        pickle.loads(pickle.dumps(found))  # noqa: S301


def test_repr_shows_who_and_where(forge: Forge, rabbit: Maker) -> None:
    """It can be logged: neither body nor headers nor token."""
    text = repr(judged(forge, rabbit()))
    assert text == "Verified('rabbitmq:shop/orders.created', issuer='https://auth.example', subject='orders-api')"
