"""The console whose broker goes away: it says so, keeps what it read, and goes on when the broker is back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.console.browser import browser
from integration.console.running import console
from integration.console.test_console import log_in_as, pictures_of
from integration.review.scene import Scene
from integration.services import Kafka, RabbitMQ
from mqauth.brokers.rabbitmq.channel import LOST
from mqauth.testing.stage_kafka import KafkaStage
from mqauth.testing.stage_rabbitmq import RabbitMQStage

LETTERS = 3


@pytest.fixture(params=["rabbitmq", "kafka"])
def own(request: pytest.FixtureRequest) -> Iterator[RabbitMQ | Kafka]:
    """A broker that the test may stop: the shared one where it is ours, else one more."""
    shared: RabbitMQ | Kafka = request.getfixturevalue(request.param)
    if shared.ours:
        yield shared
        shared.start()
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(f"MQAUTH_{request.param.upper()}_URL")
        broker = type(shared).launch()
    with broker:
        yield broker


@pytest.fixture
def scene(own: RabbitMQ | Kafka, tmp_path: Path) -> Iterator[Scene]:
    """Letters on that broker."""
    stage = RabbitMQStage(own.url) if isinstance(own, RabbitMQ) else KafkaStage(own.url)
    found = Scene(stage, own.url, tmp_path)
    for number in range(LETTERS):
        stage.inject(found.message("expired", number))
    found.consume(LETTERS)
    yield found
    own.start()
    with contextlib.suppress(*LOST):  # its connection died with the broker
        stage.close()


@pytest.mark.slow
def test_broker_gone_and_back(own: RabbitMQ | Kafka, scene: Scene, tmp_path: Path) -> None:
    """Stopped: the page says since when, and shows what was read before; back: read anew, and acted on."""
    with console(scene) as told, browser(
        told["url"].rstrip("/"), tmp_path / "profile", pictures_of(scene)
    ) as seen:  # fmt: skip
        log_in_as(seen, told["tokens"]["reviewer"])
        seen.wait_for("All dead letters are read")
        own.control.stop()
        seen.go("/")
        seen.press("Refresh")
        seen.wait_for("Cannot reach the broker")
        seen.look("lost")
        seen.go("/")
        seen.wait_for(f"{LETTERS} dead letters in 1 group")
        seen.look("lost-groups")
        own.start()
        seen.go("/job")
        seen.wait_for("All dead letters are read")
        seen.go("/act/discard")
        seen.find("#why").send_keys("the broker is back")
        seen.press("Preview")
        seen.wait_for(f"{LETTERS} of {LETTERS} dead letters would be discarded for good")
        seen.press("Discard")
        seen.wait_for(f"{LETTERS} of {LETTERS} dead letters discarded")
        seen.go("/")
        seen.wait_for("No dead letters")
