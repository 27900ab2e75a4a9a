"""The vectors of what is easily taken otherwise: each message answers one question of another implementation."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from mqauth.testing.forge import REMOVED, with_token
from mqauth.wire import base64url, envelope, jwk, strict_json
from mqauth.wire.jws import LocalSigningKey
from mqauth.wire.keys import Key, KeySet, Revocation
from mqauth.wire.message import Message
from tests.test_ed25519 import BASE, ORDER, SMALL, add, encoded, number, times
from tests.vectors.edges import edges
from tests.vectors.readers import PROTOTYPE
from tests.vectors.world import (
    FORGE,
    KEYS,
    NOW,
    Case,
    added,
    edwards,
    judged,
    kafka,
    pss,
    rabbit,
    seed,
    signature,
)

AHEAD: Final = edwards("revoked ahead", revocation=Revocation(revoked_at=NOW + 1))
SINCE: Final = edwards("revoked since", revocation=Revocation(revoked_at=NOW))
RETIRED: Final = edwards("retired now", expires=NOW)
P256: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""The order of P-256 (FIPS 186-5; SEC 2, section 2.4.2)."""
TOO_LATE: Final = datetime(2106, 2, 7, 6, 28, 16, tzinfo=UTC)
DECIMAL: Final = "a covered decimal of "
FACE: Final = "\U0001f600"


def answers() -> dict[str, Any]:
    """Return messages with the verdict on them, and the consumer of ``tokens.json`` with three keys more."""
    found = judged([*accepted(), *rejected(), *edges()], {})
    for vector in found["vectors"]:
        name, decimal, text = vector["name"].partition(DECIMAL)
        if (
            decimal and not name
        ):  # our own writer names what no broker carries, and keeps none of it
            vector["message"]["headers"][0][1] = {"decimal": text}
    consumer = found["consumer"] | {
        "user_id": "subject",
        "jwks": jwk.dump_key_set(KeySet([*FORGE.keys, AHEAD, SINCE, RETIRED])),
    }
    return {"profile": 1} | found | {"consumer": consumer}


TRACED: Final = (
    "b3", "X-B3-TraceId", "sentry-trace", "x-datadog-trace-id", "uber-trace-id", "uberctx-user", "X-Amzn-Trace-Id",
    "x-cloud-trace-context", "newrelic", "elastic-apm-traceparent", "x-shovelled", "x-shovelled-timestamp",
    "x-received-from", "x-original-exchange", "x-original-routing-key",
)  # fmt: skip


def traced(value: bytes = b"1") -> Message:
    """Return a message with the headers that tracing systems and shovels add."""
    return kafka(headers=(("tenant", b"acme"), *((name, value) for name in TRACED)))


def retraced(sealed: Message) -> Message:
    """Return a sealed message whose tracing headers all have changed on the way."""
    return replace(sealed, headers=(*traced(b"2").headers, sealed.headers[-1]))


def accepted() -> list[Case]:
    """Return messages that are verified and handled."""
    found = [
        ("a covered name of transports that stays absent", FORGE.seal(kafka(), cover=["tenant", "X-Death"])),
        ("another name of transports in upper case", added(FORGE.seal(kafka()), "X-Death", b"1")),
        ("names of tracing are left out, so that they may change", retraced(FORGE.seal(traced()))),
        ("a covered b3 that stays as it was", FORGE.seal(traced(), cover=["b3"])),
        ("letters beyond ASCII have no case", added(FORGE.seal(named("\u00c4")), "\u00e4", b"2")),
        ("the Kelvin sign is no k", added(FORGE.seal(named("key")), "\u212aey", b"2")),
        ("the Kelvin sign in the token's name", added(FORGE.seal(kafka()), "mqauth-to\u212aen", b"2")),
        ("an id of 16 characters beyond the BMP", FORGE.seal(kafka(), claims={"jti": FACE * 16})),
        ("an id of 128 characters beyond the BMP", FORGE.seal(kafka(), claims={"jti": FACE * 128})),
        ("an uncovered time after 2106", FORGE.seal(rabbit(headers=(("at", TOO_LATE),)), cover=[])),
        ("the last time", FORGE.seal(rabbit(headers=(("at", datetime(2106, 2, 7, 6, 28, 15, tzinfo=UTC)),)))),
        ("the largest decimal", FORGE.seal(rabbit(headers=(("price", Decimal("21474836.47")),)))),
        ("the least decimal", FORGE.seal(rabbit(headers=(("price", Decimal("-2147483648")),)))),
        ("a table sorted by UTF-8 and not by UTF-16",
         FORGE.seal(rabbit(headers=(("table", {FACE: 1, "\uff5e": 2}),)))),
        ("an ECDSA signature with a high S", by(KEYS["ES256"], high_s)),
        ("a key that will be revoked", FORGE.seal(kafka(), key=AHEAD)),
        ("issued a second before its key retired", FORGE.seal(kafka(), key=RETIRED, claims={"iat": NOW - 1})),
        ("user_id is the subject", replace(FORGE.seal(rabbit()), properties=user("orders-api"))),
        *((f"a covered header by the name {name}", FORGE.seal(rabbit(headers=((name, {name: "admin"}),))))
          for name in PROTOTYPE),
        ("claims by names that an object of JavaScript has", FORGE.seal(
            kafka(), claims={name: {name: "admin"} for name in PROTOTYPE})),
        ("an exponent in a claim of others", FORGE.seal(kafka(), payload=raw(b'}', b',"x":1e3}'))),
    ]  # fmt: skip
    return [(name, message, "accepted", None) for name, message in found]


