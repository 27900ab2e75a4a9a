"""AWS KMS in two emulations that nobody wrote together; both make real signatures.

``LocalKms`` is local-kms, a Go program: ECDSA of P-256 and P-384, over messages and digests, states of keys, and
the bound of 4,096 bytes. It keeps its keys on the disk, so it may be killed; it asks nobody who he is.
``MiniStack`` is a Python program: Ed25519 too, and it checks the signatures of requests and the policies of IAM.
"""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final, Self

import botocore.session
from botocore.config import Config

from integration.services.debian import installed, unpacked
from integration.services.handle import Service
from integration.services.local import LocalServer
from integration.services.machine import LOOPBACK, Port
from integration.services.probes import NotReadyError

REGION: Final = "eu-central-1"
ROOT: Final = "root"
_GO: Final = ("github.com/nsmithuk/local-kms", "v0.0.0-20260228092603-2a5e92d09ab6")
_WHEELS: Final = Path(__file__).with_name("ministack.txt")
_STARTED_BY: Final = "import sys; from ministack.app import main; sys.exit(main())"


@dataclass(frozen=True, kw_only=True)
class Emulation(Service):
    """A running emulation of AWS.

    Args:
        secret: the secret key of its owner, whose access key is ``root``.
    """

    secret: str = "none"

    def client(self, service: str = "kms") -> Any:
        """Return the client of botocore for its owner: to make one takes an eighth of a second."""
        return _client(service, self.url, self.secret)

    @property
    def owner(self) -> Mapping[str, str]:
        """The variables of a process that has the owner's credentials."""
        return {"AWS_ACCESS_KEY_ID": ROOT, "AWS_SECRET_ACCESS_KEY": self.secret}


@cache
def _client(service: str, url: str, secret: str) -> Any:
    session = botocore.session.Session()
    session.set_credentials(ROOT, secret)
    return session.create_client(
        service,
        region_name=REGION,
        endpoint_url=url,
        config=Config(retries={"total_max_attempts": 1}),
    )


@dataclass(frozen=True, kw_only=True)
class LocalKms(Emulation):
    """A running local-kms."""

    @staticmethod
    def ask(url: str, timeout: float) -> str:
        """Return the version that was built: it names none itself."""
        _said(f"{url}/", timeout)
        return _GO[1]

    @classmethod
    def launch(cls) -> Self:
        """Start one."""
        port, folder = Port(), Path(tempfile.mkdtemp(prefix="mqauth-local-kms-"))
        settings = {
            "PORT": str(port.number), "KMS_REGION": REGION, "KMS_DATA_PATH": str(folder / "data"),
            "KMS_SEED_PATH": str(folder / "none"),
        }  # fmt: skip
        server = LocalServer(
            origin=f"go install {'@'.join(_GO)}", commands=[[installed(*_GO)]], env={**os.environ, **settings},
            folder=folder, ports=[port],
        )  # fmt: skip
        server.start()
        return cls.ready(f"http://{LOOPBACK}:{port.number}", server)


@dataclass(frozen=True, kw_only=True)
class MiniStack(Emulation):
    """A running MiniStack, which checks who asks."""

    @staticmethod
    def ask(url: str, timeout: float) -> str:
        """Return the version of its wheel, once it answers."""
        _said(f"{url}/_ministack/health", timeout)
        (found,) = unpacked(_WHEELS).glob("ministack-*.dist-info")
        return found.name.removeprefix("ministack-").removesuffix(".dist-info")

    @classmethod
    def launch(cls) -> Self:
        """Start one."""
        port, folder, secret = (
            Port(),
            Path(tempfile.mkdtemp(prefix="mqauth-ministack-")),
            secrets.token_hex(20),
        )
        wheels = unpacked(_WHEELS)
        settings = {
            "PYTHONPATH": str(wheels), "GATEWAY_PORT": str(port.number), "BIND_HOST": LOOPBACK, "AUTH": "true",
            "SERVICES": "kms,iam,sts", "IOT_MTLS_ENABLED": "false", "AWS_ACCESS_KEY_ID": ROOT,
            "AWS_SECRET_ACCESS_KEY": secret, "TMPDIR": str(folder),
        }  # fmt: skip
        server = LocalServer(
            origin=f"PyPI, {wheels.name}", commands=[[sys.executable, "-c", _STARTED_BY]],
            env={**os.environ, **settings}, folder=folder, ports=[port],
        )  # fmt: skip
        server.start()
        return replace(
            cls.ready(f"http://{LOOPBACK}:{port.number}", server), secret=secret
        )

    def commands(self, folder: Path) -> Path:
        """Make a folder that holds the command ``aws`` of AWS, which asks this MiniStack, and return it."""
        folder.mkdir()
        (folder / "aws").write_text(
            f"#!/bin/sh\nexport PYTHONPATH={unpacked(_WHEELS)} AWS_ENDPOINT_URL={self.url}"
            f' AWS_DEFAULT_REGION={REGION}\nexec {sys.executable} -m awscli "$@"\n'
        )
        (folder / "aws").chmod(0o755)
        return folder


def _said(url: str, timeout: float) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:  # noqa: S310
            found: bytes = answer.read()
            return found
    except urllib.error.HTTPError:
        return b""
    except OSError as silent:
        raise NotReadyError(f"{url}: {silent}") from silent
