"""Keycloak, from Maven Central: a server on loopback, with TLS and without, its data on disk; a slow starter."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import ssl
import tempfile
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib.parse import urlencode

from integration.keyserver import Authority
from integration.services.handle import Service
from integration.services.kafka import copied, java
from integration.services.local import LocalServer
from integration.services.machine import (
    LOOPBACK,
    Port,
    UnavailableError,
    cache_folder,
    locked,
    run,
    say,
)
from integration.services.probes import NotReadyError

VERSION: Final = "26.7.3"
SHA256: Final = "27a6535553c3cdcd083872ba40629efafb3475e3b758e0c6f691395561dd0f1f"
ADMIN: Final = "admin"
_ARTIFACT: Final = "org.keycloak:keycloak-quarkus-dist:{version}:zip"
_BUILT_WITHIN: Final = 900.0
_PATIENCE: Final = 60.0
# What is decided when it is built is the same for every server of ours, so that none builds itself at its start.
_BUILD: Final = ("build", "--db=dev-file", "--cache=local")
_JAVA: Final = "-XX:TieredStopAtLevel=1"


@dataclass(frozen=True, kw_only=True)
class Keycloak(Service):
    """A running Keycloak with no realm but its own.

    Args:
        secure: its URL with TLS; ``url`` is the one without. A realm's issuer begins with the one that is asked.
        ca: PEM file of the authority that signed its certificate.
        password: of its administrator, who is ``admin``.
    """

    ready_within: ClassVar[float] = 480.0

    secure: str = ""
    ca: Path = Path()
    password: str = field(default="", repr=False)

    @staticmethod
    def ask(url: str, timeout: float) -> str:
        """Return the version that was started, once it answers; it tells its own to its administrator alone."""
        _asked("GET", f"{url}/realms/master", timeout=timeout)
        return VERSION

    @classmethod
    def launch(cls) -> Keycloak:
        """Start one and return its handle."""
        built = _built()
        ports, folder = (
            [Port(), Port()],
            Path(tempfile.mkdtemp(prefix="mqauth-keycloak-")),
        )
        authority, password = Authority(folder), secrets.token_urlsafe(16)
        chain, key = authority.issue(host=LOOPBACK)
        server = LocalServer(
            origin=f"Maven Central, in {built}",
            commands=[[
                "sh", str(_home(built, folder) / "bin" / "kc.sh"), "start", "--optimized",
                f"--http-host={LOOPBACK}", "--http-enabled=true", "--hostname-strict=false",
                f"--http-port={ports[0].number}", f"--https-port={ports[1].number}",
                f"--https-certificate-file={chain}", f"--https-certificate-key-file={key}",
            ]],
            env={
                **os.environ, "JAVA_OPTS_APPEND": _JAVA, "KC_BOOTSTRAP_ADMIN_USERNAME": ADMIN,
                "KC_BOOTSTRAP_ADMIN_PASSWORD": password,
            },
            folder=folder, ports=ports,
        )  # fmt: skip
        server.start()
        found = cls.ready(f"http://{LOOPBACK}:{ports[0].number}", server)
        found = replace(
            found,
            secure=f"https://{LOOPBACK}:{ports[1].number}",
            ca=authority.path,
            password=password,
        )
        return replace(
            found, version=found.tell("GET", "serverinfo")["systemInfo"]["version"]
        )

    @property
    def program(self) -> Path:
        """The command of its administrator, ``kcadm.sh``."""
        return _built() / "bin" / "kcadm.sh"

    def tell(self, method: str, path: str, document: Any = None) -> Any:
        """Ask or tell it something as its administrator, and return the answer, ``None`` where it has no body.

        Args:
            method: of HTTP.
            path: below ``/admin/``, of its REST API.
            document: sent as JSON.
        """
        body = None if document is None else json.dumps(document).encode()
        given = {"client_id": "admin-cli", "username": ADMIN, "password": self.password}
        form = urlencode({"grant_type": "password", **given}).encode()
        token = _asked(
            "POST", f"{self.url}/realms/master/protocol/openid-connect/token", form
        )["access_token"]
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        return _asked(method, f"{self.url}/admin/{path}", body, headers)

    def post(self, url: str, form: dict[str, str], headers: dict[str, str]) -> Any:
        """Post a form to one of its URLs with TLS, and return the answer."""
        return _asked("POST", url, urlencode(form).encode(), headers, context=self.trust)

    @property
    def trust(self) -> ssl.SSLContext:
        """What trusts its certificate."""
        return ssl.create_default_context(cafile=str(self.ca))


def prepare() -> None:
    """Fetch and build it, where it is not here yet."""
    _built()


def _built() -> Path:
    """Return the distribution, built with our options; fetched, checked and built on first use."""
    folder = cache_folder() / f"keycloak-{VERSION}-{SHA256[:8]}"
    with locked(folder.name):
        if not folder.is_dir():
            java()
            fetching = Path(
                tempfile.mkdtemp(prefix="keycloak-", suffix=".fetch", dir=folder.parent)
            )
            try:
                _fetch(fetching).rename(folder)
            finally:
                shutil.rmtree(fetching, ignore_errors=True)
    return folder


def _fetch(folder: Path) -> Path:
    """Return the distribution in a folder, fetched, checked against its digest, unpacked and built."""
    say(
        f"fetching Keycloak {VERSION} to {folder.parent}, and building it: once, some minutes"
    )
    copied(_ARTIFACT.format(version=VERSION), folder, why="Keycloak")
    (archive,) = folder.glob("*.zip")
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise UnavailableError(
            f"Keycloak {VERSION} from Maven Central has the digest {found}, not {SHA256}"
        )
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(folder)
    home = folder / f"keycloak-{VERSION}"
    for program in (home / "bin").glob("*.sh"):
        program.chmod(0o755)
    run(["sh", str(home / "bin" / "kc.sh"), *_BUILD], timeout=_BUILT_WITHIN,
        env={**os.environ, "JAVA_OPTS_APPEND": _JAVA})  # fmt: skip
    return home


def _home(built: Path, folder: Path) -> Path:
    """Return a home of one server: links to the distribution, and data of its own."""
    home = folder / "home"
    (home / "bin").mkdir(parents=True)
    # The script takes the folder that it is in for its home, behind all links.
    shutil.copy(built / "bin" / "kc.sh", home / "bin")
    for name in ("conf", "lib", "providers", "themes", "version.txt"):
        (home / name).symlink_to(built / name)
    return home


def _asked(
    method: str, url: str, body: bytes | None = None, headers: dict[str, str] | None = None, *,
    timeout: float = _PATIENCE, context: ssl.SSLContext | None = None,
) -> Any:  # fmt: skip
    """Return the JSON that it answers, ``None`` where there is none."""
    asked = urllib.request.Request(url, body, headers or {}, method=method)  # noqa: S310
    try:
        with urllib.request.urlopen(asked, timeout=timeout, context=context) as answer:  # noqa: S310
            raw = answer.read()
            return json.loads(raw) if raw else None
    except urllib.error.HTTPError as refused:
        said = refused.read().decode(errors="replace")
        # While it starts it answers so.
        kind = (
            NotReadyError
            if refused.code in (404, 503) and timeout < _PATIENCE
            else ValueError
        )
        raise kind(f"{method} {url}: {refused.code} {said}") from refused
    except OSError as silent:
        raise NotReadyError(f"{url}: {silent}") from silent