def rejected() -> list[Case]:
    """Return messages that are dead-lettered, with the reason."""
    rsa: Any = KEYS["PS256"].private
    found = [
        *headers(), *sizes(), *orders(), *controls(),
        ("a record key on RabbitMQ", FORGE.seal(rabbit(), binding={"key": base64url.digest(b"42")}),
         "record_key_mismatch"),
        ("a key revoked this second", FORGE.seal(kafka(), key=SINCE), "key_revoked"),
        ("issued the second its key retired", FORGE.seal(kafka(), key=RETIRED), "key_expired"),
        ("user_id is empty", replace(FORGE.seal(rabbit()), properties=user("")), "subject_mismatch"),
        ("user_id is another subject", replace(FORGE.seal(rabbit()), properties=user("stock-api")),
         "subject_mismatch"),
        ("an Ed25519 signature whose S is not below the order", beyond_the_order(), "signature_invalid"),
        ("an Ed25519 signature that only a cofactor of 8 lets hold", cofactored(), "signature_invalid"),
        ("an ECDSA signature in DER", by(KEYS["ES256"], der), "signature_invalid"),
        ("an ECDSA signature of zeros", by(KEYS["ES256"], lambda _data: bytes(64)), "signature_invalid"),
        *((f"a PSS salt of {size} bytes", by(KEYS["PS256"], salted(rsa, size)), "signature_invalid")
          for size in (0, 20, 222)),
        ("a PKCS #1 v1.5 signature under PS256", by(KEYS["PS256"], lambda data: rsa.sign(
            data, padding.PKCS1v15(), hashes.SHA256())), "signature_invalid"),
        ("version 1.0", FORGE.seal(kafka(), payload=raw(b'"v":1', b'"v":1.0')), "claims_malformed"),
        ("version true", FORGE.seal(kafka(), binding={"v": True}), "claims_malformed"),
        ("a time with an exponent", FORGE.seal(kafka(), payload=raw(b"1900000000", b"19e8")), "claims_malformed"),
        ("a byte order mark", FORGE.seal(kafka(), payload=raw(b'{"iss"', b'\xef\xbb\xbf{"iss"')),
         "claims_malformed"),
    ]  # fmt: skip
    return [(name, message, "rejected", reason) for name, message, reason in found]


def headers() -> list[tuple[str, Message, str]]:
    """Return messages whose headers or their names cannot be bound."""
    names = ["tenant", "absent", "Absent"]
    twins = FORGE.seal(
        kafka(),
        binding={
            "hdr": names,
            "hds": base64url.digest(envelope.headers_input(kafka(), names)),
        },
    )
    return [(name, message, "headers_mismatch") for name, message in [
        ("two covered names that differ in case, neither present", twins),
        ("a covered name of transports that one adds", added(
            FORGE.seal(kafka(), cover=["tenant", "traceparent"]), "traceparent", b"00-x")),
        ("the token's own name covered", FORGE.seal(kafka(), cover=["tenant", "mqauth-token"])),
        ("a covered name of transports in another case", added(
            FORGE.seal(kafka(), cover=["X-Death"]), "x-death", b"1")),
        ("ASCII letters in another case beside others", added(FORGE.seal(named("\u00e4A")), "\u00e4a", b"2")),
        ("a covered time after 2106", covered(TOO_LATE, b"T", "4294967296")),
        ("a covered time before 1970", covered(datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC), b"T", "-1")),
        *((f"{DECIMAL}{text}", covered(Decimal(text), b"D", text))
          for text in ("21474836.48", "-2147483649", f"{Decimal(1).scaleb(-256):f}", "-0.0")),
    ]]  # fmt: skip


