"""The broker contract: one suite that the memory broker, RabbitMQ and Kafka pass unchanged.

Inherit ``BrokerContract`` in a test class, or ``BatchContract`` for batch tokens, and provide a ``stage`` fixture
that returns a fresh ``Stage``. For the real brokers these are ``stage_rabbitmq.RabbitMQStage(url)`` and
``stage_kafka.KafkaStage(url)`` beside this file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pytest

from mqauth.audit.chain import verify_chain
from mqauth.audit.file import AuditFile
from mqauth.errors import Reason
from mqauth.flow import Attempts
from mqauth.judging.pipeline import Pipeline
from mqauth.judging.policy import Allow
from mqauth.judging.verified import Verified
from mqauth.replay.memory import MemoryReplayStore
from mqauth.testing.batchattacks import BATCH_ATTACKS
from mqauth.testing.batchforge import BatchForge
from mqauth.testing.forge import NEIGHBOUR, SUBJECT, Forge
from mqauth.testing.stage import Stage
from mqauth.testing.token_attacks import ATTACKS, honest_message
from mqauth.wire.message import Message


@dataclass
class Play:
    """One run on a stage: a forge, an audit file, and the messages that the handler saw."""

    stage: Stage
    audit: AuditFile
    forge: Forge
    handled: list[Verified] = field(default_factory=list)
    calls: int = 0

    def guard(self, **settings: Any) -> Pipeline:
        """Return a pipeline that trusts the forge's honest producer on the stage's source."""
        wanted: dict[str, Any] = {
            "verifier": self.forge.verifier(),
            "policy": self.forge.policy(self.stage.destination),
            "replay": MemoryReplayStore(),
            "audit": self.audit,
            "attempts": Attempts(limit=2, wait=0, wait_max=0),
        }
        return Pipeline(**(wanted | settings))

    def message(self, number: int = 0) -> Message:
        """Return an honest, unsigned message for the stage's source."""
        return honest_message(self.stage.destination, number)

    def handler(self, verified: Verified) -> None:
        """Keep a message that is handled."""
        self.handled.append(verified)

    def run(self, handled: int = 0, letters: int = 0, **settings: Any) -> None:
        """Consume until ``handled`` messages were handled and ``letters`` dead letters were published."""
        self.stage.consume(
            self.guard(**settings),
            self.handler,
            until=lambda: (
                len(self.handled) >= handled and len(self.stage.letters()) >= letters
            ),
        )

    def reasons(self) -> list[str]:
        """Return the reasons on the dead letters, sorted."""
        return sorted(
            _text(letter, "mqauth-dead-reason") for letter in self.stage.letters()
        )


class _Contract:
    """The promises that hold for both forms of tokens; the docstring of each test is the promise."""

    forge: ClassVar[type[Forge]] = Forge
    in_order: ClassVar[int] = 200

    @pytest.fixture
    def play(self, stage: Stage, tmp_path: Any) -> Any:
        """Yield a play on a fresh stage."""
        with AuditFile(tmp_path / "audit.jsonl", fsync=False) as audit:
            yield Play(stage, audit, self.forge(lifetime=600))

    def test_honest(self, play: Play) -> None:
        """An honest message reaches the handler once, with its body, key, headers and claims."""
        play.stage.produce(play.forge.signer(), play.message(7))
        play.run(handled=1)
        (seen,) = play.handled
        sent = play.message(7)
        assert (seen.body, seen.key, seen.destination) == (
            sent.body,
            sent.key,
            sent.destination,
        )
        assert seen.subject == "orders-api"
        assert seen.properties["content-type"] == "application/json"
        assert seen.header("tenant") in ("acme", b"acme")
        assert play.stage.letters() == []

    def test_replay(self, play: Play) -> None:
        """The copy of a handled message is dead-lettered as replayed."""
        copied = play.forge.signer().sign(play.message())
        play.stage.inject(copied)
        play.stage.inject(copied)
        play.run(handled=1, letters=1)
        assert play.reasons() == [Reason.REPLAYED.value]
        assert len(play.handled) == 1

    def test_a_neighbours_id_silences_nobody(self, play: Play) -> None:
        """Two producers of one issuer sign the same ``jti``: each message is handled, and only a copy is not."""
        jti = "one-id-for-two-producers"
        policy = Allow({name: [play.stage.destination] for name in (SUBJECT, NEIGHBOUR)})
        theirs = play.forge.seal(
            play.message(0),
            key=play.forge.neighbour,
            claims={"sub": NEIGHBOUR, "jti": jti},
        )
        ours = play.forge.seal(play.message(1), claims={"jti": jti})
        for message in (theirs, ours, ours):
            play.stage.inject(message)
        play.run(handled=2, letters=1, policy=policy)
        assert sorted(seen.subject for seen in play.handled) == [SUBJECT, NEIGHBOUR]
        assert play.reasons() == [Reason.REPLAYED.value]

    def test_audit_before_letter(self, play: Play) -> None:
        """Every dead letter names an audit record, and the audit chain is intact."""
        play.stage.inject(play.message())
        play.run(letters=1)
        (letter,) = play.stage.letters()
        assert _text(letter, "mqauth-dead-audit") in play.audit.path.read_text()
        assert verify_chain(play.audit.path).intact

    def test_handler_failure(self, play: Play) -> None:
        """A message whose handler always fails is tried as often as configured, then dead-lettered."""

        def failing(_verified: Verified) -> None:
            play.calls += 1
            raise ValueError("no such order")

        play.stage.produce(play.forge.signer(), play.message())
        play.stage.consume(
            play.guard(), failing, until=lambda: len(play.stage.letters()) >= 1
        )
        assert play.reasons() == [Reason.HANDLER_FAILED.value]
        assert play.calls == 2

    def test_dead_letters_missing(self, play: Play) -> None:
        """Without its dead-letter queue a rejected message is kept, and dead-lettered once it is back."""
        honest = play.message(1)
        play.stage.remove_dead_letters()
        play.stage.inject(play.message())
        restore = _once(play.stage.restore_dead_letters)
        attempted = _Attempted(play.audit)
        play.stage.consume(
            play.guard(audit=attempted),
            play.handler,
            until=lambda: (
                attempted.happened and restore() and len(play.stage.letters()) >= 1
            ),
        )
        play.stage.produce(play.forge.signer(), honest)
        play.run(handled=1)
        assert play.reasons() == [Reason.TOKEN_MISSING.value]
        assert [seen.body for seen in play.handled] == [honest.body]

    def test_in_order(self, play: Play) -> None:
        """Messages of one key, ``in_order`` of them, reach the handler in the order they were sent."""
        signer = play.forge.signer()
        for number in range(self.in_order):
            play.stage.produce(signer, _same_key(play.message(number)))
        play.run(handled=self.in_order)
        assert [seen.body for seen in play.handled] == [
            play.message(n).body for n in range(self.in_order)
        ]

    def test_shutdown(self, play: Play) -> None:
        """What was settled before a graceful stop is not delivered again, and nothing after it is lost."""
        store = MemoryReplayStore()
        signer = play.forge.signer()
        for number in range(3):
            play.stage.produce(signer, play.message(number))
        play.run(handled=3, replay=store)
        play.stage.produce(signer, play.message(3))
        play.run(handled=4, replay=store, reread="duplicate")
        assert [seen.body for seen in play.handled] == [
            play.message(n).body for n in range(4)
        ]
        assert play.stage.letters() == []


