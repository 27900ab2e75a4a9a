"""The vectors of what is read beside messages: JWK Sets, and messages as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mqauth.wire import base64url
from mqauth.wire.keys import Key, jwk_members
from tests.vectors.world import KEYS, NOW, RSA_P, RSA_Q, edwards

OTHER: Final = edwards("another key under the same kid")
SUBGROUP: Final = bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a")
"""An Ed25519 point of order 8."""


def without(key: Key, *names: str) -> dict[str, Any]:
    """Return the JWK of a key without some members."""
    return {name: value for name, value in jwk_members(key).items() if name not in names}


def number(value: int) -> str:
    """Return an unsigned integer as a JWK has it (RFC 7518, section 2)."""
    return base64url.encode(value.to_bytes((value.bit_length() + 7) // 8, "big")).decode()


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
        "no use": without(KEYS["EdDSA"], "use"),
        "key_ops with verify among others": key | {"key_ops": ["sign", "verify"]},
        "no subjects": without(KEYS["EdDSA"], "mqauth_sub"),
        "subjects that are none": key | {"mqauth_sub": []},
        "a kid of 128 characters beyond the BMP": key | {"kid": "\U0001f600" * 128},
        "RSA for PS256": jwk_members(KEYS["PS256"]),
        "retired": key | {"exp": NOW},
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
        "x a number": key | {"x": 1},
        "x padded": key | {"x": key["x"] + "="},
        "x too short": key | {"x": key["x"][:-3]},
        "a point of small order": key | {"x": base64url.encode(SUBGROUP).decode()},
        "a point off its curve": point | {"y": point["x"]},
        "coordinates cut short": point
        | {"x": base64url.encode(base64url.decode(point["x"].encode())[1:]).decode()},
        "RSA of 2047 bits": rsa | {"n": number(RSA_P * RSA_Q >> 1 | 1)},
        "RSA of 8193 bits": rsa | {"n": number(2**8192 + 1)},
        "the RSA exponent 3": rsa | {"e": "Aw"},
        "an even RSA exponent": rsa | {"e": number(65538)},
        "subjects a text": key | {"mqauth_sub": "orders-api"},
        "subjects null": key | {"mqauth_sub": None},
        "a subject that is empty": key | {"mqauth_sub": [""]},
    }


def key_sets() -> dict[str, Any]:
    """Return single JWKs with what becomes of them, and sets with the kids of the keys that are used."""
    good, point = jwk_members(KEYS["EdDSA"]), jwk_members(KEYS["ES256"])
    twin = jwk_members(OTHER) | {"kid": good["kid"]}
    sets = [
        ("a key that cannot be read beside one that can", [1, {}, good | {"kid": "x", "x": "?"}, good], [good]),
        ("one key twice", [good, good], [good]),
        ("two keys under one kid", [good, point, twin], [point]),
        ("one key under one kid with two ends", [good, good | {"exp": NOW}], []),
        ("a kid of two JWKs of which one cannot be used", [good, twin | {"use": "enc"}], [good]),
        ("no keys", [], []),
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
        "no_sets": ["", "[]", "{}", '{"keys":{}}', '{"keys":[],"keys":[]}', '{"keys":[1e999]}'],
    }  # fmt: skip


GOOD: Final[dict[str, Any]] = {"destination": "rabbitmq:shop/orders", "body": "AA=="}
RECORD: Final[dict[str, Any]] = {"destination": "kafka:orders", "body": None}


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
        ("lists nested 32 deep", GOOD | {"headers": [["a", nested(32)]]}, GOOD | {"headers": [["a", nested(32)]]}),
        ("a name twice on Kafka", RECORD | {"headers": [["type", {"str": "a"}], ["type", {"null": None}]]},
         RECORD | {"properties": {"type": "a"}, "headers": [["type", {"null": None}]]}),
    ]  # fmt: skip


def nested(depth: int) -> dict[str, Any]:
    """Return lists in each other."""
    value: dict[str, Any] = {"int": 1}
    for _ in range(depth):
        value = {"list": [value]}
    return value


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
        "a decimal that is a number": {"decimal": 1.5}, "null that is none": {"null": 0},
        "lists nested 33 deep": nested(33),
        "a table with a name twice": {"table": [["a", {"int": 1}], ["a", {"int": 1}]]},
    }  # fmt: skip
    found = {name: GOOD | {"headers": [["a", value]]} for name, value in values.items()}
    return found | {
        "no body": {"destination": "rabbitmq:shop/orders"},
        "an unknown member": GOOD | {"x": 1},
        "no object": [],
        "a tombstone on RabbitMQ": GOOD | {"body": None},
        "a record key on RabbitMQ": GOOD | {"key": ""},
        "a name twice on RabbitMQ": GOOD | {"headers": [["a", {"int": 1}], ["a", {"int": 1}]]},
        "an integer on Kafka": RECORD | {"headers": [["a", {"int": 1}]]},
        "an unknown property": GOOD | {"properties": {"content-type": "a"}},
        "a property that is true": GOOD | {"properties": {"type": True}},
        "an unknown member of origin": GOOD | {"origin": {"x": 1}},
        "a topic on RabbitMQ": GOOD | {"origin": {"topic": "orders"}},
        "another topic": RECORD | {"origin": {"topic": "others"}},
        "a negative offset": RECORD | {"origin": {"offset": -1}},
        "an unknown type of timestamp": RECORD | {"origin": {"timestamp_type": "log"}},
    }


def forms() -> dict[str, Any]:
    """Return forms that are one message, and forms that are none."""
    return {
        "profile": 1,
        "same": [{"name": name, "form": form, "other": other} for name, form, other in same()],
        "malformed": [{"name": name, "form": form} for name, form in malformed().items()],
    }
