"""Make the vectors of wire profile 1, byte for byte the same each time: keys, times, ids and salts are fixed.

    python tests/vectors/generate.py          writes hds.json, tokens.json and destinations.json beside this file

The private keys here are known to everybody: they sign vectors and nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from mqauth import base64url, destination, envelope, jwk, strictjson
from mqauth.jsonform import to_form
from mqauth.jws import LocalSigningKey
from mqauth.keys import Key, KeySet, PrivateKey, Revocation
from mqauth.message import Message, Origin
from mqauth.testing import ATTACKS, FakeClock, Forge
from mqauth.testing.attacks import honest_message
from mqauth.testing.forge import AUDIENCE, ISSUER, NEIGHBOUR, REMOVED, SUBJECT, with_token

NOW: Final = 1_900_000_000
FOLDER: Final = Path(__file__).parent
RABBITMQ: Final = "rabbitmq:shop/orders.created"
KAFKA: Final = "kafka:orders"
RSA_P: Final = int(
    "fe3bba8d09c2f619457534db2980ad4811672a67e82c17875440145fd3a39ee95948e245d583c58febba0d8cffb46c4e"
    "7bee47f05b13101bd944b13ed62f6fef7048e34e9a0c62b887fc93d2e4609048c6f796273056ad332a381bb74ead598b"
    "d4746c04e7407e6ab3b666f9a97d669b5a7a20e0908d92c653dde031751ba6b9",
    16,
)
RSA_Q: Final = int(
    "bb6b8f2124f9b948c724167f9fb92173ad9b73876999fb7df995f7958342e325018e245bcddffee99c3e470419696896"
    "b1b00df144b594ffc9219476f6017cfec91a418a91464727c451cd41871cbefbf80703dcd36ef51b68db1c74b37901a8"
    "273d3d5616f01d4618a9e9898e6eff4f08129e7244b8651029990b393dcf33bb",
    16,
)


def seed(name: str, size: int = 32) -> bytes:
    """Return fixed bytes for a name."""
    return hashlib.shake_256(b"mqauth vectors " + name.encode()).digest(size)


def edwards(name: str, **changes: Any) -> Key:
    """Return a fixed Ed25519 key of the honest producer."""
    return replace(
        Key.from_private(ed25519.Ed25519PrivateKey.from_private_bytes(seed(name)), subjects=[SUBJECT]), **changes
    )


def curve(algorithm: str, kind: ec.EllipticCurve) -> Key:
    """Return a fixed key on a curve."""
    secret = int.from_bytes(seed(algorithm), "big") >> 8
    return Key.from_private(ec.derive_private_key(secret, kind), subjects=[SUBJECT])


def rsa_key(algorithm: str) -> Key:
    """Return the fixed RSA key for one of its two algorithms; each has a kid of its own."""
    e, phi = 65537, (RSA_P - 1) * (RSA_Q - 1)
    d = pow(e, -1, phi)
    numbers = rsa.RSAPrivateNumbers(
        RSA_P,
        RSA_Q,
        d,
        d % (RSA_P - 1),
        d % (RSA_Q - 1),
        pow(RSA_Q, -1, RSA_P),
        rsa.RSAPublicNumbers(e, RSA_P * RSA_Q),
    )
    found = Key.from_private(numbers.private_key(), algorithm=algorithm, subjects=[SUBJECT])
    return replace(found, kid=f"{algorithm}-{found.kid}")


KEYS: Final = {
    "EdDSA": edwards("honest"),
    "ES256": curve("ES256", ec.SECP256R1()),
    "ES384": curve("ES384", ec.SECP384R1()),
    "PS256": rsa_key("PS256"),
    "RS256": rsa_key("RS256"),
}


def pss(data: bytes, private: rsa.RSAPrivateKey) -> bytes:
    """Return an RSASSA-PSS signature with a fixed salt (RFC 8017, sections 8.1.1 and 9.1.1)."""
    salt, size = seed("salt"), 256
    digest = hashlib.sha256(bytes(8) + hashlib.sha256(data).digest() + salt).digest()
    block = bytes(size - 2 * 32 - 2) + b"\x01" + salt
    blocks = (hashlib.sha256(digest + count.to_bytes(4, "big")).digest() for count in range(7))
    mask = b"".join(blocks)[: len(block)]
    masked = bytearray(left ^ right for left, right in zip(block, mask, strict=True))
    masked[0] &= 0x7F
    numbers = private.private_numbers()
    encoded = int.from_bytes(bytes(masked) + digest + b"\xbc", "big")
    return pow(encoded, numbers.d, numbers.public_numbers.n).to_bytes(size, "big")


def signature(data: bytes, key: Key) -> bytes:
    """Return a signature that is the same each time."""
    private: PrivateKey | None = key.private
    if isinstance(private, ec.EllipticCurvePrivateKey):
        kind = hashes.SHA256() if key.algorithm == "ES256" else hashes.SHA384()
        r, s = decode_dss_signature(private.sign(data, ec.ECDSA(kind, deterministic_signing=True)))
        size = private.key_size // 8
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")
    if isinstance(private, rsa.RSAPrivateKey) and key.algorithm == "PS256":
        return pss(data, private)
    return LocalSigningKey(key).sign(data)


class FixedForge(Forge):
    """The forge with fixed keys and ids."""

    def __init__(self) -> None:
        super().__init__(FakeClock(NOW))
        self.key = KEYS["EdDSA"]
        self.neighbour = edwards("neighbour", subjects=frozenset([NEIGHBOUR]))
        self.stranger = edwards("stranger")
        self.retired = edwards("retired", expires=NOW - 3600)
        self.revoked = edwards("revoked", revocation=Revocation(reason="stolen"))
        self.count = 0

    @property
    def keys(self) -> KeySet:
        """Every key but the stranger's."""
        return KeySet([*KEYS.values(), self.neighbour, self.retired, self.revoked])

    def claims(self, message: Message, *, cover: Any = None) -> dict[str, Any]:
        """Return honest claims with the next id."""
        self.count += 1
        jti = base64url.encode(seed(f"jti {self.count}", 16)).decode()
        return super().claims(message, cover=cover) | {"jti": jti}

    def signed(self, message: Message, header: bytes, payload: bytes, key: Key) -> Message:
        """Return the message with a token of exactly these bytes."""
        data = base64url.encode(header) + b"." + base64url.encode(payload)
        return with_token(message, (data + b"." + base64url.encode(signature(data, key))).decode())


