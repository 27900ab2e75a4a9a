"""MirrorMaker 2 from Maven Central: mirrors topics of a Kafka onto the same Kafka, under names with a prefix."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from integration.services.kafka import LOG4J, LOGGING, Kafka, jars_of, java_words
from integration.services.local import LocalServer

_POM = Path(__file__).resolve().parents[1] / "pom-mirror.xml"
PREFIX = "eu"
"""Name of the source; a mirrored topic is ``eu.TOPIC``."""
_SETTINGS = """\
clusters = {source}, here
{source}.bootstrap.servers = {servers}
here.bootstrap.servers = {servers}
{source}->here.enabled = true
{source}->here.topics = {topic}
here->{source}.enabled = false
replication.factor = 1
offset-syncs.topic.replication.factor = 1
heartbeats.topic.replication.factor = 1
checkpoints.topic.replication.factor = 1
offset.storage.replication.factor = 1
status.storage.replication.factor = 1
config.storage.replication.factor = 1
emit.heartbeats.enabled = false
emit.checkpoints.enabled = false
sync.topic.acls.enabled = false
sync.group.offsets.enabled = false
refresh.topics.interval.seconds = 1
tasks.max = 1
"""


@contextmanager
def mirroring(kafka: Kafka, topic: str) -> Iterator[LocalServer]:
    """Mirror a topic to ``eu.TOPIC`` while the block runs; it takes half a minute until the first record is there.

    Args:
        kafka: both clusters.
        topic: its name, exact.
    """
    folder = Path(tempfile.mkdtemp(prefix="mqauth-mirror-"))
    name = topic.replace(".", "\\\\.")
    (folder / "mm2.properties").write_text(_SETTINGS.format(source=PREFIX, servers=kafka.bootstrap, topic=name))
    (folder / LOG4J).write_text(LOGGING)
    words = [*java_words(folder, jars_of(_POM)), "org.apache.kafka.connect.mirror.MirrorMaker"]
    server = LocalServer(
        origin="Maven Central", commands=[[*words, str(folder / "mm2.properties")]], env=os.environ, folder=folder,
        ports=[],
    )  # fmt: skip
    server.start()
    try:
        yield server
    finally:
        server.close()
