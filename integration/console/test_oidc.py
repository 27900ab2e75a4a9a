"""Login at a real OpenID provider in Chromium, over TLS: a viewer looks, a reviewer acts, others stay out."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from selenium.webdriver.common.by import By

from integration.console.browser import Browser, browser
from integration.console.openid import OpenIDProvider, openid_provider
from integration.keyserver import Authority
from integration.review.scene import Scene
from integration.services import RabbitMQ
from integration.services.machine import Port
from mqauth.audit.chain import verify_chain
from mqauth.audit.query import read_records
from mqauth.testing.stage_rabbitmq import RabbitMQStage
from mqauth.wire.keys import Key

ACCOUNTS: Final = {
    "ada": {"email": "ada@example.test", "email_verified": True, "groups": ["staff", "dlq-review"]},
    "vera": {"email": "vera@example.test", "email_verified": True, "groups": ["staff", "dlq-look"]},
    "eve": {"email": "eve@example.test", "email_verified": True, "groups": ["staff"]},
}
SETTINGS: Final = """\
issuer = "{provider.issuer}"
client_id = "{provider.client_id}"
client_secret_file = "secret"
ca = "{provider.ca}"
url = "{url}"
label = "Example ID"

[roles]
viewer = ["dlq-look"]
reviewer = ["dlq-review"]
"""
# The command, but that the certificate's files are looked at each second rather than each minute.
_COMMAND: Final = """\
import sys, mqauth.cli, mqauth.cli.serve as serve
serve._CERTIFICATE_EVERY = 0
sys.exit(mqauth.cli.main())
"""
LETTERS: Final = 3
PATIENCE: Final = 60.0


@pytest.fixture
def scene(rabbitmq: RabbitMQ, tmp_path: Path) -> Iterator[Scene]:
    """Letters whose key arrived late, and a review key that speaks for one person."""
    stage = RabbitMQStage(rabbitmq.url)
    made = Scene(stage, rabbitmq.url, tmp_path)
    made.key = Key.generate(subjects=["ada@example.test"])
    try:
        for number in range(LETTERS):
            stage.inject(made.message("key_unknown", number))
        made.consume(LETTERS)
        made.keys.append(made.forge.stranger)
        yield made
    finally:
        stage.close()


@pytest.fixture
def own_port() -> Iterator[Port]:
    """The port of the console, which the provider has to know before."""
    port = Port()
    yield port
    port.release()


@contextlib.contextmanager
def console(scene: Scene, provider: OpenIDProvider, url: str, tls: tuple[Path, Path]) -> Iterator[dict[str, Any]]:
    """Run ``mqauth console`` over TLS, without local tokens, and give what it printed."""
    private, folder = scene.key.private, scene.folder
    assert private is not None
    for name, content in (
        ("review.pem", private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())),
        ("secret", provider.secret.encode()),
    ):
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o600)
    (folder / "oidc.toml").write_text(SETTINGS.format(provider=provider, url=url))
    arguments = [
        "console", "--broker", scene.place.broker, "--queue", str(scene.place.name), "--json",
        "--port", url.rpartition(":")[2], "--tls-cert", str(tls[0]), "--tls-key", str(tls[1]),
        "--oidc", str(folder / "oidc.toml"), "--no-tokens", "--config", str(scene.write_config()),
        "--key", str(folder / "review.pem"), "--audit", str(folder / "reviewer.jsonl"),
    ]  # fmt: skip
    process = subprocess.Popen([sys.executable, "-c", _COMMAND, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
        process.terminate()
        process.wait(30)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.mark.slow
def test_login_at_a_provider(scene: Scene, own_port: Port, tmp_path: Path) -> None:
    """Each person gets their role from the provider; acts and releases carry the reviewer's name; TLS renews."""
    pictures = Path(os.environ.get("MQAUTH_ARTIFACTS", tmp_path)) / "console" / "openid"
    pictures.mkdir(parents=True, exist_ok=True)
    authority, port = Authority(tmp_path), own_port.number
    chain, key = authority.issue(host="localhost")
    url = f"https://localhost:{port}"  # another site than the provider's 127.0.0.1: strict cookies show it
    with (
        openid_provider(ACCOUNTS, f"{url}/login/callback", authority) as provider,
        console(scene, provider, url, (chain, key)) as told,
        browser(url, tmp_path / "profile", pictures, own_certificates=True) as seen,
    ):
        assert told["redirect_uri"] == f"{url}/login/callback"
        assert told["tokens"] == {}
        viewer_looks(seen)
        renew(authority, chain, key, port)
        reviewer_acts(seen)
        stranger_stays_out(seen)
        assert not [log for log in seen.driver.get_log("browser") if "Content Security Policy" in log["message"]]
    scene.consume(LETTERS)
    assert {verified.release.sub for verified in scene.handled if verified.release} == {"ada@example.test"}
    acts = [record["review"]["reviewer"] for record in read_records([scene.folder / "reviewer.jsonl"])]
    assert acts == ["ada@example.test"] * LETTERS
    assert all(verify_chain(path).intact for path in scene.audits)


