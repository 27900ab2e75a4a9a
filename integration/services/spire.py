"""SPIRE, built once from Go's module proxy: a server of a trust domain, and an agent on the same machine."""

from __future__ import annotations

import json
import os
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

from integration.keyserver import Authority
from integration.services.debian import assembled
from integration.services.handle import READY_WITHIN, Service
from integration.services.local import LocalServer
from integration.services.machine import LOOPBACK, CommandError, Port, run
from integration.services.probes import NotReadyError, until_ready

VERSION: Final = "v1.15.1"
MODULE: Final = "github.com/spiffe/spire"
PROGRAMS: Final = ("spire-server", "spire-agent")
_EJBCA: Final = "github.com/Keyfactor/ejbca-go-client-sdk"
# What SPIRE asks for, a commit without a tag and an EJBCA client, the proxy does not give. Its API has the tag of
# the same release, and the plug-in for EJBCA is not used here. With a ``go`` of its own the module asks for no
# ``go.mod`` that is not needed.
_NEEDS: Final = f"""\
go 1.26.3
require github.com/spiffe/spire-api-sdk {VERSION}
replace {_EJBCA} => {_EJBCA} v1.0.2
"""
_SUMS: Final = f"""\
github.com/spiffe/spire v1.15.1 h1:taBoxgt2lehVS3XqDjaW1Qg9Rp16MKXn/UZcCETSbNk=
github.com/spiffe/spire v1.15.1/go.mod h1:KsYDp/Jenbadp4u0tqty5TpaQFBlIP8j1QlevXGtyXs=
github.com/spiffe/spire-api-sdk v1.15.1 h1:EDcUMSQTwtGM7VJdlH3qNHp4yEonoYRB3mAz7T7Om/I=
github.com/spiffe/spire-api-sdk v1.15.1/go.mod h1:9hXJcMzatM1KwAtBDO3s6HccDCic++/5c2yOc5Iln8Y=
{_EJBCA} v1.0.2 h1:pPnXCFfIFAwCjJrg1BtYlzoF8oHQ52sPOMs/uZ9uvZA=
{_EJBCA} v1.0.2/go.mod h1:4Sv/KGVgRV4VXKko1ajfTaJwqJ5Aiw0VrDI9S7IcQ1g=
"""
_SERVER: Final = """\
server {{
    bind_address = "{host}"
    bind_port = "{port}"
    socket_path = "{folder}/server.sock"
    trust_domain = "{domain}"
    data_dir = "{folder}/data"
    log_level = "INFO"
    {settings}
    federation {{
        bundle_endpoint {{
            address = "{host}"
            port = {bundles}
            profile "https_web" {{
                serving_cert_file {{
                    cert_file_path = "{chain}"
                    key_file_path = "{key}"
                    file_sync_interval = "1h"
                }}
            }}
        }}
    }}
}}
plugins {{
    DataStore "sql" {{
        plugin_data {{
            database_type = "sqlite3"
            connection_string = "{folder}/data/datastore.sqlite3"
        }}
    }}
    NodeAttestor "join_token" {{
        plugin_data {{}}
    }}
    KeyManager "disk" {{
        plugin_data {{
            keys_path = "{folder}/data/keys.json"
        }}
    }}
}}
health_checks {{
    listener_enabled = true
    bind_address = "{host}"
    bind_port = "{health}"
}}
"""
_AGENT: Final = """\
agent {{
    data_dir = "{folder}/data"
    log_level = "INFO"
    server_address = "{host}"
    server_port = "{port}"
    socket_path = "{folder}/agent.sock"
    trust_bundle_path = "{folder}/bundle.pem"
    trust_domain = "{domain}"
}}
plugins {{
    NodeAttestor "join_token" {{
        plugin_data {{}}
    }}
    KeyManager "memory" {{
        plugin_data {{}}
    }}
    WorkloadAttestor "unix" {{
        plugin_data {{}}
    }}
}}
"""


