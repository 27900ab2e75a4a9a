"""A consumer process that kills itself with SIGKILL at a chosen moment; run by the chaos tests.

Arguments: URL, topic, dead-letter topic, group, file of the issuer's public keys, file that handled bodies go
to, audit file, moment (``handler``, ``letter`` or ``never``), how many messages before it dies. Ends on SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore", category=DeprecationWarning)

import kafka as kafka_python  # noqa: E402 - it reads its schemas by deprecated functions

from mqauth import Allow, AuditFile, Issuer, MemoryReplayStore, Pipeline, Verified, Verifier  # noqa: E402
from mqauth.brokers import kafka  # noqa: E402
from mqauth.deadletter import DeadLetter  # noqa: E402
from mqauth.jwk import load_key_set  # noqa: E402
from mqauth.testing.forge import AUDIENCE, ISSUER, SUBJECT  # noqa: E402
from mqauth.testing.stage_kafka import servers  # noqa: E402

_PYTHON: Any = kafka_python


class Doom:
    """Kills this process at the n-th time its moment comes."""

    def __init__(self, moment: str, after: int) -> None:
        self._moment = moment
        self._left = after

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


def main(places: Sequence[str], doom: Doom) -> None:
    """Consume until told to end."""
    url, topic, dead, group, keys, handled, audit = places

    def handler(verified: Verified) -> None:
        with Path(handled).open("ab", buffering=0) as file:
            file.write((verified.body or b"") + b"\n")
        doom.at("handler")

    client = _PYTHON.KafkaConsumer(
        topic, bootstrap_servers=servers(url), group_id=group, enable_auto_commit=False,
        auto_offset_reset="earliest", session_timeout_ms=6000,
    )  # fmt: skip
    letters = _PYTHON.KafkaProducer(bootstrap_servers=servers(url), enable_idempotence=False, acks="all")
    with AuditFile(audit, fsync=False) as sink:
        guard = Pipeline(
            verifier=Verifier(
                keys={ISSUER: Issuer(keys=load_key_set(Path(keys).read_bytes()))}, audience=AUDIENCE
            ),
            policy=Allow({SUBJECT: ["kafka:" + topic]}),
            replay=MemoryReplayStore(),
            audit=sink,
        )
        kafka.Consumer(client, guard, handler, dead_letters=DoomedLetters(letters, dead, doom)).run(signals=True)
    client.close()
    letters.close()


if __name__ == "__main__":
    *_places, _moment, _after = sys.argv[1:]
    main(_places, Doom(_moment, int(_after)))
