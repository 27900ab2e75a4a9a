"""The delivery contract for queues on pika's own classes, and the simulated RabbitMQ behind a real socket."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from integration.stage_pika import PikaQueueStage
from mqauth.testing.token_attacks import honest_message
from tests.kit.delivery_contract_queue import QueueDeliveryContract, QueuePlay
from tests.kit.delivery_stage import QueueStage
from tests.pika_broker import PikaBroker
from tests.simulation.amqp_broker import Channel

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def broker() -> Iterator[PikaBroker]:
    """A broker for all tests; none of them makes it see a fault of protocol."""
    broker = PikaBroker()
    yield broker
    assert broker.close() == []


class TestPikaDeliveries(QueueDeliveryContract):
    """What becomes of deliveries, with several consumers of one queue."""

    @pytest.fixture
    def stage(self, broker: PikaBroker) -> Iterator[QueueStage]:
        """Yield a fresh stage."""
        stage = PikaQueueStage(broker.url)
        yield stage
        stage.close()

    @pytest.mark.slow
    def test_consumes_again_when_its_queue_is_back(self, play: QueuePlay) -> None:
        """A queue that was away for some seconds is consumed again."""
        super().test_consumes_again_when_its_queue_is_back(play)

    @pytest.mark.slow
    def test_consumes_again_when_its_queue_is_back_after_a_minute(self, play: QueuePlay) -> None:
        """A queue is consumed again that was away until its consumer waits for the longest time between two looks.

        On a real broker it is away for a minute.
        """
        self._again(play, lambda _: self._away(play, 12), times=1)

    def test_a_closed_channel_ends_no_consumer(self, play: QueuePlay) -> None:
        """A channel that is closed, and a queue that is away, end no consumer: it goes on by its connection."""
        member = play.start()
        play.all_handled(play.send(2))
        consumer = member._consumer  # type: ignore[attr-defined]
        play.stage.close_channel(member)
        play.all_handled(play.send(2))
        play.stage.remove_source()
        play.go_on(1)
        play.stage.restore_source()
        play.all_handled(play.send(2))
        assert member._consumer is consumer  # type: ignore[attr-defined]
        assert play.mistakes(play.sent) == []

    def test_a_replay_is_proven(self, play: QueuePlay, monkeypatch: pytest.MonkeyPatch) -> None:
        """Before a copy is condemned as ``replayed``, its channel answers a question."""
        asked: list[object] = []
        answer = Channel._on_flow

        def on_flow(channel: Channel, frame: Any) -> None:
            asked.append(frame)
            answer(channel, frame)

        monkeypatch.setattr(Channel, "_on_flow", on_flow)
        message = play.forge.signer().sign(honest_message(play.stage.destination, 1))
        play.start()
        play.stage.inject(message)
        play.wait(lambda: len(play.handled) == 1)
        assert asked == []
        play.stage.inject(message)
        play.wait(lambda: play.reasons() == ["replayed"])
        assert len(asked) == 1
