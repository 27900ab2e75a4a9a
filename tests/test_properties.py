"""Properties over arbitrary messages and tokens: what holds for every input, not for chosen ones."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import jwt
from hypothesis import assume, example, given
from hypothesis import strategies as st

from mqauth import MalformedMessage, Reason, Rejection, Signer, Verified, Verifier
from mqauth.testing import BatchForge, FakeClock, Forge
from mqauth.testing.batchforge import PLACE, SIZE
from mqauth.testing.forge import with_token
from mqauth.wire import base64url, claims, destination, envelope, jws
from mqauth.wire import json_form as jsonform
from mqauth.wire import strict_json as strictjson
from mqauth.wire.envelope import add_named
from mqauth.wire.message import (
    PROTECTED_PROPERTIES,
    HeaderValue,
    Message,
    Origin,
    fold,
    form_of,
)
from tests.test_merkle import path_length

CLOCK = FakeClock()
FORGE = Forge(CLOCK)
SIGNER = FORGE.signer()
BATCH_FORGE = BatchForge(CLOCK)
BATCH_FORGE.key = FORGE.key
BATCH_SIGNER = BATCH_FORGE.signer()
VERIFIER = FORGE.verifier()

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
INTEGERS = st.integers(-(2**63), 2**63 - 1)
TIMES = st.integers(0, 4_000_000_000).map(
    lambda seconds: datetime.fromtimestamp(seconds, UTC)
)
DECIMALS = st.decimals(
    allow_nan=False, allow_infinity=False, places=3, min_value=-(10**6), max_value=10**6
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    INTEGERS,
    st.floats(width=32),
    TEXT,
    st.binary(max_size=12),
    TIMES,
    DECIMALS,
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple), st.dictionaries(TEXT, inner, max_size=3)
    ),
    max_leaves=6,
)
RESERVED = {"mqauth-token", *PROTECTED_PROPERTIES}
NAMES = TEXT.filter(lambda name: name.lower() not in RESERVED)


def distinct(names: list[str]) -> bool:
    """Tell whether no two names differ in case only."""
    return len({fold(name) for name in names}) == len(set(names))


@st.composite
def rabbitmq_messages(draw: st.DrawFn) -> Message:
    """Messages as RabbitMQ can carry them: names once, every value type, nested tables."""
    place = destination.rabbitmq(draw(TEXT), draw(TEXT))
    table = draw(
        st.dictionaries(NAMES, VALUES, max_size=4).filter(
            lambda found: distinct(list(found))
        )
    )
    properties = draw(
        st.dictionaries(st.sampled_from(PROTECTED_PROPERTIES), TEXT, max_size=4)
    )
    return Message(
        destination=place, body=draw(st.binary(max_size=40)), properties=properties, headers=tuple(table.items()),
        origin=Origin(queue=draw(TEXT)),
    )  # fmt: skip


@st.composite
def kafka_messages(draw: st.DrawFn) -> Message:
    """Messages as Kafka can carry them: tombstones, null and empty keys and values, names that repeat."""
    octets = st.one_of(st.none(), st.binary(max_size=12))
    name = st.one_of(
        NAMES, st.sampled_from(PROTECTED_PROPERTIES), st.sampled_from(["a", "b"])
    )
    headers = draw(
        st.lists(st.tuples(name, octets), max_size=6).filter(
            lambda found: distinct([pair[0] for pair in found])
        )
    )
    topic = draw(TEXT.filter(bool))
    return Message(
        destination=destination.kafka(topic), body=draw(octets), key=draw(octets), headers=tuple(headers),
        origin=Origin(topic=topic, partition=0, offset=draw(st.integers(0, 2**53))),
    )  # fmt: skip


MESSAGES = st.one_of(rabbitmq_messages(), kafka_messages())
SIGNERS = st.sampled_from([SIGNER, BATCH_SIGNER])
"""One that gives each message a token of its own, and one that seals it among siblings: the same must hold."""


def opened(message: Message, verifier: Verifier = VERIFIER) -> Verified:
    """Judge a message, and learn from it where it is accepted."""
    candidate = verifier.open(message)
    found = verifier.verify(message, candidate, FORGE.keys, CLOCK.now())
    verifier.learn(candidate)
    return found


def reason_of(message: Message) -> Reason | None:
    """Return why a message is rejected, ``None`` where it is not; with nothing remembered it is the same."""
    said = [_reason(message, verifier) for verifier in (VERIFIER, FORGE.verifier())]
    assert said[0] is said[1]
    return said[0]


def _reason(message: Message, verifier: Verifier) -> Reason | None:
    """Return why a verifier rejects a message."""
    try:
        opened(message, verifier)
    except Rejection as rejection:
        return rejection.reason
    return None


@given(SIGNERS, MESSAGES)
def test_whatever_is_sealed_opens_to_what_was_sealed(
    signer: Signer, message: Message
) -> None:
    """Seal and open round trip on both brokers, and the handler sees every application header."""
    found = opened(signer.sign(message))
    assert (found.body, found.key, found.destination) == (
        message.body,
        message.key,
        message.destination,
    )
    names = envelope.application_headers(form_of(message))
    expected = [pair for pair in message.headers if pair[0] in names]
    assert repr(list(found.headers)) == repr(expected)


@given(SIGNERS, MESSAGES, st.data())
def test_covered_names_may_stand_in_any_order_among_others(
    signer: Signer, message: Message, data: st.DataObject
) -> None:
    """A broker that reorders different names breaks nothing, as long as each name keeps its order."""
    sealed = signer.sign(message)
    names = data.draw(
        st.permutations(list(dict.fromkeys(name for name, _ in sealed.headers)))
    )
    moved = tuple((name, value) for name in names for value in sealed.occurrences(name))
    assert reason_of(replace(sealed, headers=moved)) is None


def _another(draw: Callable[[Any], Any], value: HeaderValue) -> HeaderValue:
    """Draw a value whose meaning differs."""
    found = draw(VALUES)
    names = []
    for each in (value, found):
        parts: list[bytes] = []
        add_named(parts, "n", (each,))
        names.append(b"".join(parts))
    assume(names[0] != names[1])
    result: HeaderValue = found
    return result


def _flip(draw: Callable[[Any], Any], raw: bytes | None) -> bytes | None:
    """Draw other bytes: one bit flipped, one byte more or fewer, none, or empty."""
    changes: list[bytes | None] = [None, b"", (raw or b"") + b"\0"]
    if raw:
        at = draw(st.integers(0, len(raw) * 8 - 1))
        flipped = bytearray(raw)
        flipped[at // 8] ^= 1 << at % 8
        changes += [bytes(flipped), raw[:-1], raw[1:]]
    found = draw(st.sampled_from(changes))
    assume(found != raw)
    return found  # type: ignore[no-any-return]


@given(SIGNERS, MESSAGES, st.sampled_from(["x", "%20", ".", "/"]))
def test_another_destination_is_destination_mismatch(
    signer: Signer, message: Message, suffix: str
) -> None:
    """A message moved elsewhere is refused there."""
    sealed = signer.sign(message)
    assert (
        reason_of(replace(sealed, destination=sealed.destination + suffix))
        is Reason.DESTINATION_MISMATCH
    )


@given(SIGNERS, MESSAGES, st.data())
def test_any_other_body_or_record_key_is_a_mismatch(
    signer: Signer, message: Message, data: st.DataObject
) -> None:
    """A flipped bit, a byte more or fewer, empty or none: body_mismatch and record_key_mismatch."""
    sealed = signer.sign(message)
    assert (
        reason_of(replace(sealed, body=_flip(data.draw, sealed.body)))
        is Reason.BODY_MISMATCH
    )
    assert (
        reason_of(replace(sealed, key=_flip(data.draw, sealed.key)))
        is Reason.RECORD_KEY_MISMATCH
    )


@given(SIGNERS, MESSAGES, st.sampled_from(PROTECTED_PROPERTIES), TEXT)
def test_any_other_property_is_headers_mismatch(
    signer: Signer, message: Message, name: str, value: str
) -> None:
    """Each of the seven is bound, present or absent: on RabbitMQ its value, on Kafka its occurrences."""
    sealed = signer.sign(message)
    if destination.is_kafka(message.destination):
        changed = replace(sealed, headers=(*sealed.headers, (name, value.encode())))
    else:
        assume(sealed.properties.get(name) != value)
        changed = replace(sealed, properties={**sealed.properties, name: value})
    assert reason_of(changed) is Reason.HEADERS_MISMATCH


@given(
    SIGNERS,
    MESSAGES,
    st.sampled_from(["value", "remove", "rename", "repeat", "twin"]),
    st.data(),
)
def test_any_other_covered_header_is_headers_mismatch(
    signer: Signer, message: Message, kind: str, data: st.DataObject
) -> None:
    """Value, presence, name, count and twins in another case: what is covered stays as it was signed."""
    sealed = signer.sign(message)
    headers = list(sealed.headers)
    names = envelope.application_headers(form_of(message))
    covered = [index for index, (name, _) in enumerate(headers) if name in names]
    assume(covered)
    index = data.draw(st.sampled_from(covered))
    name, value = headers[index]
    if kind == "value":
        headers[index] = (name, _another(data.draw, value))
    elif kind == "remove":
        del headers[index]
    elif kind == "rename":
        assume(f"{name}x" not in names)
        headers[index] = (f"{name}x", value)
    else:
        twin = name if kind == "repeat" else name.swapcase()
        assume(kind == "repeat" or (twin != name and fold(twin) == fold(name)))
        headers.insert(data.draw(st.integers(0, len(headers))), (twin, value))
    assert reason_of(replace(sealed, headers=tuple(headers))) is Reason.HEADERS_MISMATCH


@given(SIGNERS, kafka_messages(), st.data())
def test_the_order_of_occurrences_is_bound(
    signer: Signer, message: Message, data: st.DataObject
) -> None:
    """Exchanging two different values of one name is headers_mismatch."""
    values = data.draw(
        st.lists(st.binary(max_size=3), min_size=2, max_size=4, unique=True)
    )
    sealed = signer.sign(
        replace(message, headers=tuple(("tag", value) for value in values))
    )
    order = data.draw(st.permutations(range(len(values))))
    moved = (*(sealed.headers[index] for index in order), sealed.headers[-1])
    expected = None if list(order) == sorted(order) else Reason.HEADERS_MISMATCH
    assert reason_of(replace(sealed, headers=moved)) is expected


@given(SIGNERS, MESSAGES, VALUES, NAMES)
def test_an_uncovered_header_is_never_shown(
    signer: Signer, message: Message, value: HeaderValue, name: str
) -> None:
    """Whatever is added under a name of its own, the message is accepted without it."""
    assume(fold(name) not in {fold(header) for header, _ in message.headers})
    sealed = signer.sign(message)
    found = opened(replace(sealed, headers=((name, value), *sealed.headers)))
    assert found.header(name) is None
    assert found.headers == opened(sealed).headers or "nan" in repr(found.headers)


SEALED = SIGNER.sign(
    Message(
        destination="kafka:orders",
        body=b"hello",
        key=b"42",
        headers=(("tenant", b"acme"),),
    )
)
TOKEN = envelope.token_of(SEALED)
BARE = replace(SEALED, headers=SEALED.headers[:-1])


def judged_token(token: bytes) -> Reason | None:
    """Return why the honest message is rejected with another token."""
    return reason_of(replace(BARE, headers=(*BARE.headers, ("mqauth-token", token))))


@given(st.integers(0, len(TOKEN) * 8 - 1))
def test_any_flipped_bit_of_a_token_is_rejected(bit: int) -> None:
    """Header, payload and signature alike: no second form of a token is accepted."""
    flipped = bytearray(TOKEN)
    flipped[bit // 8] ^= 1 << bit % 8
    assert judged_token(bytes(flipped)) is not None


BATCHED = BATCH_SIGNER.sign(BARE)
BATCH_TOKEN = envelope.token_of(BATCHED)
JWS, _, PROOF = BATCH_TOKEN.partition(b"~")
TWELVE = range(len(JWS) + 3, len(JWS) + 19)
"""Where in the token header the twelve bytes stand that prove nothing."""


@given(st.integers(0, len(BATCH_TOKEN) * 8 - 1))
def test_any_flipped_bit_of_a_batch_token_is_rejected(bit: int) -> None:
    """Token, index and path alike, also when its siblings are remembered; the twelve bytes change nothing."""
    flipped = bytearray(BATCH_TOKEN)
    flipped[bit // 8] ^= 1 << bit % 8
    assert judged_token(BATCH_TOKEN) is None
    reason = judged_token(bytes(flipped))
    assert (
        reason in (None, Reason.PROOF_INVALID)
        if bit // 8 in TWELVE
        else reason is not None
    )


@given(
    st.one_of(
        st.binary(max_size=80), st.text("0123456789.~-_=AQ", max_size=60).map(str.encode)
    )
)
@example(b"")
@example(PROOF + b"~")
@example(PROOF + b"=")
@example(b"0" + PROOF)
def test_arbitrary_bytes_as_proof_are_a_rejection(proof: bytes) -> None:
    """Whatever stands behind the tilde is the message's own proof, or proof_invalid."""
    if proof != PROOF:
        assert judged_token(JWS + b"~" + proof) is Reason.PROOF_INVALID


