"""The vectors of the identity form: a WIT and a proof in one header, single and in a batch, with every attack."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final, NamedTuple

from mqauth.testing.batchforge import forge_batch
from mqauth.testing.forge import AUDIENCE, ISSUER, REMOVED, SUBJECT, with_token
from mqauth.testing.identity import (
    OTHER_WORKLOAD,
    TRUST_DOMAIN,
    WORKLOAD,
    BatchIdentityForge,
    IdentityForge,
    WITSigner,
)
from mqauth.wire import base64url, jwk, strict_json
from mqauth.wire.json_form import to_form
from mqauth.wire.keys import Cutoff, Key, KeySet, Revocation
from mqauth.wire.message import Message, Origin
from tests.vectors.world import (
    FORGE,
    KAFKA,
    KEYS,
    NOW,
    RABBITMQ,
    STOCK,
    at,
    edwards,
    kafka,
    rabbit,
    seed,
    signature,
)

CUT: Final = NOW - 10
"""When the honest workload is cut off, at a consumer whose set says so."""
OURS: Final = ("dpop+jwt", "mqauth-enrol+jwt", "mqauth-release+jwt", "mqauth-head+jwt")
"""Types of what the same keys sign elsewhere, the one that other vectors of proofs have first."""
LONGEST: Final = 4096
SMALL_ORDER: Final = base64url.encode(bytes.fromhex("01" + 31 * "00")).decode()


class FixedAuthority(WITSigner):
    """The authority with a fixed key, whose signatures are the same each time."""

    def jws(
        self, header: bytes, payload: bytes, key: Key, given: bytes | None = None
    ) -> str:
        """Return a JWS of exactly these bytes."""
        data = base64url.encode(header) + b"." + base64url.encode(payload)
        signed = signature(data, key) if given is None else given
        return (data + b"." + base64url.encode(signed)).decode("ascii")


class FixedIdentityForge(IdentityForge):
    """The forge with fixed keys and ids."""

    def __init__(self) -> None:
        super().__init__(FORGE.clock)
        self.authority = FixedAuthority(
            edwards("authority", subjects=None), clock=FORGE.clock
        )
        self.key, self.neighbour, self.stranger = (
            edwards(f"workload {number}") for number in range(3)
        )
        self.form = "batch" if isinstance(self, BatchIdentityForge) else "single"
        self.count = 0

    def claims(self, message: Message, *, cover: Any = None) -> dict[str, Any]:
        """Return honest claims with the next id."""
        self.count += 1
        jti = base64url.encode(seed(f"{self.form} identity {self.count}", 16)).decode()
        return super().claims(message, cover=cover) | {"jti": jti}


class FixedBatchIdentityForge(FixedIdentityForge, BatchIdentityForge):
    """The same, each message in a batch."""


SINGLE: Final = FixedIdentityForge()
BATCH: Final = FixedBatchIdentityForge()


class Case(NamedTuple):
    """A message for a consumer, when it is received, and the verdict on it."""

    name: str
    message: Message
    reason: str | None = None
    consumer: str = "common"
    received: int = NOW
    key_set: str | None = None

    def form(self) -> dict[str, Any]:
        """Return the case as it stands in its file."""
        return {
            "name": self.name, "consumer": self.consumer, "received": self.received, "key_set": self.key_set,
            "message": to_form(self.message),
            "verdict": "accepted" if self.reason is None else "rejected", "reason": self.reason,
        }  # fmt: skip


Build = Callable[[FixedIdentityForge], str | Message]
Attack = tuple[str, str | None, Build]


def token(**bends: Any) -> Build:
    """Return what builds a token with changes of its proof."""
    return lambda forge: forge.token(kafka(), **bends)


def wit(**bends: Any) -> Build:
    """Return what builds a token whose WIT has changes; the proof belongs to it."""
    return lambda forge: forge.token(kafka(), wit=forge.wit(**bends))


def shown(subject: str, key: Callable[[FixedIdentityForge], Key], **bends: Any) -> Build:
    """Return what builds a token with another WIT before the proof than the one it belongs to."""
    return lambda forge: forge.token(
        kafka(), shown=forge.authority.wit(subject, key(forge), **bends)
    )


def tail(forge: FixedIdentityForge) -> str:
    """Return what stands behind the proof in a batch."""
    parts = forge.token(kafka()).split("~")
    return f"~{parts[2]}" if len(parts) == 3 else ""


def parts() -> Iterator[Attack]:
    """Yield tokens whose parts are not those of the form."""
    batch_tail = tail(BATCH)
    direct: Build = lambda forge: FORGE.token(kafka())  # noqa: E731
    yield "a WIT alone", "token_type", lambda forge: forge.wit()
    yield (
        "a proof alone",
        "token_malformed",
        lambda forge: forge.proof(kafka(), wit=forge.wit()) + tail(forge),
    )
    yield (
        "the proof first", "token_malformed",
        lambda forge: f"{forge.proof(kafka(), wit=forge.wit())}~{forge.wit()}{tail(forge)}",
    )  # fmt: skip
    yield (
        "two WITs",
        "token_type",
        lambda forge: f"{forge.wit()}~{forge.wit()}{tail(forge)}",
    )
    yield "a WIT and a tilde", "token_malformed", lambda forge: forge.wit() + "~"
    yield (
        "two WITs and a proof", "token_type",
        lambda forge: f"{forge.wit()}~{forge.wit()}~{forge.proof(kafka(), wit=forge.wit())}",
    )  # fmt: skip
    yield (
        "a direct token behind a WIT",
        "token_type",
        lambda forge: f"{forge.wit()}~{direct(forge)}{tail(forge)}",
    )
    yield (
        "a WIT behind a direct token",
        "proof_invalid",
        lambda forge: f"{direct(forge)}~{forge.wit()}",
    )
    yield "five parts", "token_malformed", lambda forge: forge.token(kafka()) + "~a~b"
    yield (
        "a padded WIT",
        "token_malformed",
        lambda forge: forge.token(kafka(), shown=forge.wit() + "="),
    )
    yield (
        "a padded proof", "token_malformed",
        lambda forge: f"{forge.wit()}~{forge.proof(kafka(), wit=forge.wit())}={tail(forge)}",
    )  # fmt: skip
    yield (
        "a WIT of 4097 bytes",
        "token_oversize",
        lambda forge: forge.token(kafka(), wit=sized(forge, LONGEST + 1)),
    )
    yield (
        "a padded WIT before a proof of another type", "token_malformed",
        lambda forge: forge.token(kafka(), shown=forge.wit() + "=", header={"typ": "wit+jwt"}),
    )  # fmt: skip
    yield (
        "a WIT of 4097 bytes before a proof of another type", "token_oversize",
        lambda forge: forge.token(kafka(), wit=sized(forge, LONGEST + 1), header={"typ": "wit+jwt"}),
    )  # fmt: skip
    yield (
        "a WIT of 4097 bytes alone",
        "token_type",
        lambda forge: sized(forge, LONGEST + 1),
    )
    yield (
        "a WIT of 4097 bytes in four parts",
        "token_malformed",
        lambda forge: sized(forge, LONGEST + 1) + "~a~b~c",
    )
    if batch_tail:
        yield (
            "a proof of a batch missing",
            "proof_invalid",
            lambda forge: _without_tail(forge, batch_tail),
        )
        yield (
            "a place in a batch too much",
            "proof_invalid",
            lambda forge: _with_tail(forge, batch_tail),
        )
        yield (
            "a tilde at the end",
            "proof_invalid",
            lambda forge: SINGLE.token(kafka()) + "~",
        )


def _without_tail(forge: FixedIdentityForge, found: str) -> str:
    return BATCH.token(kafka()).removesuffix(found)


def _with_tail(forge: FixedIdentityForge, found: str) -> str:
    return SINGLE.token(kafka()) + found


def sized(forge: FixedIdentityForge, size: int) -> str:
    """Return a good WIT of so many bytes; base64url has no text of each length, so its header may be longer."""
    found = (
        forge.wit(claims={"note": "n" * length}, header={"alg": algorithm})
        for length in range(2700, size)
        for algorithm in ("EdDSA", "Ed25519")
    )
    return next(text for text in found if len(text) == size)


def headers() -> Iterator[Attack]:
    """Yield WITs whose header is another one, or whose key is."""
    yield "the typ of a WIT left out", "token_type", wit(header={"typ": REMOVED})
    yield "the typ of a WIT in upper case", "token_type", wit(header={"typ": "WIT+JWT"})
    yield "a JWT for a WIT", "token_type", wit(header={"typ": "JWT"})
    for typ in (*OURS, "application/wit+jwt", "mqauth-pop+jwt", "wit+jwt\0", "wit+jwt "):
        yield f"a WIT of type {typ!r}", "token_type", wit(header={"typ": typ})
    yield "a WIT whose typ is a list", "token_type", wit(header={"typ": ["wit+jwt"]})
    yield (
        "a WIT with a control character in its kid",
        "token_malformed",
        wit(header={"kid": "k\n"}),
    )
    yield "a further parameter of a WIT", "identity_invalid", wit(header={"cty": "x"})
    yield (
        "a key URL in a WIT",
        "identity_invalid",
        wit(header={"jku": "https://evil.example/jwks.json"}),
    )
    yield (
        "a critical extension of a WIT",
        "identity_invalid",
        wit(header={"crit": ["b64"], "b64": False}),
    )
    yield "a WIT without kid", "token_malformed", wit(header={"kid": REMOVED})
    yield (
        "a kid of 129 characters in a WIT",
        "token_malformed",
        wit(header={"kid": "k" * 129}),
    )
    yield "a WIT without alg", "identity_invalid", wit(header={"alg": REMOVED})
    yield (
        "a WIT of alg none",
        "identity_invalid",
        wit(header={"alg": "none"}, signature=b""),
    )
    yield (
        "a WIT of alg HS256",
        "identity_invalid",
        wit(header={"alg": "HS256"}, signature=bytes(32)),
    )
    yield (
        "a WIT of another alg than its key",
        "algorithm_forbidden",
        wit(header={"alg": "ES256"}),
    )
    yield "an unknown kid in a WIT", "key_unknown", wit(header={"kid": "unknown"})
    yield (
        "another key under the kid of the authority", "signature_invalid",
        lambda forge: wit(key=forge.stranger, header={"kid": forge.authority.key.kid})(forge),
    )  # fmt: skip
    yield (
        "a WIT that its own key signed, under the kid of the authority", "signature_invalid",
        lambda forge: wit(key=forge.key, header={"kid": forge.authority.key.kid})(forge),
    )  # fmt: skip
    yield (
        "a WIT that its own key signed",
        "key_unknown",
        lambda forge: wit(key=forge.key)(forge),
    )
    yield "a key of the direct issuer signs a WIT", "key_unknown", wit(key=KEYS["EdDSA"])
    yield "a WIT without a signature", "signature_invalid", wit(signature=b"")
    yield "another sub behind the signature", "signature_invalid", _resigned


def _resigned(forge: FixedIdentityForge) -> str:
    honest, other = forge.wit(), forge.authority.wit(OTHER_WORKLOAD, forge.key)
    return forge.token(
        kafka(), wit=".".join((*other.split(".")[:2], honest.split(".")[2]))
    )


def claimed() -> Iterator[Attack]:
    """Yield WITs whose claims are not in their form."""
    bad: dict[str, Any] = {
        "no sub": {"sub": REMOVED}, "a sub that is no text": {"sub": 1}, "an aud": {"aud": AUDIENCE},
        "no exp": {"exp": REMOVED}, "an exp that is true": {"exp": True},
        "an exp that is text": {"exp": "1900003600"},
        "a negative exp": {"exp": -1}, "an iat that is text": {"iat": "1900000000"},
        "an nbf of null": {"nbf": None},
        "an empty jti": {"jti": ""}, "a jti of 129 characters": {"jti": "j" * 129},
        "a jti that is no text": {"jti": 1},
        "an iss of 257 characters": {"iss": "i" * 257}, "no cnf": {"cnf": REMOVED},
        "a cnf that is text": {"cnf": "x"},
        "a cnf of a thumbprint": {"cnf": {"jkt": "x"}}, "a cnf of a kid": {"cnf": {"kid": "x"}},
        "a cnf of a URL": {"cnf": {"jku": "https://evil.example/jwks.json"}}, "an empty cnf": {"cnf": {}},
        "a jwk that is text": {"cnf": {"jwk": "x"}}, "other claims of 65 values": {"x": [[]] * 32, "y": [1] * 31},
    }  # fmt: skip
    for name, changes in bad.items():
        yield f"a WIT with {name}", "identity_invalid", wit(claims=changes)
    yield (
        "a WIT with a cnf of a jwk and a thumbprint",
        "identity_invalid",
        _both_confirmed,
    )
    yield (
        "a WIT with an exp of a fraction",
        "identity_invalid",
        _payload(b'"exp":1900003600', b'"exp":1900003600.0'),
    )
    yield (
        "a WIT with a sub twice",
        "identity_invalid",
        _payload(b'{"sub"', b'{"sub":"x","sub"'),
    )
    odd = {"half a character": b'"\\ud800"', "an integer beyond 2^53": b"9007199254740993", "NaN": b"NaN",
           "an overflow": b"1e999", "nine levels": b"[" * 8 + b"]" * 8}  # fmt: skip
    for name, value in odd.items():
        yield f"a WIT with {name} in another claim", "identity_invalid", _payload(
            b'{"sub"', b'{"x":' + value + b',"sub"')  # fmt: skip
    for name in ("jti", "iss"):
        yield (
            f"a WIT with a line break in its {name}",
            "identity_invalid",
            wit(claims={name: "a\nb"}),
        )
    yield "a WIT with a NUL in its jti", "identity_invalid", wit(claims={"jti": "a\0b"})
    yield "a WIT that is a list", "identity_invalid", wit(payload=b"[]")
    yield "a WIT that is no JSON", "identity_invalid", wit(payload=b"\xff")


def _payload(old: bytes, new: bytes) -> Build:
    def build(forge: FixedIdentityForge) -> str:
        honest = base64url.decode(forge.wit().split(".")[1].encode())
        return forge.token(kafka(), wit=forge.wit(payload=honest.replace(old, new)))

    return build


def _both_confirmed(forge: FixedIdentityForge) -> str:
    honest = strict_json.loads(
        base64url.decode(forge.wit().split(".")[1].encode()), depth=8
    )
    return wit(claims={"cnf": honest["cnf"] | {"jkt": "x"}})(forge)  # type: ignore[return-value]


def confirmed() -> Iterator[Attack]:
    """Yield WITs whose key is none that a workload may have."""
    bad: dict[str, Any] = {
        "a private half": {"d": "AA"}, "a certificate URL": {"x5u": "https://evil.example/c.pem"},
        "no alg": {"alg": REMOVED},
        "alg HS256": {"alg": "HS256"}, "alg none": {"alg": "none"}, "alg ES256 on Ed25519": {"alg": "ES256"},
        "a shared secret": {"kty": "oct", "crv": REMOVED, "x": REMOVED, "k": "AA", "alg": "HS256"},
        "an RSA key": {"kty": "RSA", "crv": REMOVED, "x": REMOVED, "n": "AQAB", "e": "AQAB", "alg": "RS256"},
        "an unknown curve": {"kty": "EC", "crv": "secp256k1", "y": "AA",
        "alg": "ES256"}, "Ed448": {"crv": "Ed448"},
        "no x": {"x": REMOVED}, "a y on Ed25519": {"y": "AA"}, "an x that is too short": {"x": "AAAA"},
        "a padded x": {"x": "A" * 43 + "="}, "a use of encryption": {"use": "enc"}, "a kid of null": {"kid": None},
        "a kid of 129 characters": {"kid": "k" * 129}, "key_ops": {"key_ops": ["verify"]},
    }  # fmt: skip
    for name, changes in bad.items():
        yield f"a jwk with {name}", "identity_invalid", wit(jwk=changes)
    yield "a jwk of small order", "identity_invalid", wit(jwk={"x": SMALL_ORDER})
    point = {"kty": "EC", "crv": "P-256", "alg": "ES256", "x": "A" * 43, "y": "A" * 43}
    yield "a jwk off its curve", "identity_invalid", wit(jwk=point)
    yield (
        "a jwk of P-384 with coordinates of P-256",
        "identity_invalid",
        wit(jwk=point | {"crv": "P-384", "alg": "ES384"}),
    )


def subjects() -> Iterator[Attack]:
    """Yield WITs of subjects that are none, or of nobody's trust domain."""
    bad = [
        "orders-api", "prod.example/shop", TRUST_DOMAIN, f"{TRUST_DOMAIN}/", f"{WORKLOAD}/",
        f"{TRUST_DOMAIN}//a",
        f"{TRUST_DOMAIN}/.", f"{TRUST_DOMAIN}/..", f"{TRUST_DOMAIN}/a/../b", f"{TRUST_DOMAIN}/./a",
        f"{WORKLOAD}%2f",
        f"{TRUST_DOMAIN}:443/a", "wimse://u@prod.example/a", f"{WORKLOAD}?a=b", f"{WORKLOAD}#a", f"{WORKLOAD} ",
        f"{WORKLOAD}\n", "wimse://PROD.example/a", "WIMSE://prod.example/a", "wimse:///a",
        "wimse:/prod.example/a",
        "https://prod.example/a", f"{TRUST_DOMAIN}/\u00e9", f"{TRUST_DOMAIN}/{'a' * 236}",
        f"{TRUST_DOMAIN}/a\\b", "",
    ]  # fmt: skip
    for place, subject in enumerate(bad):
        yield (
            f"a sub that is none, {place}: {ascii(subject)[:40]}",
            "identity_invalid",
            wit(claims={"sub": subject}),
        )
    yield (
        "another trust domain",
        "issuer_untrusted",
        wit(claims={"sub": "wimse://evil.example/shop/orders-api"}),
    )
    yield (
        "a trust domain that begins alike",
        "issuer_untrusted",
        wit(claims={"sub": "wimse://prod.example.evil/a"}),
    )
    yield "the same name under the other scheme", "issuer_untrusted", wit(
        claims={"sub": WORKLOAD.replace("wimse", "spiffe")})  # fmt: skip
    yield "a direct token of the trust domain", "issuer_untrusted", lambda forge: FORGE.token(
        kafka(), claims={"iss": TRUST_DOMAIN, "sub": WORKLOAD})  # fmt: skip
    yield "a direct token of the workload", "issuer_untrusted", lambda forge: FORGE.token(
        kafka(), claims={"iss": WORKLOAD, "sub": WORKLOAD})  # fmt: skip
    yield "the other workload", "producer_forbidden", lambda forge: forge.token(
        kafka(), wit=forge.authority.wit(OTHER_WORKLOAD, forge.key))  # fmt: skip


