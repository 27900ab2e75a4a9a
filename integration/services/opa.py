"""Open Policy Agent: a program that is built once from Go's module proxy, and servers of it on this machine."""

from __future__ import annotations

import json
import os
import ssl
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from integration.services.debian import installed
from integration.services.handle import Service
from integration.services.local import LocalServer
from integration.services.machine import LOOPBACK, Port, run
from integration.services.probes import NotReadyError

VERSION: Final = "v1.22.4"
MODULE: Final = "github.com/open-policy-agent/opa"
_POLICY: Final = "mqauth"
_PATIENCE: Final = 30.0


@dataclass(frozen=True, kw_only=True)
class Agent(Service):
    """A running agent."""

    @staticmethod
    def ask(url: str, timeout: float) -> str:
        """Return the version it names."""
        return str(
            _said(f"{url}/v1/data/none?provenance=true", timeout)["provenance"]["version"]
        )

    @classmethod
    def launch(
        cls, *arguments: str, config: str | None = None, tls: Sequence[Path] = ()
    ) -> Agent:
        """Start one.

        Args:
            arguments: further ones of ``opa run``, files of policies among them.
            config: its configuration, as YAML.
            tls: files of its certificate and key.
        """
        port, folder = Port(), Path(tempfile.mkdtemp(prefix="mqauth-opa-"))
        options: list[str] = list(arguments)
        if config is not None:
            (folder / "config.yaml").write_text(config)
            options += ["--config-file", str(folder / "config.yaml")]
        if tls:
            options += [
                "--tls-cert-file",
                str(tls[0]),
                "--tls-private-key-file",
                str(tls[1]),
            ]
        server = LocalServer(
            origin=f"go install {MODULE}@{VERSION}",
            commands=[[
                program(), "run", "--server", "--addr", f"{LOOPBACK}:{port.number}", "--log-level", "error",
                "--disable-telemetry", *options,
            ]],
            env=os.environ,
            folder=folder,
            ports=[port],
        )  # fmt: skip
        server.start()
        return cls.ready(
            f"{'https' if tls else 'http'}://{LOOPBACK}:{port.number}", server
        )

    def load(self, rego: str) -> None:
        """Put a policy in place of the one before."""
        put = urllib.request.Request(  # noqa: S310
            f"{self.url}/v1/policies/{_POLICY}", data=rego.encode(), method="PUT"
        )
        with urllib.request.urlopen(put, timeout=_PATIENCE):  # noqa: S310
            pass


def program() -> str:
    """Return the program, built if need be."""
    return installed(MODULE, VERSION)


def bundle(folder: Path, rego: str, revision: str) -> Path:
    """Build a bundle of one policy in a folder, in place of the one before, and return it."""
    (folder / "policy.rego").write_text(rego)
    built = folder / "bundle.tar.gz"
    command: Sequence[str] = [
        program(),
        "build",
        "-r",
        revision,
        "-o",
        f"{built}.new",
        str(folder / "policy.rego"),
    ]
    run(command, timeout=60)
    Path(f"{built}.new").replace(built)
    return built


def _said(url: str, timeout: float) -> Any:
    try:
        # Whose certificate it is does not matter here: what is asked for is whether it is up.
        context = ssl._create_unverified_context() if url.startswith("https:") else None  # noqa: S323
        with urllib.request.urlopen(url, timeout=timeout, context=context) as answer:  # noqa: S310
            return json.loads(answer.read())
    except urllib.error.HTTPError as refused:
        if refused.code == 401:
            return {"provenance": {"version": VERSION.removeprefix("v")}}
        raise NotReadyError(f"{url}: {refused}") from refused
    except OSError as silent:
        raise NotReadyError(f"{url}: {silent}") from silent
