"""A real Open Policy Agent: contract, bundles, TLS, consumers over an outage, the commands, and the page."""

from __future__ import annotations

import functools
import http.server
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.client_bench import ClientBench
from integration.documentation import Reader, blocks
from integration.every_client import CLIENTS
from integration.keyserver import Authority
from integration.services.opa import Agent, bundle, program
from mqauth import OPA, Decision, Unavailable
from mqauth.cli import main
from mqauth.errors import Cause
from mqauth.testing.clock import RunningClock
from mqauth.testing.forge import ISSUER, NEIGHBOUR, SUBJECT, Forge
from mqauth.testing.policy_contract import (
    ELSEWHERE,
    PLACE,
    AskedPolicyContract,
    PolicyContract,
    honest,
)
from mqauth.testing.stage_kafka import wait_until
from mqauth.wire.jwk import dump_key_set
from mqauth.wire.keys import Key, KeySet, SigningKey

PATH = "mqauth/allow"
PAGE = "docs/how-to/ask-opa.md"
POLICY = """
package mqauth
default allow := false
allow if { input.issuer == "%s"; input.subject == "%s"; input.destination == "%s" }
"""
PATIENT = 5.0
"""Seconds for a request where the test is not about time: this machine may be busy."""


def policy_of(place: str) -> str:
    """Return a policy that lets the honest producer publish to one place."""
    return POLICY % (ISSUER, SUBJECT, place)


def opa_of(agent: Agent, **settings: Any) -> OPA:
    """Return a client of an agent."""
    return OPA(agent.url, settings.pop("path", PATH), **({"timeout": PATIENT} | settings))


def failure(opa: OPA, **changes: Any) -> str:
    """Return why there is no decision."""
    with pytest.raises(Unavailable) as failed:
        opa.decide(honest(**changes))
    assert failed.value.cause is Cause.POLICY_UNAVAILABLE
    return failed.value.detail


class TestContract(PolicyContract, AskedPolicyContract):
    """The real agent keeps the contract."""

    @pytest.fixture
    def policy(self, agent: Agent) -> OPA:
        """A fresh client of the agent, with the contract's policy."""
        agent.load(policy_of(PLACE))
        return opa_of(agent)

    @pytest.fixture
    def out_of_reach(self, agent: Agent) -> Callable[[], object]:
        """Ends the agent without warning."""
        return agent.kill


# Bundles.


