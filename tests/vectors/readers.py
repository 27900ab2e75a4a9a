"""The vectors of what is read beside messages: JWK Sets, and messages as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from mqauth.wire import base64url
from mqauth.wire.keys import Key, jwk_members
from tests.vectors.world import KEYS, NOW, RSA_P, RSA_Q, edwards

OTHER: Final = edwards("another key under the same kid")
LARGEST: Final = 262_144
"""Bytes of the largest JWK Set."""
P_256: Final = 2**256 - 2**224 + 2**192 + 2**96 - 1
"""The prime of P-256; it has a point with x = 5, and one with y = 1."""
Y_OF_5: Final = 0x459243B9AA581806FE913BCE99817ADE11CA503C64D9A3C533415C083248FBCC
X_OF_1: Final = 0x9E78D4EF60D05F750F6636209092BC43CBDD6B47E11A9DE20A9FEB2A50BB96C
SUBGROUP: Final = bytes.fromhex(
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"
)
"""An Ed25519 point of order 8."""


def without(key: Key, *names: str) -> dict[str, Any]:
    """Return the JWK of a key without some members."""
    return {name: value for name, value in jwk_members(key).items() if name not in names}


def number(value: int) -> str:
    """Return an unsigned integer as a JWK has it (RFC 7518, section 2)."""
    return base64url.encode(value.to_bytes((value.bit_length() + 7) // 8, "big")).decode()


def coordinate(value: int) -> str:
    """Return a coordinate of P-256 in its full length."""
    return base64url.encode(value.to_bytes(32, "big")).decode()


def used() -> dict[str, Any]:
    """Return JWKs that are used."""
    key = jwk_members(KEYS["EdDSA"])
    return {
        "every member": key,
        "unknown members": key | {"x5c": ["AA"], "iat": NOW, "mqauth_x": None},
        "alg Ed25519": key | {"alg": "Ed25519"},
        "no alg on Ed25519": without(KEYS["EdDSA"], "alg"),
        "no alg on P-256": without(KEYS["ES256"], "alg"),
        "no alg on P-384": without(KEYS["ES384"], "alg"),
        "a point whose x is 5": jwk_members(KEYS["ES256"])
        | {"x": coordinate(5), "y": number(Y_OF_5)},
        "a point whose y is 1": jwk_members(KEYS["ES256"])
        | {"x": coordinate(X_OF_1), "y": coordinate(1)},
        "no use": without(KEYS["EdDSA"], "use"),
        "key_ops with verify among others": key | {"key_ops": ["sign", "verify"]},
        "no subjects": without(KEYS["EdDSA"], "mqauth_sub"),
        "subjects that are none": key | {"mqauth_sub": []},
        "a kid of 128 characters beyond the BMP": key | {"kid": "\U0001f600" * 128},
        "RSA for PS256": jwk_members(KEYS["PS256"]),
        "a kid of one character": key | {"kid": "k"},
        "RSA of 8192 bits": jwk_members(KEYS["PS256"]) | {"n": number(2**8192 - 1)},
        "an RSA exponent of 8 bytes": jwk_members(KEYS["PS256"])
        | {"e": number(2**64 - 1)},
        "retired": key | {"exp": NOW},
        "retired from the beginning": key | {"exp": 0},
        "revoked": key | {"revoked": {"revoked_at": NOW, "reason": "lost"}},
    }


def revoked() -> dict[str, Any]:
    """Return JWKs whose end cannot be read, so that they count as revoked from the beginning."""
    key = jwk_members(KEYS["EdDSA"])
    ends: dict[str, Mapping[str, Any]] = {
        "exp null": {"exp": None}, "exp text": {"exp": str(NOW)}, "exp negative": {"exp": -1},
        "exp true": {"exp": True}, "exp with a fraction": {"exp": 1.5}, "revoked null": {"revoked": None},
        "revoked true": {"revoked": True}, "revoked empty": {"revoked": {}},
        "revoked_at text": {"revoked": {"revoked_at": "1"}},
    }  # fmt: skip
    return {name: key | end for name, end in ends.items()}


def unused() -> dict[str, Any]:
    """Return JWKs that are not used."""
    key, point, rsa = (jwk_members(KEYS[name]) for name in ("EdDSA", "ES256", "PS256"))
    return {
        "no object": "key",
        "no kid": without(KEYS["EdDSA"], "kid"),
        "kid a number": key | {"kid": 1},
        "kid empty": key | {"kid": ""},
        "a kid of 129 characters": key | {"kid": "k" * 129},
        "a control character in kid": key | {"kid": "k\x7f"},
        "use enc": key | {"use": "enc"},
        "use null": key | {"use": None},
        "key_ops without verify": key | {"key_ops": ["sign"]},
        "key_ops a text": key | {"key_ops": "verify"},
        "key_ops null": key | {"key_ops": None},
        "alg null": key | {"alg": None},
        "alg a list": key | {"alg": ["EdDSA"]},
        "alg of another curve": point | {"alg": "ES384"},
        "alg HS256": key | {"alg": "HS256"},
        "RSA without alg": without(KEYS["PS256"], "alg"),
        "kty null": key | {"kty": None},
        "another curve": key | {"crv": "Ed448"},
        "P-521": point | {"crv": "P-521"},
        "symmetric": {"kty": "oct", "kid": "k", "k": "AA"},
        "private": key | {"d": "AA"},
        **{
            f"with a private {name}": key | {name: "AA"}
            for name in ("p", "q", "dp", "dq", "qi", "oth", "k")
        },
        "x a number": key | {"x": 1},
        "x padded": key | {"x": key["x"] + "="},
        "x too short": key | {"x": key["x"][:-3]},
        "a point of small order": key | {"x": base64url.encode(SUBGROUP).decode()},
        "a point off its curve": point | {"y": point["x"]},
        "coordinates cut short": point
        | {"x": base64url.encode(base64url.decode(point["x"].encode())[1:]).decode()},
        "a zero before the coordinates": point
        | {
            name: base64url.encode(
                b"\0" + base64url.decode(point[name].encode())
            ).decode()
            for name in "xy"
        },
        "a modulus that begins with a zero": rsa
        | {"n": base64url.encode(b"\0" + base64url.decode(rsa["n"].encode())).decode()},
        "an exponent that begins with a zero": rsa | {"e": "AAEAAQ"},
        "an x that is not below the prime": point
        | {"x": number(P_256 + 5), "y": number(Y_OF_5)},
        "a y that is not below the prime": point
        | {"x": coordinate(X_OF_1), "y": number(P_256 + 1)},
        "alg PS256 on a curve": point | {"alg": "PS256"},
        "alg ES256 on RSA": rsa | {"alg": "ES256"},
        "alg RS384": rsa | {"alg": "RS384"},
        "RSA of 2047 bits": rsa | {"n": number(RSA_P * RSA_Q >> 1 | 1)},
        "RSA of 8193 bits": rsa | {"n": number(2**8192 + 1)},
        "the RSA exponent 3": rsa | {"e": "Aw"},
        "an even RSA exponent": rsa | {"e": number(65538)},
        "an RSA exponent of 9 bytes": rsa | {"e": number(2**64 + 1)},
        "an RSA exponent that is a number": rsa | {"e": 12345671},
        "subjects a text": key | {"mqauth_sub": "orders-api"},
        "subjects null": key | {"mqauth_sub": None},
        "a subject that is empty": key | {"mqauth_sub": [""]},
    }


def key_sets() -> dict[str, Any]:
    """Return single JWKs with what becomes of them, and sets with the kids of the keys that are used."""
    good, point = jwk_members(KEYS["EdDSA"]), jwk_members(KEYS["ES256"])
    twin = jwk_members(OTHER) | {"kid": good["kid"]}
    sets = [
        (
            "a key that cannot be read beside one that can",
            [1, {}, good | {"kid": "x", "x": "?"}, good],
            [good],
        ),
        ("one key twice", [good, good], [good]),
        ("two keys under one kid", [good, point, twin], [point]),
        ("one key under one kid with two ends", [good, good | {"exp": NOW}], []),
        (
            "one key with its alg in either spelling, without it, and with a use",
            [
                good,
                good | {"alg": "Ed25519"},
                without(KEYS["EdDSA"], "alg"),
                good | {"use": "sig"},
            ],
            [good],
        ),
        (
            "one key with its subjects in another order, one of them twice",
            [good | {"mqauth_sub": ["a", "b"]}, good | {"mqauth_sub": ["b", "a", "b"]}],
            [good],
        ),
        ("one key with members that mean nothing", [good, good | {"note": 1}], [good]),
        ("one key with other subjects", [good, good | {"mqauth_sub": ["a"]}], []),
        (
            "one key that is revoked for two reasons",
            [
                good | {"revoked": {"revoked_at": NOW, "reason": reason}}
                for reason in ("stolen", "lost")
            ],
            [],
        ),
        (
            "a kid of two JWKs of which one cannot be used",
            [good, twin | {"use": "enc"}],
            [good],
        ),
        ("no keys", [], []),
        ("8 containers within each other", [good | {"note": [[[[[1]]]]]}], [good]),
    ]
    kinds = (("used", used()), ("revoked", revoked()), ("unused", unused()))
    return {
        "profile": 1,
        "vectors": [
            {"name": name, "jwk": members, "becomes": kind}
            for kind, found in kinds for name, members in found.items()
        ],
        "sets": [
            {"name": name, "keys": listed, "used": [members["kid"] for members in kept]}
            for name, listed, kept in sets
        ],
        "no_sets": [
            "", "[]", "{}", '{"keys":{}}', '{"keys":[],"keys":[]}', '{"keys":[1e999]}',
            '{"keys":[{"x":[[[[[[1]]]]]]}]}',
        ],
        "sizes": [
            {"text": '{"keys":[]}', "bytes": size, "is_set": size <= LARGEST} for size in (LARGEST, LARGEST + 1)
        ],
    }  # fmt: skip


GOOD: Final[dict[str, Any]] = {"destination": "rabbitmq:shop/orders", "body": "AA=="}
RECORD: Final[dict[str, Any]] = {"destination": "kafka:orders", "body": None}
EVERY: Final = (
    "content_type", "content_encoding", "type", "message_id", "correlation_id", "reply_to", "app_id", "user_id",
    "expiration", "priority", "delivery_mode", "timestamp", "cluster_id",
)  # fmt: skip
EVERY_TAG: Final[tuple[tuple[str, Any, Any], ...]] = (
    ("str", "\u00e9", "\u00e9"), ("b64", "AP8=", "AP8="), ("int", 7, "7"), ("float", 1.0, 1),
    ("bool", False, False), ("null", None, None), ("time", "2030-01-02T03:04:05Z", "2030-01-02T03:04:05Z"),
    ("decimal", "-12.50", "-12.50"), ("list", [{"str": "a"}], [{"str": "a"}]), ("table", {}, []),
)  # fmt: skip
"""Each tag with two writings of one value."""
DIGITS: Final = "1" * 300 + "." + "2" * 300
PROTOTYPE: Final = ("__proto__", "constructor", "prototype", "toString", "hasOwnProperty")
"""Names that an object of JavaScript has already: a reader that keeps headers in one shows what nobody sent."""
PLACE: Final = {
    "scope": "billing", "cluster": "c", "topic": "orders", "topic_id": "q1Sh-9_ISia_zwGINzRvyQ", "partition": 0,
    "offset": 12, "timestamp_ms": 1, "timestamp_type": "create",
}  # fmt: skip
QUEUE: Final = {"scope": "", "queue": "q", "exchange": "shop", "routing_key": "orders", "timestamp_ms": 0,
                "timestamp_type": "append"}  # fmt: skip


def same() -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Return pairs of forms of one message."""
    one = {"headers": [["a", {"int": 1}]]}
    table = [["a", {"table": [["x", {"int": 1}], ["y", {"null": None}]]}]]
    return [
        ("members left out", GOOD, GOOD | {"key": None, "properties": {}, "headers": [], "origin": None}),
        ("an integer as text", GOOD | one, GOOD | {"headers": [["a", {"int": "1"}]]}),
        *((f"the integer {number}", GOOD | {"headers": [["a", {"int": str(number)}]]},
           GOOD | {"headers": [["a", {"int": number if abs(number) <= 2**53 else str(number)}]]})
          for number in (2**63 - 1, -(2**63), 2**53, -(2**53), 2**53 + 1, 0)),
        ("a property that is null is absent", GOOD, GOOD | {"properties": {"type": None}}),
        ("a property that is an integer is its text", GOOD | {"properties": {"type": "7"}},
         GOOD | {"properties": {"type": 7}}),
        ("a table as an object", GOOD | {"headers": table},
         GOOD | {"headers": [["a", {"table": {"x": {"int": 1}, "y": {"null": None}}}]]}),
        ("a float without a fraction", GOOD | {"headers": [["a", {"float": 1.0}]]},
         GOOD | {"headers": [["a", {"float": 1}]]}),
        ("a property on Kafka is a header before the others", RECORD | {
            "headers": [["content-type", {"b64": "YQ=="}], ["x", {"b64": "YQ=="}]]}, RECORD | {
            "properties": {"content_type": "a"}, "headers": [["x", {"str": "a"}]]}),
        ("every property", GOOD | {"properties": dict.fromkeys(EVERY, "5")},
         GOOD | {"properties": dict.fromkeys(EVERY, 5)}),
        ("every type of value", GOOD | {"headers": [[tag, {tag: one}] for tag, one, _ in EVERY_TAG]},
         GOOD | {"headers": [[tag, {tag: other}] for tag, _, other in EVERY_TAG]}),
        ("floats that are not finite", GOOD | {"headers": [["a", {"float": "inf"}], ["b", {"float": "-inf"}]]},
         GOOD | {"headers": [["a", {"float": "inf"}], ["b", {"float": "-inf"}]], "origin": None}),
        ("a record with all that there is", RECORD | {"key": "AA==", "headers": [], "origin": PLACE},
         RECORD | {"key": "AA==", "properties": {}, "origin": dict(reversed(PLACE.items()))}),
        *((f"a message of a queue, redelivered: {told}", GOOD | {"origin": QUEUE | {"redelivered": told}},
           {"origin": {"redelivered": told} | QUEUE} | GOOD) for told in (True, False)),
        ("tables nested 32 deep", GOOD | {"headers": [["a", tables(32)]]},
         GOOD | {"headers": [["a", tables(32, pairs=True)]]}),
        ("lists nested 32 deep", GOOD | {"headers": [["a", nested(32)]]}, GOOD | {"headers": [["a", nested(32)]]}),
        ("a topic's id in no form", RECORD | {"origin": {"topic_id": "no id"}},
         RECORD | {"origin": {"topic_id": "no id", "cluster": None}}),
        ("members of an origin that are null", GOOD | {"origin": QUEUE},
         GOOD | {"origin": QUEUE | {"cluster": None, "topic_id": None, "offset": None, "redelivered": None}}),
        *((f"a header and a member by the name {name}",
           GOOD | {"headers": [[name, {"table": [[name, {"str": "admin"}]]}]]},
           GOOD | {"headers": [[name, {"table": [[name, {"str": "admin"}]]}]], "origin": None})
          for name in PROTOTYPE),
        ("a name twice on Kafka", RECORD | {"headers": [["type", {"str": "a"}], ["type", {"null": None}]]},
         RECORD | {"properties": {"type": "a"}, "headers": [["type", {"null": None}]]}),
    ]  # fmt: skip


