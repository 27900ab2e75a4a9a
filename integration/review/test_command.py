"""``mqauth dlq`` as people and programs call it, on real brokers; and one topic with two consumer groups."""

from __future__ import annotations

import io
import json
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any

import pytest

from integration.console.browser import console
from integration.review.scene import Scene
from mqauth import MalformedMessage, Unavailable
from mqauth.audit.chain import verify_chain
from mqauth.cli import main
from mqauth.cli.broker import opened
from mqauth.flow import call
from mqauth.testing.stage import wait_until
from mqauth.wire import destination
from mqauth.wire.message import Message
from tests.test_cli_forms import in_terminal

Run = Callable[..., tuple[int, Any]]


@pytest.fixture
def dlq(scene: Scene, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command on the scene's letters and return its exit code and the JSON it printed."""

    def run(act: str, *more: str, text: bool = False) -> tuple[int, Any]:
        name = (
            ("--topic", scene.place.name)
            if scene.place.on_kafka
            else ("--queue", scene.place.name)
        )
        capsys.readouterr()
        json_ = () if text else ("--json",)
        code = main(
            ["dlq", act, *more, "--broker", scene.place.broker, *map(str, name), *json_]
        )
        said = capsys.readouterr()
        if text or not said.out:
            return code, said.out + said.err
        return code, [json.loads(line) for line in said.out.splitlines()]

    return run


def test_every_command(scene: Scene, dlq: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """List, groups, show, judge, dry runs, redrive, export, discard, import and account, each with its JSON."""
    scene.fill(2)
    config, key = str(scene.write_config()), str(scene.write_key())
    audit = str(scene.folder / "reviewer.jsonl")
    _, (listed,) = dlq("list", "--reason", "expired")
    assert (listed["total"], {letter["reason"] for letter in listed["letters"]}) == (
        2,
        {"expired"},
    )
    code, text = dlq("list", "--limit", "1", text=True)
    assert (code, "15 more" in text) == (0, True)
    _, (groups,) = dlq("groups")
    assert [group["count"] for group in groups["groups"]] == [2] * 8
    assert "signature_invalid" in dlq("groups", text=True)[1]
    _, (letter,) = dlq("show", listed["letters"][0]["id"])
    assert (letter["intact"], letter["message"]["destination"]) == (
        True,
        scene.stage.destination,
    )
    _, (judged,) = dlq("check", "--config", config)
    assert (judged["pass"], judged["total"], judged["verdicts"]["expired"]) == (0, 16, 2)
    act = ("--why", "skewed clock", "--audit", audit)
    redriving = (
        "--config",
        config,
        "--key",
        key,
        "--reviewer",
        "ada",
        "--waive",
        "expired",
        *act,
    )
    _, (rehearsed,) = dlq("redrive", *redriving, "--dry-run")
    assert (rehearsed["would"], rehearsed["refused"]["signature_invalid"]) == (2, 2)
    code, said = dlq("redrive", *redriving)
    assert (code, "--yes" in said) == (2, True)
    code, (done,) = dlq("redrive", *redriving, "--reason", "expired", "--yes")
    assert (code, done["done"], done["selected"], done["left"]) == (0, 2, 2, 0)
    code, (done,) = dlq("redrive", *redriving, "--yes")
    assert (code, done["done"], sum(done["refused"].values())) == (1, 0, 14)
    _, exported = dlq("export")
    assert len(exported) == 14
    assert dlq("discard", *act, "--dry-run")[1][0]["would"] == 14
    assert dlq("discard", *act, "--yes")[1][0]["done"] == 14
    code, (ledger,) = dlq("balance", *map(str, scene.audits))
    assert (code, ledger["rejected"], ledger["redriven"], ledger["discarded"]) == (
        0,
        16,
        2,
        14,
    )
    stream = io.TextIOWrapper(
        io.BytesIO(b"\n".join(json.dumps(form).encode() for form in exported))
    )
    monkeypatch.setattr(sys, "stdin", stream)
    assert dlq("import")[1] == [{"imported": 14}]
    code, (ledger,) = dlq("balance", *map(str, scene.audits))
    assert (code, ledger["open"], ledger["discarded"], ledger["difference"]) == (
        0,
        14,
        0,
        0,
    )
    assert dlq("balance", audit)[0] == 1


class Visitor:
    """A reviewer who is logged in at a console, as it printed its address and tokens."""

    def __init__(self, told: dict[str, Any]) -> None:
        self._url = told["url"]
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPCookieProcessor(CookieJar())
        )
        fields = urllib.parse.urlencode({"token": told["tokens"]["reviewer"]})
        self._opener.open(f"{self._url}login", fields.encode()).close()

    def is_reading(self) -> bool:
        """Tell whether the newest job runs."""
        with self._opener.open(f"{self._url}job.json") as answer:
            return bool(json.loads(answer.read())["running"])


def test_beside_a_running_console(scene: Scene, dlq: Run) -> None:
    """A console that runs with the reviewer's audit file leaves it to their commands, in one chain."""
    scene.fill(1)
    with console(scene) as told:
        visitor = Visitor(told)
        # While the console reads a queue nobody else sees its letters.
        wait_until(lambda: not visitor.is_reading())
        act = (
            "--why",
            "beside the console",
            "--audit",
            str(scene.folder / "reviewer.jsonl"),
            "--yes",
        )
        assert dlq("discard", *act)[1][0]["done"] == 8
    assert verify_chain(scene.folder / "reviewer.jsonl").records == 8


@pytest.mark.parametrize("scene", ["rabbitmq"], indirect=True)
def test_groups_fit_a_terminal(scene: Scene, tmp_path: Path) -> None:
    """At 80 columns ``dlq groups`` breaks no word, and the id it shows finds the group's letters again."""
    scene.fill(1)
    place = ["--broker", scene.place.broker, "--queue", str(scene.place.name)]
    lines = in_terminal(["dlq", "groups", *place], tmp_path).splitlines()
    assert max(map(len, lines)) <= 80
    (unknown,) = (line for line in lines if " key_unknown " in f" {line} ")
    kid = scene.forge.stranger.kid
    assert kid[:12] in unknown.split()
    found = in_terminal(["dlq", "list", "--kid", kid[:12], *place], tmp_path)
    assert "1 dead letter of " in found


def test_depth_counts_what_is_open(scene: Scene, dlq: Run) -> None:
    """``dlq depth`` counts the letters that are open: none that was discarded, and none of it is read or moved."""
    scene.fill(1)
    assert dlq("depth", "--max", "8") == (0, [{"open": 8, "max": 8}])
    assert dlq("depth", "--max", "7") == (1, [{"open": 8, "max": 7}])
    audit = str(scene.folder / "reviewer.jsonl")
    assert (
        dlq(
            "discard",
            "--reason",
            "expired",
            "--why",
            "too late",
            "--audit",
            audit,
            "--yes",
        )[0]
        == 0
    )
    assert dlq("depth", "--max", "7") == (0, [{"open": 7, "max": 7}])
    assert dlq("depth", text=True)[1].startswith("7 dead letters of ")
    assert dlq("list")[1][0]["total"] == 7


def test_what_does_not_exist_is_one_line(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    """A queue or topic that is not there is told in one line, and made by nobody."""
    name = "--topic" if scene.place.on_kafka else "--queue"
    for _ in range(2):
        assert (
            main(["dlq", "list", "--broker", scene.place.broker, name, "no-such-letters"])
            == 2
        )
        said = capsys.readouterr().err
        assert "no-such-letters" in said
        assert said.count("\n") == 1


@pytest.mark.slow
def test_publishing_is_confirmed_or_told(scene: Scene) -> None:
    """A destination nobody takes, and a message of the other broker, are errors; the letter stays."""
    on_kafka = scene.place.on_kafka
    nowhere = (
        destination.kafka("no-such-topic")
        if on_kafka
        else destination.rabbitmq("", "no-such-queue")
    )
    foreign = destination.rabbitmq("", "q") if on_kafka else destination.kafka("t")
    with opened(scene.place) as found:
        for properties in ({}, {} if on_kafka else {"message-id": "m"}):
            message = Message(destination=nowhere, body=b"x", properties=properties)
            with pytest.raises(Unavailable):
                found.run(call(found.box.publish, message))
        with pytest.raises(MalformedMessage):
            found.run(call(found.box.publish, Message(destination=foreign, body=b"x")))