def pairs() -> Iterator[Attack]:
    """Yield proofs that do not belong to the WIT before them, or are in another form."""
    yield (
        "a WIT of another workload",
        "identity_mismatch",
        shown(OTHER_WORKLOAD, lambda forge: forge.neighbour),
    )
    yield "a WIT of the same workload, renewed", "identity_mismatch", shown(
        WORKLOAD, lambda forge: forge.key, claims={"iat": NOW - 1})  # fmt: skip
    yield "a WIT of another workload with the same key", "identity_mismatch", shown(
        OTHER_WORKLOAD, lambda forge: forge.key)  # fmt: skip
    yield (
        "a proof by another key",
        "signature_invalid",
        lambda forge: forge.token(kafka(), key=forge.stranger),
    )
    yield (
        "a proof by the authority",
        "signature_invalid",
        lambda forge: forge.token(kafka(), key=forge.authority.key),
    )
    yield "a proof without a signature", "signature_invalid", token(signature=b"")
    yield "no wth", "claim_missing", token(claims={"wth": REMOVED})
    yield "a wth that is no text", "claims_malformed", token(claims={"wth": 1})
    yield "a wth that is null", "claims_malformed", token(claims={"wth": None})
    yield (
        "a wth that is no digest",
        "claims_malformed",
        token(claims={"wth": "A" * 42 + "B"}),
    )
    yield "an iss in the proof", "claims_malformed", token(claims={"iss": TRUST_DOMAIN})
    yield "a sub in the proof", "claims_malformed", token(claims={"sub": WORKLOAD})
    yield "no jti in the proof", "claim_missing", token(claims={"jti": REMOVED})
    yield "mqa of another version", "claims_malformed", token(claims={"mqa": {"v": 2}})
    yield (
        "a key in the header of the proof",
        "header_forbidden",
        token(header={"jwk": {}}),
    )
    yield (
        "a kid in the header of the proof",
        "header_forbidden",
        token(header={"kid": "k"}),
    )
    for typ in ("wpt+jwt", "dpop+jwt", "mqauth+jwt", "MQAUTH-POP+JWT"):
        yield f"a proof of type {typ}", "token_type", token(header={"typ": typ})
    for typ in (*OURS[1:], "application/mqauth-pop+jwt", "wit+jwt", "mqauth-pop+jwt\0"):
        yield f"a proof of type {typ!r}", "token_type", token(header={"typ": typ})
    yield "a proof of no type", "token_type", token(header={"typ": REMOVED})
    yield "Ed25519 for EdDSA", "algorithm_forbidden", token(header={"alg": "Ed25519"})
    for algorithm in ("ES256", "RS256", "HS256", "none"):
        yield (
            f"a proof of alg {algorithm}",
            "algorithm_forbidden",
            token(header={"alg": algorithm}),
        )
    yield "another audience", "audience_mismatch", token(claims={"aud": "shipping"})
    yield (
        "another body",
        "body_mismatch",
        lambda forge: replace(forge.seal(kafka()), body=b"evil"),
    )
    yield (
        "another destination",
        "destination_mismatch",
        lambda forge: replace(forge.seal(kafka()), destination=STOCK),
    )
    yield "another value of a header", "headers_mismatch", lambda forge: replace(
        forge.seal(kafka()), headers=(("tenant", b"evil"), *forge.seal(kafka()).headers[1:]))  # fmt: skip