@given(st.sampled_from([0, 1, 2]), st.data())
def test_each_segment_of_a_token_has_its_reasons(
    segment: int, data: st.DataObject
) -> None:
    """A changed signature is signature_invalid; a changed payload too, or its claims are malformed before."""
    parts = TOKEN.split(b".")
    raw = bytearray(base64url.decode(parts[segment]))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    parts[segment] = base64url.encode(bytes(raw))
    allowed = [
        {Reason.TOKEN_MALFORMED, Reason.TOKEN_TYPE, Reason.HEADER_FORBIDDEN, Reason.ALGORITHM_FORBIDDEN,
        Reason.KEY_UNKNOWN},
        {Reason.SIGNATURE_INVALID, Reason.CLAIMS_MALFORMED, Reason.CLAIM_MISSING, Reason.ISSUER_UNTRUSTED},
        {Reason.SIGNATURE_INVALID},
    ][segment]  # fmt: skip
    assert judged_token(b".".join(parts)) in allowed


SOUP = st.lists(
    st.one_of(
        st.binary(max_size=20),
        st.sampled_from([b".", b"e30", b"eyJ", b"=", *TOKEN.split(b".")]),
    ),
    max_size=6,
).map(b"".join)


@given(st.one_of(st.binary(max_size=60), SOUP))
@example(b"")
@example(b"..")
@example(TOKEN + b"=")
def test_arbitrary_bytes_as_token_are_a_rejection(token: bytes) -> None:
    """Whatever stands in the token header, the outcome is a reason and never another exception."""
    if token != TOKEN:
        assert judged_token(token) is not None


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text(max_size=6), inner, max_size=4),
    ),
    max_leaves=10,
)
HONEST = FORGE.claims(BARE)
NAMED = st.sampled_from([*HONEST, "nbf", "extra"])
BINDING_NAMED = st.sampled_from([*HONEST["mqa"], "tree"])
BATCH = BATCH_FORGE.mqa(BARE)


