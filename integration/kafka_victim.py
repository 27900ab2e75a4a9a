"""A consumer process that kills itself with SIGKILL at a chosen moment; run by the chaos tests.

Arguments: URL, topic, dead-letter topic, group, file of the issuer's public keys, file that handled bodies go
to, audit file, moment (``handler``, ``letter`` or ``never``; of a transaction ``written``, ``committing`` or
``committed``), how many such moments before it dies, transactional id or nothing. Ends on SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore", category=DeprecationWarning)

import kafka as kafka_python  # noqa: E402 - it reads its schemas by deprecated functions

from mqauth import Allow, AuditFile, FileReplayStore, Issuer, Pipeline, Verified, Verifier  # noqa: E402
from mqauth.brokers import kafka  # noqa: E402
from mqauth.brokers.log.transaction import TransactionalLetters  # noqa: E402
from mqauth.letters.dead_letter import DeadLetter  # noqa: E402
from mqauth.testing.forge import AUDIENCE, ISSUER, SUBJECT  # noqa: E402
from mqauth.testing.stage_kafka import servers  # noqa: E402
from mqauth.wire.jwk import load_key_set  # noqa: E402

_PYTHON: Any = kafka_python


class Doom:
    """Kills this process at the n-th time its moment comes."""

    def __init__(self, moment: str, after: int) -> None:
        self._moment = moment
        self._left = after

    def next(self, moment: str) -> bool:
        """Tell whether the next such moment is the last."""
        return moment == self._moment and self._left <= 1

    def at(self, moment: str) -> None:
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


class DoomedCommits(TransactionalLetters):
    """Transactions around whose commit the process may die, on whichever side of the broker's decision."""

    doom: Doom

    def write(self, batch: Any) -> None:
        """Write letters and offsets; then perhaps die."""
        super().write(batch)
        self.doom.at("written")
        if self.doom.next("committing"):
            threading.Timer(0.001, self.doom.at, ("committing",)).start()
        else:
            self.doom.at("committing")

    def commit(self) -> None:
        """Commit; then perhaps die."""
        super().commit()
        self.doom.at("committed")


class DoomedTransactions(DoomedCommits, kafka.TransactionalDeadLetters):
    """Those of kafka-python."""


def dead_letters(url: str, dead: str, transactional: str, doom: Doom) -> Any:
    """Return the doomed sink, transactional where an id is given."""
    if not transactional:
        client = _PYTHON.KafkaProducer(bootstrap_servers=servers(url), enable_idempotence=False, acks="all")
        return DoomedLetters(client, dead, doom)
    letters = DoomedTransactions(
        lambda: _PYTHON.KafkaProducer(bootstrap_servers=servers(url), transactional_id=transactional), dead, 10
    )
    letters.doom = doom
    return letters


def main(places: Sequence[str], doom: Doom, transactional: str) -> None:
    """Consume until told to end."""
    url, topic, dead, group, keys, handled, audit = places

    def handler(verified: Verified) -> None:
        with Path(handled).open("ab", buffering=0) as file:
            file.write((verified.body or b"") + b"\n")
        doom.at("handler")

    client = _PYTHON.KafkaConsumer(
        topic, bootstrap_servers=servers(url), group_id=group, enable_auto_commit=False,
        auto_offset_reset="earliest", session_timeout_ms=6000, max_poll_records=8,
        isolation_level="read_committed" if transactional else "read_uncommitted",
    )  # fmt: skip
    letters = dead_letters(url, dead, transactional, doom)
    with AuditFile(audit, fsync=False) as sink:
        guard = Pipeline(
            verifier=Verifier(
                keys={ISSUER: Issuer(keys=load_key_set(Path(keys).read_bytes()))}, audience=AUDIENCE
            ),
            policy=Allow({SUBJECT: ["kafka:" + topic]}),
            replay=FileReplayStore(Path(audit).with_suffix(".sqlite")),
            audit=sink,
        )
        kafka.Consumer(client, guard, handler, dead_letters=letters).run(signals=True)
    client.close()
    if not transactional:
        letters.client.close()


if __name__ == "__main__":
    *_places, _moment, _after, _transactional = sys.argv[1:]
    main(_places, Doom(_moment, int(_after)), _transactional)
