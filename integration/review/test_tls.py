"""Commands of review over TLS and OAuth: whom they trust, and how they log in."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest

from integration.documentation import ROOT, Reader, blocks
from integration.keyserver import Authority
from integration.review.scene import Scene
from integration.review.tunnel import Tunnel
from integration.services import Kafka, RabbitMQ
from integration.services.kafka import local_brokers
from integration.services.machine import LOOPBACK, Port
from mqauth.cli import main
from mqauth.config import broker
from mqauth.testing.stage_kafka import KafkaStage
from mqauth.testing.stage_rabbitmq import RabbitMQStage

Dlq = Callable[..., tuple[int, str, str]]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """An authority that signed both sides' certificates."""
    return Authority(tmp_path)


@pytest.fixture
def tunnel(scene: Scene, authority: Authority) -> Iterator[Tunnel]:
    """TLS in front of the scene's broker."""
    port = urlsplit(scene.place.broker).port or 0
    with Tunnel(
        port, authority.issue(), authority.path, advertised=scene.place.on_kafka
    ) as tunnel:
        yield tunnel


@pytest.fixture
def dlq(
    scene: Scene, tunnel: Tunnel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Dlq:
    """Run a command with settings of these lines; return its code, and what it printed."""

    def run(act: str, *more: str, lines: dict[str, str]) -> tuple[int, str, str]:
        settings = tmp_path / "mqauth.toml"
        settings.write_text(
            "[broker]\n" + "".join(f'{key} = "{value}"\n' for key, value in lines.items())
        )
        scheme = "kafka" if scene.place.on_kafka else "amqps"
        name = (
            ("--topic", scene.place.name)
            if scene.place.on_kafka
            else ("--queue", scene.place.name)
        )
        arguments = [
            "dlq",
            act,
            *more,
            "--broker",
            f"{scheme}://127.0.0.1:{tunnel.port}",
            *map(str, name),
        ]
        code = main([*arguments, "--json", "--config", str(settings)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let kafka-python try to reach a server for a moment only."""
    monkeypatch.setattr(broker, "_BOOTSTRAP_MS", 1500)


def settings(scene: Scene, authority: Authority, tmp_path: Path) -> dict[str, str]:
    """Return what reaches the broker; the password is RabbitMQ's, Kafka's listener wants none."""
    chain, secret = authority.issue()
    found = {"ca": authority.path.name, "cert": chain.name, "key": secret.name}
    if not scene.place.on_kafka:
        url = urlsplit(scene.place.broker)
        (tmp_path / "password").write_text(f"{url.password}\n")
        found |= {"user": url.username or "", "password_file": "password"}
    return found


def test_letters_are_read_and_acted_on_over_tls(
    scene: Scene, authority: Authority, dlq: Dlq, tmp_path: Path
) -> None:
    """With the authority and a certificate of ours: listed and discarded; the password is in no argument."""
    lines = settings(scene, authority, tmp_path)
    scene.fill(1)
    code, out, _ = dlq("list", lines=lines)
    assert (code, json.loads(out)["total"]) == (0, 8)
    audit = str(tmp_path / "reviewer.jsonl")
    code, out, _ = dlq(
        "discard", "--why", "over TLS", "--yes", "--audit", audit, lines=lines
    )
    assert (code, json.loads(out)["done"]) == (0, 8)


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("missing", ["ca", "cert"])
def test_whom_we_cannot_prove_is_not_talked_to(
    missing: str, scene: Scene, authority: Authority, dlq: Dlq, tmp_path: Path
) -> None:
    """A broker of another authority, and a broker that wants a certificate of ours: one line that names it."""
    lines = settings(scene, authority, tmp_path)
    if missing == "ca":
        lines["ca"] = Authority(tmp_path).path.name
    else:
        del lines["cert"], lines["key"]
    code, out, error = dlq("list", lines=lines)
    # A broker that refuses us has a wrong setting of ours; of Kafka we are only told that it is out of reach.
    assert (code, out, error.count("\n")) == (2 if "refuses us" in error else 3, "", 1)
    assert "127.0.0.1:" in error


OAUTHBEARER: Final = """
listeners=PLAINTEXT://{host}:{port},SASL_PLAINTEXT://{host}:{sasl},CONTROLLER://{host}:{controller}
advertised.listeners=PLAINTEXT://{host}:{port},SASL_PLAINTEXT://{host}:{sasl}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT
sasl.enabled.mechanisms=OAUTHBEARER
listener.name.sasl_plaintext.oauthbearer.sasl.jaas.config=\
org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required;
"""
"""A listener that takes OAUTHBEARER alone; it accepts unsecured JWTs (RFC 7519, section 6)."""
SECRET: Final = b"a secret of 32 bytes, for HS256.."
KEY: Final = """
Jwk = #{{<<"kty">> => <<"oct">>, <<"alg">> => <<"HS256">>, <<"k">> => <<"{}">>}},
Keys = #{{<<"k1">> => {{map, Jwk}}}},
application:set_env(rabbitmq_auth_backend_oauth2, key_config, [{{signing_keys, Keys}}]).
"""
"""Gives the plug-in its key; the command for that has another name in each release."""
calls: list[str] = []
"""The tokens that were asked for."""


def encoded(value: Any) -> str:
    """Return a part of a JWT."""
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def unsecured(life: int = 60) -> str:
    """Return an unsecured JWT, and note it."""
    now = int(time.time())
    calls.append(
        f"{encoded({'alg': 'none'})}.{encoded({'sub': 'ada', 'iat': now, 'exp': now + life})}."
    )
    return calls[-1]


def expired() -> str:
    """Return one that has expired."""
    return unsecured(-3600)


def of_rabbitmq() -> str:
    """Return a JWT that the OAuth 2 plug-in accepts, and note it."""
    head = {"alg": "HS256", "typ": "JWT", "kid": "k1"}
    scopes = [f"rabbitmq.{right}:*/*/*" for right in ("configure", "read", "write")]
    claims = {
        "sub": "ada",
        "aud": "rabbitmq",
        "scope": scopes,
        "exp": int(time.time()) + 60,
    }
    signed = f"{encoded(head)}.{encoded(claims)}"
    calls.append(
        f"{signed}.{encoded(hmac.digest(SECRET, signed.encode(), hashlib.sha256))}"
    )
    return calls[-1]


def failing() -> str:
    """Fail as an SDK without credentials does."""
    raise LookupError("hunter2")


@pytest.fixture(scope="module")
def kafka_of_tokens() -> Iterator[tuple[Kafka, str]]:
    """A Kafka, and the address of its listener for tokens."""
    port, sasl = Port(), Port()
    (server,), version = local_brokers([port])
    with closing(server):
        settings = server.folder / "server.properties"
        text = settings.read_text()
        (controller,) = {
            line.rpartition(":")[2]
            for line in text.splitlines()
            if line.startswith("controller.q")
        }
        ports = {
            "host": LOOPBACK,
            "port": port.number,
            "sasl": sasl.number,
            "controller": controller,
        }
        kept = [
            line
            for line in text.splitlines()
            if not line.startswith(("listeners=", "advertised."))
        ]
        settings.write_text("\n".join(kept) + OAUTHBEARER.format(**ports))
        server.start()
        yield (
            Kafka.ready(f"kafka://{LOOPBACK}:{port.number}", server, version),
            f"{LOOPBACK}:{sasl.number}",
        )
        sasl.release()


def run(
    tmp_path: Path, function: str, act: str, *more: str, url: str, **table: str
) -> int:
    """Run a command whose settings name a function of this module; return its exit code."""
    config = tmp_path / "broker.toml"
    lines = {"url": url, "token_callback": f"{__name__}:{function}", **table}
    config.write_text(
        "[broker]\n" + "".join(f'{key} = "{value}"\n' for key, value in lines.items())
    )
    return main(["dlq", act, *more, "--config", str(config), "--json"])


@pytest.mark.slow
def test_kafka_takes_the_functions_token(
    kafka_of_tokens: tuple[Kafka, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Letters are listed and discarded over OAUTHBEARER. An expired token is one line, and so is none."""
    kafka, address = kafka_of_tokens
    stage, place = KafkaStage(kafka.url), f"kafka://{address}"
    scene = Scene(stage, kafka.url, tmp_path)
    scene.fill(1)
    capsys.readouterr(), calls.clear()
    assert run(tmp_path, "unsecured", "list", url=place, topic=stage.dead) == 0
    assert json.loads(capsys.readouterr().out)["total"] == 8
    act = ("--why", "by token", "--yes", "--audit", str(tmp_path / "reviewer.jsonl"))
    assert run(tmp_path, "unsecured", "discard", *act, url=place, topic=stage.dead) == 0
    assert json.loads(capsys.readouterr().out)["done"] == 8
    assert calls
    monkeypatch.setattr(broker, "_BOOTSTRAP_MS", 1500)
    # kafka-python drops the broker's reason where the end of the connection arrives with it.
    refused = {
        2: "refuses us: SaslAuthenticationFailedError",
        3: "password or token wrong?",
    }
    for function, said in (
        ("expired", refused),
        ("failing", {2: "it raised an error"}),
        ("missing", {2: "no such function"}),
    ):
        code = run(tmp_path, function, "list", url=place, topic=stage.dead)
        told = capsys.readouterr()
        assert said[code] in told.err
        assert (told.out, told.err.count("\n")) == ("", 1)
        assert not any(secret in told.err for secret in ("hunter2", *calls))
    stage.close()


@pytest.mark.slow
def test_the_pages_settings_reach_kafka(
    kafka_of_tokens: tuple[Kafka, str], tmp_path: Path
) -> None:
    """The page's function and settings log in, with a stand-in for AWS's package and without its TLS."""
    kafka, address = kafka_of_tokens
    stage = KafkaStage(kafka.url)
    Scene(stage, kafka.url, tmp_path).fill(1)
    changes = {
        "b-1.orders.example:9098": address,
        "orders.dead": stage.dead,
        "tls = true": "",
    }
    reader = Reader(tmp_path, changes)
    for block in blocks("docs/how-to/use-a-managed-broker.md"):
        if block.name in ("broker_tokens.py", "mqauth.toml"):
            reader.write(block)
    (tmp_path / "aws_msk_iam_sasl_signer.py").write_text(
        f"class MSKAuthTokenProvider:\n    def generate_auth_token(region):\n        return {unsecured()!r}, 900\n"
    )
    # An interpreter of its own, which reads PYTHONPATH.
    words = [sys.executable, "-m", "mqauth", "dlq", "groups", "--json"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}."}
    done = subprocess.run(
        words,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    counted = json.loads(done.stdout)["groups"]
    assert sum(group["count"] for group in counted) == 8
    stage.close()


@pytest.mark.slow
def test_rabbitmq_takes_the_functions_token(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On RabbitMQ the token is the password, of any user; a lost connection is made again with a fresh one."""
    lines = (
        "auth_backends.1 = oauth2",
        "auth_backends.2 = internal",
        "auth_oauth2.resource_server_id = rabbitmq",
    )
    with RabbitMQ.launch(
        extra_config=lines, plugin="rabbitmq_auth_backend_oauth2"
    ) as rabbitmq:
        rabbitmq.ctl("eval", KEY.format(encoded(SECRET)))
        stage = RabbitMQStage(rabbitmq.url)
        Scene(stage, rabbitmq.url, tmp_path).fill(1)
        capsys.readouterr()
        place = f"amqp://{rabbitmq.url.rpartition('@')[2]}"
        assert run(tmp_path, "of_rabbitmq", "list", url=place, queue=stage.dead) == 0
        assert json.loads(capsys.readouterr().out)["total"] == 8
        assert run(tmp_path, "unsecured", "list", url=place, queue=stage.dead) == 2
        assert "refuses us" in capsys.readouterr().err
        stage.close()
