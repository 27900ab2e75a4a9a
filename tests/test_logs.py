"""The log: one module writes it, each outcome has its event, floods are bounded, and nothing secret is in it."""

from __future__ import annotations

import ast
import io
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import mqauth
from mqauth import (
    CallableSink,
    Cause,
    Detector,
    Message,
    MisuseWatch,
    Thresholds,
    Unavailable,
)
from mqauth.logs import EVENTS, KINDS, AddMessage, JSONFormatter, Rate
from mqauth.testing import ATTACKS, FakeClock, Forge
from mqauth.testing.token_attacks import honest_message
from tests.conftest import World
from tests.kit.tokens import tokens_in

Records = Callable[[str], list[logging.LogRecord]]
PACKAGE = Path(mqauth.__file__).parent


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Records:
    """The records of an event so far."""
    caplog.set_level(logging.DEBUG, "mqauth")
    return lambda event: [
        each for each in caplog.records if getattr(each, "event", None) == event
    ]


def events_in(tree: ast.AST) -> Iterator[ast.expr]:
    """Yield what calls of ``emit`` name as their events."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "emit"
        ):
            yield node.args[0]


def test_one_module_writes() -> None:
    """Nobody else takes a logger of mqauth but a sink that was given one, and every event is on the list."""
    takers, named = set(), set[str]()
    for path in PACKAGE.rglob("*.py"):
        source = path.read_text("utf-8")
        if re.search(
            r"\b_?log(ger)?\.(debug|info|warning|error|critical|exception)\(|\b_LOG\b",
            source,
        ):
            takers.add(path.name)
        named |= {
            found.value
            for found in events_in(ast.parse(source))
            if isinstance(found, ast.Constant)
        }
    assert takers == set()
    assert named <= EVENTS.keys()
    assert len(named) > 50


def test_events_are_short() -> None:
    """An event fits the MSGID of RFC 5424: 32 printable characters, and its logger is one of ours."""
    assert all(re.fullmatch(r"[a-z_.]{1,32}", event) for event in EVENTS)
    assert all(name.startswith("mqauth.") for name, _ in EVENTS.values())


def test_page_lists_the_events() -> None:
    """The page names each event beside its logger and level, and no other."""
    page = (PACKAGE.parent / "docs" / "logs.md").read_text("utf-8")
    rows = re.findall(r"^\| `(mqauth[\w.]*)` \| (\w+) \| (.*) \|$", page, re.MULTILINE)
    listed = {
        event: (name, level)
        for name, level, events in rows
        for event in re.findall(r"`([^`]+)`", events)
    }
    assert listed == {
        event: (name, logging.getLevelName(level))
        for event, (name, level) in EVENTS.items()
    }


class TestOutcomes:
    """What a message came to, in the log."""

    @pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
    def test_rejected(self, attack: Any, world: World, said: Records) -> None:
        """Each attack is one warning, with its reason, ids of letter and record, and where it was."""
        place = (
            "kafka:orders"
            if attack.fits("kafka:orders")
            else "rabbitmq:shop/orders.created"
        )
        outcome = world.process(attack.mount(world.forge, honest_message(place)))
        (record,) = said("message.rejected")
        assert (record.levelname, record.name) == ("WARNING", "mqauth.messages")
        found = vars(record)
        assert (found["reason"], found["dead_letter"]) == (
            attack.reason.value,
            outcome.dead_letter,
        )
        assert found["audit"] == world.records[0]["id"]
        assert attack.reason.value in record.getMessage()

    def test_handler_failed(self, world: World, said: Records) -> None:
        """One error with the traceback, two warnings before it, and the error id is in audit and letter."""
        world.handler.function = broken
        world.process(world.sealed())
        (record,) = said("handler.failed")
        found, text = vars(record), logging.Formatter().format(record)
        assert record.levelname == "ERROR"
        assert 'raise ValueError("order 17 has no price")' in text
        assert "ValueError: order 17 has no price" in text
        assert found["subject"] == "orders-api"
        assert found["error_id"] == world.records[0]["error"]
        assert dict(world.published[0].headers)["mqauth-dead-error"] == found["error_id"]
        assert dict(world.published[0].headers)["mqauth-dead-id"] == found["dead_letter"]
        assert found["audit"] == world.records[0]["id"]
        assert (len(said("handler.retried")), said("message.rejected")) == (1, [])

    def test_debug(self, world: World, said: Records) -> None:
        """An accepted message is a line at DEBUG."""
        world.process(world.sealed())
        (record,) = said("message.accepted")
        assert (record.levelname, vars(record)["subject"]) == ("DEBUG", "orders-api")

    @pytest.mark.parametrize(
        "cause", [Cause.REPLAY_STORE_UNAVAILABLE, Cause.REPLAY_STORE_FULL]
    )
    def test_deferred(
        self, cause: Cause, world: World, clock: FakeClock, said: Records
    ) -> None:
        """A deferral is said at its start, every five minutes, and at its end."""
        delivery = world.receive(world.sealed())
        world.store.claim.failure = Unavailable(cause, "refused")
        for _ in range(62):
            world.process(delivery)
            clock.advance(5)
        assert [vars(each)["cause"] for each in said("message.deferred")] == [
            cause.value
        ] * 2
        assert {each.levelname for each in said("message.deferred")} == {"WARNING"}
        world.store.claim.failure = None
        world.process(delivery)
        (record,) = said("message.resumed")
        assert (record.levelname, vars(record)["cause"]) == ("INFO", cause.value)

    def test_alert(self, world: World, said: Records) -> None:
        """An alert is an error with what it is about; of a key that was revoked it is critical."""
        watch = MisuseWatch(
            CallableSink(lambda record: None), Detector(Thresholds(burst=2))
        )
        for attack in ATTACKS:
            if attack.reason.value in ("key_revoked", "producer_forbidden"):
                made = world.pipeline.receive(
                    attack.mount(world.forge, honest_message("kafka:orders"))
                )
                world.run(world.pipeline.process(made, None, world.letters))
        for record in world.audit.write.done:
            watch.write(record)
        levels = {vars(each)["kind"]: each.levelname for each in said("misuse.alert")}
        assert levels["new_destination"] == "ERROR"
        assert levels["resurrected_key"] == "CRITICAL"


def broken(_verified: Any) -> None:
    """A handler with a fault."""
    raise ValueError("order 17 has no price")


class TestSecrets:
    """What no line holds."""

    @pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
    def test_none_of_it(
        self, attack: Any, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        """No body, token, record key or value of a header of an attack is in any line or field, at any level."""
        caplog.set_level(logging.DEBUG, "mqauth")
        place = (
            "kafka:orders"
            if attack.fits("kafka:orders")
            else "rabbitmq:shop/orders.created"
        )
        message = attack.mount(world.forge, marked(honest_message(place)))
        world.process(message)
        text = "".join(
            repr(vars(record)) + record.getMessage() for record in caplog.records
        )
        assert "MARK-" not in text
        assert tokens_in(text, message) == []
        assert text

    def test_exception_that_cannot_say(self, world: World, said: Records) -> None:
        """An exception whose text cannot be had is logged without it."""

        class Mute(Exception):
            def __str__(self) -> str:
                raise ValueError

        world.handler.failure = Mute()
        world.process(world.sealed())
        assert "Mute: ?" in logging.Formatter().format(said("handler.failed")[0])


def marked(message: Message) -> Message:
    """Return a message whose secrets have a mark."""
    value: Any = (
        b"MARK-header" if message.destination.startswith("kafka") else "MARK-header"
    )
    key = message.key and b"MARK-key"
    return replace(
        message,
        body=b'{"order": "MARK-body"}',
        key=key,
        headers=(*message.headers, ("secret", value)),
    )


def test_flood_through_the_pipeline(
    world: World, clock: FakeClock, said: Records
) -> None:
    """Forgeries to random destinations are bounded, and the one handler that fails among them is seen."""
    for number in range(600):
        world.process(honest_message(f"kafka:orders{number}"))
        clock.advance(0.1)
    world.handler.function = broken
    world.process(world.sealed())
    assert len(said("message.rejected")) <= 260
    assert len(said("handler.failed")) == 1


class TestFloodCost:
    """What the log costs while forgeries to random destinations come in."""

    @staticmethod
    def calls(world: World, messages: list[Message]) -> int:
        """Return how many functions are called for the second half of messages, whose kinds have no room left."""
        count, half = 0, len(messages) // 2

        def look(_frame: object, event: str, _argument: object) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        for number, message in enumerate(messages):
            if number == half:
                sys.setprofile(look)
            world.process(message)
        sys.setprofile(None)
        return count

    def test_a_flood_is_hardly_slower(
        self, clock: FakeClock, forge: Forge, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A forgery whose line is left out takes at most 5 % more calls than one without any log.

        Calls are counted, because times differ by more than that from run to run.
        """
        honest = (
            honest_message(f"rabbitmq:shop/orders.{number}")
            for number in range(2 * KINDS + 40)
        )
        messages = [forge.seal(message, signature=bytes(64)) for message in honest]
        self.calls(World(clock, forge), messages)
        logged = self.calls(World(clock, forge), messages)
        monkeypatch.setattr(Rate, "admits", lambda *_: False)
        assert logged <= 1.05 * self.calls(World(clock, forge), messages)