def loose(value: Any) -> bytes:
    """Return JSON as a careless writer gives it, NaN and surrogates included."""
    return json.dumps(value).encode("utf-8", "surrogatepass")


@given(st.one_of(JSON, st.dictionaries(NAMED, JSON, max_size=3).map(lambda bends: HONEST | bends),
                 st.dictionaries(BINDING_NAMED, JSON,
                 max_size=3).map(lambda bends: HONEST | {"mqa": HONEST["mqa"] | bends})))  # fmt: skip
def test_arbitrary_json_as_claims_is_judged(value: Any) -> None:
    """Signed claims of any shape are verified or rejected, and never another exception."""
    token = FORGE.token(BARE, payload=loose(value)).encode()
    if len(token) > jws.MAX_TOKEN:
        assert judged_token(token) is Reason.TOKEN_OVERSIZE
        return
    reason = judged_token(token)
    assert reason is None or isinstance(reason, Reason)
    assert reason not in (Reason.SIGNATURE_INVALID, Reason.TOKEN_MALFORMED)


@example(BATCH)
@example(BATCH | {"tree": BATCH["tree"] | {"size": 8}})
@example(BATCH | {"tree": BATCH["tree"] | {"size": 9}})
@given(st.one_of(
    st.dictionaries(st.sampled_from(["v", "tree", "hdr", "bod", "x"]), JSON, max_size=3).map(
        lambda bends: BATCH | bends),
    st.dictionaries(st.sampled_from(["root", "size", "x"]), JSON, max_size=2).map(
        lambda bends: BATCH | {"tree": BATCH["tree"] | bends})))  # fmt: skip
