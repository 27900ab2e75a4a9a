"""A pika consumer process that kills itself with SIGKILL at a chosen moment; run by the tests of kills.

Arguments: URL, destination, queue, dead-letter queue, file of keys, file of what was handled, file of the audit,
moment, and after how many times the moment comes. At the moment ``slow`` it does not die, and its handler takes
its time. It connects anew where a connection is lost, and ends on SIGTERM.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Sequence
from contextlib import ExitStack
from pathlib import Path

from pika.exceptions import AMQPError

from integration.kafka_victim import Doom
from mqauth import Allow, AuditFile, FileReplayStore, Issuer, Pipeline, Verified, Verifier
from mqauth.brokers import pika as leaf
from mqauth.letters.dead_letter import DeadLetter
from mqauth.testing.forge import AUDIENCE, ISSUER, SUBJECT
from mqauth.testing.stage_pika import close, connect
from mqauth.wire.jwk import load_key_set

SLOW = 0.1
"""Seconds of a slow handler."""


class DoomedLetters(leaf.DeadLetters):
    """Dead letters after whose confirm, and before the ack, the process may die."""

    doom: Doom

    def publish(self, letter: DeadLetter, /) -> Awaitable[None] | None:
        """Publish, confirmed; then perhaps die."""
        return self._publish_and_die(letter)

    async def _publish_and_die(self, letter: DeadLetter) -> None:
        await self._publish(letter)
        self.doom.at("letter")


def main(places: Sequence[str], doom: Doom, *, slow: bool) -> None:
    """Consume until told to end."""
    url, place, queue, dead, keys, handled, audit = places

    def handler(verified: Verified) -> None:
        with Path(handled).open("ab", buffering=0) as file:
            file.write((verified.body or b"") + b"\n")
        doom.at("handler")
        time.sleep(SLOW if slow else 0)

    with AuditFile(audit, fsync=False) as sink:
        guard = Pipeline(
            verifier=Verifier(
                keys={ISSUER: Issuer(keys=load_key_set(Path(keys).read_bytes()))}, audience=AUDIENCE
            ),
            policy=Allow({SUBJECT: [place]}),
            replay=FileReplayStore(Path(audit).with_suffix(".sqlite")),
            audit=sink,
        )
        while True:
            with ExitStack() as undo:
                try:
                    connections = [connect(url) for _ in range(2)]
                    for connection in connections:
                        undo.callback(close, connection)
                    letters = DoomedLetters(connections[1], dead)
                    letters.doom = doom
                    consumer = leaf.Consumer(
                        connections[0], queue, guard, handler, dead_letters=letters, prefetch=5
                    )
                    return consumer.run(signals=True)
                except AMQPError as error:
                    print("connecting anew:", type(error).__name__, flush=True)


if __name__ == "__main__":
    *_places, _moment, _after = sys.argv[1:]
    main(_places, Doom(_moment, int(_after)), slow=_moment == "slow")
