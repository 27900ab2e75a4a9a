"""The vectors of edges that no other vector stood on: faults in our code that no vector told of showed them."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from mqauth.testing.forge import with_token
from mqauth.wire import base64url, strict_json
from mqauth.wire.message import Message
from tests.test_ed25519 import ORDER, number
from tests.vectors.world import FORGE, KEYS, NOW, Case, kafka, rabbit


def edges() -> list[Case]:
    """Return messages at the edges of sizes, types and depths, with the verdict on them."""
    good = [
        (name, message, "accepted", None) for name, message in (*accepted(), *bound())
    ]
    bad = [
        (name, message, "rejected", "claims_malformed")
        for name, message in (*malformed(), *members())
    ]
    return [*good, *bad, *elsewhere(), *headers(), *segments()]


def accepted() -> list[tuple[str, Message]]:
    """Return messages whose claims are just what may be."""
    return [
        ("an id of characters that are neither printed nor control characters",
         FORGE.seal(kafka(), claims={"jti": "\u200b\u00a0\ue000\u00ad" * 4})),
        ("not before the first second there is", FORGE.seal(kafka(), claims={"nbf": 0})),
        ("nbf beside an unknown claim", FORGE.seal(kafka(), claims={"nbf": NOW, "role": "x"})),
        ("other claims of 64 values beside nbf",
         FORGE.seal(kafka(), claims={"nbf": NOW, "x": [[]] * 31, "y": {"a": [1] * 30}})),
        ("white space around the claims", claimed(lambda raw: b" \n" + raw + b"\t\r ")),
        ("white space within the claims", claimed(lambda raw: raw.replace(b":", b" :\n ", 1))),
        ("the largest integer", claimed(lambda raw: raw[:-1] + b',"x":9007199254740992}')),
        ("the least integer", claimed(lambda raw: raw[:-1] + b',"x":-9007199254740992}')),
        ("a pair of surrogates, escaped", claimed(lambda raw: raw[:-1] + b',"x":"\\ud83d\\ude00"}')),
        ("an escape in a name", claimed(lambda raw: raw.replace(b'"iss"', b'"\\u0069ss"'))),
        ("objects nested 8 deep", FORGE.seal(kafka(), claims={"x": objects(7)})),
        ("an Ed25519 signature whose first half is the zero point", zero_point()),
        ("many brackets side by side", FORGE.seal(kafka(), claims={"x": [[], {}, [], {}, [], {}, [], {}, []]})),
    ]  # fmt: skip


def bound() -> list[tuple[str, Message]]:
    """Return messages whose headers are just what may be bound."""
    first = datetime(1970, 1, 1, tzinfo=UTC)
    table: dict[str, Any] = {"a": 1}
    for _ in range(31):
        table = {"a": table}
    value: tuple[Any, ...] = (1,)
    for _ in range(31):
        value = (value,)
    sizes = tuple((f"of {size} bytes", b"x" * size) for size in (255, 256, 257))
    return [
        ("the first time", FORGE.seal(rabbit(headers=(("at", first),)))),
        ("lists nested 32 deep", FORGE.seal(rabbit(headers=(("deep", value),)))),
        ("tables nested 32 deep", FORGE.seal(rabbit(headers=(("deep", table),)))),
        ("a decimal of 255 places", FORGE.seal(rabbit(headers=(("d", Decimal(1).scaleb(-255)),)))),
        ("a decimal of nothing, with two places", FORGE.seal(rabbit(headers=(("d", Decimal("0.00")),)))),
        ("a name as long as that of a release", FORGE.seal(kafka(headers=(("x-fourteen-abc", b"1"),)))),
        ("headers of 255 to 257 bytes", FORGE.seal(kafka(headers=sizes))),
        ("the least and the largest integer of AMQP",
         FORGE.seal(rabbit(headers=(("a", -(2**63)), ("b", 2**63 - 1))))),
    ]  # fmt: skip


def malformed() -> list[tuple[str, Message]]:
    """Return messages whose claims are one step beyond."""
    values = [[]] * 31, {"a": [1] * 31}
    return [
        ("other claims of 65 values beside nbf",
         FORGE.seal(kafka(), claims={"nbf": NOW, "x": values[0], "y": values[1]})),
        ("an integer below -2^53", claimed(lambda raw: raw[:-1] + b',"x":-9007199254740993}')),
        ("an integer of 17 digits", claimed(lambda raw: raw[:-1] + b',"x":10000000000000000}')),
        ("the last of the surrogates by itself", claimed(lambda raw: raw[:-1] + b',"x":"\\udfff"}')),
        ("a lone surrogate in a name", claimed(lambda raw: raw[:-1] + b',"\\ud800":1}')),
        ("a lone surrogate in a list", claimed(lambda raw: raw[:-1] + b',"x":["a","\\udc00"]}')),
        ("objects nested 9 deep", FORGE.seal(kafka(), claims={"x": objects(8)})),
        ("text behind the claims", claimed(lambda raw: raw + b"x")),
        ("two objects", claimed(lambda raw: raw + b"{}")),
        ("claims that are null", claimed(lambda raw: b"null")),
        ("claims that are empty text", claimed(lambda raw: b"")),
        *((f"{name} a number", FORGE.seal(kafka(), claims={name: 1})) for name in ("iss", "sub", "jti")),
        *((f"{name} empty", FORGE.seal(kafka(), claims={name: ""})) for name in ("iss", "aud")),
        *((f"{name} null", FORGE.seal(kafka(), claims={name: None})) for name in ("iat", "exp", "nbf")),
    ]  # fmt: skip


def members() -> list[tuple[str, Message]]:
    """Return messages whose ``mqa`` has a value of a wrong type."""
    types: dict[str, tuple[Any, ...]] = {
        "dst": (1, None, ["kafka:orders"]), "bod": (1, ""), "key": (1, ""), "hds": (1,), "v": (None, "1", 0),
        "hdr": (None, "tenant", {"tenant": 1}, [1], ["tenant", None]),
    }  # fmt: skip
    found = [
        (f"mqa.{name}: {strict_json.dumps(value).decode()}", FORGE.seal(kafka(), binding={name: value}))
        for name, values in types.items() for value in values
    ]  # fmt: skip
    whole = [1, None, "tree", ["tree"], True]
    return found + [
        (
            f"mqa: {strict_json.dumps(value).decode()}",
            FORGE.seal(kafka(), claims={"mqa": value}),
        )
        for value in whole
    ]


def elsewhere() -> list[Case]:
    """Return messages that are refused for another reason."""
    first, second = (
        {**rabbit().properties, "correlation-id": f"amq.rabbitmq.reply-to.{end}"}
        for end in ("one", "two")
    )
    moved = replace(FORGE.seal(rabbit(properties=first)), properties=second)
    return [
        ("only reply-to has the suffix of direct reply-to", moved, "rejected", "headers_mismatch"),
        ("issued in the first second there is", FORGE.seal(kafka(), claims={"iat": 0}), "rejected",
         "lifetime_excessive"),
        ("expired in the first second there is", FORGE.seal(kafka(), claims={"exp": 0}), "rejected", "expired"),
        ("a body in place of a tombstone", replace(FORGE.seal(kafka(body=None)), body=b""), "rejected",
         "body_mismatch"),
        ("a tombstone in place of a body", replace(FORGE.seal(kafka(body=b"")), body=None), "rejected",
         "body_mismatch"),
        ("no record key in place of an empty one", replace(FORGE.seal(kafka(key=b"")), key=None), "rejected",
         "record_key_mismatch"),
    ]  # fmt: skip


def headers() -> list[Case]:
    """Return messages whose JOSE header is no honest one."""
    forbidden, values = "algorithm_forbidden", (["EdDSA"], {"EdDSA": 1}, None, 1, True)
    curve = strict_json.dumps(
        {"alg": "Ed25519", "typ": "mqauth+jwt", "kid": KEYS["ES256"].kid}
    )
    return [
        ("a parameter nested 4 deep", FORGE.seal(kafka(), header={"x": [[[1]]]}), "rejected", "header_forbidden"),
        ("a parameter nested 5 deep", FORGE.seal(kafka(), header={"x": [[[[1]]]]}), "rejected", "token_malformed"),
        ("a kid of one character", FORGE.seal(kafka(), header={"kid": "k"}), "rejected", "key_unknown"),
        ("alg Ed25519 over a good signature on P-256", FORGE.signed(
            kafka(), curve, strict_json.dumps(FORGE.claims(kafka())), KEYS["ES256"]), "rejected", forbidden),
        ("alg before the claims", FORGE.seal(kafka(), header={"alg": "none"}, claims={"iss": 1}), "rejected",
         forbidden),
        *((f"alg: {strict_json.dumps(value).decode()}", FORGE.seal(kafka(), header={"alg": value}), "rejected",
           forbidden) for value in values),
    ]  # fmt: skip


def segments() -> list[Case]:
    """Return messages with four characters in a segment that base64url does not have: a lax reader skips them."""
    found = []
    for place, name in enumerate(("header", "payload", "signature")):
        for characters in ("\n\n\n\n", "    ", "====", "++++", "////"):
            parts = FORGE.token(kafka()).split(".")
            parts[place] = parts[place][:8] + characters + parts[place][8:]
            said = f"{characters!r} within the {name}"
            found.append(
                (
                    said,
                    with_token(kafka(), ".".join(parts)),
                    "rejected",
                    "token_malformed",
                )
            )
    return found


def objects(depth: int) -> Any:
    """Return objects in each other."""
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


def zero_point() -> Message:
    """Return a message whose signature has no nonce: R is the zero point, which libsodium alone refuses."""
    private: Any = FORGE.key.private
    half = bytearray(hashlib.sha512(private.private_bytes_raw()).digest()[:32])
    half[0], half[31] = half[0] & 248, half[31] & 63 | 64
    secret, zero = int.from_bytes(half, "little"), b"\1" + bytes(31)
    parts = FORGE.token(kafka()).split(".")
    hashed = number(
        zero, private.public_key().public_bytes_raw(), ".".join(parts[:2]).encode()
    )
    parts[2] = base64url.encode(
        zero + (hashed * secret % ORDER).to_bytes(32, "little")
    ).decode()
    return with_token(kafka(), ".".join(parts))


def claimed(bend: Any) -> Message:
    """Return a message whose signed claims are bent as bytes."""
    return FORGE.seal(kafka(), payload=bend(strict_json.dumps(FORGE.claims(kafka()))))
