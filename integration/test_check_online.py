"""``mqauth check --online`` against a real issuer and real brokers: what is there, what is wrong, what is away."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from kafka import KafkaAdminClient

from integration.forked import words
from integration.services import Kafka, RabbitMQ
from mqauth.cli import main
from mqauth.cli.check import NetworkAnswer
from mqauth.keystore import Keystore

FILE = """
[consumer]
audience = "billing"
[[consumer.issuers]]
issuer = "https://auth.example"
jwks = "{jwks}"
unsafe_http_loopback = true
[[consumer.allow]]
subject = "orders-api"
destinations = ["kafka:orders"]
[brokers.rabbit]
url = "{rabbit}"
queue = "{queue}"
[brokers.log]
url = "{log}"
topic = "{topic}"
"""


@pytest.fixture
def issuer(tmp_path: Path) -> Iterator[str]:
    """An issuer: ``mqauth keys serve`` on this machine."""
    Keystore(folder=tmp_path / "keys").create(subjects=["orders-api"])
    with serving(tmp_path) as url:
        yield url


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve the keystore of a folder, and yield the URL of its set."""
    command = [*words("mqauth"), "keys", "serve", "--port", "0", "--json"]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.terminate()


def asked(
    file: Path, capsys: pytest.CaptureFixture[str], text: str
) -> tuple[int, dict[str, tuple[int, str]]]:
    """Return the exit code, and each answer by who was asked."""
    file.write_text(text)
    code, found = online(file, capsys)
    return code, {one.what: (one.code, one.said) for one in found}


def online(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> tuple[int, list[NetworkAnswer]]:
    """Return the exit code, and all answers."""
    code = main(["check", str(file), "--online", "--json"])
    return code, [
        NetworkAnswer(**one) for one in json.loads(capsys.readouterr().out)["online"]
    ]


@pytest.mark.slow
def test_issuers_and_brokers_are_asked(
    issuer: str,
    rabbitmq: RabbitMQ,
    kafka: Kafka,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """0 where all answer; 1 where a queue or topic is missing; 3 where nobody answers, each with its line."""
    for broker, service in (("rabbitmq", rabbitmq), ("kafka", kafka)):
        parts = urlsplit(service.url)
        url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        names = [
            "--producer",
            f"online-{broker}",
            "--consumer",
            f"asked-{broker}",
            "--url",
            url,
        ]
        assert (
            main(["init", str(tmp_path / broker), "--broker", broker, *names, "--apply"])
            == 0
        )
    capsys.readouterr()
    parts = urlsplit(rabbitmq.url)
    values = {
        "jwks": issuer, "rabbit": parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl(),
        "queue": "online-rabbitmq.dead", "log": kafka.url, "topic": "online-kafka.dead",
    }  # fmt: skip
    file = tmp_path / "mqauth.toml"
    code, found = asked(file, capsys, FILE.format(**values))
    assert found == {
        "issuer https://auth.example": (0, "1 key"),
        "[brokers.rabbit]": (0, "reached; online-rabbitmq.dead is there"),
        "[brokers.log]": (0, "reached; online-kafka.dead is there"),
    }
    assert code == 0
    code, found = asked(
        file, capsys, FILE.format(**values | {"queue": "nowhere", "topic": "nowhere"})
    )
    assert (code, found["[brokers.rabbit]"][0], found["[brokers.log]"]) == (
        1,
        1,
        (1, "there is no topic nowhere"),
    )
    # What was not found counts as an error among the others.
    assert main(["check", "--config", str(file), "--online"]) == 1
    assert f"{file}: 2 errors, " in capsys.readouterr().out
    away = {
        "jwks": "http://127.0.0.1:1/jwks.json",
        "rabbit": "amqp://127.0.0.1:1/",
        "log": "kafka://127.0.0.1:1",
    }
    code, found = asked(file, capsys, FILE.format(**values | away))
    assert (code, {one[0] for one in found.values()}) == (3, {3})
    assert (
        "cannot reach amqp://127.0.0.1:1: connection refused"
        in found["[brokers.rabbit]"][1]
    )


@pytest.mark.slow
def test_a_topic_with_its_senders_times_is_refused(
    kafka: Kafka, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where one judges by the broker's time, ``init --apply`` and ``check --online`` say what to change."""
    name = f"stamps-{tmp_path.name}".lower()
    admin: Any = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    admin.create_topics(
        {name: {"num_partitions": 1, "replication_factor": 1, "configs": {}}},
        wait_for_metadata=True,
    )
    names = ["--producer", name, "--consumer", "billing", "--url", kafka.url]
    assert (
        main(["init", str(tmp_path / "shop"), "--broker", "kafka", *names, "--apply"])
        == 2
    )
    said = f"topic {name}: message.timestamp.type is CreateTime, and the consumer judges by the broker's time"
    assert said in capsys.readouterr().err
    assert f"{name}.dead" not in admin.list_topics()
    admin.create_topics(
        {f"{name}.dead": {"num_partitions": 1, "replication_factor": 1, "configs": {}}},
        wait_for_metadata=True,
    )
    code, (found,) = online(tmp_path / "shop" / "consumer" / "mqauth.toml", capsys)
    assert (code, found.code) == (1, 1)
    assert said in found.said
    assert (
        main(
            [
                "init",
                str(tmp_path / "other"),
                "--broker",
                "kafka",
                *names,
                "--managed",
                "--apply",
            ]
        )
        == 0
    )
    admin.close()


AUTHORITY = """
[authority]
trust_domain = "wimse://prod.example"
url = "{url}"
keys = "held"
audit = "authority.jsonl"
[[authority.credentials]]
name = "cluster"
issuer = "https://cluster.example"
jwks = "{jwks}"
unsafe_http_loopback = true
[producer]
audience = "billing"
[producer.identity]
authority = "{url}"
subject = "wimse://prod.example/shop/orders"
credential = {{ token_file = "token" }}
unsafe_http_loopback = true
"""


def test_authorities_are_asked(
    issuer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An authority is asked how it is and for its set: 0 where our key signs, 1 where another does, 3 if away."""
    url, file, held = (
        issuer.removesuffix("/jwks.json"),
        tmp_path / "mqauth.toml",
        tmp_path / "held",
    )
    # What an authority answers there is what ``mqauth keys serve`` does: it is the same application.
    shutil.copytree(tmp_path / "keys", held)
    found = asked(file, capsys, AUTHORITY.format(url=url, jwks=issuer))[1]
    assert found[f"authority {url}"] == (0, "well; 1 key")
    assert found["issuer https://cluster.example"] == (0, "1 key")
    shutil.rmtree(held)
    kid = Keystore(folder=held).create().kid
    said = [one.said for one in online(file, capsys)[1]]
    assert said[1:] == [
        f"its set lacks the key that signs here, {kid}: another authority answers",
        "well; 1 key",
    ]
    found = asked(file, capsys, AUTHORITY.format(url="http://127.0.0.1:1", jwks=issuer))[
        1
    ]
    assert found["authority http://127.0.0.1:1"] == (
        3,
        "no answer: out of reach: Connection refused",
    )


def test_an_authority_without_an_active_key_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A key server that answers and signs with nothing is a wrong answer."""
    Keystore(folder=tmp_path / "keys").create(pending=True)
    with serving(tmp_path) as jwks:
        found = asked(
            tmp_path / "mqauth.toml",
            capsys,
            AUTHORITY.format(url=jwks.removesuffix("/jwks.json"), jwks=jwks),
        )[1]
        assert found[f"identity from {jwks.removesuffix('/jwks.json')}"] == (
            1,
            "none of its keys signs",
        )
