"""Three Kafka brokers on loopback that are one KRaft cluster; they run as processes of ours."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Final, Self

from integration.services.cluster import Cluster
from integration.services.kafka import Kafka, local_brokers
from integration.services.machine import LOOPBACK, Port

SIZE: Final = 3


class KafkaCluster(Cluster[Kafka]):
    """Three brokers that are controllers too; each topic has a replica on each, of which two confirm."""

    @classmethod
    def launch(cls) -> Self:
        """Start a cluster and return it once every broker answers."""
        ports = [Port() for _ in range(SIZE)]
        servers, version = local_brokers(ports)
        with ExitStack() as stack:
            for server in servers:
                stack.callback(server.close)
            for server in servers:
                server.start()
            nodes = [
                Kafka.ready(f"kafka://{LOOPBACK}:{port.number}", server, version)
                for port, server in zip(ports, servers, strict=True)
            ]
            stack.pop_all()
        return cls(nodes)

    @property
    def url(self) -> str:
        """The URL that names every broker."""
        return "kafka://" + ",".join(node.bootstrap for node in self.nodes)

    def leader(self, admin: Any, topic: str, partition: int = 0) -> Kafka:
        """Return the broker that leads a partition, by what an admin client says."""
        (described,) = admin.describe_topics([topic])
        found = next(each for each in described["partitions"] if each["partition_index"] == partition)
        return self.nodes[found["leader_id"] - 1]
