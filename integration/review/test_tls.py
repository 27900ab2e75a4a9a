"""``mqauth dlq`` through TLS that asks for a client's certificate, in front of real brokers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from integration.keyserver import Authority
from integration.review.scene import Scene
from integration.review.tunnel import Tunnel
from mqauth.cli import main
from mqauth.config import broker

Dlq = Callable[..., tuple[int, str, str]]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """An authority that signed both sides' certificates."""
    return Authority(tmp_path)


@pytest.fixture
def tunnel(scene: Scene, authority: Authority) -> Iterator[Tunnel]:
    """TLS in front of the scene's broker."""
    port = urlsplit(scene.place.broker).port or 0
    with Tunnel(port, authority.issue(), authority.path, advertised=scene.place.on_kafka) as tunnel:
        yield tunnel


@pytest.fixture
def dlq(scene: Scene, tunnel: Tunnel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Dlq:
    """Run a command with settings of these lines; return its code, and what it printed."""

    def run(act: str, *more: str, lines: dict[str, str]) -> tuple[int, str, str]:
        settings = tmp_path / "mqauth.toml"
        settings.write_text("[broker]\n" + "".join(f'{key} = "{value}"\n' for key, value in lines.items()))
        scheme = "kafka" if scene.place.on_kafka else "amqps"
        name = ("--topic", scene.place.name) if scene.place.on_kafka else ("--queue", scene.place.name)
        arguments = ["dlq", act, *more, "--broker", f"{scheme}://127.0.0.1:{tunnel.port}", *map(str, name)]
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
    code, out, _ = dlq("discard", "--why", "over TLS", "--yes", "--audit", audit, lines=lines)
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
