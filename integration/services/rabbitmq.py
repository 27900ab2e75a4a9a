"""RabbitMQ >= 4: from a URL, from Docker Compose, from the distribution, or from a Debian 13 root."""

from __future__ import annotations

import os
import re
import secrets
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from integration.services import debian, probes
from integration.services.compose import RUN_VARIABLE, ComposeService
from integration.services.handle import Service, from_environment, require_4
from integration.services.local import LocalServer
from integration.services.machine import (
    LOOPBACK,
    Port,
    debian_candidate,
    docker_answers,
    install,
)

VARIABLE = "MQAUTH_RABBITMQ_URL"
STANDARD_PORT = 5672
_SCRIPTS = "usr/lib/rabbitmq/bin"
# `allocated` needs no /proc, so the node also runs in a root where none can be mounted.
_CONFIG = """\
listeners.tcp.1 = {host}:{port}
log.console = true
log.console.level = info
log.file = false
vm_memory_calculation_strategy = allocated
"""
_STAMPED = Path(__file__).with_name("rabbitmq.conf").read_text("utf-8")
"""What `docker-compose.yml` gives the broker, too: its own stamp on each message."""


@dataclass(frozen=True, kw_only=True)
class RabbitMQ(Service):
    """A running RabbitMQ."""

    ask = staticmethod(probes.amqp)

    def ctl(self, *args: str) -> str:
        """Return what `rabbitmqctl` printed."""
        return self.control.execute("rabbitmqctl", *args)

    @classmethod
    def launch(
        cls, *, extra_config: Sequence[str] = (), plugin: str | None = None
    ) -> RabbitMQ:
        """Start one and return its handle; lines of rabbitmq.conf, or a plug-in, get it a broker of its own."""
        return cls.begin(extra_config=extra_config, plugin=plugin)()

    @classmethod
    def begin(
        cls, *, extra_config: Sequence[str] = (), plugin: str | None = None
    ) -> Callable[[], RabbitMQ]:
        """Start one without waiting; the function returned waits until it is ready."""
        given = None if extra_config or plugin else from_environment(VARIABLE)
        if given:
            url, control = given
            return lambda: _checked(cls.ready(url, control))
        port = Port(STANDARD_PORT)
        url = f"amqp://guest:guest@{LOOPBACK}:{port.number}/"
        in_docker = docker_answers()
        server = (
            _compose(port, extra_config)
            if in_docker
            else _local(port, extra_config, plugin)
        )
        server.start()

        def ready() -> RabbitMQ:
            found = _checked(cls.ready(url, server))
            if in_docker and plugin:
                server.execute("rabbitmq-plugins", "enable", plugin)
            return found

        return ready


def prepare() -> None:
    """Install or build what a RabbitMQ needs here."""
    if not os.environ.get(VARIABLE) and not docker_answers():
        _installed_root()


def _checked(handle: RabbitMQ) -> RabbitMQ:
    require_4("RabbitMQ", handle.version)
    return handle


def _compose(port: Port, extra_config: Sequence[str]) -> ComposeService:
    folder = Path(tempfile.mkdtemp(prefix="mqauth-rabbitmq-"))
    folder.chmod(0o755)  # the container's user reads it
    file = folder / "extra.conf"
    file.write_text(_STAMPED + "".join(f"{line}\n" for line in extra_config))
    env = {"MQAUTH_RABBITMQ_PORT": str(port.number), "MQAUTH_RABBITMQ_CONF": str(file)}
    return ComposeService("rabbitmq", env=env, ports=[port], folder=folder)


def _version_in(root: Path) -> tuple[int, ...]:
    """Return the version of the RabbitMQ installed under a root, empty for none."""
    found = [
        tuple(int(part) for part in match[1].split("."))
        for folder in (root / "usr/lib/rabbitmq/lib").glob("rabbitmq_server-*")
        if (match := re.search(r"-(\d+(?:\.\d+)+)$", folder.name))
    ]
    return max(found, default=())


