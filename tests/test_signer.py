"""The signer: each call seals anew, and refuses what no consumer could accept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest

from mqauth import ConfigurationError, Key, MalformedMessage, Message, Origin
from mqauth.signer import MAX_LIFETIME, Signer
from mqauth.testing import Forge
from mqauth.wire import batch, claims, envelope, jws

Maker = Callable[..., Message]


def claims_of(message: Message) -> claims.Claims:
    """Return the claims of a signed message."""
    return claims.parse(jws.take_apart(envelope.token_of(message)).payload)


def test_each_call_has_its_own_id(forge: Forge, kafka: Maker) -> None:
    """The same message signed twice is two messages; an id has 128 random bits."""
    signer = forge.signer()
    first, second = (
        claims_of(signer.sign(kafka())).jti,
        claims_of(signer.sign(kafka())).jti,
    )
    assert first != second
    asked: list[int] = []
    forge.signer(randomness=lambda size: asked.append(size) or bytes(size)).sign(kafka())
    assert asked == [16]


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
def test_contradicting_settings_are_refused(
    settings: dict[str, Any], forge: Forge
) -> None:
    """A name out of its limits, a lifetime out of bounds, a subject the key may not use, a lone text as list."""
    with pytest.raises(ConfigurationError):
        forge.signer(**settings)


@pytest.mark.parametrize("lifetime", [1, MAX_LIFETIME])
def test_the_limits_of_a_lifetime_pass(lifetime: int, forge: Forge) -> None:
    """1 second and one day are allowed."""
    assert forge.signer(lifetime=lifetime).lifetime == lifetime


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
def test_a_key_nobody_could_verify(
    kid: Any, algorithm: Any, what: str, forge: Forge
) -> None:
    """A plug-in key whose kid or algorithm no consumer accepts is refused when the signer is built."""

    class Vault:
        def sign(self, data: bytes, /) -> bytes:
            raise AssertionError("nothing to sign")

    vault: Any = Vault()
    vault.kid, vault.algorithm = kid, algorithm
    with pytest.raises(ConfigurationError, match=what):
        forge.signer(key=vault)


def test_a_key_without_subjects_may_sign_as_any(kafka: Maker) -> None:
    """Whom such a key may speak for is the consumer's to decide."""
    assert Signer(key=Key.generate(), issuer="i", subject="s", audience="a").sign(kafka())


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
def test_what_no_consumer_could_accept_is_not_signed(
    changes: dict[str, Any], forge: Forge, kafka: Maker
) -> None:
    """Malformed, signed already, of no canonical destination, unencodable, or with too large a token."""
    with pytest.raises(MalformedMessage):
        forge.signer().sign(kafka(**changes))


def seen(signed: Message, forge: Forge) -> Message:
    """Return what a consumer sees of a signed message."""
    verifier = forge.verifier()
    verified = verifier.verify(
        signed, verifier.open(signed), forge.keys, forge.clock.now()
    )
    return replace(signed, body=verified.body, headers=signed.headers[:-1])


def test_sealed_together(forge: Forge, kafka: Maker, rabbit: Maker) -> None:
    """Messages of several audiences and headers, sealed at once, verify in the order given, else unchanged."""
    messages = [
        kafka(body=b"%d" % number, headers=(("a", b"1"),) * (number % 3))
        for number in range(20)
    ]
    messages += [rabbit(body=b"r%d" % number) for number in range(3)]
    sealed = forge.signer(audiences={messages[-1].destination: "shipping"}).sign_many(
        messages
    )
    assert [seen(signed, forge) for signed in sealed[:20]] == messages[:20]
    assert [
        replace(signed, headers=signed.headers[:-1]) for signed in sealed[20:]
    ] == messages[20:]
    assert len({envelope.token_of(signed).partition(b"~")[0] for signed in sealed}) == 3


def test_sealing_keeps_every_field(forge: Forge, kafka: Maker) -> None:
    """What is sealed differs from what was given in its headers alone, whatever fields a message has."""
    message = kafka(native=object(), origin=Origin(scope="billing"))
    for signed in (
        *forge.signer().sign_many([message] * 2),
        forge.signer().sign(message),
    ):
        for field in fields(Message):
            same = getattr(signed, field.name) == getattr(message, field.name)
            assert same is (field.name != "headers"), field.name


def test_too_large_a_group_spares_the_others(forge: Forge, kafka: Maker) -> None:
    """A group whose token is over its size has none, and says so; others of the same batch have theirs."""
    signer = forge.signer()
    large = tuple((f"header-{number}", b"x") for number in range(1000))
    batch = [signer.prepare(kafka(headers=headers)) for headers in ((), large, (), large)]
    tokens = signer.tokens(batch)
    assert [isinstance(token, MalformedMessage) for token in tokens] == [
        False,
        True,
        False,
        True,
    ]
    with pytest.raises(MalformedMessage, match="cover fewer"):
        signer.seal(batch)


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


def jws_of(signed: Message) -> bytes:
    """Return a message's token without its proof."""
    return envelope.token_of(signed).partition(b"~")[0]


@pytest.mark.parametrize(("count", "sizes"), [(0, []), (1, [None]), (2, [2]), (1024, [1024]), (1025, [1024, None]),
                                              (2050, [1024, 1024, 2])])  # fmt: skip