def times() -> Iterator[tuple[str, str | None, Build, int]]:
    """Yield tokens with the moment at which they are received."""
    for name, reason, changes in (
        ("a WIT that has expired", "expired", {"exp": NOW - 5}),
        ("a WIT at the edge of its end", None, {"iat": NOW - 60, "exp": NOW - 4}),
        ("a WIT that ends before it begins", "expired", {"iat": NOW, "exp": NOW}),
        ("a WIT that is not valid yet", "not_yet_valid", {"nbf": NOW + 6}),
        ("a WIT that begins at the edge", None, {"nbf": NOW + 5}),
        ("a WIT from the future", "issued_in_future", {"iat": NOW + 6}),
        ("a WIT from the edge of the future", None, {"iat": NOW + 5}),
        ("a WIT that lives too long", "lifetime_excessive", {"exp": NOW + 3606}),
        (
            "a WIT that ends as late as an integer can",
            "lifetime_excessive",
            {"exp": 2**53},
        ),
        ("a WIT that lives as long as may be", None, {"exp": NOW + 3605}),
        ("a WIT without iat", None, {"iat": REMOVED}),
        (
            "a WIT without iat that lives too long",
            "lifetime_excessive",
            {"iat": REMOVED, "exp": NOW + 3606},
        ),
        (
            "a WIT without iat that has expired",
            "expired",
            {"iat": REMOVED, "exp": NOW - 5},
        ),
    ):
        yield name, reason, wit(claims=changes), NOW
    yield (
        "a proof that has expired",
        "expired",
        token(claims={"iat": NOW - 60, "exp": NOW - 5}),
        NOW,
    )
    yield (
        "a proof from the future",
        "issued_in_future",
        token(claims={"iat": NOW + 6}),
        NOW,
    )
    yield (
        "a proof that lives too long",
        "lifetime_excessive",
        token(claims={"exp": NOW + 3601}),
        NOW,
    )
    outlives: Build = lambda forge: forge.token(  # noqa: E731
        kafka(), wit=forge.wit(claims={"exp": NOW + 30}), claims={"exp": NOW + 600}
    )
    yield "a proof that outlives its WIT, before that ends", None, outlives, NOW + 34
    yield (
        "a proof that outlives its WIT, once that has ended",
        "expired",
        outlives,
        NOW + 35,
    )


