"""A Debian 13 root in the user's cache, for a RabbitMQ 4 or a Valkey that Debian 12 does not package."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from integration.services.machine import (
    CommandError,
    UnavailableError,
    cache_folder,
    install,
    is_root,
    locked,
    run,
    say,
    update_package_lists,
)

SUITE_VARIABLE = "MQAUTH_DEBIAN_SUITE"
"""Names another suite, `sid` for example, to try another RabbitMQ or Valkey than the supported one."""
SUITE = os.environ.get(SUITE_VARIABLE) or "trixie"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_BUILD_WITHIN = 1800.0
_PRIVATE = ("unshare", "--mount", "--propagation", "private")  # mounts end with the process: none is left
_IN_USER_NAMESPACE = (*_PRIVATE, "--user", "--map-root-user", "--map-auto")
_WITH_PROC = 'mount --rbind /proc "$0/proc" && exec chroot "$0" "$@"'


def root_with(package: str) -> Path:
    """Return a root folder with a package, built on first use; a build that fails leaves nothing behind."""
    root = cache_folder() / f"debian-{SUITE}-{package.removesuffix('-server')}"
    with locked(root.name):
        if root.is_dir():
            return root
        for left in root.parent.glob(f"{root.name}.*.build"):  # of a run that was killed
            _remove(left)
        if not shutil.which("apt-get"):
            raise UnavailableError(
                f"install {package} (RabbitMQ from 4 on), or Docker, or name a server by its URL"
            )
        _namespace()
        if not shutil.which("debootstrap"):
            install("debootstrap", why=f"{package} from Debian {SUITE}")
        if not _KEYRING.exists():
            install("debian-archive-keyring", why="the keys that Debian's archive is signed with")
        building = Path(tempfile.mkdtemp(prefix=f"{root.name}.", suffix=".build", dir=root.parent))
        try:
            _build(building, package)
            building.rename(root)
        except BaseException:
            _remove(building)
            raise
    return root


def _build(folder: Path, package: str) -> None:
    say(f"building a Debian {SUITE} root with {package} in {folder.parent}: once, about a minute")
    folder.chmod(0o755)
    argv = [
        *(_namespace() or ()), "debootstrap", "--variant=minbase", f"--keyring={_KEYRING}",
        f"--include={package}", SUITE, str(folder), _mirror(),
    ]  # fmt: skip
    try:
        try:
            _debootstrap(argv)
        except CommandError as failed:
            if "unknown key" not in str(failed) or not is_root():
                raise
            install("debian-archive-keyring", why=f"the keys of Debian {SUITE}")
            _debootstrap(argv)
    except CommandError as failed:
        raise UnavailableError(f"{package}: no Debian {SUITE} root could be built\n{failed}") from failed
    (folder / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
    shutil.rmtree(folder / "var/cache/apt", ignore_errors=True)
    shutil.rmtree(folder / "var/lib/apt/lists", ignore_errors=True)


def _debootstrap(argv: list[str]) -> None:
    env = dict(os.environ)
    if not is_root():
        env["container"] = "lxc"  # makes it bind device files instead of creating them
    run(argv, timeout=_BUILD_WITHIN, env=env)


def chroot(root: Path) -> list[str]:
    """Return the command words that run the next ones inside a root."""
    namespace = _namespace()
    if namespace is None:  # root in a container that may not mount: RabbitMQ runs without /proc too
        return ["chroot", str(root)]
    return [*namespace, "sh", "-c", _WITH_PROC, str(root)]


@cache
def _namespace() -> tuple[str, ...] | None:
    """Return how to get a mount namespace of one's own here; None for root without one."""
    wanted = _PRIVATE if is_root() else _IN_USER_NAMESPACE
    try:
        run([*wanted, "true"], timeout=20)
    except CommandError as refused:
        if is_root():
            return None
        raise UnavailableError(
            f"a Debian {SUITE} root needs root, or user namespaces"
            " (the packages util-linux and uidmap, and ranges for this user in /etc/subuid and /etc/subgid):"
            f" run as root, or install those, or the server itself, or Docker\n{refused}"
        ) from refused
    return wanted


def _mirror() -> str:
    """Return the archive that this machine's own apt uses for Debian."""
    found = _archives()
    if not found and is_root():
        update_package_lists()
        found = _archives()
    if not found:
        raise UnavailableError(
            f"apt names no Debian archive to take Debian {SUITE} from: install the server itself, or Docker"
        )
    return found[0]


def _archives() -> list[str]:
    fields = ["apt-get", "indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)", "Created-By: Packages"]
    lines = [line.split("|", 2) for line in run(fields, timeout=60, stderr=False).splitlines()]
    return [uri for origin, label, uri in lines if origin == label == "Debian"]


def _remove(folder: Path) -> None:
    """Remove a half-built root, with files of other owners where it was built in a user namespace."""
    if is_root():
        shutil.rmtree(folder, ignore_errors=True)
        return
    subprocess.run([*_IN_USER_NAMESPACE, "rm", "-rf", "--", str(folder)], check=False)
