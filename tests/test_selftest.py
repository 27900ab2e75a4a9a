"""The self-test: a consumer that would let in what nobody signed does not start, and its trust stays as it is."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from mqauth.audit.file import AuditFile
from mqauth.brokers import memory
from mqauth.cli import main
from mqauth.config.load import load
from mqauth.errors import ConfigurationError
from mqauth.flow import run
from mqauth.http import exchange
from mqauth.judging.judge import Judge
from mqauth.judging.pipeline import Pipeline
from mqauth.judging.policy import Allow, Decision, Rule
from mqauth.judging.rollout import Exemption, Rollout, RolloutEntry, Rung
from mqauth.judging.selftest import MOST, SelfTest, self_test, starting
from mqauth.judging.verifier import Issuer, Verifier
from mqauth.replay.memory import MemoryReplayStore
from mqauth.testing import Forge, MemoryStage
from mqauth.testing.forge import AUDIENCE, ISSUER
from mqauth.wire.jwk import dump_key_set
from mqauth.wire.keys import KeySet
from tests.opa_agent import Agent
from tests.test_config import SMALL

PLACE = "kafka:orders"
DAY = date(2026, 11, 29)
NO_REPLAY = ("replay.off", "WARNING")
REFUSED = "hostile messages refused: 2\n"
CONFIG = f'{SMALL}\n[audit]\nfile = "audit.jsonl"\n'
AGENT = """
[consumer.opa]
url = "http://127.0.0.1:8181"
path = "mqauth/allow"
"""
ROLLOUT = """
[[rollout]]
destinations = ["kafka:orders"]
rung = "observe"
since = 2026-11-01
until = 2026-12-01
owner = "ops"
"""


class Watched:
    """A store, an audit sink and a key source that note whatever is asked of them."""

    def __init__(self, keys: KeySet) -> None:
        self.asked: list[str] = []
        self._keys = keys

    def claim(self, request: Any) -> Any:
        self.asked.append("claim")
        raise AssertionError

    confirm = release = write = claim

    def key_set(self) -> KeySet:
        self.asked.append("key_set")
        return self._keys

    def refresh(self, kid: str, received: float) -> KeySet:
        self.asked.append("refresh")
        return self._keys


class External:
    """A policy that is asked elsewhere, as OPA is."""

    version = "rules-of-opa"

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def decide(self, verified: Any) -> Decision:
        self.asked.append(verified)
        return Decision.ALLOW


class AsyncExternal(External):
    """The same, asynchronous."""

    async def decide(self, verified: Any) -> Decision:  # type: ignore[override]
        self.asked.append(verified)
        return Decision.ALLOW


@pytest.fixture
def watched(forge: Forge) -> Watched:
    """What must be left alone."""
    return Watched(forge.keys)


def pipeline(forge: Forge, watched: Any = None, **settings: Any) -> Pipeline:
    """Return a consumer's pipeline."""
    wanted: dict[str, Any] = {
        "verifier": Verifier(keys={ISSUER: watched or forge.keys}, audience=AUDIENCE),
        "policy": forge.policy(PLACE), "replay": watched or MemoryReplayStore(), "audit": watched,
        "clock": forge.clock,
    }  # fmt: skip
    return Pipeline(**wanted | settings)


