"""A queue or topic, its honest producers and the parts of a consumer, whatever its client."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from integration.every_client import CLIENTS, RABBITMQ, Wiring
from integration.rollout_world import Shifted
from mqauth import MemoryReplayStore, Pipeline
from mqauth.audit.file import AuditFile
from mqauth.audit.query import read_records
from mqauth.errors import RetryLater
from mqauth.judging.identities import TrustDomain
from mqauth.judging.policy import Allow, Rule
from mqauth.judging.rollout import AcceptAs, Exemption, Rollout
from mqauth.judging.verifier import Issuer, Verifier
from mqauth.letters.dead_letter import PREFIX
from mqauth.testing.forge import Forge
from mqauth.testing.identity import IdentityForge
from mqauth.testing.stage import wait_until
from mqauth.testing.stage_kafka import KafkaStage
from mqauth.testing.stage_rabbitmq import RabbitMQStage
from mqauth.wire import destination
from mqauth.wire.message import Message

APPEND: Final[dict[str, Any]] = {
    "at": "append",
    "max_queue_age": 7 * 86_400,
    "append_evidence": "interceptor",
}
SCHEMA: Final = "schema"
"""A header that is covered, and that ``decode`` needs."""
HEARTBEAT: Final = "heartbeat"
"""The type of the messages that are exempt."""


class Bench:
    """A stage of a client, two honest producers and a consumer's pipeline.

    Args:
        client: a name of ``every_client.CLIENTS``.
        url: of its broker.
        folder: for the audit.
        config: of a topic; by default the broker stamps its records.
        **settings: of the verifier.
    """

    def __init__(
        self,
        client: str,
        url: str,
        folder: Path,
        *,
        config: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        self.client, self.url = client, url
        stamps = (
            {"message.timestamp.type": "LogAppendTime"}
            if config is None
            else dict(config)
        )
        self.stage: Any = (
            RabbitMQStage(url) if self.on_rabbitmq else KafkaStage(url, config=stamps)
        )
        self.destination: str = self.stage.destination
        # Where some messages were signed for, before they were moved here.
        self.moved_from = (
            destination.rabbitmq("shop", "orders.moved")
            if self.on_rabbitmq
            else "kafka:moved"
        )
        self.forge, self.workload = Forge(lifetime=600), IdentityForge(lifetime=600)
        self.clock = Shifted()
        self.audit_file = folder / "audit.jsonl"
        self.audit = AuditFile(self.audit_file, fsync=False)
        self.outcomes: list[str] = []
        self.handled: list[Any] = []
        self.unverified: list[Any] = []
        self.puts_off = True
        self.guard = self.pipeline(**settings)

    @property
    def on_rabbitmq(self) -> bool:
        """Whether the client is one of RabbitMQ's."""
        return CLIENTS[self.client] in RABBITMQ.values()

    def pipeline(self, *, audit: Any = None, **settings: Any) -> Pipeline:
        """Return a pipeline whose verifier has these settings."""
        trusted = {
            self.forge.issuer: Issuer(keys=self.forge.keys),
            self.workload.issuer: TrustDomain(keys=self.workload.keys),
        }
        wanted: dict[str, Any] = {
            "keys": trusted, "audience": self.forge.audience,
            "accept_as": [AcceptAs(at=self.destination, signed_for=(self.moved_from,))],
        }  # fmt: skip
        rules = [
            Rule(
                subject=forge.subject,
                issuer=forge.issuer,
                destinations=(self.destination, self.moved_from),
            )
            for forge in (self.forge, self.workload)
        ]
        exempt = Exemption(
            destination=self.destination, kinds=frozenset((HEARTBEAT,)), why="signs from next month on",
            until=(datetime.now(UTC) + timedelta(days=30)).date(),
        )  # fmt: skip
        return Pipeline(
            verifier=Verifier(**wanted | settings), policy=Allow(rules), replay=MemoryReplayStore(),
            audit=audit or self.audit, clock=self.clock, rollout=Rollout(exemptions=[exempt]),
            observers=[lambda outcome, message, seconds: self.outcomes.append(outcome.verdict.value)],
        )  # fmt: skip

    def wiring(self, **settings: Any) -> Wiring:
        """Return the parts of a consumer."""
        source = self.stage.queue if self.on_rabbitmq else self.stage.topic
        return Wiring(
            url=self.url, source=source, dead=self.stage.dead,
            scope=source if self.on_rabbitmq else self.stage.group, guard=self.guard, handler=self.handle,
            old={HEARTBEAT: self.unverified.append}, decode=self.decode, **settings,
        )  # fmt: skip

    def handle(self, verified: Any) -> None:
        """Put off what is to wait, and note what is handled."""
        if verified.body == b"put off" and self.puts_off:
            raise RetryLater("not now")
        self.handled.append(verified)

    @staticmethod
    def decode(body: bytes, verified: Any) -> tuple[bytes, Any]:
        """Return a body and the header that says what it is."""
        return body, dict(verified.headers).get(SCHEMA)

    def message(self, body: bytes, **members: Any) -> Message:
        """Return a message for this place, unsigned."""
        return Message(destination=self.destination, body=body, **members)

    def signed(self, body: bytes, **members: Any) -> Message:
        """Return a message of the honest producer."""
        return self.forge.signer().sign(self.message(body, **members))

    def moved(self, body: bytes) -> Message:
        """Return a message that was signed for another place, and moved here."""
        signed = self.forge.signer().sign(
            replace(self.message(body), destination=self.moved_from)
        )
        return replace(signed, destination=self.destination)

    def send(self, *messages: Message) -> None:
        """Publish messages past mqauth."""
        for message in messages:
            self.stage.inject(message)

    def bodies(self) -> list[bytes | None]:
        """Return the bodies of what was handled, in order."""
        return [verified.body for verified in self.handled]

    def reasons(self) -> dict[bytes | None, str]:
        """Return why messages were dead-lettered, by their bodies."""
        texts = {
            letter.body: dict(letter.headers)[f"{PREFIX}reason"]
            for letter in self.stage.letters()
        }
        return {
            body: text.decode() if isinstance(text, bytes) else str(text)
            for body, text in texts.items()
        }

    def recorded(self) -> list[str | None]:
        """Return the reasons of the audit's records."""
        reasons = [record["reason"] for record in read_records([self.audit_file])]
        return [reason for reason in reasons if reason is not None]

    @contextmanager
    def consuming(self, settled: int, **settings: Any) -> Iterator[Any]:
        """Consume within a ``with`` block, once so many messages have been settled."""
        with CLIENTS[self.client](self.wiring(**settings)) as running:
            wait_until(
                lambda: (
                    sum(each in ("accepted", "rejected") for each in self.outcomes)
                    >= settled
                )
            )
            yield running

    def close(self) -> None:
        """Remove queues and topics."""
        self.audit.close()
        self.stage.close()