FORGE: Final = FixedForge()
EVERY_TYPE: Final[tuple[tuple[str, Any], ...]] = (
    ("null", None), ("true", True), ("false", False), ("zero", 0), ("negative", -1), ("int64", 2**63 - 1),
    ("least", -(2**63)), ("uint64", 2**64 - 1), ("float", 0.5), ("minus zero", -0.0), ("nan", float("nan")),
    ("infinity", float("inf")), ("text", "é\U0001f600"), ("empty text", ""), ("bytes", b"\x00\xff"),
    ("no bytes", b""),
    ("time", datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)), ("decimal", Decimal("12.50")),
    ("list", (1, ("a", b"b"), None)),
    ("empty list", ()), ("table", {"b": 1, "a": {"é": (True,)}}), ("empty table", {}),
)  # fmt: skip


def rabbit(**changes: Any) -> Message:
    """Return an honest message on RabbitMQ."""
    return replace(honest_message(RABBITMQ), **changes)


def kafka(**changes: Any) -> Message:
    """Return an honest message on Kafka."""
    return replace(honest_message(KAFKA), **changes)


def hds_cases() -> list[tuple[str, Message, list[str]]]:
    """Return messages with the names to cover."""
    reply = {"reply-to": "amq.rabbitmq.reply-to.g2dkABByYWJiaXQ"}
    seven = ("content-type", "content-encoding", "type", "message-id", "correlation-id", "reply-to", "app-id")
    return [
        ("nothing at all", rabbit(properties={}, headers=()), []),
        ("every property", rabbit(properties={name: name.upper() for name in seven}, headers=()), []),
        ("an empty property is not an absent one", rabbit(properties={"type": ""}, headers=()), []),
        ("direct reply-to without its suffix", rabbit(properties=reply, headers=()), []),
        ("a covered header that is absent", rabbit(properties={}, headers=()), ["absent"]),
        ("names in the order of hdr", rabbit(headers=(("a", 1), ("b", 2))), ["b", "a"]),
        ("an uncovered header counts for nothing", rabbit(headers=(("a", 1), ("b", 2))), ["a"]),
        ("every type of value", rabbit(headers=EVERY_TYPE), [name for name, _ in EVERY_TYPE]),
        ("Kafka: properties are headers", kafka(), ["tenant"]),
        ("Kafka: direct reply-to is bound whole", kafka(headers=(("reply-to", b"amq.rabbitmq.reply-to.x"),)), []),
        ("Kafka: every occurrence in order", kafka(headers=(("a", b"1"), ("b", b""), ("a", None), ("a", b"2"))),
        ["a", "b"]),
        ("Kafka: a property that stands twice", kafka(headers=(("type", b"1"), ("type", b"2"))), []),
        ("Kafka: bytes that are no UTF-8", kafka(headers=(("raw", b"\xff\xfe"),)), ["raw"]),
    ]  # fmt: skip


