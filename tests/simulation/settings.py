"""The settings of one seed: consumers, their configuration, and the load."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a simulated deployment is set up.

    Args:
        consumers: services that consume one queue.
        shared: whether they share a replay store; a single one may have its own, in memory.
        prefetch, hold, grace, coalesce: of ``Consumer``.
        lease: of ``Pipeline``, seconds.
        heartbeat: of the connections, seconds.
        declares: whether a consumer declares its queue, or looks for it passively, as the README does.
        asynchronous: whether handler, policy and audit are awaited.
        work: seconds of a handler's work.
        cleaning: seconds of a cancelled handler's clean-up.
        orders: how many are sent.
        spread: seconds in which they are sent.
        batch: of ``Producer``.
        lifetime: of tokens, seconds.
        hostile: messages that an attacker writes into the broker.
        stop: how a service is stopped.
        client: of the consumers.
    """

    consumers: int
    shared: bool
    prefetch: int
    hold: float
    grace: float
    coalesce: bool
    lease: float
    heartbeat: int
    declares: bool
    asynchronous: bool
    work: tuple[float, float]
    cleaning: float
    orders: int
    spread: float
    batch: int
    lifetime: int
    hostile: int
    stop: Literal["stop", "cancel", "leave"]
    client: str = "aio-pika"

    def on_pika(self) -> Settings:
        """Return the same for consumers on pika: plain handlers would need threads, and ``stop`` ends them."""
        return replace(self, client="pika", asynchronous=True, stop="stop")

    @classmethod
    def of(cls, seed: int) -> Settings:
        """Return the settings of a seed."""
        draw = random.Random(f"settings {seed}")
        shared = draw.random() < 0.7
        asynchronous = draw.random() < 0.75
        return cls(
            consumers=draw.choice((1, 2, 2, 3)) if shared else 1,
            shared=shared,
            prefetch=draw.choice((1, 1, 2, 5, 10, 10, 40)),
            hold=draw.choice((1.0, 2.0, 5.0, 60.0)),
            grace=draw.choice((1.0, 5.0, 30.0)),
            coalesce=draw.random() < 0.75,
            lease=draw.choice((15.0, 30.0, 60.0)),
            heartbeat=draw.choice((2, 4, 4, 10)),
            declares=draw.random() < 0.6,
            asynchronous=asynchronous,
            work=draw.choice(((0.0, 0.0), (0.001, 0.05), (0.05, 0.4), (0.5, 3.0)))
            if asynchronous
            else (0.0, 0.0),
            cleaning=draw.choice((0.0, 0.2, 3.0)),
            orders=draw.choice((10, 30, 60)),
            spread=draw.choice((5.0, 20.0, 60.0)),
            batch=draw.choice((1, 1, 8)),
            lifetime=draw.choice((3600, 3600, 3600, 120)),
            hostile=draw.choice((0, 0, 6, 15)),
            stop=draw.choice(("stop", "cancel", "leave")),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return them for a plan's file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Settings:
        """Return them as a plan's file has them."""
        return cls(
            **{
                name: tuple(value) if isinstance(value, list) else value
                for name, value in found.items()
            }
        )