class BrokerContract(_Contract):
    """What every broker wrapper must do; the docstring of each test is the promise."""

    @pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
    def test_attack(self, play: Play, attack: Any) -> None:
        """An attack is dead-lettered with its reason, byte for byte, and never reaches the handler."""
        if not attack.fits(play.stage.destination):
            # AMQP has no record key that could be changed.
            assert attack.scheme == "kafka"
            return
        hostile = attack.mount(play.forge, play.message())
        play.stage.inject(hostile)
        play.stage.produce(play.forge.signer(), play.message(1))
        play.run(handled=1, letters=1)
        (letter,) = play.stage.letters()
        assert _text(letter, "mqauth-dead-reason") == attack.reason.value
        assert letter.body == hostile.body
        assert not letter.occurrences("mqauth-token")
        assert [seen.body for seen in play.handled] == [play.message(1).body]


class BatchContract(_Contract):
    """The same promises for messages in batches, and those that a batch adds."""

    forge = BatchForge

    def test_attacks(self, play: Play) -> None:
        """Every attack, on single messages and on batches, is dead-lettered with its reason and never handled."""
        fitting = [
            attack
            for attack in (*ATTACKS, *BATCH_ATTACKS)
            if attack.fits(play.stage.destination)
        ]
        for attack in fitting:
            play.stage.inject(attack.mount(play.forge, play.message()))
        play.stage.produce(play.forge.signer(), play.message(1))
        play.run(handled=1, letters=len(fitting))
        assert play.reasons() == sorted(attack.reason.value for attack in fitting)
        assert [seen.body for seen in play.handled] == [play.message(1).body]

    def test_siblings(self, play: Play) -> None:
        """Of one batch some are lost, one is forged, one copied, all out of order: the rest is handled once."""
        sealed = Forge.signer(play.forge).sign_many(
            [play.message(number) for number in range(5)]
        )
        forged = replace(sealed[2], body=b"forged")
        for message in (sealed[4], forged, sealed[0], sealed[4], sealed[3]):
            play.stage.inject(message)
        play.run(handled=3, letters=2)
        assert sorted(seen.index or 0 for seen in play.handled) == [0, 3, 4]
        assert {seen.body for seen in play.handled} == {
            play.message(number).body for number in (0, 3, 4)
        }
        assert play.reasons() == [Reason.BODY_MISMATCH.value, Reason.REPLAYED.value]


class _Attempted:
    """An audit sink that notes that a record was written, which happens just before its dead letter."""

    def __init__(self, sink: AuditFile) -> None:
        self._sink = sink
        self.happened = False

    def write(self, record: Any, /) -> None:
        """Write the record through."""
        self._sink.write(record)
        self.happened = True


def _once(function: Callable[[], None]) -> Callable[[], bool]:
    """Return a function that calls another one the first time only, and always returns true."""
    done = False

    def call() -> bool:
        nonlocal done
        if not done:
            function()
            done = True
        return True

    return call


def _same_key(message: Message) -> Message:
    return replace(message, key=b"one") if message.key is not None else message


def _text(letter: Message, name: str) -> str:
    (value,) = letter.occurrences(name)
    return value.decode() if isinstance(value, bytes) else str(value)
