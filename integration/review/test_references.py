"""Messages too large for a letter: redriven from where Kafka still has them, refused on RabbitMQ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from integration.services import Kafka, RabbitMQ
from mqauth.errors import Reason, Rejection
from mqauth.flow import call
from mqauth.letters.dead_letter import PREFIX, DeadLetter
from mqauth.wire import destination
from mqauth.wire.message import Message

if TYPE_CHECKING:
    from integration.review.scene import Scene
    from mqauth.testing.stage_kafka import KafkaStage


@pytest.fixture
def scene(kafka: Kafka, tmp_path: Path) -> Iterator[Scene]:
    """A Kafka whose dead-letter topic takes smaller records than its source."""
    from integration.review.scene import scene_at

    with scene_at(kafka.url, tmp_path) as scene:
        stage: Any = scene.stage
        stage.remove_dead_letters()
        stage.create(stage.dead, 1, {"max.message.bytes": "20000"})
        yield scene


def large(scene: Scene, number: int) -> Message:
    """Return an expired message of 100 kB."""
    body = f"expired {number} ".encode() + b"x" * 100_000
    return scene.forge.seal(
        Message(destination=scene.stage.destination, body=body, key=b"k%d" % number),
        claims={"iat": 1_700_000_000, "exp": 1_700_000_060},
    )


def redriven(scene: Scene, **wanted: Any) -> dict[str, Any]:
    """Redrive with expired waived, and return the account."""
    with scene.session() as found:
        return scene.redrive(found, Reason.EXPIRED, **wanted).as_dict()


def test_a_reference_is_read_again_at_its_offset(scene: Scene) -> None:
    """100 kB through a topic of letters of 20 kB: redriven byte for byte, handled once, zero difference."""
    for number in range(3):
        scene.stage.inject(large(scene, number))
    scene.consume(3)
    with scene.session() as found:
        assert {row.form for row in scene.look(found, lambda index: index.page())} == {
            "reference"
        }
    assert redriven(scene)["done"] == 3
    scene.consume(3)
    assert [verified.body for verified in scene.handled] == [
        large(scene, number).body for number in range(3)
    ]
    assert [verified.key for verified in scene.handled] == [b"k0", b"k1", b"k2"]
    with scene.session() as found:
        assert scene.ledger(found).difference == 0


def test_what_is_gone_or_another_is_refused(scene: Scene) -> None:
    """Deleted by retention, a foreign place, no such topic: each stays, with its reason; the others go."""
    stage: Any = scene.stage
    for number in range(3):
        stage.inject(large(scene, number))
    scene.consume(3)
    first, *_ = stage.letters()
    for source in (
        f"{stage.topic}/0/2",
        f"{stage.topic}/0/99",
        f"{stage.topic}/7/0",
        "no-such-topic/0/0",
    ):
        _plant(stage, _pointing(first, source))
    delete_before(stage, 1)
    assert redriven(scene)["refused"] == {"original_gone": 4, "original_changed": 1}
    assert scene.outcomes["rejected"] == 3
    scene.consume(2)
    assert [verified.key for verified in scene.handled] == [b"k1", b"k2"]
    assert "no-such-topic" not in stage.admin.list_topics()


def test_rabbitmq_keeps_nothing_to_read_again(rabbitmq: RabbitMQ, tmp_path: Path) -> None:
    """A reference letter of RabbitMQ is refused by name, and stays."""
    from integration.review.scene import scene_at

    with scene_at(rabbitmq.url, tmp_path) as scene:
        message = replace(
            scene.message("expired", 1), destination=scene.stage.destination
        )
        letter = DeadLetter(
            message=message,
            rejection=Rejection(Reason.EXPIRED),
            scope=scene.scope,
            time=1.0,
            audit="a",
        ).reference()
        planted = replace(letter, destination=destination.rabbitmq("", scene.stage.dead))
        with scene.session() as found:
            found.run(call(found.box.publish, planted))
        assert redriven(scene)["refused"] == {"reference_only": 1}
        assert len(scene.stage.letters()) == 1


def _pointing(letter: Message, source: str) -> Message:
    """Return a letter with another source."""
    name = f"{PREFIX}source"
    return replace(
        letter,
        headers=tuple(
            (n, source.encode() if n == name else v) for n, v in letter.headers
        ),
    )


def _plant(stage: KafkaStage, letter: Message) -> None:
    """Write a letter into the topic of letters."""
    client = stage.dead_letter_client()
    client.send(
        stage.dead, value=letter.body, key=letter.key, headers=list(letter.headers)
    ).get(timeout=30)
    client.close()


def delete_before(stage: KafkaStage, offset: int) -> None:
    """Delete the records before an offset, as retention does."""
    from kafka import TopicPartition

    stage.admin.delete_records({TopicPartition(stage.topic, 0): offset})
