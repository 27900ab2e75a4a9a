"""A real authority in a process of its own, whose identities live for seconds; it may be killed and started again.

``python -m integration.chaos.identity_authority JSON``: the members of ``Orders``. The settings allow an authority
no lifetime below a minute, which is what the nightly form takes. For less this process lowers that bound for
itself. All else is what ``mqauth authority serve`` runs.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from integration.scale import nightly
from mqauth import AuditFile
from mqauth.authority.application import AuthorityServer
from mqauth.authority.credential import CredentialIssuer
from mqauth.authority.issuing import CredentialDesk, Grant, IdentityAuthority
from mqauth.cli.serve import Serving, listen
from mqauth.keystore import ActiveKey, Keystore
from mqauth.keystore.identity.identity_key import IdentityKey
from mqauth.keystore.identity.request import OwnKey
from mqauth.keystore.remote.keyserver import KeyServer
from mqauth.wire.jwk import dump_key_set, load_key_set
from mqauth.wire.keys import Key, KeySet

DOMAIN = "wimse://chaos.example"
MACHINES = "https://machines.example"
LIFETIME = nightly(60, otherwise=20)
"""Seconds that an identity lives."""
LEAD = 40
"""Seconds for which a key of the authority is published before it signs: the 30 that consumers count on, and the
time that writing it takes on a busy machine, for they begin with the second in which it is made."""


def subject_of(name: str) -> str:
    """Return the identity of a producer."""
    return f"{DOMAIN}/{name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What an authority process is to do.

    Args:
        folder: with its keystore, its audit, and the public keys of the producers.
        port: where it listens.
        names: of the producers.
    """

    folder: str
    port: int
    names: list[str]

    @property
    def url(self) -> str:
        """Where it is asked."""
        return f"http://127.0.0.1:{self.port}"


class Authority:
    """The process, and what its operator does to its keystore from outside.

    Args:
        folder: for its files; made here.
        names: of the producers, each of which gets a key of its own.
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self.machines = {name: Key.generate(subjects=[name]) for name in names}
        folder.mkdir()
        self.keystore = Keystore(folder=folder / "keys")
        self.keystore.create(publish_delay=LEAD, overlap=LIFETIME)
        machines = KeySet(key.public_only for key in self.machines.values())
        (folder / "machines.json").write_text(json.dumps(dump_key_set(machines)))
        self.orders = Orders(
            folder=str(folder), port=_free_port(), names=[*self.machines]
        )
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        """What errors have to name."""
        return f"127.0.0.1:{self.orders.port}"

    def start(self) -> None:
        """Start the process; it may take a moment to listen."""
        words = [sys.executable, "-m", __spec__.name, json.dumps(asdict(self.orders))]
        self._process = subprocess.Popen(words)

    def listens(self) -> bool:
        """Tell whether it takes connections."""
        with (
            suppress(OSError),
            socket.create_connection(("127.0.0.1", self.orders.port), 1),
        ):
            return True
        return False

    def kill(self) -> None:
        """Kill the process with SIGKILL, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def enrolled(self, name: str) -> IdentityKey:
        """Return the key of whoever has this producer's own key: the producer, or its thief."""
        own = OwnKey(self.machines[name], issuer=MACHINES, subject=name)
        url = self.orders.url
        return IdentityKey(
            url, subject=subject_of(name), credential=own, unsafe_http_loopback=True
        )


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def main(orders: Orders) -> None:
    """Serve until killed."""
    folder = Path(orders.folder)
    machines = CredentialIssuer(
        name="machines", issuer=MACHINES, keys=load_key_set((folder / "machines.json").read_bytes()),
        max_lifetime=300, enrolment=True,
    )  # fmt: skip
    granted = [
        Grant(
            credential="machines",
            match={"sub": name},
            subject=subject_of(name),
            lifetime=LIFETIME,
        )
        for name in orders.names
    ]
    keys = folder / "keys"
    authority = IdentityAuthority(
        trust_domain=DOMAIN, desk=CredentialDesk(issuers=[machines], grants=granted, audience=orders.url),
        keys=ActiveKey(keys), audit=AuditFile(folder / "authority.jsonl"), cutoffs=Keystore(folder=keys).cutoffs,
    )  # fmt: skip
    application = AuthorityServer(authority, KeyServer([keys]))
    with listen("127.0.0.1", orders.port, tls=False) as listener:
        Serving().run(
            application,
            listener,
            lambda: None,
            requests=64,
            verb="authority serve",
            extra="serve",
        )


if __name__ == "__main__":
    main(Orders(**json.loads(sys.argv[1])))