def hds() -> dict[str, Any]:
    """Return the vectors of the headers digest: what goes in, the exact bytes hashed, and the digest."""
    vectors = []
    for name, message, names in hds_cases():
        raw = envelope.headers_input(message, names)
        vectors.append(
            {
                "name": name,
                "message": to_form(message),
                "hdr": names,
                "input_hex": raw.hex(),
                "hds": base64url.digest(raw),
            }
        )
    return {"profile": 1, "vectors": vectors}


def destinations() -> dict[str, Any]:
    """Return names with their canonical destinations, and texts that are none."""
    pairs = [("shop", "orders.created"), ("", "queue"), ("", ""), ("a/b", "c d"), ("é", "*.#"), ("-._~", "%41")]
    topics = ["orders", "orders.v1", "a_b-c", "%", "é"]
    return {
        "profile": 1,
        "rabbitmq": [{"exchange": e, "routing_key": k, "destination": destination.rabbitmq(e, k)} for e,
        k in pairs],
        "kafka": [{"topic": topic, "destination": destination.kafka(topic)} for topic in topics],
        "malformed": [
            "", "orders", "kafka:", "kafka:a/b", "rabbitmq:a", "rabbitmq:a/b/c", "KAFKA:a", "kafka:%61",
            "kafka:a%2fb",
            "kafka:%FF", "kafka:%C0%AF", "kafka:%ED%A0%80", "kafka:é", "kafka:a b", "kafka:%", "redis:a",
        ],
    }  # fmt: skip


Case = tuple[str, Message, str, str | None]


def accepted() -> list[Case]:
    """Return messages that are verified and handled."""
    reply, sent = "amq.rabbitmq.reply-to", rabbit(properties={"reply-to": "amq.rabbitmq.reply-to"})
    bound = FORGE.seal(sent)
    found = [(f"signed with {algorithm}", by(key)) for algorithm, key in KEYS.items()]
    found += [
        ("alg Ed25519 is EdDSA", FORGE.seal(kafka(), header={"alg": "Ed25519"})),
        ("on RabbitMQ", FORGE.seal(rabbit())),
        ("every type of value", FORGE.seal(rabbit(headers=EVERY_TYPE))),
        ("a tombstone", FORGE.seal(kafka(body=None))),
        ("an empty body", FORGE.seal(kafka(body=b""))),
        ("no record key", FORGE.seal(kafka(key=None))),
        ("an empty record key", FORGE.seal(kafka(key=b""))),
        ("no headers", FORGE.seal(kafka(headers=()))),
        ("names that repeat", FORGE.seal(kafka(headers=(("a", b"1"), ("a", None), ("a", b"1"))))),
        ("names in another order", moved(FORGE.seal(kafka(headers=(("a", b"1"), ("b", b"2")))))),
        ("an uncovered header beside", FORGE.seal(kafka(), cover=[])),
        ("an added header of a transport", added(FORGE.seal(kafka()), "traceparent", b"00-x")),
        ("an added header of the application", added(FORGE.seal(kafka()), "debug", b"1")),
        ("direct reply-to with the broker's suffix", replace(bound, properties={"reply-to": f"{reply}.g2dkAB"})),
        ("an unknown claim", FORGE.seal(kafka(), claims={"role": {"x": [1, None]}})),
        ("not before now", FORGE.seal(kafka(), claims={"nbf": NOW})),
        ("issued at the edge of the leeway", timed(NOW + 5, NOW + 60)),
        ("expiring at the edge of the leeway", timed(NOW - 60, NOW - 4)),
        ("living as long as may be", timed(NOW, NOW + 3600)),
        ("names of 256 and an id of 128 characters", FORGE.seal(kafka(), claims={"jti": "j" * 128})),
        ("claims nested 8 deep", FORGE.seal(kafka(), claims={"x": nested(7)})),
    ]  # fmt: skip
    return [(name, message, "accepted", None) for name, message in found]