def taken() -> Iterator[Attack]:
    """Yield tokens that are accepted."""
    curve = KEYS["ES256"]
    yield "as a producer makes it", None, token()
    yield "a WIT with all its claims", None, wit(
        claims={"iss": "https://a.example", "jti": "w", "nbf": NOW, "env": "prod", "x": {"y": 1}})  # fmt: skip
    yield "a jwk with kid and use", None, wit(jwk={"kid": "k", "use": "sig"})
    yield (
        "a WIT of 4096 bytes",
        None,
        lambda forge: forge.token(kafka(), wit=sized(forge, LONGEST)),
    )
    yield "a proof with other claims", None, token(claims={"role": "x", "nbf": NOW})
    yield "alg Ed25519 in jwk and proof", None, lambda forge: forge.token(
        kafka(), wit=forge.wit(jwk={"alg": "Ed25519"}), header={"alg": "Ed25519"})  # fmt: skip
    yield "alg Ed25519 of the authority", None, wit(header={"alg": "Ed25519"})
    yield "a workload's key on P-256", None, lambda forge: forge.token(
        kafka(), wit=forge.authority.wit(WORKLOAD, curve), key=curve)  # fmt: skip
    longest = f"{TRUST_DOMAIN}/{'a' * (255 - len(TRUST_DOMAIN))}"
    yield "a sub of 256 characters", None, wit(claims={"sub": longest})
    yield "on RabbitMQ", None, lambda forge: forge.seal(rabbit())
    yield "a direct token beside", None, lambda forge: FORGE.token(kafka())