@cache
def _installed_root() -> Path:
    """Return the root folder with a RabbitMQ >= 4: this machine's own, or one built for it."""
    host = Path("/")
    if os.environ.get(debian.SUITE_VARIABLE):
        return debian.root_with("rabbitmq-server")
    if _version_in(host) >= (4,):
        return host
    # Where a root is built already apt is not asked, which takes it most of a second.
    if not debian.place_of("rabbitmq-server").is_dir() and debian_candidate(
        "rabbitmq-server"
    ) >= (4,):
        install("rabbitmq-server", why="RabbitMQ >= 4")
        return host
    return debian.root_with("rabbitmq-server")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """How other Erlang nodes know a node.

    Args:
        name: without its host.
        cookie: the secret its cluster shares.
        epmd: port of the port mapper it asks.
        distribution: port that other nodes connect to.
    """

    name: str
    cookie: str
    epmd: int
    distribution: int


def _local(port: Port, extra_config: Sequence[str], plugin: str | None) -> LocalServer:
    epmd, distribution = Port(), Port()
    identity = Identity(
        name=f"mqauth-{epmd.number}", cookie=secrets.token_hex(16),
        epmd=epmd.number, distribution=distribution.number,
    )  # fmt: skip
    beside = [["epmd", "-address", LOOPBACK, "-port", str(epmd.number)]]
    return local_node(identity, [port, epmd, distribution], extra_config, beside, plugin)


def local_node(
    identity: Identity,
    ports: Sequence[Port],
    extra_config: Sequence[str],
    beside: Sequence[list[str]] = (),
    plugin: str | None = None,
) -> LocalServer:
    """Return a node that is not started yet.

    Args:
        identity: how other nodes know it.
        ports: that of its clients, and others to give back with it.
        extra_config: lines of rabbitmq.conf.
        beside: commands that run beside it.
        plugin: of the distribution, which is enabled.
    """
    root = _installed_root()
    inside_host = root == Path("/")
    words = [] if inside_host else debian.chroot(root)
    temporary = Path(tempfile.gettempdir()) if inside_host else root / "tmp"
    folder = Path(tempfile.mkdtemp(prefix="mqauth-rabbitmq-", dir=temporary))
    _write_settings(folder, ports[0], extra_config, identity.cookie)
    (folder / "enabled_plugins").write_text(f"[{plugin or ''}].\n")
    server = str(Path("/") / _SCRIPTS / "rabbitmq-server")
    return LocalServer(
        origin="this machine's packages"
        if inside_host
        else f"Debian {debian.SUITE} root in {root.parent}",
        commands=[[*words, *command] for command in (*beside, [server])],
        env=_environment(Path("/") / folder.relative_to(root), identity),
        folder=folder,
        ports=ports,
        tool=words,
    )


def _write_settings(
    folder: Path, port: Port, extra_config: Sequence[str], secret: str
) -> None:
    lines = _CONFIG.format(host=LOOPBACK, port=port.number) + _STAMPED
    (folder / "rabbitmq.conf").write_text(
        lines + "".join(f"{line}\n" for line in extra_config)
    )
    (folder / "env.conf").write_text("")
    cookie = folder / ".erlang.cookie"
    cookie.write_text(secret)
    cookie.chmod(0o400)


def _environment(folder: Path, identity: Identity) -> dict[str, str]:
    """Return the node's environment: nothing of it is shared with a RabbitMQ of the machine's."""
    return {
        "PATH": f"/{_SCRIPTS}:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "HOME": str(folder),
        "ERL_EPMD_ADDRESS": LOOPBACK,
        "ERL_EPMD_PORT": str(identity.epmd),
        "RABBITMQ_NODENAME": f"{identity.name}@localhost",
        "RABBITMQ_DIST_PORT": str(identity.distribution),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-noinput -kernel inet_dist_use_interface {127,0,0,1}",
        "RABBITMQ_CTL_ERL_ARGS": "+S 1:1",  # a tool that asks one question needs one scheduler
        "RABBITMQ_ALLOW_INPUT": "1",  # the script then becomes the server, which gets our signals itself
        "RABBITMQ_BASE": str(folder),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_CONF_ENV_FILE": str(folder / "env.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_FEATURE_FLAGS_FILE": str(folder / "feature_flags"),
        RUN_VARIABLE: os.environ.get(RUN_VARIABLE, ""),
    }
