"""``mqauth init``: what it writes, that it overwrites nothing, and writes all or nothing."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import mqauth
from mqauth.check import check
from mqauth.cli import main
from mqauth.cli.init import texts
from mqauth.config.load import load
from mqauth.flow import run

SHOP = ("--producer", "orders-api", "--consumer", "billing")
FILES = {
    ".gitignore", "topology.json",
    "consumer/consumer.py", "consumer/jwks.json", "consumer/mqauth.toml",
    "producer/keys/.lock", "producer/keys/keyset.json", "producer/mqauth.toml", "producer/producer.py",
}  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("broker", ["rabbitmq", "kafka"])
@pytest.mark.parametrize("rung", ["enforce", "observe"])
@pytest.mark.parametrize("managed", [False, True], ids=["ours", "managed"])
def test_what_it_writes_is_sound(broker: str, rung: str, managed: bool, folder: Path) -> None:
    """Both sides pass ``mqauth check`` without a finding, the programs compile; only the producer has the key."""
    assert (
        main(["init", "shop", "--broker", broker, *SHOP, "--rung", rung, *(["--managed"] if managed else [])]) == 0
    )
    found = files(folder / "shop")
    of_broker = {"compose.yml", "rabbitmq.conf"} if broker == "rabbitmq" else {"compose.yml"}
    assert {name for name in found if not name.endswith(".pem")} == FILES | (set() if managed else of_broker)
    assert [name.rpartition("/")[0] for name in found if name.endswith(".pem")] == ["producer/keys"]
    for side in ("producer", "consumer"):
        report = check(folder / "shop" / side / "mqauth.toml")
        assert report.findings == ()
        compile(found[f"{side}/{side}.py"], side, "exec")
    assert (rung == "observe") == (b"[[rollout]]" in found["consumer/mqauth.toml"])
    # Below enforce a consumer does not start without a handler for what nothing proves.
    assert (rung == "observe") == (b"unverified=old_handle)" in found["consumer/consumer.py"])


@pytest.mark.parametrize(
    ("broker", "place"), [("rabbitmq", "rabbitmq:orders-api/created"), ("kafka", "kafka:orders-api")]
)
def test_the_two_sides_fit(broker: str, place: str, folder: Path) -> None:
    """What the producer signs for its own destination the consumer accepts, and for no other."""
    assert main(["init", "shop", "--broker", broker, *SHOP]) == 0
    signer = load(folder / "shop/producer/mqauth.toml").signer
    judge = load(folder / "shop/consumer/mqauth.toml").judge
    for destination, verdict in ((place, "accepted"), (place + "x", "rejected")):
        signed = signer.sign(mqauth.Message(destination=destination, body=b"{}"))
        taken = mqauth.Origin(timestamp_ms=int(time.time() * 1000), timestamp_type="append")
        signed = replace(signed, origin=taken)
        assert run(judge.judge(judge.receive(signed))).verdict.value == verdict


def test_it_overwrites_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second run is refused with what is there already, and changes nothing."""
    (folder / "shop").mkdir()
    (folder / "shop" / "compose.yml").write_text("mine")
    assert main(["init", "shop", "--broker", "kafka", *SHOP]) == 2
    assert "shop: has compose.yml already; nothing was changed" in capsys.readouterr().err
    assert files(folder) == {"shop/compose.yml": b"mine"}
    assert main(["init", "other", "--broker", "kafka", *SHOP]) == 0
    before = files(folder)
    assert main(["init", "other", "--broker", "rabbitmq", *SHOP]) == 2
    assert files(folder) == before


def test_it_writes_all_or_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the last file cannot be moved into its place, none is left, nor the folder."""
    kept = Path.rename

    def rename(path: Path, target: Any) -> Path:
        if path.name == "topology.json":
            raise OSError(28, "No space left on device")
        return kept(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    assert main(["init", "shop", "--broker", "kafka", *SHOP]) == 2
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--broker", "redis", *SHOP), "--broker: must be rabbitmq or kafka"),
        (SHOP, "--broker: required, like rabbitmq or kafka"),
        (("--broker", "kafka", "--producer", "a"), "--consumer: required, like billing"),
        (("--broker", "kafka", "--producer", "a b", "--consumer", "c"), "--producer: must be 1 to 100"),
        (("--broker", "kafka", "--producer", "a", "--consumer", "a"), "--consumer: must be another name"),
        (("--broker", "kafka", *SHOP, "--issuer", 'a"b'), "--issuer: must be 1 to 256"),
        (("--broker", "kafka", *SHOP, "--rung", "off"), "--rung: must be enforce or observe"),
        (
            ("--broker", "kafka", *SHOP, "--framework", "taskiq"),
            "--framework: must be taskiq, with --broker rabbitmq",
        ),
        (("--broker", "rabbitmq", *SHOP, "--framework", "celery"), "--framework: must be taskiq, with --broker"),
        (("--broker", "kafka", *SHOP, "--url", "amqp://a/"), "--url: is no URL of kafka"),
        (("--broker", "rabbitmq", *SHOP, "--url", "amqp://u:pw@a/"), "--url: holds a password"),
        (("--broker", "rabbitmq", *SHOP, "--url", "localhost"), "--url: must be amqp://..."),
    ],
)
def test_what_is_wrong_is_named(
    options: tuple[str, ...], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, exit 2, and nothing is written."""
    assert main(["init", "shop", *options]) == 2
    error = capsys.readouterr().err
    assert (said in error, error.count("\n"), "pw" in error.replace("password", "")) == (True, 1, False)
    assert list(folder.iterdir()) == []


def test_definitions_are_those_of_the_library() -> None:
    """A quorum queue with a delivery limit, its neighbour for the unparseable, and dead letters that stay."""
    wanted = {"broker": "rabbitmq", "producer": "p", "consumer": "c", "issuer": "i", "url": "amqp://a/"}
    found = json.loads(texts(**wanted, managed=False, observe=False)["topology.json"])
    arguments = {one["name"]: one["arguments"] for one in found["queues"]}
    assert set(arguments) == {"c", "c.unparseable", "p.dead"}
    assert arguments["c"]["x-dead-letter-routing-key"] == "c.unparseable"
    assert arguments["p.dead"]["x-delivery-limit"] == -1


def test_apply_without_a_broker_is_exit_3(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The files stay, and the line names host and port."""
    url = ("--url", "amqp://127.0.0.1:1/")
    assert main(["init", "shop", "--broker", "rabbitmq", *SHOP, *url, "--apply"]) == 3
    assert "cannot reach amqp://127.0.0.1:1: connection refused" in capsys.readouterr().err
    before = files(folder)
    assert main(["init", "shop", "--apply"]) == 3
    assert files(folder) == before