def tables(depth: int, *, pairs: bool = False) -> dict[str, Any]:
    """Return tables in each other, as objects or as lists of pairs."""
    value: dict[str, Any] = {"int": 1}
    for _ in range(depth):
        value = {"table": [["a", value]] if pairs else {"a": value}}
    return value


def nested(depth: int) -> dict[str, Any]:
    """Return lists in each other."""
    value: dict[str, Any] = {"int": 1}
    for _ in range(depth):
        value = {"list": [value]}
    return value


PAIRS: Final[dict[str, Any]] = {
    "an object": {}, "text": "", "a number": 1, "of numbers": [1], "of a pair of one": [["a"]],
    "of texts of two characters": ["ab"],
    "of a pair of three": [["a", {"int": 1}, {"int": 1}]], "of a name that is a number": [[1, {"int": 1}]],
    "of an object of two": [{"a": {"int": 1}, "b": {"int": 1}}],
}  # fmt: skip
ORIGINS: Final[tuple[tuple[dict[str, Any], str, Any], ...]] = (
    (RECORD, "scope", 1), (RECORD, "cluster", 1), (RECORD, "topic", 1), (RECORD, "topic_id", 1),
    (RECORD, "partition", "0"), (RECORD, "partition", 1.0), (RECORD, "partition", True), (RECORD, "partition", -1),
    (RECORD, "timestamp_ms", "0"), (RECORD, "timestamp_ms", -1), (RECORD, "timestamp_type", 1),
    (RECORD, "queue", "q"), (GOOD, "queue", 1), (GOOD, "exchange", 1), (GOOD, "routing_key", 1),
    (GOOD, "redelivered", 1), (GOOD, "redelivered", "true"), (GOOD, "offset", 1), (GOOD, "cluster", "c"),
    (GOOD, "partition", 0), (GOOD, "topic_id", "x"), (RECORD, "redelivered", True),
)  # fmt: skip
"""Members of an origin that are of a wrong type, or of another broker."""