def policed() -> Iterator[tuple[str, str | None, Build]]:
    """Yield tokens for a rule that asks for claims."""
    for name, reason, env in (("prod", None, "prod"), ("dev", "producer_forbidden", "dev"),
                              ("a list", "producer_forbidden", ["prod"])):  # fmt: skip
        yield f"a WIT of env {name}", reason, wit(claims={"env": env})
    yield "env in the proof alone", "producer_forbidden", token(claims={"env": "prod"})
    yield "a WIT of env prod, elsewhere", "producer_forbidden", lambda forge: forge.seal(
        stock(), wit=forge.wit(claims={"env": "prod"}))  # fmt: skip
    yield "no env", "producer_forbidden", token()


def key_sets() -> dict[str, Any]:
    """Return the sets of the authority by name; a consumer begins with ``honest``."""
    own = SINGLE.authority.key
    other = replace(edwards("another authority", subjects=None), kid=own.kid)
    sets = {
        "honest": KeySet([own]),
        "revoked": KeySet([replace(own, revocation=Revocation(reason="stolen"))]),
        "revoked later": KeySet(
            [replace(own, revocation=Revocation(revoked_at=NOW - 5))]
        ),
        "retired": KeySet([replace(own, expires=NOW)]),
        "gone": KeySet([edwards("another authority", subjects=None)]),
        "another key": KeySet([other]),
        "cut off": KeySet([own], (), {WORKLOAD: Cutoff(before=CUT, reason="stolen")}),
        "another is cut off": KeySet(
            [own], (), {OTHER_WORKLOAD: Cutoff(before=NOW + 60)}
        ),
        "limited to another": KeySet(
            [replace(own, subjects=frozenset((OTHER_WORKLOAD,)))]
        ),
    }
    found = {name: jwk.dump_key_set(keys) for name, keys in sets.items()}
    return found | {
        name: found["honest"] | {"mqauth_cutoff": cut}
        for name, cut in (CUT_OFF | UNREADABLE).items()
    }


