"""``mqauth dlq``: what is refused before anything is connected."""

from __future__ import annotations

import pytest

from mqauth.cli import main
from mqauth.cli.dlq import filter_and_why

ON_RABBITMQ = ["--broker", "amqp://127.0.0.1:1/"]
ON_KAFKA = ["--broker", "kafka://127.0.0.1:1"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no command given"),
        (["list"], "broker"),
        (["list", "--broker", "http://a/", "--queue", "q"], "--broker: must be amqp://"),
        (["list", *ON_RABBITMQ], "--queue: required with this broker"),
        (["list", *ON_RABBITMQ, "--queue", "q", "--topic", "t"], "--topic: this broker needs --queue"),
        (["list", *ON_KAFKA], "--topic: required with this broker"),
        (["list", *ON_KAFKA, "--queue", "q"], "--queue: this broker needs --topic"),
        (["list", *ON_KAFKA, "--topic", "t", "--from", "soon"], "give a time with a zone like"),
        (["list", *ON_KAFKA, "--topic", "t", "--limit", "0"], "limit"),
        (["discard", *ON_RABBITMQ, "--queue", "q"], "--why"),
        (["discard", *ON_RABBITMQ, "--queue", "q", "--why", "w"], "--audit: required, or [review] audit"),
        (["discard", *ON_RABBITMQ, "--queue", "q", "--audit", "a"], "--why"),
        (["discard", *ON_RABBITMQ, "--queue", "q", "--audit", "a", "--reason", "expired"], "--why"),
        (["discard", *ON_RABBITMQ, "--queue", "q", "--audit", "a", "--reason", "expird", "--yes"], "mean expired"),
        (["list", *ON_RABBITMQ, "--queue", "q", "--reason", "x9"], "no such reason; see mqauth dlq groups"),
        (["redrive", *ON_RABBITMQ, "--queue", "q", "--why", "w", "--audit", "a"], "config"),
        (["check", *ON_RABBITMQ, "--queue", "q"], "--config"),
        (["balance", *ON_RABBITMQ, "--queue", "q"], "files"),
    ],
)  # fmt: skip
def test_usage_is_refused_in_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A command that cannot be carried out is exit code 2 and one line that says what to change."""
    assert main(["dlq", *arguments]) == 2
    error = capsys.readouterr().err
    assert said.lower() in error.lower()
    assert error.count("\n") == 1


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