def by(key: Key) -> Message:
    """Return an honest message signed with a key of any algorithm."""
    header = strictjson.dumps({"alg": key.algorithm, "typ": "mqauth+jwt", "kid": key.kid})
    return FORGE.signed(kafka(), header, strictjson.dumps(FORGE.claims(kafka())), key)


def timed(iat: int, exp: int) -> Message:
    """Return a message with these times."""
    return FORGE.seal(kafka(), claims={"iat": iat, "exp": exp})


def nested(depth: int) -> Any:
    """Return lists in each other."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def added(message: Message, name: str, value: Any) -> Message:
    """Return a message with one more header."""
    return replace(message, headers=(*message.headers, (name, value)))


def moved(message: Message) -> Message:
    """Return a message with its headers in reverse."""
    return replace(message, headers=message.headers[::-1])


def retoken(bend: Callable[[str], str]) -> Message:
    """Return a message whose good token was bent as text."""
    return with_token(kafka(), bend(FORGE.token(kafka())))


def payload(bend: Callable[[bytes], bytes]) -> Message:
    """Return a message whose signed claims are these bytes."""
    return FORGE.seal(kafka(), payload=bend(strictjson.dumps(FORGE.claims(kafka()))))


def header(raw: bytes) -> Message:
    """Return a message whose signed JOSE header is these bytes."""
    return FORGE.signed(kafka(), raw, strictjson.dumps(FORGE.claims(kafka())), FORGE.key)


def rejected() -> list[Case]:
    """Return messages that are dead-lettered, with the reason."""
    found: list[tuple[str, Message, str]] = []
    for place in (KAFKA, RABBITMQ):
        fitting = (attack for attack in ATTACKS if attack.fits(place))
        found += [
            (f"{attack.name} on {place}", attack.mount(FORGE, honest_message(place)), attack.reason.value)
            for attack in fitting
        ]
    kid = FORGE.key.kid
    found += [
        ("the header in another case", with_token(kafka(), FORGE.token(kafka()), name="Mqauth-Token"),
        "token_missing"),
        ("one token twice", with_token(FORGE.seal(kafka()), FORGE.token(kafka())), "token_repeated"),
        ("a null token", added(kafka(), "mqauth-token", None), "token_malformed"),
        ("a token of bytes on RabbitMQ", added(rabbit(), "mqauth-token", b"a.b.c"), "token_malformed"),
        ("a padded signature", retoken(lambda token: token + "=="), "token_malformed"),
        ("a fourth segment", retoken(lambda token: token + ".e30"), "token_malformed"),
        ("a line break", retoken(lambda token: token + "\n"), "token_malformed"),
        ("bits that no canonical text has", retoken(lambda token: token[:-1] + "B"), "token_malformed"),
        ("no signature", retoken(lambda token: token[: token.rindex(".") + 1]), "signature_invalid"),
        ("a header with a name twice", header(
            b'{"alg":"EdDSA","alg":"EdDSA","typ":"mqauth+jwt","kid":"%s"}' % kid.encode()), "token_malformed"),
        ("a header that is a list", header(b"[]"), "token_malformed"),
        ("no kid", FORGE.seal(kafka(), header={"kid": REMOVED}), "token_malformed"),
        ("a kid of 129 characters", FORGE.seal(kafka(), header={"kid": "k" * 129}), "token_malformed"),
        ("typ in upper case", FORGE.seal(kafka(), header={"typ": "MQAUTH+JWT"}), "token_type"),
        ("no typ", FORGE.seal(kafka(), header={"typ": REMOVED}), "token_type"),
        ("a critical extension", FORGE.seal(kafka(), header={"crit": ["b64"], "b64": False}), "header_forbidden"),
        ("an embedded key", FORGE.seal(kafka(), header={"jwk": {}}), "header_forbidden"),
        ("no alg", FORGE.seal(kafka(), header={"alg": REMOVED}), "algorithm_forbidden"),
        ("alg in another case", FORGE.seal(kafka(), header={"alg": "eddsa"}), "algorithm_forbidden"),
        ("a claim twice", payload(lambda raw: raw[:-1] + b',"sub":"orders-api"}'), "claims_malformed"),
        ("a name twice within mqa", payload(lambda raw: raw.replace(b'"v":1', b'"v":1,"v":1')),
        "claims_malformed"),
        ("NaN", payload(lambda raw: raw[:-1] + b',"x":NaN}'), "claims_malformed"),
        ("an integer beyond 2^53", payload(lambda raw: raw[:-1] + b',"x":9007199254740993}'), "claims_malformed"),
        ("a number that overflows", payload(lambda raw: raw[:-1] + b',"x":1e999}'), "claims_malformed"),
        ("a lone surrogate", payload(lambda raw: raw[:-1] + b',"x":"\\ud800"}'), "claims_malformed"),
        ("bytes that are no UTF-8", payload(lambda raw: raw[:-1] + b',"x":"\xff"}'), "claims_malformed"),
        ("claims nested 9 deep", FORGE.seal(kafka(), claims={"x": nested(8)}), "claims_malformed"),
        ("claims that are a list", payload(lambda raw: b"[" + raw + b"]"), "claims_malformed"),
        ("a boolean time", FORGE.seal(kafka(), claims={"iat": True}), "claims_malformed"),
        ("a time with a fraction", payload(lambda raw: raw.replace(b'"iat":1900000000', b'"iat":1900000000.0')),
         "claims_malformed"),
        ("a negative time", FORGE.seal(kafka(), claims={"iat": -1}), "claims_malformed"),
        ("an empty subject", FORGE.seal(kafka(), claims={"sub": ""}), "claims_malformed"),
        ("a subject of 257 characters", FORGE.seal(kafka(), claims={"sub": "s" * 257}), "claims_malformed"),
        ("a control character", FORGE.seal(kafka(), claims={"sub": "a\n"}), "claims_malformed"),
        ("an id of 15 characters", FORGE.seal(kafka(), claims={"jti": "j" * 15}), "claims_malformed"),
        ("a list of audiences", FORGE.seal(kafka(), claims={"aud": [AUDIENCE]}), "claims_malformed"),
        ("profile 2", FORGE.seal(kafka(), binding={"v": 2}), "claims_malformed"),
        ("an unknown member of mqa", FORGE.seal(kafka(), binding={"x": 1}), "claims_malformed"),
        ("a member of mqa left out", FORGE.seal(kafka(), binding={"key": REMOVED}), "claims_malformed"),
        ("a destination in another spelling", FORGE.seal(kafka(), binding={"dst": "kafka:%6Frders"}),
        "claims_malformed"),
        ("a covered name twice", FORGE.seal(kafka(), binding={"hdr": ["tenant", "tenant"]}), "claims_malformed"),
        ("a digest in hex", FORGE.seal(kafka(), binding={"bod": "00" * 32}), "claims_malformed"),
        ("hds null", FORGE.seal(kafka(), binding={"hds": None}), "claims_malformed"),
        ("mqa left out", FORGE.seal(kafka(), claims={"mqa": REMOVED}), "claim_missing"),
        ("issued past the leeway", timed(NOW + 6, NOW + 60), "issued_in_future"),
        ("expired past the leeway", timed(NOW - 60, NOW - 5), "expired"),
        ("expiring when issued", timed(NOW, NOW), "expired"),
        ("living a second too long", timed(NOW, NOW + 3601), "lifetime_excessive"),
        ("a tombstone in place of the body", replace(FORGE.seal(kafka()), body=None), "body_mismatch"),
        ("an empty body in place of a tombstone", replace(FORGE.seal(kafka(body=None)), body=b""),
        "body_mismatch"),
        ("an empty record key in place of none", replace(FORGE.seal(kafka(key=None)), key=b""),
        "record_key_mismatch"),
        ("occurrences exchanged", moved(FORGE.seal(kafka(headers=(("a", b"1"), ("a", b"2"))))),
        "headers_mismatch"),
        ("an occurrence repeated", added(FORGE.seal(kafka()), "tenant", b"acme"), "headers_mismatch"),
        ("an absent covered header added", added(FORGE.seal(kafka(), cover=["x"]), "x", b""), "headers_mismatch"),
        ("a twin in another case", added(FORGE.seal(kafka()), "Tenant", b"evil"), "headers_mismatch"),
        ("a property added", added(FORGE.seal(kafka()), "reply-to", b"evil"), "headers_mismatch"),
        ("a property in another case on Kafka", added(FORGE.seal(kafka()), "Content-Type", b"evil"),
        "headers_mismatch"),
        ("text in place of bytes", replace(
            FORGE.seal(rabbit(headers=(("a", b"1"),))),
            headers=(("a", "1"), *FORGE.seal(rabbit(headers=(("a", b"1"),))
            ).headers[1:])), "headers_mismatch"),
    ]  # fmt: skip
    return [(name, message, "rejected", reason) for name, message, reason in found]


def sequences() -> list[dict[str, Any]]:
    """Return deliveries one after the other, which one consumer's replay store tells apart."""
    record, message = FORGE.seal(kafka()), FORGE.seal(rabbit())
    first, second = (
        replace(record, origin=Origin(topic="orders", partition=0, offset=offset)) for offset in (1, 2)
    )
    again = replace(message, origin=Origin(queue="orders", redelivered=True))
    once = replace(message, origin=Origin(queue="orders"))
    steps = {
        "Kafka: the same offset again is a re-read, another one a copy": [
            (first, "accepted", None), (first, "accepted", None), (second, "rejected", "replayed"),
        ],
        "RabbitMQ: a redelivery is a duplicate, anything else a copy": [
            (once, "accepted", None), (again, "duplicate", None), (once, "rejected", "replayed"),
        ],
    }  # fmt: skip
    return [
        {"name": name, "deliveries": [
            {"message": to_form(found), "verdict": verdict, "reason": reason} for found, verdict,
            reason in deliveries]}
        for name, deliveries in steps.items()
    ]  # fmt: skip


def tokens() -> dict[str, Any]:
    """Return messages with their tokens and the verdict on them."""
    vectors = [
        {"name": name, "message": to_form(message), "verdict": verdict, "reason": reason}
        for name, message, verdict, reason in (*accepted(), *rejected())
    ]
    return {
        "profile": 1,
        "received": NOW,
        "consumer": {
            "issuer": ISSUER, "audience": AUDIENCE, "leeway": 5, "max_lifetime": 3600,
            "allow": {SUBJECT: [KAFKA, RABBITMQ]}, "jwks": jwk.dump_key_set(FORGE.keys),
        },
        "vectors": vectors,
        "sequences": sequences(),
    }  # fmt: skip


def generate() -> dict[str, str]:
    """Return the text of each file by its name."""
    FORGE.count = 0
    made = {"hds.json": hds(), "tokens.json": tokens(), "destinations.json": destinations()}
    return {name: json.dumps(content, indent=1, ensure_ascii=True) + "\n" for name, content in made.items()}


if __name__ == "__main__":
    for file, text in generate().items():
        (FOLDER / file).write_text(text, encoding="ascii")