def sizes() -> list[tuple[str, Message, str]]:
    """Return messages with what is too large or too small, in bytes or in characters."""
    return [
        ("bytes in place of text on RabbitMQ, too large", added(rabbit(), "mqauth-token", b"x" * 8193),
         "token_malformed"),
        ("8194 bytes of 4097 characters", with_token(rabbit(), "\u00e9" * 4097), "token_oversize"),
        ("8192 bytes of 4096 characters", with_token(rabbit(), "\u00e9" * 4096), "token_malformed"),
        ("8192 bytes", with_token(kafka(), "x" * 8192), "token_malformed"),
        ("8193 bytes", with_token(kafka(), "x" * 8193), "token_oversize"),
        ("an id of 15 characters beyond the BMP", FORGE.seal(kafka(), claims={"jti": FACE * 15}),
         "claims_malformed"),
        ("an id of 129 characters", FORGE.seal(kafka(), claims={"jti": "j" * 129}), "claims_malformed"),
        ("a digest whose unused bits are not zero", FORGE.seal(kafka(), binding={"bod": "A" * 42 + "B"}),
         "claims_malformed"),
    ]  # fmt: skip


def orders() -> list[tuple[str, Message, str]]:
    """Return messages with two faults: the first step that fails decides."""
    other = kafka(body=b"other")
    return [
        ("a claim missing beside a malformed one", FORGE.seal(kafka(), claims={"iss": 1, "mqa": REMOVED}),
         "claim_missing"),
        ("a member of mqa missing is no claim missing", FORGE.seal(kafka(), binding={"hdr": REMOVED}),
         "claims_malformed"),
        ("claims malformed before an issuer nobody trusts", FORGE.seal(kafka(), claims={"iss": "x", "exp": "1"}),
         "claims_malformed"),
        ("typ before other parameters", FORGE.seal(kafka(), header={"typ": "JWT", "jku": "x"}), "token_type"),
        ("other parameters before alg", FORGE.seal(kafka(), header={"alg": "none", "jku": "x"}),
         "header_forbidden"),
        ("kid before typ", FORGE.seal(kafka(), header={"kid": "", "typ": "JWT"}), "token_malformed"),
        ("the key revoked before its algorithm", FORGE.seal(kafka(), key=SINCE, header={"alg": "ES256"}),
         "key_revoked"),
        ("the signature before the audience", FORGE.seal(kafka(), signature=bytes(64), claims={"aud": "x"}),
         "signature_invalid"),
        ("the audience before the times", FORGE.seal(kafka(), claims={"aud": "x", "exp": NOW - 60}),
         "audience_mismatch"),
        ("the retired key before the times", FORGE.seal(kafka(), key=RETIRED, claims={"exp": NOW - 60}),
         "key_expired"),
        ("iat before exp", FORGE.seal(kafka(), claims={"iat": NOW + 60, "exp": NOW - 60}), "issued_in_future"),
        ("nbf before exp", FORGE.seal(kafka(), claims={"nbf": NOW + 60, "exp": NOW - 60}), "not_yet_valid"),
        ("exp before lifetime", FORGE.seal(kafka(), claims={"iat": NOW - 9000, "exp": NOW - 60}), "expired"),
        ("the times before the subject", FORGE.seal(kafka(), claims={"sub": "x", "exp": NOW - 60}), "expired"),
        ("the subject before the destination", sent(FORGE.seal(kafka(), claims={"sub": "x"}), "kafka:other"),
         "subject_mismatch"),
        ("the destination before the record key", sent(replace(FORGE.seal(kafka()), key=b"x"), "kafka:other"),
         "destination_mismatch"),
        ("the record key before the body", replace(FORGE.seal(other), key=b"x", body=b""), "record_key_mismatch"),
        ("the body before the headers", replace(added(FORGE.seal(kafka()), "tenant", b"x"), body=b""),
         "body_mismatch"),
        ("the headers before the policy", added(FORGE.seal(kafka(destination="kafka:other")), "tenant", b"x"),
         "headers_mismatch"),
    ]  # fmt: skip


