"""``mqauth dlq``: what is refused before anything is connected."""

from __future__ import annotations

import pytest

from mqauth.cli.dlq import filter_and_why

ON_RABBITMQ = ["--broker", "amqp://127.0.0.1:1/"]
ON_KAFKA = ["--broker", "kafka://127.0.0.1:1"]


@pytest.mark.parametrize(
    ("reason", "why", "filtered", "said"),
    [
        ("key arrived late", None, None, "key arrived late"),
        ("expired", "clock set", "expired", "clock set"),
        (None, "w", None, "w"),
    ],
)
def test_the_reason_of_an_act_in_words(
    reason: str | None, why: str | None, filtered: str | None, said: str
) -> None:
    """``--reason`` in words is the act's; one word is what letters were rejected for."""
    assert filter_and_why(reason, why) == (filtered, said)
