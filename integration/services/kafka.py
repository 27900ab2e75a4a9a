"""Apache Kafka >= 4, one KRaft node: from a URL, from Docker Compose, or from Maven Central on Java 17+."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from integration.services import probes
from integration.services.compose import ComposeService
from integration.services.control import Control
from integration.services.handle import Service, from_environment, require_4
from integration.services.local import LocalServer
from integration.services.machine import (
    LOOPBACK,
    CommandError,
    Port,
    UnavailableError,
    cache_folder,
    docker_answers,
    install,
    locked,
    run,
    say,
)

VARIABLE = "MQAUTH_KAFKA_URL"
STANDARD_PORT = 9092
_POM = Path(__file__).resolve().parents[1] / "pom.xml"
_OLDEST_JAVA = 17
_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
_COPY_WITHIN = 900.0
# Few partitions: the first group join creates them all. A short broker session: a killed broker is let back
# in only after its old session has run out.
_SERVER = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller}
advertised.listeners=PLAINTEXT://{host}:{port}
log.dirs={folder}/data
auto.create.topics.enable=false
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=4
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=1500
"""
_LOGGING = """\
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
            container = ComposeService("kafka", env={"MQAUTH_KAFKA_PORT": str(port.number)}, ports=[port])
            container.start()
            return lambda: _checked(cls.ready(url, container, _numeric(container.image_tag())))
        jars = _jars()
        server = _local(port, jars)
        server.start()
        return lambda: _checked(cls.ready(url, server, _version_of(jars)))


def prepare() -> None:
    """Install and fetch what a Kafka needs here."""
    if not os.environ.get(VARIABLE) and not docker_answers():
        _java()
        _jars()


def _checked(handle: Kafka) -> Kafka:
    require_4("Apache Kafka", handle.version)
    require_4("Apache Kafka", handle.probe())
    return handle


def _numeric(tag: str) -> str | None:
    return tag if re.match(r"\d+\.", tag) else None


def _java() -> str:
    """Return the java command, of version 17 or newer."""
    if _java_version() < _OLDEST_JAVA:
        install("default-jre-headless", why=f"Apache Kafka runs on Java {_OLDEST_JAVA} or newer")
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


def _jars() -> Path:
    """Return the folder with the jars that pom.xml names, copied there on first use."""
    folder = cache_folder() / f"kafka-{hashlib.sha256(_POM.read_bytes()).hexdigest()[:16]}"
    with locked(folder.name):
        if folder.is_dir():
            return folder
        if not shutil.which("mvn"):
            install("maven", why="Apache Kafka comes from Maven Central")
        copying = Path(tempfile.mkdtemp(prefix="kafka-", suffix=".copy", dir=folder.parent))
        say(f"copying Apache Kafka to {folder.parent}: once")
        try:
            run(
                ["mvn", "-B", "-q", "-f", str(_POM), _COPY, "-DincludeScope=runtime",
                 f"-DoutputDirectory={copying}"],
                timeout=_COPY_WITHIN,
            )  # fmt: skip
            copying.rename(folder)
        except CommandError as failed:
            shutil.rmtree(copying)
            raise UnavailableError(f"Apache Kafka: Maven Central gave no artifacts\n{failed}") from failed
        except BaseException:
            shutil.rmtree(copying)
            raise
    return folder


def _version_of(jars: Path) -> str:
    (server,) = jars.glob("kafka_2.13-*.jar")
    return server.stem.partition("-")[2]


def _local(port: Port, jars: Path) -> LocalServer:
    java = _java()
    controller = Port()
    folder = Path(tempfile.mkdtemp(prefix="mqauth-kafka-"))
    settings = folder / "server.properties"
    settings.write_text(
        _SERVER.format(host=LOOPBACK, port=port.number, controller=controller.number, folder=folder)
    )
    (folder / "log4j2.properties").write_text(_LOGGING)
    words = [java, "-Xmx512m", "-XX:+UseSerialGC", "-Xshare:auto", "-Djava.awt.headless=true",
             f"-Dlog4j2.configurationFile={folder / 'log4j2.properties'}", "-cp", f"{jars}/*"]  # fmt: skip
    server = LocalServer(
        origin=f"Maven Central, in {jars.parent}",
        commands=[[*words, "kafka.Kafka", str(settings)]],
        env=os.environ,
        folder=folder,
        ports=[port, controller],
    )
    _format(words, settings, server)
    return server


def _format(words: list[str], settings: Path, server: Control) -> None:
    cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    java, *rest = words
    try:
        run(
            [java, "-XX:TieredStopAtLevel=1", *rest,
             "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(settings)],
            timeout=120,
        )  # fmt: skip
    except BaseException:
        server.close()
        raise