def controls() -> list[tuple[str, Message, str]]:
    """Return messages with control characters at the edges of both blocks."""
    return [
        (f"U+{ord(character):04X} in a {claim}", FORGE.seal(kafka(), claims={claim: f"{'a' * 16}{character}"}),
         "claims_malformed")
        for claim in ("sub", "jti") for character in "\x00\x1f\x7f\x85\x9f"
    ]  # fmt: skip


def named(name: str) -> Message:
    """Return a record with one header."""
    return kafka(headers=((name, b"1"),))


def covered(value: Any, tag: bytes, text: str) -> Message:
    """Return a message whose token covers a value that has no encoding, as a looser encoder would write it."""
    loose = tag + len(text).to_bytes(4, "big") + text.encode()
    like = envelope.headers_input(rabbit(headers=(("a", 1),)), ["a"])
    hds = base64url.digest(like.removesuffix(b"i\x00\x00\x00\x011") + loose)
    return FORGE.seal(
        rabbit(headers=(("a", value),)), cover=[], binding={"hdr": ["a"], "hds": hds}
    )


def user(name: str) -> Mapping[str, str]:
    """Return the honest properties with the user that RabbitMQ vouches for."""
    return {**rabbit().properties, "user-id": name}


def sent(message: Message, place: str) -> Message:
    """Return a message as it is delivered elsewhere."""
    return replace(message, destination=place)


def raw(old: bytes, new: bytes) -> bytes:
    """Return honest claims of which a text, at its last place, is another."""
    return new.join(strict_json.dumps(FORGE.claims(kafka())).rsplit(old, 1))


def by(key: Key, sign: Any, claims: Mapping[str, Any] | None = None) -> Message:
    """Return a message whose signature a function makes."""
    claims = FORGE.claims(kafka()) if claims is None else claims
    header = strict_json.dumps(
        {"alg": key.algorithm, "typ": "mqauth+jwt", "kid": key.kid}
    )
    data = base64url.encode(header) + b"." + base64url.encode(strict_json.dumps(claims))
    return with_token(kafka(), (data + b"." + base64url.encode(sign(data))).decode())


def low_s(data: bytes) -> bytes:
    """Return a signature with the lower one of the two values of S that hold."""
    found = signature(data, KEYS["ES256"])
    low = min(int.from_bytes(found[32:], "big"), P256 - int.from_bytes(found[32:], "big"))
    return found[:32] + low.to_bytes(32, "big")


def high_s(data: bytes) -> bytes:
    """Return the same signature with the other one."""
    found = low_s(data)
    return found[:32] + (P256 - int.from_bytes(found[32:], "big")).to_bytes(32, "big")


def der(data: bytes) -> bytes:
    """Return a signature as X.509 has it."""
    private: Any = KEYS["ES256"].private
    return bytes(
        private.sign(data, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
    )


def salted(private: RSAPrivateKey, size: int) -> Any:
    """Return what signs with a salt of a size; a salt of zeros keeps the vectors the same."""
    return lambda data: pss(data, private, bytes(size))


def beyond_the_order() -> Message:
    """Return a message whose S is the honest one and the order of the group."""

    def sign(data: bytes) -> bytes:
        found = LocalSigningKey(FORGE.key).sign(data)
        return found[:32] + (int.from_bytes(found[32:], "little") + ORDER).to_bytes(
            32, "little"
        )

    return by(FORGE.key, sign)


def cofactored() -> Message:
    """Return a message whose R has a part of small order, so that only a multiple of the equation holds."""
    private: Any = FORGE.key.private
    assert isinstance(private, ed25519.Ed25519PrivateKey)
    half = bytearray(hashlib.sha512(private.private_bytes_raw()).digest()[:32])
    half[0], half[31] = half[0] & 248, half[31] & 63 | 64
    secret, nonce = (
        int.from_bytes(half, "little"),
        int.from_bytes(seed("nonce"), "little") % ORDER,
    )
    commitment = encoded(add(times(nonce, BASE), SMALL[1]))

    def sign(data: bytes) -> bytes:
        hashed = number(commitment, private.public_key().public_bytes_raw(), data)
        return commitment + ((nonce + hashed * secret) % ORDER).to_bytes(32, "little")

    return by(FORGE.key, sign)
