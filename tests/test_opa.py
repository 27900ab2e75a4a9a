"""OPA over a scripted connection: what is asked, what counts as an answer, what is remembered, and outages."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from mqauth import OPA, Allow, Decision, Rule, Verified
from mqauth.errors import Cause, ConfigurationError, Reason, Unavailable
from mqauth.flow import arun, run
from mqauth.judging.pipeline import Pipeline, Verdict
from mqauth.judging.selftest import starting
from mqauth.policies.opa import MAX_MEMORY, version_of
from mqauth.replay.memory import MemoryReplayStore
from mqauth.testing import Forge, IdentityForge
from mqauth.testing.forge import ISSUER, SUBJECT
from mqauth.testing.policy_contract import (
    ELSEWHERE,
    PLACE,
    AskedPolicyContract,
    PolicyContract,
    honest,
)
from mqauth.wire.message import Message, Origin
from tests.conftest import Sink
from tests.opa_agent import PATH, UNDEFINED, URL, Agent

ALLOW, DENY = Decision.ALLOW, Decision.DENY


@pytest.fixture
def agent() -> Agent:
    """An agent with one rule."""
    return Agent()


def failure(opa: OPA, **changes: Any) -> str:
    """Return why OPA gives no decision; it is always the same cause."""
    with pytest.raises(Unavailable) as failed:
        opa.decide(honest(**changes))
    assert failed.value.cause is Cause.POLICY_UNAVAILABLE
    return failed.value.detail


# What is asked.


@pytest.fixture
def opa(agent: Agent) -> Any:
    """A policy that asks the agent."""
    return agent.opa()


def test_exactly_the_members_that_are_named(agent: Agent) -> None:
    """The input has eight members, and nothing of body, headers, times or ids."""
    agent.opa(scope="billing").decide(honest(body=b"secret", headers=[("tenant", b"a")]))
    assert agent.asked == [
        {
            "v": 1, "form": "direct", "issuer": "https://auth.example", "subject": "orders-api",
            "audience": "billing", "destination": PLACE, "scope": "billing", "claims": {},
        }
    ]  # fmt: skip


def test_it_is_a_post_with_provenance(agent: Agent) -> None:
    """The rule is asked by POST under ``/v1/data``, with provenance, and as JSON."""
    agent.opa().decide(honest())
    head, _, body = agent.raw[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/data/mqauth/allow?provenance=true HTTP/1.1\r\n")
    assert b"\r\nContent-Type: application/json" in head
    assert b"Authorization" not in head
    assert list(json.loads(body)) == ["input"]


def test_a_url_may_have_a_path(agent: Agent) -> None:
    """An agent behind a proxy is reached under the path of its URL."""
    agent.opa(url="http://127.0.0.1/opa/").decide(honest())
    assert agent.raw[0].startswith(b"POST /opa/v1/data/mqauth/allow?provenance=true ")


@pytest.mark.parametrize(
    ("origin", "scope", "expected"),
    [
        (Origin(topic="orders", partition=0, offset=1, scope="group-a"), None, "group-a"),
        (Origin(queue="orders.q"), None, "orders.q"),
        (Origin(), None, "default"),
        (
            Origin(topic="orders", partition=0, offset=1, scope="group-a"),
            "billing",
            "billing",
        ),
    ],
)
def test_the_scope_is_the_judges(
    origin: Origin, scope: str | None, expected: str
) -> None:
    """The scope that is asked is the one that the judge claims for."""
    forge = Forge()
    message = forge.signer().sign(Message(destination=PLACE, body=b"x", origin=origin))
    agent = Agent()
    opa = agent.opa(scope=scope)
    guard = Pipeline(
        verifier=forge.verifier(), policy=opa, replay=MemoryReplayStore(8), scope=scope
    )
    assert run(guard.judge(guard.receive(message))).verdict is Verdict.ACCEPTED
    assert agent.asked[0]["scope"] == expected == guard.scope_of(message)


def test_claims_are_the_authoritys() -> None:
    """In the identity form the claims of the WIT are asked, and none that its producer wrote."""
    forge, agent = IdentityForge(), Agent()
    agent.says = lambda question: question["claims"].get("env") == "prod"
    guard = Pipeline(
        verifier=forge.verifier(), policy=agent.opa(), replay=MemoryReplayStore(8)
    )
    plain = Message(destination=PLACE, body=b"x")
    token = forge.jws(plain, wit=forge.wit(claims={"env": "prod"})).encode()
    signed = Message(destination=PLACE, body=b"x", headers=(("mqauth-token", token),))
    assert run(guard.judge(guard.receive(signed))).verdict is Verdict.ACCEPTED
    assert agent.asked[0]["form"] == "identity"
    assert agent.asked[0]["claims"] == {"env": "prod"}


# What counts as an answer.


@pytest.mark.parametrize(
    "says", [UNDEFINED, None, "true", 1, 0, [True], {"allow": True}, 1.5], ids=repr
)
def test_nothing_else_is_an_answer(agent: Agent, says: object) -> None:
    """An undefined result, a text, a number or a document is neither allowed nor refused."""
    agent.says = lambda _: says
    assert failure(agent.opa()) == "the answer is neither true nor false"


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (200, b'{"result": true' + b" " * 17 * 1024 + b"}", "over 16384 bytes"),
        (200, b'{"result": true, "result": true}', "not JSON: "),
        (200, b"true", "not a JSON object"),
        (200, b"", "not JSON: "),
        (302, b"{}", "a redirect (302), which is never followed"),
        (401, b'{"result": true}', "status 401"),
        (404, b'{"result": true}', "status 404"),
        (429, b'{"result": true}', "status 429"),
        (503, b'{"result": true}', "status 503"),
        (
            500,
            b'{"result": true, "code": "internal_error"}',
            "the answer is neither true nor false",
        ),
        (
            400,
            b'{"result": true, "code": "invalid_parameter"}',
            "the answer is neither true nor false",
        ),
    ],
)
def test_broken_answers_are_none(
    agent: Agent, status: int, body: bytes, why: str
) -> None:
    """Another status, too many bytes and what is no JSON object decide nothing, whatever result they name."""
    agent.status, agent.body = status, body
    assert failure(agent.opa()).startswith(why)


def test_a_slow_answer_is_none(agent: Agent) -> None:
    """An answer after the time is none."""
    agent.takes = 0.6
    assert failure(agent.opa()) == "no whole answer within 0.5 s"


def test_an_error_never_repeats_an_answer(agent: Agent) -> None:
    """What a service wrote reaches no error."""
    for body in (b'{"result": "s3cret"}', b"s3cret", b'{"s3cret": }'):
        agent.body = body
        assert "s3cret" not in failure(agent.opa())


# What is remembered.


def test_decisions_are_remembered_and_refusals_too(opa: Any, agent: Agent) -> None:
    """The same question is asked once in ten seconds, whatever the answer; then again."""
    for _ in range(5):
        assert opa.decide(honest()) is ALLOW
        assert opa.decide(honest(destination=ELSEWHERE)) is DENY
        agent.clock.advance(1.9)
    assert len(agent.asked) == 2
    agent.clock.advance(0.5)
    opa.decide(honest())
    assert len(agent.asked) == 3


def test_a_decision_is_as_old_as_its_question(agent: Agent) -> None:
    """The time counts from when it was asked for, not from when the answer came."""
    opa = agent.opa(timeout=5)
    agent.takes = 4.0
    opa.decide(honest())
    agent.clock.advance(5.9)
    assert opa.remembered(honest()) is ALLOW
    agent.clock.advance(0.2)
    assert opa.remembered(honest()) is None


def test_zero_remembers_nothing(agent: Agent) -> None:
    """With ``remember=0`` each message is asked for."""
    opa = agent.opa(remember=0)
    for _ in range(3):
        opa.decide(honest())
    assert len(agent.asked) == 3


def test_an_outage_makes_nothing_last_longer(opa: Any, agent: Agent) -> None:
    """What was allowed before an outage is allowed for its ten seconds, and then nothing is."""
    opa.decide(honest())
    agent.vanish()
    agent.clock.advance(9.9)
    assert opa.decide(honest()) is ALLOW
    agent.clock.advance(0.2)
    assert failure(opa) == "out of reach: Connection refused"


def test_another_revision_empties_the_memory(opa: Any, agent: Agent) -> None:
    """The first answer of another bundle forgets what was decided by the one before, and changes the version."""
    agent.bundles = {"authz": {"revision": "r1"}}
    opa.decide(honest())
    assert opa.version == "opa authz@r1"
    agent.bundles = {"authz": {"revision": "r2"}}
    agent.says = lambda _: False
    assert opa.decide(honest(destination=ELSEWHERE)) is DENY
    assert opa.version == "opa authz@r2"
    assert opa.decide(honest()) is DENY


def test_a_slow_answer_of_the_bundle_before_is_not_remembered(agent: Agent) -> None:
    """An answer that was overtaken by one of a newer bundle decides its own message and no other."""
    opa, agent.takes = agent.opa(), 0.1

    def overtaken(_: dict[str, Any]) -> bool:
        agent.says, agent.bundles = (lambda _: False), {"authz": {"revision": "r2"}}
        opa.decide(honest(destination=ELSEWHERE))
        agent.bundles = {"authz": {"revision": "r1"}}
        return True

    agent.says = overtaken
    assert opa.decide(honest()) is ALLOW
    assert (opa.version, opa.remembered(honest())) == ("opa authz@r2", None)
    agent.bundles = {"authz": {"revision": "r2"}}
    assert opa.decide(honest()) is DENY
    assert opa.remembered(honest(destination=ELSEWHERE)) is DENY


def test_an_answer_without_a_decision_says_nothing_of_bundles(
    opa: Any, agent: Agent
) -> None:
    """A 500, which names no bundle, leaves version and memory as they are."""
    agent.bundles = {"authz": {"revision": "r1"}}
    opa.decide(honest())
    agent.status, agent.body = 500, b"{}"
    failure(opa, destination=ELSEWHERE)
    assert opa.version == "opa authz@r1"
    assert opa.remembered(honest()) is ALLOW


def test_the_memory_is_bounded_in_bytes(agent: Agent) -> None:
    """Whoever varies long routing keys fills no memory: the oldest decision is asked for again."""
    opa, length = agent.opa(), 2048
    places = [
        f"kafka:{number}-{'x' * length}" for number in range(MAX_MEMORY // (4 * length))
    ]
    for place in places:
        opa.decide(honest(destination=place))
    assert 0 < opa.health().remembered < len(places)
    assert [
        opa.remembered(honest(destination=place)) for place in (places[0], places[-1])
    ] == [None, DENY]


def test_who_varies_routing_keys_pushes_out_no_other_decision(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A producer that asks for more places than there is room for forgets its own; an honest one is remembered."""
    monkeypatch.setattr("mqauth.policies.opa.MAX_MEMORY", 64 * 1024)
    opa = agent.opa()
    opa.decide(honest())
    for number in range(200):
        opa.decide(honest(subject="stock-api", destination=f"rabbitmq:shop/{number}"))
    assert 0 < opa.health().remembered < 200
    assert opa.remembered(honest()) is ALLOW


