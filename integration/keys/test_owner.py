"""Root helps a service that runs as another user: what root makes in the service's folder stays the service's."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mqauth.audit.file import AuditFile
from mqauth.keystore import Keystore, State
from mqauth.keystore.disk import ring

SERVICE = 65534
"""The user and group ``nobody`` of Debian."""
AS_SERVICE = """
import os, sys
from pathlib import Path
from mqauth.audit.file import AuditFile
from mqauth.keystore import ActiveKey, Keystore
from mqauth.keystore.disk import ring

os.setgroups([])
os.setgid({user})
os.setuid({user})
folder = Path(sys.argv[1])
{act}
"""


def as_service(act: str, folder: Path) -> None:
    """Run Python as the user of the service; it starts as root, which alone may read the interpreter."""
    program = AS_SERVICE.format(user=SERVICE, act=act)
    subprocess.run([sys.executable, "-c", program, str(folder)], check=True, timeout=60)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder of the service's, which its user can reach."""
    with tempfile.TemporaryDirectory(prefix="mqauth-owner-") as top:
        Path(top).chmod(0o711)
        made = Path(top) / "service"
        made.mkdir(mode=0o700)
        os.chown(made, SERVICE, SERVICE)
        yield made


def test_service_rotates_and_revokes_what_root_made(folder: Path) -> None:
    """``keys new`` by root makes the first key; the service then signs, makes, rotates and revokes."""
    Keystore(folder=folder).create(publish_delay=0)
    as_service(
        "store = Keystore(folder=folder); store.signing_key(); store.create(); store.change(ring.rotate)", folder
    )
    as_service(
        "store = Keystore(folder=folder); kid = store.ring().active.kid;"
        " store.change(lambda keys, now: ring.revoke(keys, kid, now, reason='stolen'))", folder,
    )  # fmt: skip
    states = sorted(key.state.value for key in Keystore(folder=folder).ring().keys)
    assert states == [State.RETIRED.value, State.REVOKED.value]


def test_next_run_of_root_mends_a_lock_that_was_roots(folder: Path) -> None:
    """A lock file that an earlier version left to root becomes the owner's when root changes the folder again."""
    as_service("Keystore(folder=folder).create(publish_delay=0)", folder)
    os.chown(folder / ".lock", 0, 0)
    Keystore(folder=folder).change(ring.rotate)
    as_service("Keystore(folder=folder).change(ring.rotate)", folder)
    assert {path.stat().st_uid for path in folder.iterdir()} == {SERVICE}


def test_root_gives_no_other_users_file_away(folder: Path) -> None:
    """A file of root's that the service linked to the lock's name stays root's."""
    Keystore(folder=folder).create(publish_delay=0)
    secret = folder.parent / "secret"
    secret.write_bytes(b"root's")
    (folder / ".lock").unlink()
    os.link(secret, folder / ".lock")
    Keystore(folder=folder).change(ring.rotate)
    assert secret.stat().st_uid == 0


def test_service_writes_an_audit_file_that_root_began(folder: Path) -> None:
    """A command of root's that begins the audit file does not keep the service from writing it."""
    AuditFile(folder / "audit.jsonl").close()
    as_service("AuditFile(folder / 'audit.jsonl').close()", folder)
    assert (folder / "audit.jsonl").stat().st_uid == SERVICE