def log_in(seen: Browser, login: str) -> None:
    """Go from our login page to the provider, give a name and any password, and consent."""
    seen.press("Sign in with Example ID")
    seen.find("input[name=login]").send_keys(login)
    seen.find("input[name=password]").send_keys("any")
    seen.click("button[type=submit]")
    seen.click("button[type=submit]")


def log_out(seen: Browser) -> None:
    """Sign out of the console, and by its link of the provider."""
    seen.click("header form button")
    seen.wait_for("Switch user")
    seen.click("p.hint a")
    seen.click("button[value=yes]")
    seen.go("/login")


def viewer_looks(seen: Browser) -> None:
    """A viewer sees the letters, no button that acts, and is refused a reviewer's page."""
    seen.go("/")
    assert not seen.driver.find_elements(By.NAME, "token")
    seen.look("login")
    log_in(seen, "vera")
    seen.wait_for(f"{LETTERS} dead letters in 1 group")
    assert "vera@example.test (viewer)" in seen.find("header").text
    [cookie] = seen.driver.get_cookies()
    assert (cookie["name"], cookie["secure"], cookie["httpOnly"], cookie["sameSite"]) == (
        "__Host-mqauth", True, True, "Strict",
    )  # fmt: skip
    seen.go("/letters?reason=key_unknown")
    seen.wait_for(f"{LETTERS} dead letters")
    assert "Redrive" not in seen.text
    seen.go("/act/discard")
    seen.wait_for("Your role can look, but not act.")
    seen.go("/")
    log_out(seen)


def renew(authority: Authority, chain: Path, key: Path, port: int) -> None:
    """Renew the certificate while the console runs, and wait until it is the one that is served."""
    fresh = authority.issue(host="localhost")
    before, wanted = ssl.get_server_certificate(("127.0.0.1", port)), fresh[0].read_text()
    assert before != wanted
    for new, old in zip(fresh, (chain, key), strict=True):
        shutil.copy(new, old)
    deadline = time.monotonic() + PATIENCE
    while ssl.get_server_certificate(("127.0.0.1", port)) != wanted:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def reviewer_acts(seen: Browser) -> None:
    """A reviewer redrives the letters, under the name that the provider gave."""
    log_in(seen, "ada")
    seen.wait_for(f"{LETTERS} dead letters in 1 group")
    assert "ada@example.test (reviewer)" in seen.find("header").text
    seen.go("/act/redrive?reason=key_unknown")
    seen.find("#why").send_keys("the key arrived late")
    seen.press("Preview")
    seen.wait_for(f"{LETTERS} of {LETTERS} dead letters would be redriven")
    seen.press(f"Redrive {LETTERS} dead letters")
    seen.wait_for("See what is left")
    assert f"{LETTERS} of {LETTERS} dead letters redriven" in seen.text
    log_out(seen)


def stranger_stays_out(seen: Browser) -> None:
    """Whose groups give no role is told so, and sees nothing."""
    log_in(seen, "eve")
    seen.wait_for("You are eve@example.test, but nothing gives you a role in this console.")
    seen.look("refused")
    assert seen.driver.get_cookies() == []
    seen.go("/letters")
    seen.wait_for("Sign in with")
