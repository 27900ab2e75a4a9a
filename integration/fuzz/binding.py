"""Targets: what a token binds. A decoder of the encoding, written from the wire profile, is the judge."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from integration.fuzz import seeds
from integration.fuzz.draw import Draw, packed_message, sized
from integration.fuzz.oracles import hold
from mqauth.errors import MalformedMessage, MqauthError, Reason, Rejection
from mqauth.judging.verifier import Verifier
from mqauth.testing.forge import AUDIENCE, ISSUER
from mqauth.wire import batch, envelope, jwk
from mqauth.wire.claims import Binding, Claims
from mqauth.wire.keys import KeySet
from mqauth.wire.message import PROTECTED_PROPERTIES, Message, form_of

_REPLY: Final = "amq.rabbitmq.reply-to"
Named = list[tuple[str, list[Any]]]


def decoded(raw: bytes) -> Named:
    """Return names and values of encoded headers: what the bytes say by the profile, section 5."""
    assert raw.startswith(b"mqauth-hds-1")
    reader, found = Draw(raw[12:]), []
    while (tag := reader.octets(1)) == b"h":
        name = reader.octets(reader.number(4)).decode("utf-8")
        found.append((name, [_decoded(reader) for _ in range(reader.number(4))]))
    assert not tag, "bytes are left over"
    return found


def _decoded(reader: Draw) -> Any:
    tag = reader.octets(1)
    if tag == b"n":
        return ("n",)
    if tag == b"t":
        return ("t", reader.octets(1))
    if tag == b"d":
        return ("d", reader.octets(8))
    size = reader.number(4)
    if tag == b"l":
        return ("l", [_decoded(reader) for _ in range(size)])
    if tag == b"m":
        return ("m", [(_key(reader), _decoded(reader)) for _ in range(size)])
    assert tag in (b"s", b"b", b"i", b"T", b"D")
    return (tag.decode(), reader.octets(size))


def _key(reader: Draw) -> bytes:
    assert reader.octets(1) == b"k"
    return reader.octets(reader.number(4))


def modelled(value: Any) -> Any:
    """Return what the encoding of a value must decode to."""
    if isinstance(value, tuple):
        return ("l", [modelled(item) for item in value])
    if isinstance(value, Mapping):
        return (
            "m",
            sorted((name.encode(), modelled(item)) for name, item in value.items()),
        )
    return next(say(value) for kind, say in _MODELS if isinstance(value, kind))


def _whole_seconds(value: datetime) -> int:
    return math.floor((value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp())


_MODELS: Final[tuple[tuple[type, Callable[[Any], Any]], ...]] = (
    (type(None), lambda value: ("n",)),
    (str, lambda value: ("s", value.encode())),
    (bytes, lambda value: ("b", value)),
    (bool, lambda value: ("t", bytes((value,)))),
    (int, lambda value: ("i", b"%d" % value)),
    (
        float,
        lambda value: (
            "d",
            b"\x7f\xf8" + bytes(6) if math.isnan(value) else struct.pack(">d", value),
        ),
    ),
    (datetime, lambda value: ("T", b"%d" % _whole_seconds(value))),
    (Decimal, lambda value: ("D", format(value, "f").encode())),
)


def covered(message: Message, names: tuple[str, ...]) -> Named:
    """Return what the encoding of a message's covered headers must decode to."""
    found = [(name, message.property_values(name)) for name in PROTECTED_PROPERTIES]
    found += [(name, message.occurrences(name)) for name in names]
    reply = message.properties.get("reply-to", "")
    if reply.startswith(_REPLY + "."):
        found[PROTECTED_PROPERTIES.index("reply-to")] = "reply-to", (_REPLY,)
    return [(name, [*map(modelled, values)]) for name, values in found]


def _parts(message: Message, names: tuple[str, ...]) -> Any:
    return message.destination, message.body, message.key, covered(message, names)


def binding(raw: bytes) -> None:
    """Bind a message, change it, and check: it holds exactly where nothing that it covers was changed."""
    draw = Draw(raw)
    changes = draw.listed(lambda: (draw.number(), draw.number(), draw.some()))
    message = draw.message()
    with suppress(MalformedMessage):
        bound = envelope.bind(message)
        names = bound.hdr
        assert decoded(envelope.headers_input(message, names)) == covered(message, names)
        encode = envelope.checked_encoder(form_of(message), names)
        envelope.check(message, bound, encode)
        other = message
        for kind, at, given in changes:
            other = _CHANGES[kind % len(_CHANGES)](other, at, given)
        _hold(message, other, bound)