# Outages.


def test_nobody_asks_for_a_while_after_a_failure(opa: Any, agent: Agent) -> None:
    """After a failure nobody is asked for 1 s, then 2, up to 30 s; and one answer ends that."""
    agent.vanish()
    tried, clock = [], agent.clock
    began = clock.monotonic()
    while clock.monotonic() - began < 120:
        before = opa.health().asked
        failure(opa)
        if opa.health().asked > before:
            tried.append(round(clock.monotonic() - began, 1))
        clock.advance(0.25)
    assert tried == [0, 1, 3, 7, 15, 31, 61, 91]
    agent.away = False
    clock.advance(30)
    assert opa.decide(honest()) is ALLOW
    agent.vanish()
    failure(opa, destination=ELSEWHERE)
    clock.advance(1)
    agent.away = False
    assert opa.decide(honest(destination=ELSEWHERE)) is DENY


def test_one_question_without_a_decision_holds_nobody_else_up(
    opa: Any, agent: Agent
) -> None:
    """Where a rule is undefined for one producer, others are decided; it alone is asked for again."""
    agent.says = lambda question: (
        UNDEFINED if question["subject"] == "stock-api" else True
    )
    for number in range(1, 4):
        assert failure(opa, subject="stock-api") == "the answer is neither true nor false"
        assert opa.decide(honest()) is ALLOW
        assert len(agent.asked) == number + 1
    assert opa.health().state == "ok"