def malformed() -> dict[str, Any]:
    """Return what is no message."""
    values: dict[str, Any] = {
        "two tags": {"int": 1, "str": "1"}, "no tag": {}, "an unknown tag": {"long": 1}, "an untagged value": 1,
        "an integer of 64 bits without sign": {"int": "9223372036854775808"}, "a leading zero": {"int": "01"},
        "minus nothing": {"int": "-0"}, "a plus": {"int": "+1"}, "a fraction": {"int": 1.0},
        "a boolean integer": {"int": True}, "an unknown float": {"float": "Infinity"}, "a boolean float": {
            "float": True}, "base64 without padding": {"b64": "AA"}, "base64url": {"b64": "_w=="},
        "a line break in base64": {"b64": "AA==\n"}, "unused bits in base64": {"b64": "AB=="},
        "a time with an offset": {"time": "2030-01-01T00:00:00+00:00"},
        "a time with a fraction": {"time": "2030-01-01T00:00:00.0Z"}, "the 30th of February": {
            "time": "2030-02-30T00:00:00Z"}, "a decimal with an exponent": {"decimal": "1e2"},
        "a decimal of 301 digits": {"decimal": "1" * 301},
        "a decimal of 301 places": {"decimal": "0." + "1" * 301},
        "the year 0": {"time": "0000-01-01T00:00:00Z"},
        "a decimal that is a number": {"decimal": 1.5}, "null that is none": {"null": 0},
        "lists nested 33 deep": nested(33),
        "a table with a name twice": {"table": [["a", {"int": 1}], ["a", {"int": 1}]]},
        "an integer below 64 bits": {"int": "-9223372036854775809"}, "tables nested 33 deep": tables(33),
        "a list that is an object": {"list": {}}, "a list that is text": {"list": ""},
        "a table that is a number": {"table": 1}, "a table that is text": {"table": ""},
        "a table of texts": {"table": ["ab"]}, "a table of a pair of one": {"table": [["a"]]},
        "a table of a pair of three": {"table": [["a", {"int": 1}, {"int": 1}]]},
        "a table whose name is a number": {"table": [[1, {"int": 1}]]},
        "a table of an object of two": {"table": [{"a": {"int": 1}, "b": {"int": 1}}]},
    }  # fmt: skip
    found = {name: GOOD | {"headers": [["a", value]]} for name, value in values.items()}
    return found | {
        "no body": {"destination": "rabbitmq:shop/orders"},
        "an unknown member": GOOD | {"x": 1},
        "no object": [],
        "no destination": {"body": ""},
        "no body on Kafka": {"destination": "kafka:orders"},
        "a destination that is null": GOOD | {"destination": None},
        "a destination that is a list": GOOD | {"destination": []},
        "properties that are null": GOOD | {"properties": None},
        "headers that are null": GOOD | {"headers": None},
        "properties that are a list": GOOD | {"properties": []},
        "a property that AMQP does not have": GOOD | {"properties": {"subject": "a"}},
        **{
            f"headers: {name}": GOOD | {"headers": found} for name, found in PAIRS.items()
        },
        **{
            f"origin: {member}: {json.dumps(value)}": form | {"origin": {member: value}}
            for form, member, value in ORIGINS
        },
        **{
            f"origin: {json.dumps(value)}": GOOD | {"origin": value}
            for value in ([], "", 1)
        },
        "a tombstone on RabbitMQ": GOOD | {"body": None},
        "a record key on RabbitMQ": GOOD | {"key": ""},
        "a name twice on RabbitMQ": GOOD
        | {"headers": [["a", {"int": 1}], ["a", {"int": 1}]]},
        "an integer on Kafka": RECORD | {"headers": [["a", {"int": 1}]]},
        "an unknown property": GOOD | {"properties": {"content-type": "a"}},
        "a property that is true": GOOD | {"properties": {"type": True}},
        "an unknown member of origin": GOOD | {"origin": {"x": 1}},
        "a topic on RabbitMQ": GOOD | {"origin": {"topic": "orders"}},
        "another topic": RECORD | {"origin": {"topic": "others"}},
        "a negative offset": RECORD | {"origin": {"offset": -1}},
        "an unknown type of timestamp": RECORD | {"origin": {"timestamp_type": "log"}},
    }


