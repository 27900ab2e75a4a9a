"""A real OpenID provider over TLS: oidc-provider with its Node, both from npm, pinned by the lock beside it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import ssl
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joserfc.jwk import ECKey

from integration.keyserver import Authority
from integration.services.local import LocalServer
from integration.services.machine import (
    CommandError,
    Port,
    UnavailableError,
    cache_folder,
    install,
    locked,
    run,
    say,
)
from integration.services.probes import NotReadyError, until_ready

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
            lambda timeout: _ask(found, timeout), timeout=_READY_WITHIN, ended=server.ended, tail=server.tail
        )
        yield found
    finally:
        server.close()


def _settings(
    found: OpenIDProvider, accounts: Mapping[str, Mapping[str, Any]], redirect_uri: str, authority: Authority
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
    files = [FOLDER / name for name in ("package.json", "package-lock.json", "provider.mjs")]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
    folder = cache_folder() / f"openid-{digest}"
    with locked(folder.name):
        if not folder.is_dir():
            _fetch(folder, files)
    return folder / "node"


def _fetch(folder: Path, files: list[Path]) -> None:
    """Have npm fetch what the lock names, its hashes checked, none of its scripts run."""
    if not shutil.which("npm"):
        install("npm", why="the OpenID provider of the console's login test comes from npm")
    fetching = Path(tempfile.mkdtemp(prefix="openid-", suffix=".fetch", dir=folder.parent))
    say(f"fetching oidc-provider and Node to {folder.parent}: once")
    try:
        for file in files:
            shutil.copy(file, fetching)
        run(
            ["npm", "ci", "--prefix", str(fetching), "--ignore-scripts", "--no-audit", "--no-fund"],
            timeout=_FETCH_WITHIN,
        )
        [program] = fetching.glob("node_modules/node-linux-*/bin/node")
        (fetching / "node").symlink_to(program.relative_to(fetching))
        fetching.rename(folder)
    except CommandError as failed:
        shutil.rmtree(fetching)
        raise UnavailableError(f"oidc-provider: npm gave no packages\n{failed}") from failed
    except BaseException:
        shutil.rmtree(fetching)
        raise
