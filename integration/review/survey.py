"""How fast letters are read: ``python -m integration.review.survey --letters 100000 --broker rabbitmq``.

Fills a dead-letter queue or topic with letters of eight kinds, starts ``mqauth console`` on it, and prints
letters, seconds, milliseconds a letter, the time to the first page with groups, and the console's peak memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.cookiejar import CookieJar
from itertools import islice
from pathlib import Path
from typing import Any, Final

import aio_pika
import kafka

from integration.console.browser import console
from integration.review.scene import BROKERS, KINDS, Scene, staged
from mqauth.brokers.kafka import client as kafka_translate
from mqauth.brokers.log import records as log_records
from mqauth.brokers.rabbitmq import translate as rabbitmq_translate
from mqauth.errors import Reason, Rejection
from mqauth.letters.dead_letter import DeadLetter
from mqauth.testing.stage_kafka import KafkaStage
from mqauth.wire.message import Message, Origin

_KAFKA: Any = kafka  # its classes have no types
_CONFIRMED_TOGETHER: Final = 500
_LOOK: Final = 0.05
_AS_A_BROWSER: Final = 1.0
"""Seconds between looks at a page that grows, once it has groups."""
_SHOWS_GROUPS: Final = re.compile(r"<strong>[\d,]+ letters?</strong> in")


@dataclass(slots=True)
class Figures:
    """What was measured; seconds from the moment the console printed its address, memory in bytes."""

    letters: int
    seconds: float = 0.0
    first_page: float = 0.0
    first_page_shows: str = ""
    slowest_page: float = 0.0
    memory: dict[str, int] = field(default_factory=dict)

    def line(self, broker: str) -> str:
        """Return the figures in one line."""
        memory = ", ".join(f"{size / 2**20:.0f} MiB {when}" for when, size in self.memory.items())
        each = self.seconds / self.letters * 1000
        return (
            f"{broker}: {self.letters} letters read in {self.seconds:.1f} s, {each:.2f} ms a letter; first page"
            f" with groups after {self.first_page:.2f} s ({self.first_page_shows}), slowest of the pages meanwhile"
            f" {self.slowest_page:.2f} s; peak memory {memory}"
        )


class Visitor:
    """Somebody logged in at the console.

    Args:
        told: what the console printed.
    """

    def __init__(self, told: dict[str, Any]) -> None:
        self._url, self._pid = told["url"], told["pid"]
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
        self.post("login", token=told["tokens"]["reviewer"])

    def get(self, path: str) -> str:
        """Return a page."""
        with self._opener.open(self._url + path) as answer:
            return str(answer.read().decode())

    def post(self, path: str, **fields: str) -> str:
        """Post a form of ours, and return the page it leads to."""
        with self._opener.open(self._url + path, urllib.parse.urlencode(fields).encode()) as answer:
            return str(answer.read().decode())

    def job(self) -> dict[str, Any]:
        """Return the newest job's progress."""
        found: dict[str, Any] = json.loads(self.get("job.json"))
        return found

    def peak(self) -> int:
        """Return the most memory the console ever had, bytes."""
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self._pid}/status").read_text())
        return int(found[1]) * 1024 if found else 0


def letters_of(scene: Scene, count: int) -> Iterator[Message]:
    """Yield dead letters as the scene's consumer would make them, of eight kinds in turn."""
    on_kafka = isinstance(scene.stage, KafkaStage)
    carries = kafka_translate.carries if on_kafka else rabbitmq_translate.carries
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        message = scene.message(kind, number)
        origin = Origin(scope=scene.scope, queue=scene.scope, exchange="", routing_key=scene.scope)
        if isinstance(scene.stage, KafkaStage):
            origin = Origin(scope=scene.scope, topic=scene.stage.topic, partition=0, offset=number)
        letter = DeadLetter(
            message=replace(message, origin=origin), rejection=Rejection(Reason(kind), "made for the survey"),
            scope=scene.scope, time=1_900_000_000.0 + number, audit="none",
        )  # fmt: skip
        yield letter.whole(carries)


async def fill_rabbitmq(scene: Scene, letters: Iterator[Message]) -> None:
    """Publish letters to the scene's dead-letter queue, confirmed."""
    async with await aio_pika.connect(scene.place.broker) as connection:
        channel = await connection.channel()
        numbered = enumerate(letters)
        while some := list(islice(numbered, _CONFIRMED_TOGETHER)):
            sent = (
                channel.default_exchange.publish(
                    rabbitmq_translate.to_native(letter, message_id=str(number)), scene.place.name
                )
                for number, letter in some
            )
            await asyncio.gather(*sent)


def fill_kafka(scene: Scene, letters: Iterator[Message]) -> None:
    """Send letters to the scene's dead-letter topic, confirmed."""
    servers = scene.place.broker.partition("://")[2]
    producer = _KAFKA.KafkaProducer(bootstrap_servers=servers, acks="all", linger_ms=20)
    for letter in letters:
        headers = log_records.dead_letter_headers(letter.headers)
        producer.send(scene.place.name, value=letter.body, key=letter.key, headers=headers)
    producer.flush()
    producer.close()


def measure(scene: Scene, count: int) -> Figures:
    """Fill, start the console, and watch it read."""
    letters = letters_of(scene, count)
    if scene.place.on_kafka:
        fill_kafka(scene, letters)
    else:
        asyncio.run(fill_rabbitmq(scene, letters))
    (scene.folder / "consumer.jsonl").touch()
    with console(scene) as told:
        return watched(Visitor(told), Figures(count), time.monotonic())


def watched(visitor: Visitor, figures: Figures, started: float) -> Figures:
    """Look at the first page until all letters are read, then plan an act on all of them."""
    figures.memory["at start"] = visitor.peak()
    while visitor.job()["running"]:
        asked = time.monotonic()
        page = visitor.get("")
        now = time.monotonic()
        figures.slowest_page = max(figures.slowest_page, now - asked)
        if not figures.first_page and (shown := _SHOWS_GROUPS.search(page)):
            figures.first_page = now - started
            figures.first_page_shows = re.sub("<[^>]+>", "", shown[0]).removesuffix(" in")
        time.sleep(_AS_A_BROWSER if figures.first_page else _LOOK)
    figures.seconds = time.monotonic() - started
    figures.memory["after reading"] = visitor.peak()
    page = visitor.get("")
    assert f"<strong>{figures.letters:,} letters</strong> in" in page
    token = re.search(r'name="csrf" value="([^"]+)"', page)
    assert token is not None
    visitor.post("act/discard", csrf=token[1], why="measured")
    while visitor.job()["running"]:
        time.sleep(_LOOK)
    figures.memory["with a selection of all"] = visitor.peak()
    return figures


def main() -> None:
    """Measure on the broker of the environment, and print one line."""
    parser = argparse.ArgumentParser(prog="python -m integration.review.survey")
    parser.add_argument("--letters", type=int, default=100_000)
    parser.add_argument("--broker", choices=BROKERS, required=True)
    wanted = parser.parse_args()
    figures = staged(wanted.broker, lambda scene: measure(scene, wanted.letters))
    print(figures.line(wanted.broker), flush=True)


if __name__ == "__main__":
    main()
