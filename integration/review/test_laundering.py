"""Every way to launder a dead letter, tried on real brokers through the real consumer: none is handled."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aio_pika

from integration.services import RabbitMQ
from mqauth.errors import Reason
from mqauth.letters.release import RELEASE_HEADER, RELEASE_TYPE, open_release
from mqauth.review import Letter, read
from mqauth.wire import destination, jws
from mqauth.wire import strict_json as strictjson
from mqauth.wire.jws import LocalSigningKey
from mqauth.wire.keys import Key
from mqauth.wire.message import Message

if TYPE_CHECKING:
    from integration.review.scene import Scene
    from mqauth.testing.stage_rabbitmq import RabbitMQStage


def restored(letter: Message) -> Message:
    """Return the original of a letter that can be restored."""
    original = read(Letter(message=letter)).original
    assert original is not None
    return original


class Caught:
    """A letter box whose redriven messages an attacker catches: nothing is sent, nothing removed."""

    def __init__(self, box: Any) -> None:
        self._box = box
        self.messages: list[Message] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._box, name)

    def publish(self, message: Message, /) -> None:
        """Catch it."""
        self.messages.append(message)

    def remove(self, letter: Letter, /) -> None:
        """Leave it."""


def caught(scene: Scene) -> list[Message]:
    """Return what a redrive of every letter, expired waived, would send."""
    with scene.session() as found:
        box, selection = Caught(found.box), scene.freeze(found)
        found.box, found.guard = box, scene.guard()  # type: ignore[assignment]
        assert (
            found.act(
                scene.plan("redrive", waive=frozenset([Reason.EXPIRED])), selection
            ).error
            is None
        )
    return box.messages


def released(message: Message, token: str) -> Message:
    """Return a message with another release."""
    kept = tuple(pair for pair in message.headers if pair[0] != RELEASE_HEADER)
    value: Any = token.encode() if destination.is_kafka(message.destination) else token
    return replace(message, headers=(*kept, (RELEASE_HEADER, value)))


def bent(scene: Scene, good: Message, key: Key | None = None, **claims: Any) -> str:
    """Return the release of a message, its claims changed and signed again."""
    found = open_release(good).release.as_dict() | claims
    return jws.compact(
        strictjson.dumps(found), LocalSigningKey(key or scene.key), typ=RELEASE_TYPE
    )


def release_of(message: Message) -> str:
    """Return the release a message carries."""
    value = dict(message.headers)[RELEASE_HEADER]
    return value.decode() if isinstance(value, bytes) else str(value)


def sent(scene: Scene, messages: Sequence[Message]) -> Counter[str]:
    """Send messages past mqauth, let the consumer have them, and return why each was rejected."""
    before = scene.why()
    for message in messages:
        scene.stage.inject(message)
    scene.consume(len(messages))
    return scene.why() - before


def test_what_an_attacker_sends_again_is_rejected_by_name(scene: Scene) -> None:
    """As it is, under another's release, edited, under a release bent, of another key or scope: never handled."""
    for number in range(2):
        scene.stage.inject(scene.message("expired", number))
    scene.stage.inject(scene.message("signature_invalid", 0))
    scene.consume(3)
    first, second = caught(scene)
    forged = next(
        restored(letter)
        for letter in scene.stage.letters()
        if b"signature" in (letter.body or b"")
    )
    as_it_is = [
        replace(letter, destination=scene.stage.destination)
        for letter in scene.stage.letters()
    ]
    assert sent(scene, as_it_is) == {"token_missing: no token header": 3}
    waiving = bent(scene, first, waive=["signature_invalid"])
    assert sent(
        scene, [released(first, release_of(second)), replace(first, body=b"edited")]
    ) == {"release_invalid: the release is of another message: body_mismatch": 2}
    assert sent(scene, [released(forged, waiving), released(first, waiving)]) == {
        "signature_invalid: the signature does not hold": 1,
        "release_invalid: it waives what no release may waive": 1,
    }
    assert sent(scene, [released(forged, release_of(first))]) == {
        "signature_invalid: the signature does not hold": 1
    }
    strange = Key.generate(subjects=["ada"])
    assert sent(
        scene,
        [
            released(first, bent(scene, first, strange)),
            released(first, bent(scene, first, iss="https://evil.example")),
        ],
    ) == {
        "release_invalid: the authority has no such key": 1,
        "release_invalid: no such release authority is configured": 1,
    }
    assert scene.handled == []
    assert sent(scene, [first, first]) == {}  # the release itself is good, once
    assert [verified.body for verified in scene.handled] == [b"expired 0"]
    assert (scene.outcomes["accepted"], scene.outcomes["duplicate"]) == (1, 1)


def test_nothing_a_letter_carries_acts_when_it_is_redriven(
    rabbitmq: RabbitMQ, tmp_path: Path
) -> None:
    """CC, BCC, expiration, user id and delay added to an honest message go nowhere again with its redrive."""
    from integration.review.kills import waiting
    from integration.review.scene import scene_at

    with scene_at(rabbitmq.url, tmp_path) as scene:
        stage: Any = scene.stage
        honest = scene.message("expired", 0)
        live = (("CC", ("copies",)), ("BCC", ("copies",)), ("x-delay", 5))
        added = {"expiration": "60000", "user-id": "guest"}
        with copies(rabbitmq.url, stage) as copied:
            stage.inject(
                replace(honest, headers=(*honest.headers, *live), properties=added)
            )
            assert copied() == 1  # the attacker's own doing
            scene.consume(1)
            (sent_back,) = caught(scene)
            with scene.session() as found:
                assert scene.redrive(found, Reason.EXPIRED).done == 1
            assert (waiting(scene), copied()) == (1, 1)
        scene.consume(1)
        assert [verified.body for verified in scene.handled] == [b"expired 0"]
        assert {name for name, _ in sent_back.headers} == {"mqauth-token", RELEASE_HEADER}
        assert added.keys().isdisjoint(sent_back.properties)


@contextlib.contextmanager
def copies(url: str, stage: RabbitMQStage) -> Iterator[Callable[[], int]]:
    """Bind a queue of its own to a stage's exchange by the key ``copies``, and give what counts its messages."""
    exchange = destination.parse(stage.destination)[1]

    async def on_channel(act: Callable[[Any], Awaitable[Any]]) -> Any:
        async with await aio_pika.connect(url) as connection:
            return await act(await connection.channel())

    async def declare(channel: Any) -> None:
        queue = await channel.declare_queue(f"{exchange}.copies", durable=True)
        await queue.bind(exchange, "copies")

    async def count(channel: Any) -> int:
        queue = await channel.declare_queue(f"{exchange}.copies", passive=True)
        return int(queue.declaration_result.message_count)

    async def delete(channel: Any) -> None:
        await channel.queue_delete(f"{exchange}.copies")

    asyncio.run(on_channel(declare))
    try:
        yield lambda: asyncio.run(on_channel(count))
    finally:
        asyncio.run(on_channel(delete))