@dataclass(frozen=True, kw_only=True)
class Spire(Service):
    """A running server; ``agent`` starts an agent of it.

    Args:
        domain: the name of the trust domain.
        folder: of its files.
        port: where agents reach it.
        bundles: the URL of its bundle endpoint.
        ca: PEM file of the authority that signed the certificate of that endpoint.
    """

    domain: str = ""
    folder: Path = Path()
    port: int = 0
    bundles: str = ""
    ca: Path = Path()

    @staticmethod
    def ask(url: str, timeout: float) -> str:
        """Return the version of the program, once it is ready."""
        _asked(f"{url}/ready", timeout)
        return told()

    @classmethod
    def launch(cls, domain: str, settings: str = "") -> Spire:
        """Start a server and return its handle.

        Args:
            domain: the name of its trust domain.
            settings: lines for the ``server`` section of its settings.
        """
        ports, folder = (
            [Port() for _ in range(3)],
            Path(tempfile.mkdtemp(prefix="mqauth-spire-")),
        )
        authority = Authority(folder)
        chain, key = authority.issue(host=LOOPBACK)
        (folder / "data").mkdir()
        numbers = dict(
            zip(
                ("port", "bundles", "health"),
                (port.number for port in ports),
                strict=True,
            )
        )
        (folder / "server.conf").write_text(
            _SERVER.format(host=LOOPBACK, folder=folder, domain=domain, settings=settings, chain=chain, key=key,
                           **numbers)
        )  # fmt: skip
        server = _started("server", folder, ports)
        found = cls.ready(f"http://{LOOPBACK}:{numbers['health']}", server)
        return replace(
            found, domain=domain, folder=folder, port=numbers["port"], ca=authority.path,
            bundles=f"https://{LOOPBACK}:{numbers['bundles']}",
        )  # fmt: skip

    @property
    def socket(self) -> Path:
        """Where its administrator asks it."""
        return self.folder / "server.sock"

    def tell(self, *words: str) -> Any:
        """Run a command of its administrator, and return the JSON that it prints."""
        command = [
            str(program("spire-server")),
            *words,
            "-socketPath",
            str(self.socket),
            "-output",
            "json",
        ]
        return json.loads(run(command, timeout=60, stderr=False, env=wit_environment()))

    def agent(self) -> Agent:
        """Start an agent on this machine, which joins by a token."""
        identity = f"spiffe://{self.domain}/agent"
        token = self.tell("token", "generate", "-spiffeID", identity)["value"]
        folder = Path(tempfile.mkdtemp(prefix="mqauth-spire-"))
        show = [
            str(program("spire-server")),
            "bundle",
            "show",
            "-socketPath",
            str(self.socket),
        ]
        (folder / "bundle.pem").write_text(run(show, timeout=60, stderr=False))
        (folder / "agent.conf").write_text(
            _AGENT.format(
                host=LOOPBACK, folder=folder, domain=self.domain, port=self.port
            )
        )
        return Agent(identity, folder, _started("agent", folder, [], "-joinToken", token))


class Agent:
    """A running agent.

    Args:
        identity: the parent of the entries of its workloads.
        folder: of its files.
        control: of its process.
    """

    def __init__(self, identity: str, folder: Path, control: LocalServer) -> None:
        self.identity = identity
        self.socket = folder / "agent.sock"
        self.control = control
        until_ready(
            self._health, timeout=READY_WITHIN, ended=control.ended, tail=control.tail
        )

    def _health(self, timeout: float) -> str:
        command = [
            str(program("spire-agent")),
            "healthcheck",
            "-socketPath",
            str(self.socket),
        ]
        try:
            return run(command, timeout=max(timeout, 5))
        except CommandError as not_yet:
            raise NotReadyError(str(not_yet)) from not_yet

    def close(self) -> None:
        """End it and remove its files."""
        self.control.close()


def prepare() -> None:
    """Build the programs, where they are not here yet."""
    program("spire-server")


@cache
def program(name: str) -> Path:
    """Return ``spire-server`` or ``spire-agent``, built if need be."""
    packages = [f"{MODULE}/cmd/{each}" for each in PROGRAMS]
    return assembled(MODULE, VERSION, packages, needs=_NEEDS, sums=_SUMS) / name


@cache
def told() -> str:
    """Return what the program says of its version."""
    return run([str(program("spire-server")), "--version"], timeout=60).strip()


def wit_environment() -> dict[str, str]:
    """Return the environment in which ``spire-server`` has its commands for WIT-SVIDs."""
    return {**os.environ, "SPIRE_SERVER_FFLAGS": "wit-svid"}


def _started(name: str, folder: Path, ports: list[Port], *words: str) -> LocalServer:
    server = LocalServer(
        origin=f"built from {MODULE}@{VERSION}",
        commands=[[str(program(f"spire-{name}")), "run", "-config", str(folder / f"{name}.conf"), *words]],
        env=os.environ, folder=folder, ports=ports,
    )  # fmt: skip
    server.start()
    return server


def _asked(url: str, timeout: float) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:  # noqa: S310
            found: bytes = answer.read()
            return found
    except (urllib.error.URLError, OSError) as silent:
        raise NotReadyError(f"{url}: {silent}") from silent