def texts() -> list[dict[str, Any]]:
    """Return texts of forms, with what is read of them, ``None`` for no message."""

    def headed(value: str) -> str:
        return f'{{"destination":"rabbitmq:shop/orders","body":"AA==","headers":[["a",{value}]]}}'

    def placed(offset: str) -> str:
        return (
            f'{{"destination":"kafka:orders","body":null,"origin":{{"offset":{offset}}}}}'
        )

    whole = {
        number: GOOD | {"headers": [["a", {"int": number}]]}
        for number in (str(2**63 - 1), str(-(2**63)))
    }
    found: list[tuple[str, dict[str, Any] | None]] = [
        *((headed(f'{{"int":{number}}}'), form) for number, form in whole.items()),
        (headed('{"float":9223372036854775807}'), GOOD | {"headers": [["a", {"float": 2.0**63}]]}),
        (headed('{"float":-9223372036854775808}'), GOOD | {"headers": [["a", {"float": -(2.0**63)}]]}),
        *((headed(f'{{"{tag}":{number}}}'), None)
          for tag in ("int", "float") for number in (str(2**63), str(-(2**63) - 1))),
        (headed(f'{{"decimal":"{DIGITS}"}}'), GOOD | {"headers": [["a", {"decimal": DIGITS}]]}),
        (placed(str(2**63)), None), (headed('{"float":NaN}'), None), (headed('{"float":1e999}'), None),
        (headed('{"int":1,"int":1}'), None), (headed('{"str":"\\ud800"}'), None),
        (headed('{"int":1}') + "x", None),
        (" " + headed('{"int":1}') + "\n", GOOD | {"headers": [["a", {"int": 1}]]}),
    ]  # fmt: skip
    return [{"text": text, "form": form} for text, form in found]


def forms() -> dict[str, Any]:
    """Return forms that are one message, and forms that are none."""
    return {
        "profile": 1,
        "same": [
            {"name": name, "form": form, "other": other} for name, form, other in same()
        ],
        "malformed": [{"name": name, "form": form} for name, form in malformed().items()],
        "texts": texts(),
    }
