"""Login to the console at an OpenID provider: roles, names in the records, and certificates that are renewed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import ssl
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from joserfc.jwk import ECKey
from selenium.webdriver.common.by import By

from integration.console.browser import Browser, browser, running
from integration.held_key import private
from integration.keyserver import Authority
from integration.review.scene import Scene, scene_at
from integration.services import RabbitMQ
from integration.services.local import LocalServer
from integration.services.machine import Port, fetched, install, run
from integration.services.probes import NotReadyError, until_ready
from mqauth.audit.chain import verify_chain
from mqauth.audit.query import read_records
from mqauth.wire.keys import Key

FOLDER = Path(__file__).parent / "provider"
_READY_WITHIN = 120.0
_FETCH_WITHIN = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenIDProvider:
    """A running provider and its one client.

    Args:
        issuer: its URL, on 127.0.0.1.
        client_id, secret: the client's.
        ca: PEM file of who signed its certificate.
    """

    issuer: str
    client_id: str
    secret: str
    ca: Path


@contextlib.contextmanager
def openid_provider(
    accounts: Mapping[str, Mapping[str, Any]], redirect_uri: str, authority: Authority
) -> Iterator[OpenIDProvider]:
    """Run a provider that lets these people in with any password.

    Args:
        accounts: login to claims.
        redirect_uri: the client's.
        authority: signs its certificate.
    """
    program, port = _program(), Port()
    folder = Path(tempfile.mkdtemp(prefix="mqauth-openid-"))
    found = OpenIDProvider(
        issuer=f"https://127.0.0.1:{port.number}", client_id="mqauth-console", secret=secrets.token_urlsafe(32),
        ca=authority.path,
    )  # fmt: skip
    settings = folder / "settings.json"
    settings.write_text(json.dumps(_settings(found, accounts, redirect_uri, authority)))
    server = LocalServer(
        origin="npm", commands=[[str(program), str(program.parent / "provider.mjs"), str(settings)]],
        env=os.environ, folder=folder, ports=[port],
    )  # fmt: skip
    try:
        server.start()
        until_ready(
            lambda timeout: _ask(found, timeout),
            timeout=_READY_WITHIN,
            ended=server.ended,
            tail=server.tail,
        )
        yield found
    finally:
        server.close()


def _settings(
    found: OpenIDProvider,
    accounts: Mapping[str, Mapping[str, Any]],
    redirect_uri: str,
    authority: Authority,
) -> dict[str, Any]:
    """Return what provider.mjs reads."""
    chain, key = authority.issue(host="127.0.0.1")
    signing = ECKey.generate_key("P-256", {"kid": "1", "use": "sig", "alg": "ES256"})
    client = {
        "client_id": found.client_id, "client_secret": found.secret, "redirect_uris": [redirect_uri],
        "id_token_signed_response_alg": "ES256",
    }  # fmt: skip
    return {
        "issuer": found.issuer, "cert": str(chain), "key": str(key), "cookieKey": secrets.token_urlsafe(32),
        "jwks": {"keys": [signing.as_dict(private=True)]}, "clients": [client], "accounts": accounts,
    }  # fmt: skip


def _ask(found: OpenIDProvider, timeout: float) -> str:
    """Return the issuer that the provider names."""
    try:
        context = ssl.create_default_context(cafile=str(found.ca))
        url = f"{found.issuer}/.well-known/openid-configuration"
        with urllib.request.urlopen(url, timeout=timeout, context=context) as answer:  # noqa: S310
            return str(json.loads(answer.read())["issuer"])
    except (OSError, urllib.error.URLError) as silent:
        raise NotReadyError(f"{found.issuer}: {silent}") from silent


def _program() -> Path:
    """Return the Node that npm brought, beside provider.mjs and what it imports; fetched on first use."""
    files = [
        FOLDER / name for name in ("package.json", "package-lock.json", "provider.mjs")
    ]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[
        :16
    ]
    what = "the OpenID provider of the console's login test, and Node, from npm"

    def fetch(folder: Path) -> None:
        if not shutil.which("npm"):
            install("npm", why=what)
        for file in files:
            shutil.copy(file, folder)
        # What the lock names, its hashes checked, none of its scripts run.
        options = ["--ignore-scripts", "--no-audit", "--no-fund"]
        run(["npm", "ci", "--prefix", str(folder), *options], timeout=_FETCH_WITHIN)
        [program] = folder.glob("node_modules/node-linux-*/bin/node")
        (folder / "node").symlink_to(program.relative_to(folder))

    return fetched(f"openid-{digest}", fetch, what=what) / "node"


ACCOUNTS: Final = {
    "ada": {
        "email": "ada@example.test",
        "email_verified": True,
        "groups": ["staff", "dlq-review"],
    },
    "vera": {
        "email": "vera@example.test",
        "email_verified": True,
        "groups": ["staff", "dlq-look"],
    },
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
import sys, uvicorn, mqauth.cli
made = uvicorn.Config
uvicorn.Config = lambda *given, **named: made(*given, **named | {"timeout_notify": 1})
sys.exit(mqauth.cli.main())
"""
LETTERS: Final = 3
PATIENCE: Final = 60.0


