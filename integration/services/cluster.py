"""Several brokers as one cluster: RabbitMQ's nodes, and Kafka's."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Final, Generic, Self, TypeVar

from integration.services.handle import Service
from integration.services.kafka import Kafka, local_brokers
from integration.services.links import Links
from integration.services.machine import LOOPBACK, Port
from integration.services.rabbitmq import Identity, RabbitMQ, local_node

S = TypeVar("S", bound=Service)


class Cluster(Generic[S]):
    """The nodes of a cluster of ours.

    Args:
        nodes: each running.
    """

    def __init__(self, nodes: Sequence[S]) -> None:
        self.nodes = tuple(nodes)

    @property
    def running(self) -> S:
        """The first node that runs."""
        return next(node for node in self.nodes if not node.control.ended())

    def others(self, *but: S) -> list[S]:
        """Return the nodes beside these."""
        return [node for node in self.nodes if all(node is not one for one in but)]

    def mend(self) -> None:
        """Have every node run again."""
        for node in self.nodes:
            node.control.start()
        for node in self.nodes:
            node.start()

    def close(self) -> None:
        """End the nodes for good and remove their data."""
        for node in self.nodes:
            node.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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
        found = next(
            each
            for each in described["partitions"]
            if each["partition_index"] == partition
        )
        return self.nodes[found["leader_id"] - 1]


TICK: Final = 8
"""Seconds after which a silent node counts as lost; RabbitMQ's default is 60."""
_HOST: Final = "localhost"


class RabbitMQCluster(Cluster[RabbitMQ]):
    """Three nodes, on each of which a quorum queue has a member.

    Args:
        nodes: by name, each running.
        links: between them.
    """

    def __init__(self, nodes: dict[str, RabbitMQ], links: Links) -> None:
        super().__init__([*nodes.values()])
        self._names = [*nodes]
        self._links = links

    @classmethod
    def launch(cls, *, extra_config: Sequence[str] = (), tick: int = TICK) -> Self:
        """Start a cluster and return it once all nodes are members.

        Args:
            extra_config: lines of rabbitmq.conf for each node.
            tick: seconds of ``net_ticktime``.
        """
        mark = secrets.token_hex(3)
        names = [f"mqauth-{mark}-{number}" for number in range(SIZE)]
        links = Links(names)
        with ExitStack() as stack:
            stack.callback(links.close)
            nodes = _start(
                names,
                links,
                [f"net_ticktime = {tick}", *_formation(names), *extra_config],
                stack,
            )
            next(iter(nodes.values())).ctl("await_online_nodes", str(SIZE))
            stack.pop_all()
        return cls(nodes, links)

    def name(self, node: RabbitMQ) -> str:
        """Return a node's name as `rabbitmqctl` shows it."""
        return f"{self._names[self.nodes.index(node)]}@{_HOST}"

    def leader(self, queue: str) -> RabbitMQ:
        """Return the node that leads a quorum queue, by what a node says that runs."""
        lines = self.running.ctl("--silent", "list_queues", "name", "leader").splitlines()
        leader = dict(line.split("\t") for line in lines if "\t" in line)[queue]
        return next(node for node in self.nodes if self.name(node) == leader)

    def cut(self, node: RabbitMQ) -> None:
        """Cut a node off from the others; clients still reach it."""
        self._links.cut(self._names[self.nodes.index(node)])

    def heal(self) -> None:
        """Join again what was cut."""
        self._links.heal()

    def mend(self) -> None:
        """Have every node run again, joined with the others."""
        self.heal()
        super().mend()
        self.running.ctl("await_online_nodes", str(len(self.nodes)))

    def close(self) -> None:
        """End the nodes and the network between them."""
        super().close()
        self._links.close()


def _formation(names: Sequence[str]) -> list[str]:
    """Return the settings that let nodes find each other when they start for the first time."""
    peers = "cluster_formation.classic_config.nodes"
    return [
        "cluster_formation.peer_discovery_backend = classic_config",
        *(f"{peers}.{number} = {name}@{_HOST}" for number, name in enumerate(names, 1)),
    ]


def _start(
    names: Sequence[str], links: Links, config: Sequence[str], stack: ExitStack
) -> dict[str, RabbitMQ]:
    """Start the nodes side by side, and return them once each answers; the stack closes them."""
    cookie = secrets.token_hex(16)
    started = []
    for name in names:
        port, distribution = Port(), links.ports[name]
        identity = Identity(
            name=name,
            cookie=cookie,
            epmd=links.epmd[name],
            distribution=distribution.number,
        )
        server = local_node(identity, [port, distribution], config)
        stack.callback(server.close)
        server.start()
        started.append((name, f"amqp://guest:guest@{LOOPBACK}:{port.number}/", server))
    return {name: RabbitMQ.ready(url, server) for name, url, server in started}
