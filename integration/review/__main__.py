"""The large version: ``python -m integration.review [letters] [kills]`` on the brokers of the environment.

By default 5,000 letters of 8 kinds, and 20 kills of a redrive at random moments, on each broker.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from integration.review.scene import KINDS, Scene
from integration.review.test_killed import play_kills
from integration.review.test_review import play
from mqauth.testing.stage_kafka import KafkaStage
from mqauth.testing.stage_rabbitmq import RabbitMQStage


def main(letters: int = 5000, kills: int = 20) -> None:
    """Play both parts on both brokers, and print what was counted and how long it took."""
    for variable, kind in (("MQAUTH_RABBITMQ_URL", RabbitMQStage), ("MQAUTH_KAFKA_URL", KafkaStage)):
        url = os.environ[variable]
        staged(kind(url), url, lambda scene: play(scene, letters // len(KINDS)))
        if kills:
            staged(kind(url), url, lambda scene: play_kills(scene, kills, 10 * kills))


def staged(stage: RabbitMQStage | KafkaStage, url: str, part: Callable[[Scene], object]) -> None:
    """Play one part on a stage of its own."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            scene, started = Scene(stage, url, Path(folder)), time.monotonic()
            part(scene)
            print(f"{stage.name}: {dict(scene.outcomes)}, {time.monotonic() - started:.1f} s", flush=True)
    finally:
        stage.close()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
