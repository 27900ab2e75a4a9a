"""Apache Kafka >= 4 in KRaft mode: from a URL, from Docker Compose, or from Maven Central on Java 17+."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from integration.services import probes
from integration.services.compose import ComposeService
from integration.services.handle import Service, from_environment, require_4
from integration.services.local import LocalServer
from integration.services.machine import (
    LOOPBACK,
    CommandError,
    Port,
    UnavailableError,
    docker_answers,
    fetched,
    install,
    run,
)

VARIABLE = "MQAUTH_KAFKA_URL"
VERSION_VARIABLE = "MQAUTH_KAFKA_VERSION"
"""Names another release of the broker than `pom.xml`, `4.0.0` for example."""
STANDARD_PORT = 9092
_SETTINGS, LOG4J = "server.properties", "log4j2.properties"
_DATA, _CLASSES = "data", "classes.jsa"
_POM = Path(__file__).resolve().parents[1] / "pom.xml"
_OLDEST_JAVA = 17
_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
_COPY_ONE = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"
_COPY_WITHIN = 900.0
# Few partitions: the first group join creates them all. A short broker session: a killed broker is let back
# in only after its old session has run out. A broker alone writes no empty records of metadata, which only tell
# others how far it is: with them, and a heartbeat each half a second, one that nobody uses takes twice the CPU.
_SERVER = """\
process.roles=broker,controller
node.id={node}
controller.quorum.voters={voters}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller}
advertised.listeners=PLAINTEXT://{host}:{port}
log.dirs={folder}/data
auto.create.topics.enable=false
default.replication.factor={replicas}
min.insync.replicas={in_sync}
offsets.topic.replication.factor={replicas}
offsets.topic.num.partitions=4
transaction.state.log.replication.factor={replicas}
transaction.state.log.min.isr={in_sync}
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor={replicas}
share.coordinator.state.topic.min.isr={in_sync}
share.coordinator.state.topic.num.partitions=4
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
metadata.max.idle.interval.ms={idle}
broker.heartbeat.interval.ms=1000
broker.session.timeout.ms={session}
"""
_SESSION = 3000
_SESSION_OF_SEVERAL = 6000  # brokers that share two cores miss a heartbeat now and then
LOGGING = """\
rootLogger.level=info
rootLogger.appenderRef.console.ref=console
appender.console.type=Console
appender.console.name=console
appender.console.layout.type=PatternLayout
appender.console.layout.pattern=%d{ISO8601} %p %m (%c)%n
logger.settings.name=org.apache.kafka.common.config.AbstractConfig
logger.settings.level=warn
"""


@dataclass(frozen=True, kw_only=True)
class Kafka(Service):
    """A running Apache Kafka."""

    ask = staticmethod(probes.kafka)

    @property
    def bootstrap(self) -> str:
        """The `host:port` that clients take as their bootstrap server."""
        return self.url.removeprefix("kafka://").rstrip("/")

    @classmethod
    def launch(cls) -> Kafka:
        """Start one and return its handle."""
        return cls.begin()()

    @classmethod
    def begin(cls) -> Callable[[], Kafka]:
        """Start one without waiting; the function returned waits until it is ready."""
        given = from_environment(VARIABLE)
        if given:
            return lambda: _checked(cls.ready(*given))
        port = Port(STANDARD_PORT)
        url = f"kafka://{LOOPBACK}:{port.number}"
        if docker_answers():
            container = ComposeService(
                "kafka", env={"MQAUTH_KAFKA_PORT": str(port.number)}, ports=[port]
            )
            container.start()
            return lambda: _checked(
                cls.ready(url, container, _numeric(container.image_tag()))
            )
        (server,), version = local_brokers([port])
        server.start()
        return lambda: _checked(cls.ready(url, server, version))


def prepare() -> None:
    """Install and fetch what a Kafka needs here."""
    if not os.environ.get(VARIABLE) and not docker_answers():
        java()
        _first_start(jars_of(_POM))


def _checked(handle: Kafka) -> Kafka:
    require_4("Apache Kafka", handle.version)
    require_4("Apache Kafka", handle.probe())
    return handle


def _numeric(tag: str) -> str | None:
    return tag if re.match(r"\d+\.", tag) else None


@cache
def java() -> str:
    """Return the java command, of version 17 or newer."""
    found = _java_version()
    if found < _OLDEST_JAVA:
        install(
            "default-jre-headless",
            why=f"Apache Kafka runs on Java {_OLDEST_JAVA} or newer",
        )
        found = _java_version()
    if found < _OLDEST_JAVA:
        raise UnavailableError(
            f"Apache Kafka needs Java {_OLDEST_JAVA} or newer, `java` here is {found or 'missing'}:"
            " install openjdk-17-jre-headless or newer and put it first on PATH"
        )
    return "java"


def _java_version() -> int:
    try:
        found = re.search(r'version "(\d+)', run(["java", "-version"], timeout=60))
    except CommandError:
        return 0
    return int(found[1]) if found else 0


def jars_of(pom: Path) -> Path:
    """Return the folder with the jars that a pom.xml names, copied there on first use."""
    kind = "kafka" if pom == _POM else pom.stem.removeprefix("pom-")
    wanted = (
        [f"-Dkafka.version={version}"]
        if (version := os.environ.get(VERSION_VARIABLE))
        else []
    )
    digest = hashlib.sha256(pom.read_bytes() + "".join(wanted).encode()).hexdigest()

    def copy(folder: Path) -> None:
        _maven("Apache Kafka")
        scope = ("-DincludeScope=runtime", f"-DoutputDirectory={folder}")
        run(
            ["mvn", "-B", "-q", "-f", str(pom), *wanted, _COPY, *scope],
            timeout=_COPY_WITHIN,
        )

    return fetched(f"{kind}-{digest[:16]}", copy, what="Apache Kafka from Maven Central")


def copied(artifact: str, folder: Path, *, why: str) -> None:
    """Copy one artifact of Maven Central into a folder.

    Args:
        artifact: its group, name, version and packaging, with colons between them.
        folder: where to.
        why: what it is for, in errors.
    """
    _maven(why)
    try:
        run(
            ["mvn", "-B", "-q", _COPY_ONE, f"-Dartifact={artifact}", f"-DoutputDirectory={folder}"],
            timeout=_COPY_WITHIN,
        )  # fmt: skip
    except CommandError as failed:
        raise UnavailableError(
            f"{why}: Maven Central gave no artifact\n{failed}"
        ) from failed


def _maven(why: str) -> None:
    if not shutil.which("mvn"):
        install("maven", why=f"{why} comes from Maven Central")


def _version_of(jars: Path) -> str:
    (server,) = jars.glob("kafka_2.13-*.jar")
    return server.stem.partition("-")[2]


def local_brokers(ports: Sequence[Port]) -> tuple[list[LocalServer], str]:
    """Return the brokers of one cluster, formatted and not started yet, and their version.

    Args:
        ports: of their clients, one for each broker.
    """
    jars = jars_of(_POM)
    first = _first_start(jars)
    options = [f"-XX:SharedArchiveFile={first / _CLASSES}"]
    controllers = [Port() for _ in ports]
    voters = ",".join(
        f"{node}@{LOOPBACK}:{port.number}" for node, port in enumerate(controllers, 1)
    )
    cluster, brokers = _new_id(), []
    for node, own in enumerate(zip(ports, controllers, strict=True), 1):
        broker = _broker(node, own, voters, len(ports), jars=jars, options=options)
        brokers.append(broker)
        shutil.copytree(first / _DATA, broker.folder / _DATA)
        ids = (
            f"version=1\ncluster.id={cluster}\nnode.id={node}\ndirectory.id={_new_id()}\n"
        )
        (broker.folder / _DATA / "meta.properties").write_text(ids)
    return brokers, _version_of(jars)


def _first_start(jars: Path) -> Path:
    """Return a folder with what a broker starts from: formatted data, and Java's archive of the classes it loads.

    It is made once, by a broker that is formatted, started and stopped. A broker takes 3.6 s of CPU until it
    answers where it is formatted by Kafka's own tool, and has no such archive; otherwise 1.4 s.
    """

    def make(folder: Path) -> None:
        port, controller = Port(), Port()
        voters = f"1@{LOOPBACK}:{controller.number}"
        options = [f"-XX:ArchiveClassesAtExit={folder / _CLASSES}"]
        with closing(
            _broker(1, (port, controller), voters, 1, jars=jars, options=options)
        ) as broker:
            tool = [*java_words(broker.folder, jars), "kafka.tools.StorageTool", "format"]
            run(
                [*tool, "-t", _new_id(), "-c", str(broker.folder / _SETTINGS)],
                timeout=120,
            )
            shutil.copytree(broker.folder / _DATA, folder / _DATA)
            broker.start()
            Kafka.ready(f"kafka://{LOOPBACK}:{port.number}", broker, _version_of(jars))
            broker.stop()

    return fetched(f"{jars.name}-start", make, what="what Apache Kafka starts from")


def _new_id() -> str:
    """Return an id as Kafka writes them; the first byte is zero, since its tool takes "-" for an option."""
    return (
        base64.urlsafe_b64encode(bytes(1) + secrets.token_bytes(15)).decode().rstrip("=")
    )


def _broker(
    node: int,
    ports: tuple[Port, Port],
    voters: str,
    size: int,
    *,
    jars: Path,
    options: Sequence[str],
) -> LocalServer:
    """Return a broker of a cluster of some size, which is not formatted yet."""
    folder = Path(tempfile.mkdtemp(prefix="mqauth-kafka-"))
    own, controller = ports
    settings = _SERVER.format(
        host=LOOPBACK, node=node, voters=voters, port=own.number, controller=controller.number, folder=folder,
        replicas=size, in_sync=size // 2 + 1, session=_SESSION if size == 1 else _SESSION_OF_SEVERAL,
        idle=0 if size == 1 else 500,
    )  # fmt: skip
    (folder / _SETTINGS).write_text(settings)
    (folder / LOG4J).write_text(LOGGING)
    return LocalServer(
        origin=f"Maven Central, in {jars.parent}",
        commands=[
            [*java_words(folder, jars, *options), "kafka.Kafka", str(folder / _SETTINGS)]
        ],
        env=os.environ,
        folder=folder,
        ports=ports,
    )


def java_words(folder: Path, jars: Path, *options: str) -> list[str]:
    """Return the start of a command that runs a class of Kafka's; the folder has its settings of the log."""
    return [java(), "-Xmx512m", "-XX:+UseSerialGC", "-Xshare:auto", *options, "-Djava.awt.headless=true",
            f"-Dlog4j2.configurationFile={folder / LOG4J}", "-cp", f"{jars}/*"]  # fmt: skip