def test_arbitrary_json_as_a_batch_is_judged(mqa: dict[str, Any]) -> None:
    """A signed batch of any shape is proven or rejected, and never another exception."""
    token = FORGE.jws(BARE, payload=loose(HONEST | {"mqa": mqa})).encode() + b"~" + PROOF
    reason = judged_token(token)
    if reason is None:  # as it was, or of another size for which the path is the same
        size = mqa["tree"]["size"]
        assert mqa | {"tree": mqa["tree"] | {"size": SIZE}} == BATCH
        assert path_length(PLACE, size) == path_length(PLACE, SIZE)
    else:
        assert repr(mqa) != repr(BATCH)
        assert reason in (Reason.TOKEN_OVERSIZE, Reason.CLAIMS_MALFORMED, Reason.PROOF_INVALID,
                          Reason.HEADERS_MISMATCH)  # fmt: skip


@given(
    st.one_of(
        JSON.map(loose),
        st.binary(max_size=40),
        st.text('[]{},:"\\u0d8ef1.-eE+ naN', max_size=20).map(str.encode),
    )
)
def test_strict_json_agrees_with_json_on_what_it_accepts(raw: bytes) -> None:
    """What strict JSON reads, json reads alike; everything else is one error type."""
    try:
        value = strictjson.loads(raw, depth=8)
    except strictjson.StrictJSONError:
        return
    assert repr(json.loads(raw)) == repr(value)
    assert strictjson.loads(strictjson.dumps(value), depth=8) == value