class TestForms:
    """Lines as JSON, and lines that a handler writes."""

    def test_message_of_the_handler(self, world: World) -> None:
        """What a handler logs by itself says of which message it is, and after it nothing does."""
        stream, logger = io.StringIO(), logging.getLogger("billing")
        handler = logging.StreamHandler(stream)
        handler.setFormatter(JSONFormatter())
        handler.addFilter(AddMessage())
        logger.addHandler(handler)
        try:
            world.handler.function = lambda verified: logger.warning(
                "no stock", extra={"sku": 7}
            )
            world.process(world.sealed())
            logger.warning("idle")
        finally:
            logger.removeHandler(handler)
        inside, outside = map(json.loads, stream.getvalue().splitlines())
        assert (inside["mqauth.subject"], inside["sku"]) == ("orders-api", 7)
        assert inside["messaging.destination.name"] == "rabbitmq:shop/orders.created"
        assert "mqauth.subject" not in outside

    def test_of_an_exception(self) -> None:
        """An exception that others log is in the line too."""
        stream, logger = io.StringIO(), logging.getLogger("billing")
        handler = logging.StreamHandler(stream)
        handler.setFormatter(JSONFormatter())
        logger.addHandler(handler)
        try:
            broken(None)
        except ValueError:
            logger.exception("broken")
        finally:
            logger.removeHandler(handler)
        assert "order 17" in json.loads(stream.getvalue())["exception.stacktrace"]
