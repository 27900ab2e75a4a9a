"""A Kafka consumer in a process of its own, which may kill itself with SIGKILL at a chosen moment.

``python -m integration.chaos.kafka_victim JSON``: the members of ``Orders``. It ends on SIGTERM.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import warnings
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

warnings.filterwarnings("ignore", category=DeprecationWarning)

import kafka as kafka_python  # noqa: E402 - it reads its schemas by deprecated functions
from kafka import ConsumerRebalanceListener  # noqa: E402

from integration.chaos.kafka_scene import APPEND  # noqa: E402
from mqauth import Allow, AuditFile, Issuer, Pipeline, Verified, Verifier  # noqa: E402
from mqauth.audit.record import AuditRecord  # noqa: E402
from mqauth.brokers import kafka  # noqa: E402
from mqauth.letters.dead_letter import DeadLetter  # noqa: E402
from mqauth.replay.rules import ClaimRequest  # noqa: E402
from mqauth.stores.redis import RedisReplayStore  # noqa: E402
from mqauth.testing.forge import AUDIENCE, ISSUER, SUBJECT  # noqa: E402
from mqauth.testing.stage_kafka import servers  # noqa: E402
from mqauth.wire.jwk import load_key_set  # noqa: E402

Moment = Literal["handler", "confirm", "audit", "letter", "never"]
_PYTHON: Any = kafka_python


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What a consumer process is to do.

    Args:
        url: of the broker.
        topic: to consume.
        dead: the dead-letter topic.
        group: the consumer group.
        redis: URL of the replay store.
        keys: file of the issuer's public keys.
        handled: file that the bodies of handled messages are appended to, a line each.
        audit: file of the audit.
        assigned: folder of files by process id that say how many partitions each consumer has.
        moment: after which it dies: the handler, the claim's confirm, the audit's record, the dead letter's
            confirm; or never.
        after: how many times the moment comes.
        reread: what is done with what was done before: ``handle`` or ``duplicate``.
        at_once: records of one poll; after each poll its offsets are committed.
    """

    url: str
    topic: str
    dead: str
    group: str
    redis: str
    keys: str
    handled: str
    audit: str
    assigned: str
    moment: Moment = "never"
    after: int = 0
    reread: Literal["handle", "duplicate"] = "handle"
    at_once: int = 500

    @property
    def command(self) -> list[str]:
        """The words that start the process."""
        return [sys.executable, "-m", __spec__.name, json.dumps(asdict(self))]

    def process(self, **settings: Any) -> subprocess.Popen[bytes]:
        """Start the process; its settings are those of ``Popen``."""
        return subprocess.Popen(self.command, **settings)


class Doom:
    """Kills this process at the n-th time its moment comes."""

    def __init__(self, orders: Orders) -> None:
        self._moment = orders.moment
        self._left = orders.after

    def at(self, moment: Moment) -> None:
        """Die here, if this is the moment."""
        if moment != self._moment:
            return
        self._left -= 1
        if self._left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)


class DoomedLetters(kafka.DeadLetters):
    """Dead letters after whose confirm, and before the commit, the process may die."""

    def __init__(self, client: Any, topic: str, doom: Doom) -> None:
        super().__init__(client, topic)
        self._doom = doom

    def publish(self, letter: DeadLetter, /) -> None:
        """Publish, confirmed; then perhaps die."""
        super().publish(letter)
        self._doom.at("letter")


class DoomedAudit(AuditFile):
    """An audit after whose record, and before the dead letter, the process may die."""

    def __init__(self, path: str, doom: Doom) -> None:
        super().__init__(path, fsync=False)
        self._doom = doom

    def write(self, record: AuditRecord, /) -> None:
        """Write; then perhaps die."""
        super().write(record)
        self._doom.at("audit")


class DoomedStore(RedisReplayStore):
    """A store after whose confirm, and before the commit, the process may die."""

    doom: Doom

    def confirm(self, request: ClaimRequest, /) -> None:
        """Confirm; then perhaps die."""
        super().confirm(request)
        self.doom.at("confirm")


class Herald(ConsumerRebalanceListener):
    """Says in a file how many partitions this process has."""

    def __init__(self, folder: str) -> None:
        self._file = Path(folder) / f"assigned.{os.getpid()}"

    def on_partitions_revoked(self, revoked: Any) -> None:
        """Say nothing: an eager rebalance revokes everything, and assigns after."""

    def on_partitions_assigned(self, assigned: Any) -> None:
        """Say how many."""
        self._file.write_text(str(len(assigned)))


def client(orders: Orders) -> Any:
    """Return a subscribed client that a broker soon misses when it is killed."""
    made = _PYTHON.KafkaConsumer(
        bootstrap_servers=servers(orders.url), group_id=orders.group, enable_auto_commit=False,
        auto_offset_reset="earliest", session_timeout_ms=2000, heartbeat_interval_ms=300,
        max_poll_records=orders.at_once,
    )  # fmt: skip
    made.subscribe([orders.topic], listener=Herald(orders.assigned))
    return made


def guard(orders: Orders, audit: AuditFile, store: RedisReplayStore) -> Pipeline:
    """Return the pipeline of a row."""
    keys = load_key_set(Path(orders.keys).read_bytes())
    return Pipeline(
        verifier=Verifier(keys={ISSUER: Issuer(keys=keys)}, audience=AUDIENCE, **APPEND),
        policy=Allow({SUBJECT: ["kafka:" + orders.topic]}),
        replay=store,
        audit=audit,
        reread=orders.reread,
    )


def main(orders: Orders) -> None:
    """Consume until SIGTERM."""
    doom = Doom(orders)

    def handler(verified: Verified) -> None:
        os.write(handled, (verified.body or b"") + b"\n")
        doom.at("handler")

    with ExitStack() as stack:
        handled = os.open(orders.handled, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        stack.callback(os.close, handled)
        store = DoomedStore.from_url(orders.redis, timeout=1, namespace=orders.topic)
        assert isinstance(store, DoomedStore)
        store.doom = doom
        stack.callback(store.close)
        audit = stack.enter_context(DoomedAudit(orders.audit, doom))
        letters = _PYTHON.KafkaProducer(
            bootstrap_servers=servers(orders.url), enable_idempotence=False, acks="all", linger_ms=0
        )
        stack.callback(letters.close)
        source = client(orders)
        stack.callback(source.close)
        kafka.Consumer(
            source, guard(orders, audit, store), handler, dead_letters=DoomedLetters(letters, orders.dead, doom),
            backoff=kafka.Backoff(first=0.1, longest=0.5),
        ).run(signals=True)  # fmt: skip


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    main(Orders(**json.loads(sys.argv[1])))