class TestHostile:
    """What nobody signed, and the consumer's own pipeline."""

    def test_it_leaves_no_trace(
        self, forge: Forge, watched: Watched, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Nothing is claimed, recorded or sent, no keys are asked for; nothing is logged but that it passed."""
        seen: list[Any] = []
        guard = pipeline(forge, watched, observers=[lambda *told: seen.append(told)])
        with caplog.at_level(logging.DEBUG, "mqauth"):
            run(starting(guard))
        assert (watched.asked, seen) == ([], [])
        assert [record.event for record in caplog.records] == ["selftest.passed"]
        assert "hostile messages refused: 2" in caplog.text

    def test_nothing_is_added_to_what_is_trusted(
        self, forge: Forge, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whatever the own pipeline judges, it judges with the issuers, keys, rules and store it was made with."""
        guard = pipeline(forge)
        trusted = (
            dict(guard.verifier.issuers),
            guard.policy,
            guard.policy.rules,
            guard.replay,
            guard.verifier,
        )
        prepare = Judge.prepare

        def watching(judge: Judge, *given: Any) -> Any:
            now = (
                dict(guard.verifier.issuers),
                guard.policy,
                guard.policy.rules,
                guard.replay,
                guard.verifier,
            )
            assert now == trusted
            assert [
                issuer.keys is forge_keys for issuer in guard.verifier.issuers.values()
            ] == [True]
            return prepare(judge, *given)

        forge_keys = guard.verifier.issuers[ISSUER].keys
        monkeypatch.setattr(Judge, "prepare", watching)
        assert self_test(guard).refused == 2
        assert guard.verifier.issuers == trusted[0]

    def test_a_hole_keeps_the_consumer_from_starting(
        self,
        forge: Forge,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A judge that refuses nothing is told by what it lets in."""
        guard = pipeline(forge)
        monkeypatch.setattr(Judge, "prepare", lambda *_: None)
        with pytest.raises(
            ConfigurationError, match=r"the consumer would let in .*an unsigned message"
        ):
            run(starting(guard))
        assert [
            record.event for record in caplog.records if record.levelno >= logging.ERROR
        ] == ["selftest.accepted"]
        # it is tried again with the next start, and not believed to have passed
        with pytest.raises(ConfigurationError):
            run(starting(guard))

    def test_a_policy_that_is_asked_elsewhere_is_not_asked(self, forge: Forge) -> None:
        """A policy that is no ``Allow`` is never asked, synchronous or not: places are made up."""
        for policy in (External(), AsyncExternal()):
            found = self_test(pipeline(forge, policy=policy))
            assert (found.refused, found.accepted, policy.asked) == (4, (), [])

    def test_the_cost_is_bounded(self, forge: Forge) -> None:
        """A thousand rules are not tried one by one."""
        issuers = {
            f"https://auth{number}.example": Issuer(keys=forge.keys)
            for number in range(100)
        }
        rules = [
            Rule(
                subject=f"s{n}",
                destinations=(f"kafka:t{n}", f"kafka:u{n}"),
                issuer="https://auth1.example",
            )
            for n in range(1000)
        ]
        found = self_test(
            pipeline(
                forge, verifier=Verifier(keys=issuers, audience="a"), policy=Allow(rules)
            )
        )
        assert found.refused == 2 * MOST


class TestRollout:
    """Below ``enforce`` an unsigned message is let through on purpose."""

    @staticmethod
    def entry(rung: Rung, **more: Any) -> RolloutEntry:
        return RolloutEntry(
            destinations=(PLACE,), rung=rung, since=DAY, until=DAY, owner="ops", window=1.0, **more
        )  # fmt: skip

    @pytest.mark.parametrize("rung", [Rung.OFF, Rung.OBSERVE])
    def test_it_is_said_and_no_finding(
        self, rung: Rung, forge: Forge, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A destination below enforce is named, and its messages are judged strictly all the same."""
        guard = pipeline(forge, rollout=Rollout([self.entry(rung)]))
        caplog.clear()
        with caplog.at_level(logging.INFO, "mqauth"):
            run(starting(guard))
        assert "unsigned messages reach a handler on purpose: kafka:orders" in caplog.text
        assert self_test(guard).refused == 2
        assert guard.observing is not None

    def test_an_exemption_is_said(self, forge: Forge) -> None:
        """An exempt destination is named, and forged messages to it are refused."""
        exempt = Exemption(destination=PLACE, until=DAY, why="legacy")
        found = self_test(pipeline(forge, rollout=Rollout(exemptions=[exempt])))
        assert (found.refused, found.accepted, found.lenient) == (2, (), PLACE)

    def test_other_destinations_are_tried_through_the_ladder(self, forge: Forge) -> None:
        """A ladder that lets through a destination that is enforced is a hole."""
        other = replace(self.entry(Rung.OFF), destinations=("kafka:elsewhere",))
        guard = pipeline(forge, rollout=Rollout([other]))
        assert self_test(guard).refused == 2
        ladder: Any = guard._ladder
        ladder.passes = lambda delivery: ladder.pass_on(delivery, None) or True
        assert len(self_test(guard).accepted) == 2


class TestStart:
    """When it is run."""

    @pytest.fixture
    def broken(
        self, forge: Forge, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> Iterator[Pipeline]:
        """A pipeline that lets everything in."""
        with AuditFile(tmp_path / "audit.jsonl", fsync=False) as audit:
            guard = pipeline(forge, audit=audit)
            monkeypatch.setattr(Judge, "prepare", lambda *_: None)
            yield guard

    def test_memory(self, broken: Pipeline) -> None:
        """The consumer in memory takes no message."""
        stage = MemoryStage(PLACE)
        letters = memory.DeadLetters(stage.broker, stage.dead)
        consumer = memory.Consumer(
            stage.broker, PLACE, broken, lambda _: None, dead_letters=letters
        )
        with pytest.raises(ConfigurationError, match="self-test"):
            consumer.drain()

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"self_test": False}, [("selftest.off", "WARNING")] * 2),
            ({"replay": None}, [NO_REPLAY, ("selftest.passed", "INFO"), NO_REPLAY]),
        ],
    )
    def test_what_is_left_out_is_loud(
        self,
        settings: Any,
        said: Any,
        forge: Forge,
        watched: Watched,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Without it, or a replay store, each start warns: of the one nothing is tried, else it is as ever."""
        guard = pipeline(forge, watched, **settings)
        with caplog.at_level(logging.INFO, "mqauth"):
            run(starting(guard))
            run(starting(guard))
        assert [(record.event, record.levelname) for record in caplog.records] == said
        assert watched.asked == []

    def test_it_costs_little(self, forge: Forge) -> None:
        """A self-test of one rule takes under 100 ms of processor time, which is far above what it measures."""
        guard = pipeline(forge)
        self_test(guard)
        began = time.process_time()
        self_test(guard)
        assert time.process_time() - began < 0.1


def test_whoever_starts_is_tried() -> None:
    """Every module that logs a consumer's start tries its pipeline before that."""
    package = Path(memory.__file__).parent.parent
    starts = [
        path
        for path in package.rglob("*.py")
        if "journal.started(" in path.read_text("utf-8")
    ]
    assert len(starts) == 3
    for path in starts:
        text = path.read_text("utf-8")
        tried = re.search(r"        (?:await a)?run\(starting\(self\._guard\)", text)
        assert tried.start() < text.index("journal.started("), path


def test_lines_name_what_is_wrong() -> None:
    """What was let in stands in capitals."""
    found = SelfTest(refused=1, accepted=("x",), lenient="z")
    assert found.lines() == [
        "hostile messages refused: 1",
        "LET IN: x",
        "unsigned messages reach a handler on purpose: z",
    ]


class TestCommand:
    """``mqauth selftest``."""

    @pytest.fixture
    def place(
        self, tmp_path: Path, forge: Forge, monkeypatch: pytest.MonkeyPatch
    ) -> Path:
        """A folder with a configuration, in which the command runs."""
        (tmp_path / "jwks.json").write_text(json.dumps(dump_key_set(forge.keys)))
        (tmp_path / "mqauth.toml").write_text(CONFIG)
        monkeypatch.chdir(tmp_path)
        return tmp_path

    @pytest.mark.parametrize(
        ("more", "options", "told"),
        [
            ("", [], REFUSED),
            ("", ["--json"], '{"refused":2,"accepted":[],"lenient":"","agent":null}\n'),
            (
                ROLLOUT,
                [],
                f"{REFUSED}unsigned messages reach a handler on purpose: kafka:orders\n",
            ),
        ],
        ids=["good", "json", "below enforce"],
    )
    def test_good(
        self,
        more: str,
        options: list[str],
        told: str,
        place: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """A good configuration exits with 0, a rung is no finding; a running consumer's audit file is left."""
        (place / "mqauth.toml").write_text(CONFIG + more)
        assert main(["selftest", *options]) == 0
        assert capsys.readouterr().out == told
        assert not (place / "audit.jsonl").exists()

    def test_a_hole(
        self,
        place: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A hole exits with 1 and says what was let in."""
        monkeypatch.setattr(Judge, "prepare", lambda *_: None)
        assert main(["selftest"]) == 1
        assert "LET IN: an unsigned message" in capsys.readouterr().out

    @pytest.mark.parametrize(
        "answer",
        [
            (False, 0, "refuses what names no producer; opa, no bundle"),
            (True, 1, "it allows what names no producer: is its default true?"),
            ("yes", 1, "the answer is neither true nor false: is the path misspelt"),
        ],
    )
    def test_the_agent_is_asked(
        self, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
        answer: tuple[object, int, str],
    ) -> None:  # fmt: skip
        """An agent has to refuse what names no producer: 0 where it does, 1 where it allows or decides nothing."""
        (says, code, said), agent = answer, Agent()
        agent.says = lambda _asked: says
        asked = exchange.request
        monkeypatch.setattr(
            "mqauth.policies.opa.request",
            lambda *given, **named: asked(*given, **(named | {"dial": agent.dial})),
        )
        (place / "mqauth.toml").write_text(CONFIG + AGENT)
        assert main(["selftest"]) == code
        lines = capsys.readouterr().out.splitlines()
        assert lines[-1].startswith("agent http://127.0.0.1:8181/v1/data/mqauth/allow: ")
        assert said in lines[-1]
        assert len(agent.asked) == 1

    def test_an_agent_out_of_reach(
        self, place: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """An agent that does not answer is undecided, with its host: 3."""
        (place / "mqauth.toml").write_text(CONFIG + AGENT.replace(":8181", ":1"))
        assert main(["selftest", "--json"]) == 3
        found = json.loads(capsys.readouterr().out)["agent"]
        assert found["what"].startswith("agent http://127.0.0.1:1/v1/data/mqauth/allow")
        assert (found["code"], found["said"]) == (
            3,
            "no decision: out of reach: Connection refused",
        )

    def test_the_setting_reaches_the_pipeline(self, place: Path) -> None:
        """``self_test = false`` turns it off."""
        assert load("mqauth.toml").judge.self_test
        (place / "mqauth.toml").write_text(
            CONFIG.replace("[consumer]\n", "[consumer]\nself_test = false\n")
        )
        assert not load("mqauth.toml").judge.self_test