@given(st.binary(max_size=60))
def test_claims_of_arbitrary_bytes_are_parsed_or_rejected(raw: bytes) -> None:
    """The parser raises nothing but Rejection."""
    try:
        claims.parse(raw)
    except Rejection as rejection:
        reason = rejection.reason
    else:
        reason = None
    assert reason in (None, Reason.CLAIMS_MALFORMED, Reason.CLAIM_MISSING)


@given(st.fixed_dictionaries({}, optional={
    "iss": st.sampled_from([HONEST["iss"], "https://evil.example"]), "sub": TEXT,
    "aud": st.one_of(st.just("billing"), TEXT),
    "iat": st.integers(-10, 10).map(lambda offset: HONEST["iat"] + offset),
    "exp": st.integers(-10, 4000).map(lambda offset: HONEST["iat"] + offset),
    "nbf": st.integers(-10, 10).map(lambda offset: HONEST["iat"] + offset), "role": JSON,
}), st.sampled_from(["EdDSA", "ES256", "none"]))  # fmt: skip
def test_what_we_accept_pyjwt_accepts_with_the_same_claims(
    bends: dict[str, Any], algorithm: str
) -> None:
    """An independent library, as an oracle: a token of ours is a valid JWT wherever we take it for one."""
    token = FORGE.token(
        BARE, claims=bends, payload=loose(HONEST | bends), header={"alg": algorithm}
    )
    try:
        found = opened(with_token(BARE, token))
    except Rejection:
        return
    decoded = jwt.decode(
        token, FORGE.key.public, algorithms=["EdDSA"], audience="billing", issuer=HONEST["iss"], leeway=5,
        options={"verify_exp": False, "verify_iat": False, "verify_nbf": False, "require": list(claims.REQUIRED)},
    )  # fmt: skip
    assert repr(sorted(decoded.items())) == repr(sorted(found.claims.as_dict().items()))


@given(MESSAGES)
def test_the_json_form_is_the_message(message: Message) -> None:
    """from_form(to_form(m)) is m, through strict JSON text, for every message a broker carries."""
    raw = strictjson.dumps(jsonform.to_form(message))
    again = jsonform.from_form(strictjson.loads(raw, depth=64))
    assert repr(again.headers) == repr(message.headers)
    assert replace(again, headers=()) == replace(message, headers=())


@given(JSON)
def test_arbitrary_json_is_a_message_or_malformed(value: Any) -> None:
    """Reading a form raises nothing but MalformedMessage, also for its parts."""
    forms = [
        value,
        {"destination": "kafka:a", "body": value},
        {"destination": value, "body": None},
    ]
    forms += [
        {"destination": "rabbitmq:/a", "body": "", name: value}
        for name in ("headers", "properties", "origin", "key")
    ]
    forms += [{"destination": "kafka:a", "body": "", "headers": [["a", value]]}]
    for form in forms:
        with contextlib.suppress(MalformedMessage):
            assert isinstance(jsonform.from_form(form), Message)


@given(st.recursive(st.one_of(SCALARS, st.text(), st.floats(), st.decimals()), lambda inner: st.one_of(
    st.lists(inner, max_size=3).map(tuple), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=6))  # fmt: skip
def test_any_value_is_encoded_or_malformed_and_always_written(value: Any) -> None:
    """Encoding raises nothing but MalformedMessage, writing the JSON form raises nothing."""
    assert strictjson.dumps(jsonform.value_to_form(value))
    with contextlib.suppress(MalformedMessage):
        add_named([], "n", (value,))


@given(TEXT, TEXT)
def test_destinations_have_one_spelling(exchange: str, routing_key: str) -> None:
    """Every name has a canonical form, which parses back and has no second."""
    place = destination.rabbitmq(exchange, routing_key)
    assert destination.parse(place) == ("rabbitmq", exchange, routing_key)


@given(st.text(st.sampled_from("kafrbitmq:/%012aAfF.~é"), max_size=16))
def test_what_parses_as_a_destination_is_canonical(text: str) -> None:
    """A text that parses is exactly what its names encode to."""
    try:
        scheme, *names = destination.parse(text)
    except MalformedMessage:
        return
    assert text == (
        destination.rabbitmq(*names)
        if scheme == "rabbitmq"
        else destination.kafka(*names)
    )