ENTRY: Final = {"sub": WORKLOAD, "before": CUT}
CUT_OFF: Final[dict[str, Any]] = {
    "cut off without a word": [ENTRY],
    "cut off with no word": [ENTRY | {"reason": ""}],
    "cut off twice, the latest first": [{"sub": WORKLOAD, "before": CUT + 5}, ENTRY],
    "cut off twice, the latest last": [ENTRY, {"sub": WORKLOAD, "before": CUT + 5}],
}
UNREADABLE: Final[dict[str, Any]] = {
    "unreadable cut-off": [{"sub": WORKLOAD, "before": "x"}],
    "cut-offs that are an object": {}, "cut-offs that are text": "", "cut-offs that are null": None,
    "a cut-off that is a number": [1], "a cut-off without a subject": [{"before": CUT}],
    "a cut-off whose subject is a number": [{"sub": 1, "before": CUT}], "a cut-off without a time": [
        {"sub": WORKLOAD}], "a cut-off of a negative time": [{"sub": WORKLOAD, "before": -1}],
    "a cut-off of nobody": [{"sub": "", "before": CUT}],
    "a cut-off of a reason that is too long": [{"sub": WORKLOAD, "before": CUT, "reason": "x" * 257}],
    "a cut-off whose reason is a number": [{"sub": OTHER_WORKLOAD, "before": CUT, "reason": 1}],
    "a good cut-off beside a bad one": [{"sub": OTHER_WORKLOAD, "before": CUT}, {}],
}  # fmt: skip
LONG: Final = {"as many cut-offs as may be": 1024, "a cut-off too many": 1025}
"""Sets with so many entries like that of ``cut off without a word``."""