@pytest.fixture
def scene(rabbitmq: RabbitMQ, tmp_path: Path) -> Iterator[Scene]:
    """Letters whose key arrived late, and a review key that speaks for one person."""
    with scene_at(rabbitmq.url, tmp_path) as made:
        made.key = Key.generate(subjects=["ada@example.test"])
        for number in range(LETTERS):
            made.stage.inject(made.message("key_unknown", number))
        made.consume(LETTERS)
        made.keys.append(made.forge.stranger)
        yield made


@pytest.fixture
def own_port() -> Iterator[Port]:
    """The port of the console, which the provider has to know before."""
    port = Port()
    yield port
    port.release()


@contextlib.contextmanager
def console(
    scene: Scene, provider: OpenIDProvider, url: str, tls: tuple[Path, Path]
) -> Iterator[dict[str, Any]]:
    """Run ``mqauth console`` over TLS, without local tokens, and give what it printed."""
    folder = scene.folder
    private(folder / "secret", provider.secret)
    (folder / "oidc.toml").write_text(SETTINGS.format(provider=provider, url=url))
    arguments = [
        "-c", _COMMAND, "console", "--broker", scene.place.broker, "--queue", str(scene.place.name), "--json",
        "--port", url.rpartition(":")[2], "--tls-cert", str(tls[0]), "--tls-key", str(tls[1]),
        "--oidc", str(folder / "oidc.toml"), "--no-tokens", "--config", str(scene.write_config()),
        "--key", str(scene.write_key()), "--audit", str(folder / "reviewer.jsonl"),
    ]  # fmt: skip
    with running(arguments) as told:
        yield told


@pytest.mark.slow
def test_login_at_a_provider(scene: Scene, own_port: Port, tmp_path: Path) -> None:
    """Each person gets their role from the provider; acts and releases carry the reviewer's name; TLS renews."""
    authority, port = Authority(tmp_path), own_port.number
    chain, key = authority.issue(host="localhost")
    url = f"https://localhost:{port}"  # another site than the provider's 127.0.0.1: strict cookies show it
    with (
        openid_provider(ACCOUNTS, f"{url}/login/callback", authority) as provider,
        console(scene, provider, url, (chain, key)) as told,
        browser(url, tmp_path / "profile", own_certificates=True) as seen,
    ):
        assert told["redirect_uri"] == f"{url}/login/callback"
        assert told["tokens"] == {}
        viewer_looks(seen)
        renew(authority, chain, key, port)
        reviewer_acts(seen)
        stranger_stays_out(seen)
        assert not [
            log
            for log in seen.driver.get_log("browser")
            if "Content Security Policy" in log["message"]
        ]
    scene.consume(LETTERS)
    assert {verified.release.sub for verified in scene.handled if verified.release} == {
        "ada@example.test"
    }
    acts = [
        record["review"]["reviewer"]
        for record in read_records([scene.folder / "reviewer.jsonl"])
    ]
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
    seen.wait_for(
        "You are eve@example.test, but nothing gives you a role in this console."
    )
    seen.look("refused")
    assert seen.driver.get_cookies() == []
    seen.go("/letters")
    seen.wait_for("Sign in with")
