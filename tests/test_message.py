"""The message: raw, ordered, and silent about what it carries."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields, replace

import pytest

from mqauth import ConfigurationError, Verified
from mqauth.testing import Forge
from mqauth.wire.message import Message, Origin, kafka_origin, message_of

OLD, NEW = "dAuV3yR2SqOqyRXx7m3ZkA", "f5zTnBvXQ5mYxPqV2a0hLw"
RABBIT = Message(
    destination="rabbitmq:shop/orders",
    body=b"secret-body",
    properties={"content-type": "a"},
)
KAFKA = Message(
    destination="kafka:orders",
    body=None,
    headers=(
        ("content-type", b"a\xff"),
        ("tag", b"1"),
        ("Tag", b"2"),
        ("tag", None),
        ("type", b"x"),
        ("type", b"y"),
    ),
)


def test_repr_shows_neither_body_nor_headers() -> None:
    """A message can be logged: repr gives destination, size and count only."""
    assert repr(RABBIT) == "Message('rabbitmq:shop/orders', 11 bytes, 0 headers)"
    assert repr(KAFKA) == "Message('kafka:orders', None bytes, 6 headers)"


def test_occurrences_keep_order_and_case() -> None:
    """Every value of a name comes in order; another case is another name."""
    assert KAFKA.occurrences("tag") == (b"1", None)
    assert KAFKA.occurrences("absent") == ()


def test_a_property_has_text_only_where_it_stands_once() -> None:
    """Absent, repeated or null properties have no text; bytes that are no UTF-8 are replaced."""
    assert RABBIT.text_property("content-type") == "a"
    assert KAFKA.text_property("content-type") == "a\ufffd"
    assert KAFKA.text_property("type") is None
    assert KAFKA.text_property("app-id") is None
    assert replace(KAFKA, headers=(("app-id", None),)).text_property("app-id") is None


@pytest.mark.parametrize(
    ("cluster", "topic_id", "source"),
    [(None, None, "t.x-1/1/2"), ("c", None, "t.x-1/1/2@c"), ("c", OLD, f"t.x-1/1/2@c/{OLD}"),
     (None, OLD, f"t.x-1/1/2@/{OLD}")],
)  # fmt: skip
def test_source_of_a_record_names_its_place_exactly(
    cluster: str | None, topic_id: str | None, source: str
) -> None:
    """What is known of cluster and topic stands in the source, and is read back from it."""
    origin = Origin(
        scope="g",
        topic="t.x-1",
        partition=1,
        offset=2,
        cluster=cluster,
        topic_id=topic_id,
    )
    assert origin.source == source
    assert Origin.of_record(source, scope="g") == origin


@pytest.mark.parametrize(
    "source", ["", "t", "t/1", "t/1/", "/1/2", "t/1/2/3", "t/-1/2", "t/1/x", "t/1/2@c/d/e/\n",
               f"t/1/2@{'c' * 200}", "t/" + "1" * 30 + "/2"],
)  # fmt: skip
def test_source_that_is_no_place(source: str) -> None:
    """Text that names no record has no origin."""
    assert Origin.of_record(source, scope="g") is None


def test_native_objects_do_not_take_part_in_equality() -> None:
    """Two messages are equal by what they say, whatever client object they came from."""
    assert replace(RABBIT, native=object()) == replace(RABBIT, native=object())


def test_made_by_the_slot() -> None:
    """What broker wrappers make quickly is what the constructors make, every field of it, and as frozen."""
    origin = Origin(
        scope="g",
        topic="t",
        partition=1,
        offset=2,
        timestamp_ms=3,
        timestamp_type="append",
        cluster="c",
        topic_id=OLD,
    )
    assert kafka_origin("g", "t", 1, 2, 3, "append", "c", OLD) == origin
    slow = Message(
        destination="kafka:t", body=b"b", key=b"k", properties={"a": "b"}, headers=(("c", b"d"),), origin=origin,
        native=5, malformed="m",
    )  # fmt: skip
    quick = message_of("kafka:t", b"b", b"k", {"a": "b"}, (("c", b"d"),), origin, 5, "m")
    assert (quick, quick.native, hash(quick.origin)) == (slow, slow.native, hash(origin))
    for made, name in ((quick, "body"), (quick.origin, "scope")):
        assert all(hasattr(made, field.name) for field in fields(made))
        with pytest.raises(FrozenInstanceError):
            setattr(made, name, "x")


# The verified message: made by the verifier alone, and showing only what is covered.


Maker = Callable[..., Message]


def judged(forge: Forge, message: Message) -> Verified:
    """Seal and verify a message."""
    sealed = forge.seal(message)
    verifier = forge.verifier()
    return verifier.verify(sealed, verifier.open(sealed), forge.keys, forge.clock.now())


def test_a_handler_sees_what_was_signed(forge: Forge, kafka: Maker) -> None:
    """Body, key, claims, kid and covered headers are the message's, every occurrence in order."""
    found = judged(forge, kafka(native="the client's own"))
    assert found.native == "the client's own"
    assert (found.body, found.key, found.destination) == (b"hello", b"42", "kafka:orders")
    assert (found.issuer, found.subject, found.audience) == (
        "https://auth.example",
        "orders-api",
        "billing",
    )
    assert (found.jti, found.kid, found.key_set) == (
        found.claims.jti,
        forge.key.kid,
        forge.keys.version,
    )
    assert found.headers == (("tenant", b"acme"), ("tag", b"1"), ("tag", b"2"))
    assert (found.header("tag"), found.header("absent")) == (b"2", None)
    assert (found.received, found.origin, found.value) == (
        forge.clock.now(),
        kafka().origin,
        None,
    )


def test_it_cannot_be_made_changed_or_copied_into_another(
    forge: Forge, rabbit: Maker
) -> None:
    """Only the verifier makes one, and nobody changes one."""
    found = judged(forge, rabbit())
    with pytest.raises(ConfigurationError):
        Verified(object(), found._facts)
    with pytest.raises(AttributeError):
        found.body = b"evil"
    with pytest.raises(AttributeError):
        del found.body
    with pytest.raises((AttributeError, TypeError)):
        copy.replace(found) if hasattr(copy, "replace") else copy.copy(found)
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        pickle.loads(pickle.dumps(found))  # noqa: S301


def test_repr_shows_who_and_where(forge: Forge, rabbit: Maker) -> None:
    """It can be logged: neither body nor headers nor token."""
    text = repr(judged(forge, rabbit()))
    assert (
        text
        == "Verified('rabbitmq:shop/orders.created', issuer='https://auth.example', subject='orders-api')"
    )