def _hold(message: Message, other: Message, bound: Binding) -> None:
    """Check a binding and a batch of one message against another message: both hold if it says the same."""
    encode = envelope.checked_encoder(form_of(other), bound.hdr)
    try:
        same = _parts(message, bound.hdr) == _parts(other, bound.hdr)
        envelope.refuse_case_twins(form_of(other), bound.hdr)
    except (MalformedMessage, StopIteration, UnicodeEncodeError, OverflowError):
        same = False
    headers = envelope.headers_input(message, bound.hdr)
    found = batch.leaf_of(message, headers)
    leaf, proof = batch.leaf_hash(found), batch.Proof(0, batch.shorts_of(found), b"")
    assert _holds(lambda: envelope.check(other, bound, encode)) is same
    assert (
        _holds(lambda: batch.check(other, proof, batch.Proven(leaf, 1), encode)) is same
    )


_DIFFERENT: Final = frozenset(
    (
        Reason.DESTINATION_MISMATCH,
        Reason.RECORD_KEY_MISMATCH,
        Reason.BODY_MISMATCH,
        Reason.HEADERS_MISMATCH,
    )
)


def _holds(check: Callable[[], None]) -> bool:
    try:
        check()
    except Rejection as rejection:
        hold(rejection.reason in _DIFFERENT, f"undocumented: {rejection.reason}")
        return False
    return True


def _header(message: Message, at: int, given: bytes) -> Message:
    """Return the message with another value, name or place of one header."""
    draw, pairs = Draw(given), [*message.headers]
    if not pairs:
        return message
    place = at % len(pairs)
    name, value = pairs[place]
    kind = draw.number() % 4
    if kind == 0:
        pairs[place] = name, draw.value()
    elif kind == 1:
        pairs[place] = draw.name(), value
    else:
        pairs.insert(
            draw.number() % len(pairs),
            pairs.pop(place) if kind == 2 else (draw.name(), draw.value()),
        )
    on_kafka = envelope.is_kafka(message.destination)
    return replace(message, headers=tuple(pairs if on_kafka else dict(pairs).items()))


def _property(message: Message, at: int, given: bytes) -> Message:
    name = PROTECTED_PROPERTIES[at % 7]
    if envelope.is_kafka(message.destination):
        return replace(message, headers=(*message.headers, (name, given)))
    text = given.decode("utf-8", "surrogateescape")
    rest = {known: value for known, value in message.properties.items() if known != name}
    return replace(message, properties=rest | ({name: text} if text else {}))


_CHANGES: Final[tuple[Callable[[Message, int, bytes], Message], ...]] = (
    _header,
    _property,
    lambda message, at, given: replace(message, body=given),
    lambda message, at, given: replace(message, headers=message.headers[:at]),
    lambda message, at, given: replace(
        message,
        key=(given if at else None) if envelope.is_kafka(message.destination) else None,
    ),
    lambda message, at, given: replace(
        message, destination=message.destination + "a" * (at % 2)
    ),
)
"""Ways of changing a message, by a number and bytes."""


def changed() -> list[bytes]:
    """Return seeds: the vectors' messages, as they are and with one change each."""
    found = []
    for at, message in enumerate(seeds.messages()):
        changes = bytes((at % 3, at % 6, at % 5)) + sized(b"\1\3a")
        found.append(changes + changes[1:] * max(0, at % 3 - 1) + packed_message(message))
    return [b"\0" + packed_message(message) for message in seeds.messages()] + found


def verifiers() -> Verifier:
    """Return the verifier of the vectors, with nothing remembered."""
    return Verifier(keys={ISSUER: _KEYS}, audience=AUDIENCE)


def verdict(raw: bytes) -> None:
    """Judge a message: the same warm and cold, and accepted only where a vector is that message."""
    message = Draw(raw).message()
    warm, cold = _judged(_WARM, message), _judged(verifiers(), message)
    assert warm == cold, f"a verdict that depends on what came before: {warm} and {cold}"
    if isinstance(warm, Claims):
        known, names = _known().get((message.destination, warm.jti), []), warm.mqa.hdr
        assert any(_parts(message, names) == _parts(one, names) for one in known), (
            "no vector is this message"
        )


def _judged(verifier: Verifier, message: Message) -> Reason | Claims:
    try:
        candidate = verifier.open(message)
        keys = verifier.issuer(candidate.token).keys.key_set()
        verifier.verify(message, candidate, keys, seeds.vectors("tokens")["received"])
        verifier.learn(candidate)
        return candidate.token.claims
    except Rejection as rejection:
        return rejection.reason
    except MqauthError as error:
        raise AssertionError(f"undocumented: {type(error).__name__}") from error


_KEYS: Final[KeySet] = jwk.load_key_set(seeds.vectors("tokens")["consumer"]["jwks"])
_WARM: Final = verifiers()
_MADE: Final = dict[tuple[str, str], list[Message]]()


def _known() -> dict[tuple[str, str], list[Message]]:
    """Return the vectors' messages by destination and id of their token."""
    if not _MADE:
        for message in seeds.messages():
            with suppress(Rejection, MqauthError):
                claims = verifiers().open(message).token.claims
                _MADE.setdefault((message.destination, claims.jti), []).append(message)
    return _MADE