@pytest.fixture
def bundles(tmp_path: Path) -> Iterator[str]:
    """A server of the files in the test's folder."""
    handler = functools.partial(_Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


CONFIG = """
services: {{here: {{url: "{url}"}}}}
bundles:
  authz: {{service: here, resource: bundle.tar.gz, polling: {{min_delay_seconds: 1, max_delay_seconds: 1}}}}
"""


def test_another_bundle_is_followed(bundles: str, tmp_path: Path) -> None:
    """A new bundle counts after ten seconds at most: its revision is the version, and old decisions are gone."""
    bundle(tmp_path, policy_of(PLACE), "r1")
    with Agent.launch(config=CONFIG.format(url=bundles)) as own:
        clock = RunningClock()
        opa = opa_of(own, clock=clock)
        wait_until(lambda: _version(opa) == "opa authz@r1")
        assert opa.decide(honest()) is Decision.ALLOW
        bundle(tmp_path, policy_of(ELSEWHERE), "r2")
        # The agent has it once it answers so; our client has not asked since, and still allows.
        wait_until(lambda: _version(opa_of(own)) == "opa authz@r2")
        assert (opa.decide(honest()), opa.version) == (Decision.ALLOW, "opa authz@r1")
        clock.advance(10)
        assert (opa.decide(honest()), opa.version) == (Decision.DENY, "opa authz@r2")


def _version(opa: OPA) -> str:
    """Return the version that an agent names now, or why it names none."""
    try:
        return opa.probed()
    except Exception as error:
        return str(error)


# TLS and its token.


GUARDED = """
package system.authz
default allow := false
allow if input.identity == "s3cret"
allow if input.path[2] == "none"
"""


def test_tls_with_a_ca_of_ones_own_and_a_token(tmp_path: Path) -> None:
    """Over https with our CA and the right token it decides; with another CA or token it is no decision."""
    authority, other = Authority(tmp_path), Authority(tmp_path).path
    ca = authority.path
    policies = {
        "authz.rego": GUARDED,
        "policy.rego": policy_of(PLACE),
        "token": "s3cret\n",
        "wrong": "guess\n",
    }
    for name, text in policies.items():
        (tmp_path / name).write_text(text)
    files = [str(tmp_path / "authz.rego"), str(tmp_path / "policy.rego")]
    with Agent.launch(
        "--authentication=token", "--authorization=basic", *files, tls=authority.issue()
    ) as own:
        good = opa_of(own, ca=ca, token_file=tmp_path / "token")
        assert good.decide(honest()) is Decision.ALLOW
        assert failure(opa_of(own, ca=ca, token_file=tmp_path / "wrong")) == "status 401"
        assert failure(opa_of(own, ca=ca)) == "status 401"
        said = failure(opa_of(own, ca=other, token_file=tmp_path / "token"))
        assert said.startswith("its certificate is not trusted")


# Consumers on real brokers, over an outage.


@pytest.fixture
def bench(
    client: str, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[ClientBench]:
    """A bench of a client's broker."""
    bench = ClientBench(request.getfixturevalue(client.partition(" ")[0]), tmp_path)
    with bench.ending:
        yield bench


@pytest.mark.slow
@pytest.mark.parametrize(
    "client", ["rabbitmq aio-pika", "kafka kafka-python", "kafka aiokafka"]
)
def test_a_consumer_over_an_outage(client: str, bench: ClientBench, agent: Agent) -> None:
    """Nothing is judged while OPA is down; then lost 0, condemned 0, and the forbidden refused."""
    agent.load(policy_of(bench.stage.destination))
    opa = opa_of(agent, remember=0)
    with CLIENTS[client](bench.wiring(guard=bench.guard(policy=opa))) as running:
        health: Any = running.health
        bench.send(*(b"before %d" % number for number in range(20)))
        wait_until(lambda: bench.has_handled(20))
        agent.kill()
        bench.send(b"during 0")
        bench.send(b"forbidden", signer=_neighbour(bench.forge))
        bench.send(*(b"during %d" % number for number in range(1, 50)))
        wait_until(
            lambda: (
                health().cause is Cause.POLICY_UNAVAILABLE
                and agent.url in (health().detail or "")
            )
        )
        assert (bench.has_handled(20), bench.letters()) == (True, [])
        assert opa.health().failing_for > 0
        agent.start()
        agent.load(policy_of(bench.stage.destination))
        wait_until(lambda: bench.has_handled(70) and bench.letters() == [b"forbidden"])
        assert opa.health().state == "ok"
    assert sorted(bench.handled) == sorted(
        [b"before %d" % n for n in range(20)] + [b"during %d" % n for n in range(50)]
    )


# The command, and the page.


FILE = """
[consumer]
audience = "billing"
[[consumer.issuers]]
issuer = "https://auth.example"
file = "jwks.json"
subjects = {{ "*" = ["orders-api"] }}
[[consumer.allow]]
subject = "orders-api"
destinations = ["kafka:orders"]
[consumer.opa]
url = "{url}"
path = "{path}"
"""


def test_the_check_asks_it(
    agent: Agent, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``check --online``: 0 where it refuses what names nobody, 1 where it does not, 3 where nobody answers."""
    file = tmp_path / "mqauth.toml"

    def asked(url: str = agent.url, path: str = PATH) -> tuple[int, str]:
        file.write_text(FILE.format(url=url, path=path))
        main(["check", str(file), "--online", "--json"])
        (found,) = json.loads(capsys.readouterr().out)["online"]
        assert found["what"] == f"agent {path}"
        return found["code"], found["said"]

    agent.load(policy_of(PLACE))
    assert asked() == (0, "refuses what names no producer; opa, no bundle")
    assert asked(path="mqauth/alow")[0] == 1
    assert asked(url="http://127.0.0.1:1") == (
        3,
        "no decision: out of reach: Connection refused",
    )
    agent.load("package mqauth\ndefault allow := true")
    assert asked()[0] == 1


@pytest.mark.slow
def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's policy passes its own tests, is built, asked by the page's file, and decides as the page says."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "opa").symlink_to(program())
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    page = list(blocks(PAGE))
    rego = [block for block in page if block.language == "rego"]
    commands = [block for block in page if block.mark == "opa"]
    for name, block in zip(("policy.rego", "policy_test.rego"), rego, strict=True):
        (tmp_path / name).write_text(block.text)
    printed = Reader(tmp_path).run(commands[0])
    assert "PASS: 4/4" in printed
    (started,) = (block.text for block in page if block.mark == "agent")
    assert started.split()[:3] == ["opa", "run", "--server"]
    with Agent.launch("--bundle", str(tmp_path / "bundle.tar.gz")) as own:
        opa = opa_of(own)
        at_page = [
            opa.decide(honest(destination=place))
            for place in (PLACE, "rabbitmq:shop/orders.created", ELSEWHERE)
        ]
        assert at_page == [Decision.ALLOW, Decision.ALLOW, Decision.DENY]
        assert "2026-11-29.1" in opa.version
        folder = tmp_path / "asked"
        folder.mkdir()
        reader = Reader(folder, {"http://127.0.0.1:8181": own.url})
        (toml,) = (block for block in page if block.language == "toml")
        reader.write(toml)
        (folder / "jwks.json").write_text(_key_set())
        assert "refuses what names no producer" in reader.run(commands[1])


def _key_set() -> str:
    return json.dumps(dump_key_set(KeySet([Key.generate(subjects=["orders-api"])])))


def _neighbour(forge: Forge) -> Any:
    """Return a signer whose key is trusted and whose subject may not publish."""
    key: SigningKey | Any = forge.neighbour
    return forge.signer(key=key, subject=NEIGHBOUR)