def test_a_question_that_waits_for_a_thread_takes_the_answer_that_came_meanwhile(
    opa: Any, agent: Agent
) -> None:
    """However many deliveries ask the same at once, no more are asked than there are threads."""
    agent.open.clear()

    async def ask() -> list[Decision]:
        all_of_them = asyncio.gather(*(opa.adecide(honest()) for _ in range(50)))
        await asyncio.to_thread(agent.reached.wait)
        agent.open.set()
        return list(await all_of_them)

    assert asyncio.run(ask()) == [ALLOW] * 50
    assert len(agent.asked) <= 4


def test_an_event_loop_runs_on_while_it_is_asked(opa: Any, agent: Agent) -> None:
    """``adecide`` blocks no event loop, and whoever is cancelled leaves the others their answer."""
    agent.open.clear()

    async def ask() -> Decision:
        first, second = (asyncio.create_task(opa.adecide(honest())) for _ in range(2))
        await asyncio.to_thread(agent.reached.wait)
        first.cancel()
        await asyncio.sleep(0)
        agent.open.set()
        return await second

    assert asyncio.run(ask()) is ALLOW


def no_thread_starts(_opa: OPA, patch: pytest.MonkeyPatch) -> None:
    """Have the process at its limit of threads."""
    patch.setattr(
        threading.Thread,
        "start",
        mock.Mock(side_effect=RuntimeError("can't start new thread")),
    )


