"""Vectors of dead letters: what is a digest of what, each form of a letter, and letters that are not intact."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from mqauth.errors import Reason, Rejection
from mqauth.letters.dead_letter import DeadLetter
from mqauth.letters.release import Hop, Past, Release
from mqauth.wire import destination
from mqauth.wire.envelope import bind
from mqauth.wire.json_form import to_form
from mqauth.wire.message import Message, Origin
from tests.vectors.world import EVERY_TYPE, FORGE, NOW, added, kafka, rabbit

AUDIT: Final = "019d4a3e-4b00-7000-8000-000000000001"
SCOPE: Final = "billing"
_ON_KAFKA: Final = Origin(
    topic="orders",
    partition=2,
    offset=17,
    cluster="MkU3OEVBNTcwNTJENDM2Qg",
    topic_id="f5zTnBvXQ5mYxPqV2a0hLw",
)
_IN_QUEUE: Final = Origin(
    queue="billing in", exchange="shop", routing_key="orders.created"
)


def dead(message: Message, reason: Reason = Reason.EXPIRED, **more: Any) -> DeadLetter:
    """Return the dead letter of a message, with its place."""
    origin = _ON_KAFKA if message.destination.startswith("kafka:") else _IN_QUEUE
    message = message if message.origin.source else replace(message, origin=origin)
    given = {"scope": SCOPE, "time": NOW + 0.25, "audit": AUDIT} | more
    return DeadLetter(message=message, rejection=Rejection(reason, "too late"), **given)


def carried(letter: Message) -> Message:
    """Return a letter as it lies in its queue or topic."""
    place = (
        destination.kafka("dead")
        if letter.destination.startswith("kafka:")
        else destination.rabbitmq("", "dead")
    )
    return replace(letter, destination=place, origin=Origin())


def released(message: Message) -> Release:
    """Return a release of a message, with the letters before it."""
    hops = (
        Hop(letter="1" * 64, reason=Reason.EXPIRED, time=NOW - 7200),
        Hop(letter="2" * 64, reason=None, time=NOW - 3600),
    )
    return Release(
        iss="https://review.example", sub="ana", jti="j" * 22, reason="looked at", letter="2" * 64, tok="A" * 43,
        mqa=bind(message), waive=frozenset(), scope=SCOPE, iat=NOW - 60, exp=NOW + 60,
        past=Past(count=3, hops=hops),
    )  # fmt: skip


def made() -> list[tuple[str, str, DeadLetter]]:
    """Return dead letters by name, with the form that each is to have."""
    live = {
        "content-type": "text/plain", "message-id": "m-1", "reply-to": "answers", "user-id": "guest",
        "expiration": "60000", "delivery-mode": "2", "timestamp": "1900000000", "priority": "3",
    }  # fmt: skip
    routed = (
        ("tenant", "acme"), ("CC", ("a", "b")), ("x-delay", 5000), ("timestamp_in_ms", 1_900_000_000_123),
        ("reply-to", "x"), ("x-death", ({"queue": "q", "count": 1},)), ("x-delivery-count", 2), ("last", b"\x00"),
    )  # fmt: skip
    whole = FORGE.seal(kafka())
    early = datetime(1969, 12, 31, tzinfo=UTC)
    return [
        ("a record with its key and its token", "whole", dead(whole)),
        ("a tombstone without key, token and cluster", "whole",
         dead(replace(kafka(body=None, key=None), origin=Origin(topic="orders", partition=0, offset=0)),
              Reason.TOKEN_MISSING)),
        ("a topic's id without a cluster", "whole",
         dead(replace(kafka(), origin=replace(_ON_KAFKA, cluster=None)), Reason.TOKEN_MISSING)),
        ("a record key of 1025 bytes stays the letter's key", "whole", dead(kafka(key=b"k" * 1025))),
        ("names that repeat, in their order", "whole",
         dead(kafka(headers=(("b", b"1"), ("a", b"2"), ("b", None), ("a", b""))), Reason.TOKEN_MISSING)),
        ("a delivery with its token", "whole", dead(FORGE.seal(rabbit()))),
        ("values of every type", "whole", dead(rabbit(headers=EVERY_TYPE), Reason.TOKEN_MISSING)),
        ("properties and headers that act on a letter, or that a broker writes", "whole",
         dead(rabbit(properties=live, headers=routed), Reason.TOKEN_MISSING)),
        ("a second token is metadata", "whole",
         dead(added(FORGE.seal(rabbit()), "Mqauth-Token", "a.b.c"), Reason.TOKEN_REPEATED)),
        ("a value without an encoding counts by its form", "json",
         dead(rabbit(headers=(("a", {"when": early, "q": 'a"\n\u00e9'}),)), Reason.TOKEN_MISSING)),
        ("the whole message in the body, on RabbitMQ", "json",
         dead(FORGE.seal(rabbit(properties=live, headers=routed)))),
        ("the whole message in the body, on Kafka", "json", dead(whole)),
        ("a reference, on RabbitMQ", "reference", dead(rabbit(), Reason.TOKEN_MISSING)),
        ("a reference, on Kafka, to a long key", "reference", dead(kafka(key=b"k" * 1025), Reason.TOKEN_MISSING)),
        ("a message that was released before", "whole", dead(whole, release=released(whole))),
        ("a handler's failure, below enforce", "whole",
         dead(whole, Reason.HANDLER_FAILED, error="0123456789ab", rung="observe")),
        ("a scope and a queue beyond ASCII", "whole",
         dead(replace(rabbit(), origin=replace(_IN_QUEUE, queue="\u00e9")), Reason.TOKEN_MISSING,
              scope="\u00fc/1")),
    ]  # fmt: skip


def letter_of(form: str, one: DeadLetter) -> Message:
    """Return a dead letter in one of its forms."""
    return {
        "whole": lambda: one.whole(lambda *_: True),
        "json": one.in_body,
        "reference": one.reference,
    }[form]()


def changed(letter: Message, name: str, value: str | None) -> Message:
    """Return a letter with another value of one of its own headers, or without it."""
    headers = (
        (own, value if own == f"mqauth-dead-{name}" else was)
        for own, was in letter.headers
    )
    return replace(letter, headers=tuple(pair for pair in headers if pair[1] is not None))


def readings(
    letters_made: list[tuple[str, str, DeadLetter]],
) -> list[tuple[str, Message, bool]]:
    """Return letters by name, with whether they are intact."""
    found = [
        (name, letter_of(form, one), form != "reference")
        for name, form, one in letters_made
    ]
    letters = {name: letter for name, letter, _ in found}
    record, queued = (
        letters["a record with its key and its token"],
        letters["a delivery with its token"],
    )
    live = letters["properties and headers that act on a letter, or that a broker writes"]
    metadata = json.loads(dict(live.headers)["mqauth-dead-metadata"])  # type: ignore[arg-type]
    moved = json.dumps(metadata | {"places": [*metadata["places"][1:], 99]})
    stripped = dead(
        rabbit(headers=(("mqauth-dead-id", "0" * 64), ("a", 1))), Reason.TOKEN_MISSING
    )
    other = replace(
        record,
        headers=tuple(pair for pair in record.headers if pair[0] != "mqauth-dead-token"),
    )
    return [
        *found,
        ("another body", replace(record, body=b"another"), False),
        ("another record key", replace(record, key=b"another"), False),
        ("without its token", other, False),
        ("another scope", changed(record, "scope", "stock"), False),
        ("another place", changed(record, "source", "orders/2/18@MkU3OEVBNTcwNTJENDM2Qg/f5zTnBvXQ5mYxPqV2a0hLw"),
         False),
        ("no place", changed(record, "source", "somewhere"), False),
        ("another queue", changed(queued, "source", "another"), False),
        ("another destination", changed(queued, "destination", "rabbitmq:shop/orders.paid"), False),
        ("no destination", changed(queued, "destination", None), False),
        ("an unknown form", replace(queued, headers=(*queued.headers, ("mqauth-dead-form", "zip"))), False),
        ("of a name that stands twice the first counts",
         replace(record, headers=(*record.headers, ("mqauth-dead-scope", b"stock"))), True),
        ("metadata that is no JSON", changed(live, "metadata", "{"), False),
        ("a header at a place that does not exist", changed(live, "metadata", moved), False),
        ("without its metadata", changed(live, "metadata", None), False),
        ("headers in the sender's own spelling of ours were stripped",
         stripped.whole(lambda *_: True), False),
        ("what a broker wrote on the letter", replace(queued, headers=(
            *queued.headers, ("x-delivery-count", 3), ("timestamp_in_ms", 1))), True),
        ("reason, time and history are not what the id proves",
         changed(changed(record, "reason", "replayed"), "time", "2026-01-01T00:00:00.000Z"), True),
    ]  # fmt: skip


def letters() -> dict[str, Any]:
    """Return the vectors of letters: made, and read."""
    vectors, letters_made = [], made()
    for name, form, one in letters_made:
        past = None if one.release is None else one.release.lineage
        vectors.append({
            "name": name, "message": to_form(one.message), "scope": one.scope,
            "source": one.message.origin.source, "reason": one.rejection.reason.value,
            "detail": one.rejection.sentence(whole=False), "time": int(one.time * 1000), "audit": one.audit,
            "error": one.error, "rung": one.rung,
            "past": None if past is None else {"count": past.count, "hops": [
                {"letter": hop.letter, "reason": hop.reason, "time": hop.time} for hop in past.hops]},
            "digest": one.digest, "id": one.id, "form": form, "letter": to_form(carried(letter_of(form, one))),
        })  # fmt: skip
    read = [
        {"name": name, "letter": to_form(carried(letter)), "intact": intact}
        for name, letter, intact in readings(letters_made)
    ]
    return {"profile": 1, "made": vectors, "read": read}
