"""Several servers that are one service: each can be stopped, killed and paused by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Self, TypeVar

from integration.services.handle import Service

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