def consumers() -> dict[str, Any]:
    """Return the settings that each consumer has in place of the common ones."""
    strict = [
        {
            "subject": WORKLOAD,
            "issuer": TRUST_DOMAIN,
            "destinations": [KAFKA],
            "claims": {"env": "prod"},
        }
    ]
    return {
        "common": {}, "by claims": {"allow": strict}, "without trust domain": {"trust_domain": None},
        "limits the authority": {"subjects": {"*": [OTHER_WORKLOAD]}},
        "at append": {"at": "append", "max_queue_age": 600},
    }  # fmt: skip


def _message(built: str | Message) -> Message:
    return with_token(kafka(), built) if isinstance(built, str) else built


def cases(forge: FixedIdentityForge) -> Iterator[Case]:
    """Yield every attack and every honest message, in the form of a forge."""
    for name, reason, build in (
        *taken(),
        *parts(),
        *headers(),
        *claimed(),
        *confirmed(),
        *subjects(),
        *pairs(),
    ):
        yield Case(f"{forge.form}: {name}", _message(build(forge)), reason)
    for name, reason, build, received in times():
        yield Case(
            f"{forge.form}: {name}", _message(build(forge)), reason, received=received
        )
    for name, reason, build in policed():
        yield Case(
            f"{forge.form}: by claims, {name}",
            _message(build(forge)),
            reason,
            "by claims",
        )
    yield Case(
        f"{forge.form}: without trust domain",
        forge.seal(kafka()),
        "token_type",
        "without trust domain",
    )
    yield Case(f"{forge.form}: a subject beyond the limits", forge.seal(kafka()), "subject_mismatch",
               "limits the authority")  # fmt: skip
    for name, reason, key_set in _keyed():
        yield Case(f"{forge.form}: {name}", forge.seal(kafka()), reason, key_set=key_set)
    for name, reason, changes in (
        ("before", "key_revoked", {"iat": CUT - 1}), ("at", None, {"iat": CUT}), ("after", None, {"iat": CUT + 1}),
        ("and no iat", "key_revoked", {"iat": REMOVED}),
    ):  # fmt: skip
        message = forge.seal(kafka(), wit=forge.wit(claims=changes))
        yield Case(
            f"{forge.form}: cut off, a WIT {name}", message, reason, key_set="cut off"
        )
    for name, reason, iat in (
        *((name, "key_revoked", CUT - 1) for name in (*CUT_OFF, "as many cut-offs as may be")),
        *((name, "key_revoked", CUT + 4) for name in CUT_OFF if "twice" in name),
        *((name, None, CUT + 5) for name in CUT_OFF if "twice" in name),
        *((name, None, CUT - 1) for name in (*UNREADABLE, "a cut-off too many") if name != "unreadable cut-off"),
    ):  # fmt: skip
        message = forge.seal(kafka(), wit=forge.wit(claims={"iat": iat}))
        yield Case(f"{forge.form}: {name}, a WIT of {iat}", message, reason, key_set=name)
    for name, reason, seconds in (("before", None, CUT - 1), ("at", "key_revoked", CUT)):
        origin = Origin(
            topic="orders",
            partition=0,
            offset=1,
            timestamp_ms=1000 * seconds,
            timestamp_type="append",
        )
        old = forge.seal(
            kafka(),
            wit=forge.wit(claims={"iat": NOW - 60, "exp": NOW + 600}),
            claims={"iat": NOW - 60},
        )
        yield Case(f"{forge.form}: cut off, appended {name}", replace(old, origin=origin), reason, "at append",
                   key_set="cut off")  # fmt: skip


def _keyed() -> Iterator[tuple[str, str | None, str]]:
    yield "a key of the authority that is revoked", "key_revoked", "revoked"
    yield "a key of the authority that has retired", "key_expired", "retired"
    yield "a key of the authority that is gone", "key_unknown", "gone"
    yield "another key of the authority under the kid", "signature_invalid", "another key"
    yield "another subject cut off", None, "another is cut off"
    yield "cut-offs that cannot be read", None, "unreadable cut-off"
    yield (
        "a key of the authority for another subject",
        "subject_mismatch",
        "limited to another",
    )