def test_a_group_has_a_signature_for_each_1024(
    count: int, sizes: list[int | None], forge: Forge, kafka: Maker
) -> None:
    """One alone has a token of the single form, and signatures are as few as can be."""
    signed = forge.signer().sign_many(
        [kafka(body=b"%d" % number) for number in range(count)]
    )
    assert [message.body for message in signed] == [
        b"%d" % number for number in range(count)
    ]
    found = [
        claims.parse(jws.take_apart(token).payload).mqa
        for token in dict.fromkeys(map(jws_of, signed))
    ]
    assert [mqa.size if isinstance(mqa, claims.Batch) else None for mqa in found] == sizes


def test_what_shares_a_signature(forge: Forge, kafka: Maker, rabbit: Maker) -> None:
    """Headers in another order and occurrence may share one; neither destinations nor names may differ."""
    pair, bare = (("a", b"1"), ("b", b"2")), ()
    messages = [
        kafka(headers=pair), kafka(headers=pair[::-1]), kafka(destination="kafka:refunds", headers=pair),
        kafka(headers=bare), rabbit(headers=(("a", 1), ("b", None))), kafka(headers=(*pair, pair[0])),
    ]  # fmt: skip
    signed = forge.signer().sign_many(messages)
    tokens = [jws_of(message) for message in signed]
    assert [tokens.index(token) for token in tokens] == [0, 0, 2, 3, 4, 0]
    verifier = forge.verifier()
    for message in signed:
        assert verifier.verify(
            message, verifier.open(message), forge.keys, forge.clock.now()
        )
    apart = forge.signer(audiences={"kafka:refunds": "refunds"}).sign_many(
        [messages[2]] * 2
    )
    assert claims.parse(jws.take_apart(jws_of(apart[0])).payload).aud == "refunds"


def test_a_token_that_is_too_large_with_its_proof(forge: Forge, kafka: Maker) -> None:
    """Messages whose token is small enough alone, but not with a proof behind it, are each signed alone."""
    signer = forge.signer()
    for length in range(100, 128):
        wanted = kafka(
            headers=tuple(
                (f"{number:02}".ljust(length, "n"), b"") for number in range(48)
            )
        )
        token = signer.sign(wanted).headers[-1][1]
        assert isinstance(token, bytes)
        if len(token) > 8192 - 172:
            break
    assert len(token) <= 8192
    signed = signer.sign_many([wanted] * 64)
    assert len({jws_of(message) for message in signed}) == 64
    assert not any(b"~" in message.headers[-1][1] for message in signed)


def test_a_batch_is_signed_once_with_one_id(forge: Forge, kafka: Maker) -> None:
    """One call of the key and one of the randomness, whatever the size; the times are of the sealing."""
    asked: list[int] = []
    signer = forge.signer(randomness=lambda size: asked.append(size) or bytes(size))
    prepared = [signer.prepare(kafka(body=b"%d" % number)) for number in range(50)]
    assert asked == []
    now = int(forge.clock.now())
    found = claims.parse(jws.take_apart(jws_of(signer.seal(prepared)[0])).payload)
    assert asked == [16]
    assert (found.iss, found.sub, found.aud, found.iat, found.exp) == (
        "https://auth.example", "orders-api", "billing", now, now + 60,
    )  # fmt: skip


def test_one_bad_message_signs_none(forge: Forge, kafka: Maker) -> None:
    """Where one of many cannot be signed none is: nobody sends half of what was asked for."""
    with pytest.raises(MalformedMessage):
        forge.signer().sign_many([kafka(), kafka(destination="orders"), kafka()])


class Hashed:
    """Counts the bytes that SHA-256 is taken over."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        make, count = hashlib.sha256, self

        class Counting:
            def __init__(self, data: bytes = b"", hasher: Any = None) -> None:
                self._hasher = make(data) if hasher is None else hasher
                count.count += len(data)

            def update(self, data: bytes) -> None:
                self._hasher.update(data)
                count.count += len(data)

            def copy(self) -> Counting:
                return Counting(hasher=self._hasher.copy())

            def digest(self) -> bytes:
                return self._hasher.digest()

        monkeypatch.setattr(hashlib, "sha256", Counting)
        monkeypatch.setattr(batch, "_sha256", Counting)


@pytest.mark.parametrize(
    "seal",
    [
        lambda signer, message: signer.sign(message),
        lambda signer, message: signer.sign_many([message])[0],
        lambda signer, message: signer.sign_many([replace(message, body=b"a"), message])[
            1
        ],
    ],
    ids=["alone", "alone in its batch", "in a batch"],
)
def test_a_large_body_is_hashed_once(
    seal: Callable[[Signer, Message], Message],
    forge: Forge,
    kafka: Maker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whichever way it is signed, a body is read by one hash."""
    size = 1024 * 1024
    message = kafka(body=bytes(size))
    hashed = Hashed(monkeypatch)
    signed = seal(forge.signer(), message)
    monkeypatch.undo()
    assert seen(signed, forge).body == message.body
    assert size < hashed.count < size + 4096


def test_no_key_is_refused_at_once() -> None:
    """A producer whose key is ``None``, such as a setting that is missing, does not start."""
    with pytest.raises(ConfigurationError, match="the key cannot sign"):
        Signer(
            key=None,
            issuer="https://auth.example",
            subject="a",
            audience="b",
            lifetime=60,
        )  # type: ignore[arg-type]
