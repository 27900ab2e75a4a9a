"""Letters on a real broker, and stages of its review."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from mqauth import Pipeline, Verified
from mqauth.audit.file import AuditFile
from mqauth.audit.query import read_records
from mqauth.cli.broker import LetterAddress, opened
from mqauth.config.broker import BrokerSettings
from mqauth.errors import Reason
from mqauth.judging.policy import Allow
from mqauth.judging.verifier import Issuer
from mqauth.letters.authorities import Authority, ReleaseAuthorities, Releaser
from mqauth.letters.release import WAIVABLE
from mqauth.replay.memory import MemoryReplayStore
from mqauth.review import ALL, Account, Filter, Index, Ledger, Plan, Session, account
from mqauth.testing.forge import ISSUER, NEIGHBOUR, SUBJECT, Forge
from mqauth.testing.stage_kafka import KafkaStage
from mqauth.testing.stage_rabbitmq import RabbitMQStage
from mqauth.wire.jwk import dump_key_set
from mqauth.wire.keys import Key, KeySet
from mqauth.wire.message import Message


@contextlib.contextmanager
def scene_at(url: str, folder: Path) -> Iterator[Scene]:
    """Give a scene on a stage of its own at a broker, taken down afterwards."""
    stage = KafkaStage(url) if url.startswith("kafka:") else RabbitMQStage(url)
    try:
        yield Scene(stage, url, folder)
    finally:
        if isinstance(stage, KafkaStage):
            stage.admin.delete_topics([stage.dead + ".reviewed"], raise_errors=False)
        stage.close()


REVIEW: Final = "https://review.example"
WHY: Final = "reviewed in a test"
KINDS: Final = (
    "key_unknown", "expired", "signature_invalid", "token_missing", "body_mismatch", "audience_mismatch",
    "producer_forbidden", "token_malformed",
)  # fmt: skip
FORGED: Final = (
    "signature_invalid",
    "token_missing",
    "body_mismatch",
    "audience_mismatch",
    "token_malformed",
)


class Scene:
    """One stage, its consumer, and its reviewer.

    Args:
        stage: a real broker's.
        url: the broker's.
        folder: for audit files and keys.
    """

    def __init__(self, stage: RabbitMQStage | KafkaStage, url: str, folder: Path) -> None:
        self.stage, self.folder = stage, folder
        self.forge = Forge(lifetime=3000)
        self.key = Key.generate(subjects=["ada"])
        self.keys = [self.forge.key, self.forge.neighbour, self.forge.retired]
        self.handled: list[Verified] = []
        self.replay = MemoryReplayStore()
        self.place = LetterAddress(broker=url, name=stage.dead, settings=BrokerSettings())
        self.scope = stage.group if isinstance(stage, KafkaStage) else stage.queue
        self.outcomes = Counter[str]()

    @property
    def audits(self) -> list[Path]:
        """The consumer's and the reviewer's audit files."""
        return [
            path
            for name in ("consumer", "reviewer")
            if (path := self.folder / f"{name}.jsonl").exists()
        ]

    def guard(self, audit: Any = None) -> Pipeline:
        """Return the consumer's pipeline with the keys of now, its claims kept."""
        authority = Authority(keys=KeySet([self.key]), waive=frozenset(WAIVABLE))
        verifier = self.forge.verifier(
            keys={ISSUER: Issuer(keys=KeySet(self.keys))},
            release=ReleaseAuthorities({REVIEW: authority}),
        )
        return Pipeline(
            verifier=verifier, policy=Allow({SUBJECT: [self.stage.destination]}), replay=self.replay, audit=audit,
            scope=self.scope, observers=[lambda outcome, message, seconds: self._observe(outcome)],
        )  # fmt: skip

    def message(self, kind: str, number: int) -> Message:
        """Return one message that will be rejected for this reason."""
        plain = Message(
            destination=self.stage.destination, body=f"{kind} {number}".encode()
        )
        seal = self.forge.seal
        if kind == "key_unknown":
            return seal(plain, key=self.forge.stranger)
        if kind == "expired":
            return seal(plain, claims={"iat": 1_700_000_000, "exp": 1_700_000_060})
        if kind == "signature_invalid":
            return seal(plain, signature=b"\0" * 64)
        if kind == "body_mismatch":
            return replace(
                seal(plain), body=plain.body + b" edited" if plain.body else b""
            )
        if kind == "audience_mismatch":
            return seal(plain, claims={"aud": "elsewhere"})
        if kind == "producer_forbidden":
            return seal(plain, key=self.forge.neighbour, claims={"sub": NEIGHBOUR})
        if kind == "token_malformed":
            value: Any = b"no token" if isinstance(self.stage, KafkaStage) else "no token"
            return replace(plain, headers=(("mqauth-token", value),))
        return plain

    def fill(self, each: int) -> None:
        """Make so many letters of each kind, through the broker and the consumer wrapper."""
        for number in range(each):
            for kind in KINDS:
                self.stage.inject(self.message(kind, number))
        self.consume(each * len(KINDS))

    def consume(self, count: int, **settings: Any) -> None:
        """Run the consumer until it has settled so many more messages."""
        wanted = self.outcomes.total() + count
        with AuditFile(self.folder / "consumer.jsonl", fsync=False) as audit:
            while (
                so_far := self.outcomes.total()
            ) < wanted:  # a stage's patience is a minute
                step = min(wanted, so_far + 500)
                self.stage.consume(
                    self.guard(audit),
                    self.handled.append,
                    until=lambda step=step: self.outcomes.total() >= step,  # type: ignore[misc]
                    **settings,
                )

    def write_key(self) -> Path:
        """Write the reviewer's private key as a PEM file, and return its path."""
        path = self.folder / "reviewer.pem"
        private: Any = self.key.private
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path.write_bytes(pem)
        path.chmod(0o600)
        return path

    def plan(self, act: str, wanted: Filter = ALL, **changes: Any) -> Plan:
        """Return the reviewer's plan."""
        return Plan(
            **({"act": act, "wanted": wanted, "reason": WHY, "reviewer": "ada"} | changes)
        )

    @contextlib.contextmanager
    def session(self) -> Iterator[Session]:
        """Open the letter box with the reviewer's key and audit."""

        def releaser(name: str) -> Releaser:
            return Releaser(key=self.key, issuer=REVIEW, reviewer=name, lifetime=3600)

        with (
            AuditFile(self.folder / "reviewer.jsonl", fsync=False) as audit,
            opened(self.place, releaser=releaser, audit=audit) as found,
        ):
            yield found

    def redrive(self, found: Session, *waive: Reason, **wanted: Any) -> Account:
        """Redrive the letters of a filter, judged by the consumer's keys of now, and return the account."""
        found.guard = self.guard()
        plan = self.plan("redrive", Filter(**wanted), waive=frozenset(waive))
        return found.act(plan, self.freeze(found, **wanted))

    def look(self, found: Session, read: Callable[[Index], Any]) -> Any:
        """Survey the letters and read something from the index."""
        with Index(found.clock.now()) as index:
            found.survey(index)
            return read(index)

    def freeze(self, found: Session, **wanted: Any) -> Any:
        """Return a frozen selection."""
        return self.look(found, lambda index: index.freeze(Filter(**wanted)))

    def ledger(self, found: Session) -> Ledger:
        """Hold both audit files against the queue."""
        ledger: Ledger = self.look(
            found, lambda index: account(read_records(self.audits), index.ids())
        )
        return ledger

    def why(self) -> Counter[str]:
        """Return why messages were rejected, as the consumer's audit says."""
        records = read_records(self.audits[:1])
        return Counter(
            f"{record.get('reason')}: {record.get('detail')}" for record in records
        )

    def write_config(self) -> Path:
        """Write the consumer's configuration and every key it needs; return its path."""
        (self.folder / "jwks.json").write_text(
            json.dumps(dump_key_set(KeySet(self.keys)))
        )
        (self.folder / "review.json").write_text(
            json.dumps(dump_key_set(KeySet([self.key.public_only])))
        )
        path = self.folder / "mqauth.toml"
        path.write_text(
            CONFIG.format(destination=self.stage.destination, scope=self.scope)
        )
        return path

    def _observe(self, outcome: Any) -> None:
        """Count outcomes that settle a delivery."""
        if outcome.verdict.value != "deferred":
            self.outcomes[outcome.verdict.value] += 1


CONFIG: Final = """
[consumer]
scope = "{scope}"
audience = "billing"
[[consumer.issuers]]
issuer = "https://auth.example"
file = "jwks.json"
[[consumer.allow]]
subject = "orders-api"
destinations = ["{destination}"]
[[release.authorities]]
issuer = "https://review.example"
file = "review.json"
waive = ["expired", "producer_forbidden"]
"""
