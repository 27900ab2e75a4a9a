"""The claim set: every limit at its edge, every member strict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mqauth.errors import Reason, Rejection
from mqauth.wire import claims
from mqauth.wire import strict_json as strictjson

DIGEST = "47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU"
BINDING: dict[str, Any] = {
    "v": 1,
    "dst": "kafka:orders",
    "bod": DIGEST,
    "key": None,
    "hdr": ["a", "b"],
    "hds": DIGEST,
}
CLAIMS: dict[str, Any] = {
    "iss": "i", "sub": "s", "aud": "a", "iat": 1, "exp": 2, "jti": "j" * 16, "mqa": BINDING,
}  # fmt: skip
ReasonOf = Callable[[Callable[[], object]], Reason]


def parse(changes: dict[str, Any] | None = None, binding: dict[str, Any] | None = None) -> claims.Claims:
    """Parse honest claims with changes."""
    found = CLAIMS | {"mqa": BINDING | (binding or {})} | (changes or {})
    return claims.parse(strictjson.dumps(found))


def test_parsed_claims_round_trip() -> None:
    """What is built is what is parsed, unknown claims and nbf included."""
    found = parse({"nbf": 0, "role": {"x": [1]}})
    assert found.nbf == 0
    assert found.extra == {"role": {"x": [1]}}
    assert claims.parse(claims.build(found)) == found


def test_absent_nbf_stays_absent() -> None:
    """A claim set without nbf is written without it."""
    assert "nbf" not in parse().as_dict()


@pytest.mark.parametrize("name", claims.REQUIRED)
def test_each_claim_is_required(name: str, reason_of: ReasonOf) -> None:
    """Leaving out any claim is claim_missing, whatever else is wrong."""
    found = {key: value for key, value in CLAIMS.items() if key != name} | {"nbf": "x"}
    assert reason_of(lambda: claims.parse(strictjson.dumps(found))) is Reason.CLAIM_MISSING


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, value) for name in ("iss", "sub", "aud")
          for value in ("", "x" * 257, 1, None, ["a"], {"a": 1}, True, "a\nb", "a\x00", "\x7f", "\x85",
          "\x1b[0m")],
        *[("jti", value) for value in ("j" * 15, "j" * 129, "", None, 16, "j" * 15 + "\n")],
        *[(name, value) for name in ("iat", "exp", "nbf")
          for value in (True, False, 1.0, 1.5, "1", None, -1, [1], {})],
        ("mqa", None), ("mqa", []), ("mqa", "x"), ("mqa", {}),
    ],
)  # fmt: skip
def test_a_claim_of_another_type_or_size_is_malformed(name: str, value: object, reason_of: ReasonOf) -> None:
    """Each claim has one type and its limits; there is no coercion."""
    assert reason_of(lambda: parse({name: value})) is Reason.CLAIMS_MALFORMED


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, value) for name in ("iss", "sub", "aud") for value in ("x", "x" * 256, "\u00e9",
        "\U0001f600" * 256)],
        ("jti", "j" * 16), ("jti", "j" * 128),
        *[(name, value) for name in ("iat", "exp", "nbf") for value in (0, 2**53)],
    ],
)  # fmt: skip
def test_each_limit_itself_is_allowed(name: str, value: object) -> None:
    """The limits are inclusive and count characters."""
    assert getattr(parse({name: value}), name) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("v", 0), ("v", 2), ("v", True), ("v", 1.0), ("v", "1"), ("v", None),
        ("dst", None), ("dst", 1), ("dst", ""), ("dst", "kafka:%61"), ("dst", "kafka:"), ("dst", "amqp:a/b"),
        *[(name, value) for name in ("bod", "key", "hds")
          for value in ("", "x", DIGEST[:-1], DIGEST + "=", DIGEST[:-1] + "V", DIGEST + "\n", 1, True, [], {})],
        ("hds", None),
        ("hdr", None), ("hdr", "ab"), ("hdr", {}), ("hdr", [1]), ("hdr", [None]), ("hdr", ["a", "a"]),
        ("hdr", [["a"]]), ("hdr", [True]),
        ("tree", {}), ("x", 1),
    ],
)  # fmt: skip
def test_a_binding_has_exactly_its_members(name: str, value: object, reason_of: ReasonOf) -> None:
    """A member of another form, or one too many, is claims_malformed."""
    assert reason_of(lambda: parse(binding={name: value})) is Reason.CLAIMS_MALFORMED


@pytest.mark.parametrize("name", list(BINDING))
def test_no_member_of_a_binding_may_be_left_out(name: str, reason_of: ReasonOf) -> None:
    """Absent is not null: each member must stand there."""
    members = {key: value for key, value in BINDING.items() if key != name}
    assert reason_of(lambda: parse({"mqa": members})) is Reason.CLAIMS_MALFORMED


def test_the_batch_form_is_of_a_later_profile(reason_of: ReasonOf) -> None:
    """A tree in place of the binding is claims_malformed until batches exist."""
    assert reason_of(lambda: parse({"mqa": {"v": 1, "tree": "x"}})) is Reason.CLAIMS_MALFORMED


@pytest.mark.parametrize(
    "raw",
    [b"", b"[]", b'"x"', b"null", b"1", b"\xff", b"{}x", b'{"iss":"a","iss":"b"}', b'{"iat":NaN}', b"[" * 5000,
     b'{"iss":"\\ud800"}', b'{"exp":9007199254740993}'],
    ids=repr,
)  # fmt: skip
def test_a_payload_that_is_no_strict_object_is_malformed(raw: bytes, reason_of: ReasonOf) -> None:
    """Whatever is no strict JSON object is claims_malformed before any claim is looked at."""
    assert reason_of(lambda: claims.parse(raw)) is Reason.CLAIMS_MALFORMED


def test_nesting_is_eight_with_the_claims_object_as_one(reason_of: ReasonOf) -> None:
    """Seven containers within the claims object pass, eight do not."""
    deep: Any = 1
    for _ in range(7):
        deep = [deep]
    assert parse({"x": deep}).extra == {"x": deep}
    assert reason_of(lambda: parse({"x": [deep]})) is Reason.CLAIMS_MALFORMED


def test_no_value_of_a_bad_claim_is_repeated() -> None:
    """The detail names the claim and never its value."""
    with pytest.raises(Rejection) as caught:
        parse({"sub": "secret" * 100})
    assert "secret" not in str(caught.value)
