"""A live queue and a live topic for a rollout: producers that sign or do not, and what became of all messages."""

from __future__ import annotations

import contextlib
import io
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import kafka as kafka_python
import pytest

from integration.every_client import CLIENTS, Wiring
from integration.keys.scene import KafkaLane, RabbitMQLane
from mqauth import Pipeline, Unverified, Verified
from mqauth.audit.misuse import Alert
from mqauth.cli import rollout as rollout_command
from mqauth.cli.app import run as command
from mqauth.config.load import load
from mqauth.testing.forge import Forge
from mqauth.testing.stage import wait_until
from mqauth.wire.jwk import dump_key_set
from mqauth.wire.message import TOKEN_HEADER, Message

SIGNS, SILENT, STRIPPED = "signed", "silent", "stripped"
"""How a message is published: with a token, without one, and with one that somebody took off on the way."""
HOUR: Final = 3600.0
_KAFKA: Any = kafka_python
APPEND: Final = 'at = "append"\nmax_queue_age = 604800'
CONSUME: Final = "max_lifetime = 86400"
"""How times are judged where the broker's configuration is ours, and where it is not."""
_FILE: Final = """\
[broker]
url = "{url}"
{login}
[consumer]
scope = "{scope}"
audience = "billing"
issuers = [{{ issuer = "https://auth.example", file = "jwks.json" }}]
allow = [{{ subject = "orders-api", destinations = ["{place}"] }}]
{times}
[audit]
file = "audit-{{host}}-{{pid}}.jsonl"

[check]
consumers = 1

[[rollout]]  # the orders
destinations = ["{place}"]
rung = "off"            # climbs in this test
since = {since}
until = {until}
owner = "orders-team"
window = "1h"
"""


class Shifted:
    """The machine's clock, set back or forward by hours: windows pass, and nobody waits."""

    def __init__(self) -> None:
        self.hours = 0.0

    def now(self) -> float:
        """Return UTC seconds."""
        return time.time() + self.hours * HOUR

    def monotonic(self) -> float:
        """Return seconds that jump with the hours."""
        return time.monotonic() + self.hours * HOUR


class Run(NamedTuple):
    """One run of a handler: which handler, for what, and what ``enforce`` would have said."""

    verified: bool
    body: bytes
    would: str | None


class Live:
    """A queue, or a topic of three partitions, with messages and dead letters.

    Args:
        client: consumes, a name of ``CLIENTS``.
        url: of its broker.
        forge: signs.
        managed: whether times are those that senders wrote, since the broker's configuration is not ours.
    """

    def __init__(
        self, client: str, url: str, forge: Forge, *, managed: bool = False
    ) -> None:
        self.client, self.url = client, url
        self.on_kafka = client.startswith("kafka")
        self._forge = forge
        evidence = "" if self.on_kafka else '\nappend_evidence = "interceptor"'
        self.times = CONSUME if managed else APPEND + evidence
        stamps = {} if managed else {"message.timestamp.type": "LogAppendTime"}
        self.lane: Any = (
            KafkaLane(url, partitions=3, config=stamps)
            if self.on_kafka
            else RabbitMQLane(url)
        )
        self.destination = self.lane.destination
        stage = self.lane.stage
        self.scope = stage.group if self.on_kafka else stage.queue
        self._source, self._dead = (
            stage.topic if self.on_kafka else stage.queue,
            stage.dead,
        )
        self.close = self.lane.close

    def publish(self, app: str, bodies: Sequence[bytes], how: str) -> None:
        """Publish messages of an ``app-id``, over all partitions, and wait for the broker."""
        named: dict[str, Any] = {"properties": {"app-id": app}}
        if self.on_kafka:
            named = {"headers": (("app-id", app.encode()),)}
        messages = [
            Message(destination=self.destination, body=body, **named) for body in bodies
        ]
        if how != SILENT:
            messages = self._forge.signer().sign_many(messages)
        if how == STRIPPED:
            tokens = (TOKEN_HEADER,)
            messages = [
                replace(
                    each,
                    headers=tuple(pair for pair in each.headers if pair[0] not in tokens),
                )
                for each in messages
            ]
        self.lane.inject(messages)

    def consuming(
        self, guard: Pipeline, handler: Any, unverified: Any
    ) -> AbstractContextManager[Any]:
        """Consume within a ``with`` block, then stop in order."""
        wiring = Wiring(
            url=self.url, source=self._source, dead=self._dead, scope=self.scope, guard=guard, handler=handler,
            old=unverified,
        )  # fmt: skip
        return CLIENTS[self.client](wiring)

    def letters(self) -> Counter[tuple[bytes, str]]:
        """Return the bodies and reasons of all dead letters so far."""
        told = [
            (letter.body or b"", letter.occurrences("mqauth-dead-reason")[0])
            for letter in self.lane.letters()
        ]
        return Counter(
            (body, why.decode() if isinstance(why, bytes) else str(why))
            for body, why in told
        )