def sequences(forge: FixedIdentityForge) -> Iterator[tuple[str, list[Case]]]:
    """Yield deliveries one after the other at one consumer: what is remembered changes no verdict."""
    for name, reason, key_set in _keyed():
        again = forge.wit()
        yield (
            f"{forge.form}: remembered, then {name}",
            [
                Case("", at(forge.seal(kafka(), wit=again), 0)),
                Case("", at(forge.seal(kafka(), wit=again), 1), reason, key_set=key_set),
            ],
        )
    old = forge.wit(claims={"iat": CUT - 1})
    yield (
        f"{forge.form}: remembered, then cut off",
        [
            Case("", at(forge.seal(kafka(), wit=old), 0)),
            Case(
                "", at(forge.seal(kafka(), wit=old), 1), "key_revoked", key_set="cut off"
            ),
        ],
    )
    before = forge.wit(claims={"iat": CUT - 1})
    for name in (*UNREADABLE, "a cut-off too many"):
        yield (
            f"{forge.form}: cut off, and then {name}",
            [
                Case(
                    "",
                    at(forge.seal(kafka(), wit=before), 0),
                    "key_revoked",
                    key_set="cut off",
                ),
                Case(
                    "",
                    at(forge.seal(kafka(), wit=before), 1),
                    "key_revoked",
                    key_set=name,
                ),
                Case("", at(forge.seal(kafka(), wit=before), 2), key_set="honest"),
            ],
        )
    short = forge.wit(claims={"exp": NOW + 30})
    late = forge.seal(kafka(), wit=short, claims={"exp": NOW + 600})
    yield (
        f"{forge.form}: remembered, then ended",
        [
            Case("", at(forge.seal(kafka(), wit=short, claims={"exp": NOW + 600}), 0)),
            Case("", at(late, 1), "expired", received=NOW + 35),
        ],
    )
    jti = base64url.encode(seed(f"{forge.form} shared", 16)).decode()
    other = forge.authority.wit(OTHER_WORKLOAD, forge.neighbour)
    yield (
        f"{forge.form}: another subject with the same jti burns nothing",
        [
            Case(
                "",
                placed(
                    forge.seal(
                        stock(), wit=other, key=forge.neighbour, claims={"jti": jti}
                    )
                ),
            ),
            Case("", at(forge.seal(kafka(), claims={"jti": jti}), 1)),
            Case("", at(forge.seal(kafka(), claims={"jti": jti}), 2), "replayed"),
        ],
    )
    renewed = forge.wit(claims={"iat": NOW - 1})
    yield (
        f"{forge.form}: a renewed WIT and the same jti",
        [
            Case("", at(forge.seal(kafka(), claims={"jti": f"{jti}2"}), 0)),
            Case(
                "",
                at(forge.seal(kafka(), wit=renewed, claims={"jti": f"{jti}2"}), 1),
                "replayed",
            ),
        ],
    )


def siblings() -> Iterator[tuple[str, list[Case]]]:
    """Yield siblings of one batch, between which the authority's set changes or the WIT ends."""
    messages = [kafka(body=b"%d" % number) for number in range(3)]
    sets = [*_keyed(), ("cut off", "key_revoked", "cut off")]
    for name, reason, key_set in sets:
        one = forge_batch(SINGLE, messages, wit=SINGLE.wit(claims={"iat": CUT - 1}))
        yield (
            f"siblings, then {name}",
            [
                Case("", at(one.seal(0), 0)),
                Case("", at(one.seal(1), 1), reason, key_set=key_set),
                Case("", at(one.seal(2), 2), key_set="honest"),
            ],
        )
    short = forge_batch(
        SINGLE,
        messages,
        wit=SINGLE.wit(claims={"exp": NOW + 30}),
        claims={"exp": NOW + 600},
    )
    yield (
        "siblings, then ended",
        [
            Case("", at(short.seal(0), 0)),
            Case("", at(short.seal(1), 1), received=NOW + 34),
            Case("", at(short.seal(2), 2), "expired", received=NOW + 35),
        ],
    )


def placed(message: Message) -> Message:
    """Return a record of the other topic with its place."""
    return replace(message, origin=Origin(topic="stock", partition=0, offset=0))


def stock() -> Message:
    """Return an honest message of the other workload."""
    return replace(kafka(), destination=STOCK)


def identities() -> dict[str, Any]:
    """Return messages of the identity form with the verdict on them, and the consumers that give it."""
    SINGLE.count = BATCH.count = 0
    longest = f"{TRUST_DOMAIN}/{'a' * (255 - len(TRUST_DOMAIN))}"
    allowed = {WORKLOAD: [KAFKA, RABBITMQ], longest: [KAFKA], OTHER_WORKLOAD: [STOCK]}
    rules = [
        {"subject": who, "issuer": TRUST_DOMAIN, "destinations": places}
        for who, places in allowed.items()
    ]
    return {
        "profile": 1, "experimental": True,
        "received": NOW,
        "consumer": {
            "issuer": ISSUER, "jwks": jwk.dump_key_set(FORGE.keys), "trust_domain": TRUST_DOMAIN, "subjects": None,
            "audience": AUDIENCE, "leeway": 5, "max_lifetime": 3600, "max_identity_lifetime": 3600,
            "allow": [*rules, {"subject": SUBJECT, "issuer": ISSUER, "destinations": [KAFKA]}],
        },
        "consumers": consumers(), "key_sets": key_sets(),
        "long_key_sets": {
            name: {"like": "cut off without a word", "cutoffs": size} for name, size in LONG.items()
        },
        "vectors": [case.form() for forge in (SINGLE, BATCH) for case in cases(forge)],
        "sequences": [
            {"name": name, "deliveries": [case.form() for case in deliveries]}
            for name, deliveries in (*sequences(SINGLE), *sequences(BATCH), *siblings())
        ],
    }  # fmt: skip
