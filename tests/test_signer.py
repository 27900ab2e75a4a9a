"""The signer: each call seals anew, and refuses what no consumer could accept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mqauth.errors import ConfigurationError, MalformedMessage
from mqauth.signer import MAX_LIFETIME
from mqauth.testing import FakeClock, Forge
from mqauth.wire import claims, envelope, jws
from mqauth.wire.message import Message

Maker = Callable[..., Message]


def claims_of(message: Message) -> claims.Claims:
    """Return the claims of a signed message."""
    return claims.parse(jws.take_apart(envelope.token_of(message)).payload)


def test_claims_are_the_producers(forge: Forge, clock: FakeClock, kafka: Maker) -> None:
    """Issuer, subject, audience, whole-second times and the binding stand in the token."""
    found = claims_of(forge.signer(lifetime=90).sign(kafka()))
    now = int(clock.now())
    assert (found.iss, found.sub, found.aud) == ("https://auth.example", "orders-api", "billing")
    assert (found.iat, found.exp) == (now, now + 90)
    assert found.mqa == envelope.bind(kafka())


def test_each_call_has_its_own_id(forge: Forge, kafka: Maker) -> None:
    """The same message signed twice is two messages; an id has 128 random bits."""
    signer = forge.signer()
    first, second = claims_of(signer.sign(kafka())).jti, claims_of(signer.sign(kafka())).jti
    assert first != second
    asked: list[int] = []
    forge.signer(randomness=lambda size: asked.append(size) or bytes(size)).sign(kafka())
    assert asked == [16]


def test_audiences_by_destination(forge: Forge, kafka: Maker, rabbit: Maker) -> None:
    """A destination may have an audience of its own."""
    signer = forge.signer(audiences={"kafka:orders": "stock"})
    assert claims_of(signer.sign(kafka())).aud == "stock"
    assert claims_of(signer.sign(rabbit())).aud == "billing"


@pytest.mark.parametrize(
    "settings",
    [
        {"issuer": ""}, {"issuer": "x" * 257}, {"subject": "a\n"}, {"audience": None}, {"subject": 1},
        {"lifetime": 0}, {"lifetime": MAX_LIFETIME + 1}, {"lifetime": 1.5}, {"lifetime": True}, {"lifetime": "60"},
        {"subject": "another"}, {"audiences": {"kafka:%61": "x"}}, {"audiences": {"orders": "x"}},
        {"audiences": {"kafka:a": ""}}, {"cover": "tenant"},
    ],
    ids=repr,
)  # fmt: skip
def test_contradicting_settings_are_refused(settings: dict[str, Any], forge: Forge) -> None:
    """A name out of its limits, a lifetime out of bounds, a subject the key may not use, a lone text as list."""
    with pytest.raises(ConfigurationError):
        forge.signer(**settings)


def test_a_public_key_is_no_signer(forge: Forge) -> None:
    """A key without private half is refused at construction."""
    with pytest.raises(ConfigurationError):
        forge.signer(key=forge.key.public_only)


@pytest.mark.parametrize(
    ("kid", "algorithm", "what"),
    [
        ("k" * 129, "EdDSA", "kid"), ("", "EdDSA", "kid"), (b"k", "EdDSA", "kid"), (None, "EdDSA", "kid"),
        ("k", "HS256", "algorithm"), ("k", "none", "algorithm"), ("k", None, "algorithm"),
        ("k", ["EdDSA"], "algorithm"),
    ],
)  # fmt: skip
def test_a_key_nobody_could_verify(kid: Any, algorithm: Any, what: str, forge: Forge) -> None:
    """A plug-in key whose kid or algorithm no consumer accepts is refused when the signer is built."""

    class Vault:
        def sign(self, data: bytes, /) -> bytes:
            raise AssertionError("nothing to sign")

    vault: Any = Vault()
    vault.kid, vault.algorithm = kid, algorithm
    with pytest.raises(ConfigurationError, match=what):
        forge.signer(key=vault)


@pytest.mark.parametrize(
    "changes",
    [
        {"malformed": "bad header"},
        {"destination": "kafka:%6frders"},
        {"destination": "orders"},
        {"headers": (("mqauth-token", b"x"),)},
        {"headers": (("a", object()),)},
        {"headers": (("a", "\ud800"),)},
        {"headers": tuple((f"header-{number}", b"x") for number in range(1000))},
    ],
    ids=repr,
)
def test_what_no_consumer_could_accept_is_not_signed(changes: dict[str, Any], forge: Forge, kafka: Maker) -> None:
    """Malformed, signed already, of no canonical destination, unencodable, or with too large a token."""
    with pytest.raises(MalformedMessage):
        forge.signer().sign(kafka(**changes))


@pytest.mark.parametrize("cover", [None, [], ["a"]])
@pytest.mark.parametrize(
    "headers",
    [
        (("mqauth-token", b"x"),), (("MQAuth-Token", b"x"),), (("a", b"1"), ("A", b"2")),
        (("Content-Type", b"1"),), (("a", object()),), (("a", "\ud800"),),
    ],
    ids=repr,
)  # fmt: skip
def test_preparing_refuses_what_signing_refuses(
    headers: tuple[Any, ...], cover: list[str] | None, forge: Forge, kafka: Maker
) -> None:
    """What one message cannot be signed for, it cannot be sealed for; also when its names were seen before."""
    signer, message = forge.signer(cover=cover), kafka(headers=headers)
    for call in (signer.sign, signer.prepare, signer.prepare):
        if cover == [] and headers[0][0] in {"a", "A"}:
            call(message)  # not covered: carried as it is
        else:
            with pytest.raises(MalformedMessage):
                call(message)