class Ladder:
    """One destination that goes up the ladder, by a configuration file that ``mqauth rollout`` changes.

    Args:
        live: the broker's part.
        folder: for the files.
        patch: sets the clock of the command.
        forge: signs.
        clock: of the consumer and of the command.
    """

    def __init__(
        self,
        live: Live,
        folder: Path,
        patch: pytest.MonkeyPatch,
        forge: Forge,
        clock: Shifted,
    ) -> None:
        self.live = live
        self.place = live.destination
        self.clock = clock
        self.file = folder / "mqauth.toml"
        self.sent: dict[bytes, tuple[str, str]] = {}
        self.runs: list[Run] = []
        self.alerts: list[Alert] = []
        self.signing = {
            "orders-api": SIGNS,
            "crm-export": SILENT,
            "web-shop": SILENT,
            "till-7": SILENT,
        }
        self._lock = threading.Lock()
        patch.setattr(rollout_command, "_now", self.clock.now)
        (folder / "jwks.json").write_text(json.dumps(dump_key_set(forge.keys)))
        today = datetime.now(UTC).date()
        term = {"since": today - timedelta(days=4), "until": today + timedelta(days=60)}
        found = urlsplit(live.url)
        login = (
            'user = "guest"\npassword_env = "MQAUTH_TEST_PASSWORD"\n'
            if found.password
            else ""
        )
        patch.setenv("MQAUTH_TEST_PASSWORD", found.password or "")
        url = found._replace(netloc=found.netloc.rpartition("@")[2]).geturl()
        facts = {
            "place": self.place,
            "times": live.times,
            "url": url,
            "login": login,
            "scope": live.scope,
        }
        self.file.write_text(_FILE.format(**facts, **term), "utf-8")

    # Producers

    def publish(self, app: str, number: int, how: str) -> list[bytes]:
        """Publish so many messages of a producer; return their bodies, which are all different."""
        with self._lock:
            bodies = [f"{app} {len(self.sent) + n}".encode() for n in range(number)]
            self.sent |= dict.fromkeys(bodies, (app, how))
        self.live.publish(app, bodies, how)
        return bodies

    @contextmanager
    def traffic(self, each: int) -> Iterator[None]:
        """Have each producer publish so many messages, in its own way, while the block runs."""
        threads = [
            threading.Thread(target=self.publish, args=(app, each, how))
            for app, how in self.signing.items()
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            for thread in threads:
                thread.join()

    # Consumers

    @contextmanager
    def consumer(self, *, old_code: bool = True) -> Iterator[Pipeline]:
        """Start a consumer with the configuration as it is now; without old code it has one handler."""
        guard = load(self.file, clock=self.clock, on_alert=self.alerts.append).pipeline
        try:
            with self.live.consuming(
                guard, self.take_verified, self.take_unverified if old_code else None
            ):
                yield guard
        finally:
            guard.audit.close()  # type: ignore[union-attr]

    def wait_for(self, bodies: Sequence[bytes] | None = None) -> None:
        """Wait until these messages, or all that were sent, were handled or dead-lettered."""
        wait_until(lambda: not set(self.sent if bodies is None else bodies) - self.ended)

    def consume_all(self, each: int, **settings: Any) -> list[Run]:
        """Consume all there is while the producers go on; return the runs."""
        before = len(self.runs)
        with self.consumer(**settings):
            with self.traffic(each):
                pass
            self.wait_for()
        return self.runs[before:]

    @property
    def handled(self) -> set[bytes]:
        """The messages that a handler got."""
        return {found.body for found in self.runs}

    @property
    def ended(self) -> set[bytes]:
        """The messages that were handled or dead-lettered."""
        return self.handled | {body for body, _ in self.live.letters()}

    def take_verified(self, message: Verified) -> None:
        """Handle what was verified."""
        self.runs.append(Run(True, message.body or b"", None))

    def take_unverified(self, message: Unverified) -> None:
        """Handle what was not, as before there was mqauth."""
        would = None if message.would is None else message.would.code
        self.runs.append(Run(False, message.body or b"", would))

    # The command

    def command(self, *arguments: str) -> tuple[int, str]:
        """Run ``mqauth rollout`` at the shifted time; return its exit code and what it printed."""
        out = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = command(["rollout", *arguments, "--config", str(self.file)])
        out.seek(0)
        return code, out.read()

    def status(self) -> dict[str, Any]:
        """Return the report on the destination; its exit code says whether it is safe."""
        code, printed = self.command("status", "--json")
        (found,) = json.loads(printed)
        assert (code == 0) is found["safe"], printed
        return dict(found)

    def missing(self) -> dict[str, int]:
        """Return how many messages of each producer would be refused, as the report has it."""
        return {group["app"]: group["count"] for group in self.status()["groups"]}

    def up(self, *arguments: str) -> str:
        """Go up one rung."""
        code, printed = self.command("up", self.place, "--yes", *arguments)
        assert code == 0, printed
        return printed

    @property
    def rung(self) -> str:
        """The rung in the file."""
        (line,) = [
            line
            for line in self.file.read_text("utf-8").splitlines()
            if line.startswith("rung")
        ]
        return line.partition('"')[2].partition('"')[0]

    def unsigned(self, runs: Sequence[Run]) -> dict[str, int]:
        """Return how many unsigned messages of each producer are among some runs."""
        return dict(
            Counter(
                self.sent[found.body][0]
                for found in runs
                if found.would == "token_missing"
            )
        )
