"""What a client cannot do is refused at its start, by an error that says why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from integration.capabilities.bench import Bench
from integration.every_client import CLIENTS
from mqauth import ConfigurationError
from mqauth.testing.stage import wait_until

GUEST = {"user-id": "guest"}
"""RabbitMQ takes this property only from the user of that name."""


def test_user_id(bench: Bench) -> None:
    """RabbitMQ's user is compared with the subject; Kafka has no such thing, and its consumer does not start."""
    bench.guard = bench.pipeline(user_id={"guest": bench.forge.subject})
    if not bench.on_rabbitmq:
        with pytest.raises(ConfigurationError, match="Kafka's records have none"), bench.consuming(0):
            pass
        return
    bench.send(bench.signed(b"of its user", properties=GUEST))
    with bench.consuming(1):
        assert bench.bodies() == [b"of its user"]
    bench.guard = bench.pipeline(user_id={"guest": "somebody-else"})
    bench.send(bench.signed(b"of another user", properties=GUEST))
    with bench.consuming(2):
        wait_until(lambda: bench.reasons() == {b"of another user": "subject_mismatch"})


@pytest.mark.parametrize("bench", [name for name in CLIENTS if "faststream" in name], indirect=True)
def test_transactional_letters_in_faststream(bench: Bench) -> None:
    """FastStream commits the offsets of its records itself, so that no transaction can have them."""

    class Transactional:
        """As much of transactional dead letters as FastStream is given."""

        name = "orders.dead"

    wiring = bench.wiring()
    with (
        pytest.raises(ConfigurationError, match="transactional dead letters cannot be used"),
        CLIENTS[bench.client](replace(wiring, letters=Transactional())),
    ):
        pass