def the_interpreter_ends(opa: OPA, _patch: pytest.MonkeyPatch) -> None:
    """Have the threads end, as they do with the interpreter."""
    opa._pool.shutdown()


@pytest.mark.parametrize("breaks", [no_thread_starts, the_interpreter_ends])
def test_where_no_thread_starts_nobody_waits(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, breaks: Callable[..., None]
) -> None:
    """Where nobody can ask, the question is deferred and not left pending; it is asked again, and answered."""
    opa = agent.opa(remember=0)

    async def ask() -> None:
        with monkeypatch.context() as patch:
            breaks(opa, patch)
            for _ in range(2):
                with pytest.raises(
                    Unavailable, match="policy_unavailable: nobody can ask: "
                ):
                    await asyncio.wait_for(opa.adecide(honest()), 5)
        assert opa.decide(honest()) is ALLOW
        if breaks is no_thread_starts:
            # Its thread finds what was left to others before, too.
            assert await asyncio.wait_for(opa.adecide(honest()), 5) is ALLOW
            opa._pool.shutdown()

    asyncio.run(ask())
    assert (opa.health().state, opa.health().failed) == ("ok", 0)


def test_a_child_after_a_fork_asks_by_itself(opa: Any) -> None:
    """A child has none of its parent's threads, and not whoever holds the lock; it asks all the same."""
    assert asyncio.run(opa.adecide(honest())) is ALLOW
    with opa._lock:
        child = os.fork()
        if child == 0:
            # A child that waits for the lock or for a thread ends by the signal.
            signal.alarm(10)
            opa._decisions.clear()
            os._exit(0 if asyncio.run(opa.adecide(honest())) is ALLOW else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_during_a_pause_nobody_waits_for_a_thread(opa: Any, agent: Agent) -> None:
    """During a pause an event loop is refused at once, however many requests still hang."""
    agent.open.clear()

    async def ask() -> None:
        hanging = [
            asyncio.create_task(opa.adecide(honest(subject=f"s{number}")))
            for number in range(8)
        ]
        await asyncio.to_thread(agent.reached.wait)
        agent.vanish()
        failure(opa)
        with pytest.raises(Unavailable):
            await asyncio.wait_for(opa.adecide(honest(destination=ELSEWHERE)), 5)
        agent.open.set()
        await asyncio.gather(*hanging, return_exceptions=True)

    asyncio.run(ask())


def test_many_threads_meet_one_outage(opa: Any, agent: Agent) -> None:
    """Threads that ask at once during an outage all defer, and the failures count as one."""
    agent.vanish()
    with ThreadPoolExecutor(8) as pool:
        said = list(
            pool.map(lambda number: failure(opa, subject=f"s{number}"), range(32))
        )
    assert set(said) == {"out of reach: Connection refused"}
    assert opa.health().failing_for >= 0
    agent.clock.advance(1.0)
    agent.away = False
    assert opa.decide(honest()) is ALLOW


def test_a_broken_connection_of_any_kind_is_no_decision(agent: Agent) -> None:
    """An error that nobody foresaw is an outage like any other."""

    def broken(*_: object) -> Any:
        raise RuntimeError("s3cret")

    assert failure(agent.opa(dial=broken)) == "the request broke: RuntimeError"


# Its start.


def guard_of(opa: OPA, forge: Forge | None = None, **settings: Any) -> Pipeline:
    """Return a pipeline that asks OPA."""
    return Pipeline(
        verifier=(forge or Forge()).verifier(),
        policy=opa,
        replay=MemoryReplayStore(8),
        **settings,
    )


def test_a_start_probes(agent: Agent) -> None:
    """At its start a consumer asks what names nobody, in both kinds of caller, and once for each pipeline."""
    guard = guard_of(agent.opa())
    run(starting(guard))
    run(starting(guard))
    asyncio.run(arun(starting(guard_of(agent.opa()))))
    assert agent.asked == [{"v": 1, "probe": True}] * 2


@pytest.mark.parametrize("says", [UNDEFINED, "false", None])
def test_a_start_ends_at_a_wrong_path(agent: Agent, says: object) -> None:
    """A path that is misspelt, or a rule without a default, stops the consumer before a message does."""
    agent.says = lambda _: says
    with pytest.raises(
        ConfigurationError,
        match="neither true nor false: is the path misspelt, or the rule",
    ):
        run(starting(guard_of(agent.opa())))


def test_a_start_ends_where_everything_is_allowed(agent: Agent) -> None:
    """A policy that allows what names no producer allows everything by mistake: the consumer does not start."""
    agent.says = lambda _: True
    with pytest.raises(
        ConfigurationError, match="allows what names no producer: is its default true"
    ):
        run(starting(guard_of(agent.opa())))


def test_an_outage_stops_no_start(agent: Agent, caplog: pytest.LogCaptureFixture) -> None:
    """An agent out of reach is said, and the consumer starts: its messages wait."""
    agent.vanish()
    with caplog.at_level(logging.WARNING, "mqauth.policy"):
        run(starting(guard_of(agent.opa())))
    assert [record.event for record in caplog.records] == ["policy.unreachable"]
    assert "http://127.0.0.1:8181/v1/data/mqauth/allow: out of reach" in caplog.text


def test_the_scopes_must_agree(agent: Agent) -> None:
    """A policy that would be asked for another scope than messages are handled for stops the start."""
    with pytest.raises(ConfigurationError, match="another scope than the pipeline"):
        run(starting(guard_of(agent.opa(), scope="billing")))


# In a pipeline.


def test_rules_beside_it_must_allow_too(agent: Agent) -> None:
    """With rules beside it both must allow; what the rules refuse is never asked."""
    agent.says = lambda _: True
    opa = agent.opa(within=Allow({"orders-api": [PLACE]}))
    assert opa.decide(honest()) is ALLOW
    assert opa.decide(honest(destination=ELSEWHERE)) is DENY
    assert len(agent.asked) == 1
    agent.says = lambda _: False
    agent.clock.advance(10)
    assert opa.decide(honest()) is DENY


def test_rules_beside_it_name_their_issuers(agent: Agent) -> None:
    """Where several issuers are trusted, rules within must name theirs, as rules alone must."""
    forge, other = Forge(), Forge(issuer="https://other.example")
    keys = {**forge.verifier().issuers, **other.verifier().issuers}
    with pytest.raises(ConfigurationError, match="each rule must name its issuer"):
        Pipeline(
            verifier=forge.verifier(keys=keys), replay=MemoryReplayStore(8),
            policy=agent.opa(within=Allow({"orders-api": [PLACE]})),
        )  # fmt: skip


def test_a_refusal_is_recorded_with_the_revision(agent: Agent) -> None:
    """The audit record of a message that OPA refuses quotes the bundle's revision."""

    class Letters:
        name = "dead"

        def publish(self, letter: object) -> None:
            """Take it."""

    agent.bundles = {"authz": {"revision": "r7"}}
    forge, sink = Forge(), Sink()
    guard = guard_of(agent.opa(), forge, audit=sink)
    message = forge.signer().sign(Message(destination=ELSEWHERE, body=b"x"))
    found = run(guard.process(guard.receive(message), lambda _: None, Letters()))
    assert (found.reason, sink.records[0].policy) == (
        Reason.PRODUCER_FORBIDDEN,
        "opa authz@r7",
    )


def test_an_outage_defers_and_names_the_agent(agent: Agent) -> None:
    """During an outage a message waits, and its detail names the URL; afterwards it is accepted."""
    forge = Forge()
    guard = guard_of(agent.opa(), forge)
    agent.vanish()
    delivery = guard.receive(forge.signer().sign(Message(destination=PLACE, body=b"x")))
    waits = run(guard.judge(delivery))
    assert (waits.verdict, waits.cause) == (Verdict.DEFERRED, Cause.POLICY_UNAVAILABLE)
    assert (
        waits.detail
        == "out of reach: Connection refused (http://127.0.0.1:8181/v1/data/mqauth/allow)"
    )
    agent.away = False
    agent.clock.advance(1)
    assert run(guard.judge(delivery)).verdict is Verdict.ACCEPTED


# What is configured, and what is shown.


@pytest.mark.parametrize(
    "changes",
    [
        {"url": "http://opa.example:8181"},
        {"url": "https://opa.example/?a=1"},
        {"url": "https://user:pw@opa.example"},
        {"url": "ftp://127.0.0.1"},
        {"path": "/mqauth/allow"},
        {"path": "mqauth//allow"},
        {"path": "mqauth/../allow"},
        {"path": "mqauth/allow?pretty"},
        {"path": ""},
        {"path": "a" * 257},
        {"remember": -1},
        {"remember": 301},
        {"timeout": 0},
        {"timeout": 6},
        {"token_file": "/nowhere"},
        {"url": "https://opa.example", "ca": "/nowhere"},
    ],
    ids=str,
)
def test_wrong_settings_are_refused(changes: dict[str, Any]) -> None:
    """A URL without TLS to another host, a path that is none and what is out of bounds are refused."""
    with pytest.raises(ConfigurationError):
        OPA(**({"url": URL, "path": PATH} | changes))


def test_a_token_is_read_for_each_request(agent: Agent, tmp_path: Path) -> None:
    """The token file's token is sent, and so is its successor; a broken file is an outage and shows nothing."""
    file = tmp_path / "token"
    file.write_text("first\n")
    opa = agent.opa(token_file=file, remember=0)
    opa.decide(honest())
    file.write_text("second\n")
    opa.decide(honest())
    for word, raw in zip((b"first", b"second"), agent.raw, strict=True):
        assert b"Authorization: Bearer " + word in raw
    file.write_text("s3cret one\n")
    said = failure(opa)
    assert said == f"{file}: not a token in one line of ASCII"


@pytest.mark.parametrize(
    ("document", "version"),
    [
        ({}, "opa, no bundle"),
        ({"provenance": {"version": "1.22.4"}}, "opa, no bundle"),
        (
            {"provenance": {"bundles": {"b": {"revision": "2"}, "a": {"revision": "1"}}}},
            "opa a@1 b@2",
        ),
        ({"provenance": {"bundles": {"a": {}}}}, "opa a@?"),
        ({"provenance": {"bundles": {"a": None}}}, "opa a@?"),
        ({"provenance": {"bundles": []}}, "opa, no bundle"),
        ({"provenance": "x"}, "opa, no bundle"),
    ],
)
def test_the_version_names_the_bundles(document: dict[str, Any], version: str) -> None:
    """The version is the revisions of all bundles, in one order."""
    assert version_of(document) == version


def test_a_version_is_short_and_harmless() -> None:
    """Revisions that are long or hold controls become a short printable line."""
    for revision in ("x" * 5000, "\x1b[31m", "a\nb"):
        said = version_of({"provenance": {"bundles": {"a": {"revision": revision}}}})
        assert said.isprintable()
        assert len(said) <= 128


def test_health_says_how_it_is(opa: Any, agent: Agent) -> None:
    """``health`` counts requests and failures, and says since when there is no answer, and why."""
    assert opa.health().state == "unasked"
    opa.decide(honest())
    found = opa.health()
    assert (
        found.state,
        found.asked,
        found.failed,
        found.remembered,
        found.failing_for,
    ) == ("ok", 1, 0, 1, 0)
    agent.vanish()
    failure(opa, destination=ELSEWHERE)
    agent.clock.advance(7)
    found = opa.health()
    assert (found.state, found.failed, found.failing_for) == ("failing", 1, 7)
    assert found.last_failure == "out of reach: Connection refused"
    agent.clock.advance(60)
    assert opa.health().failing_for == 0


# The policy contract on rules in memory, on a policy of one's own, and on OPA over a scripted connection.


class TestAllow(PolicyContract):
    """Rules in this process."""

    @pytest.fixture
    def policy(self) -> Allow:
        """One rule."""
        return Allow([Rule(subject=SUBJECT, issuer=ISSUER, destinations=(PLACE,))])


class InMemory:
    """A policy of one's own, and an asynchronous one where it is told to be."""

    version = "mine"

    def decide(self, verified: Verified, /) -> Decision:
        """Allow one producer one destination."""
        said = (verified.issuer, verified.subject, verified.destination)
        return Decision.ALLOW if said == (ISSUER, SUBJECT, PLACE) else Decision.DENY


class TestInMemory(PolicyContract):
    """A policy of two members."""

    @pytest.fixture
    def policy(self) -> InMemory:
        """A fresh one."""
        return InMemory()


class TestOPA(PolicyContract, AskedPolicyContract):
    """OPA, whose agent is a script."""

    @pytest.fixture
    def agent(self) -> Agent:
        """An agent with the contract's policy."""
        return Agent()

    @pytest.fixture
    def policy(self, agent: Agent) -> OPA:
        """A fresh client."""
        return agent.opa()

    @pytest.fixture
    def out_of_reach(self, agent: Agent) -> Callable[[], object]:
        """Refuses connections from now on."""
        return agent.vanish


class TestOPAWithin(PolicyContract):
    """OPA that allows everything, bounded by rules in this process."""

    @pytest.fixture
    def policy(self) -> OPA:
        """Only what the rules allow is asked."""
        agent = Agent()
        agent.says = lambda _: True
        return agent.opa(
            within=Allow([Rule(subject=SUBJECT, issuer=ISSUER, destinations=(PLACE,))])
        )
