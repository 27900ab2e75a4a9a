"""The delivery contract on a simulated RabbitMQ, in virtual time: leaves and clients are as they are."""

from collections.abc import Iterator
from typing import Any

import pytest

from mqauth.testing.token_attacks import honest_message
from tests.kit.delivery_contract_queue import QueueDeliveryContract, QueuePlay
from tests.simulation.amqp_broker import Channel
from tests.simulation.contract_stage import PikaService, simulated_stage


@pytest.mark.parametrize(
    "coalesce_acks", [True, False], ids=["coalesced acks", "single acks"]
)
class TestQueueSimulated(QueueDeliveryContract):
    """Every promise, also where each message is acked by itself."""

    @pytest.fixture
    def stage(self, coalesce_acks: bool) -> Iterator[Any]:
        """Yield a fresh stage."""
        with simulated_stage(coalesce_acks=coalesce_acks) as stage:
            yield stage


class TestPikaSimulated(QueueDeliveryContract):
    """Every promise, on pika."""

    @pytest.fixture
    def stage(self) -> Iterator[Any]:
        """Yield a fresh stage."""
        with simulated_stage(service=PikaService) as stage:
            yield stage

    def test_a_closed_channel_ends_no_consumer(self, play: QueuePlay) -> None:
        """A channel that is closed, and a queue that is away, end no consumer: it goes on by its connection."""
        member: Any = play.start()
        play.all_handled(play.send(2))
        consumer = member.service.consumer
        play.stage.close_channel(member)
        play.all_handled(play.send(2))
        play.stage.remove_source()
        play.go_on(10)
        play.stage.restore_source()
        play.all_handled(play.send(2))
        assert member.service.consumer is consumer
        assert play.mistakes(play.sent) == []

    def test_a_replay_is_proven(
        self, play: QueuePlay, monkeypatch: pytest.MonkeyPatch
    ) -> None:
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
