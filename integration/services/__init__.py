"""Handles of real RabbitMQ, Kafka and Redis: `launch()` one, or `launch_all()`."""

from __future__ import annotations

from dataclasses import dataclass

from integration.services import kafka, rabbitmq, redis
from integration.services.control import NotOursError
from integration.services.handle import Service
from integration.services.kafka import Kafka
from integration.services.machine import CommandError, UnavailableError
from integration.services.probes import NotReadyError
from integration.services.rabbitmq import RabbitMQ
from integration.services.redis import Redis

__all__ = [
    "CommandError", "Kafka", "NotOursError", "NotReadyError", "RabbitMQ", "Redis", "Running", "Service",
    "UnavailableError", "launch_all", "prepare_all",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Running:
    """The three services, each ready."""

    rabbitmq: RabbitMQ
    kafka: Kafka
    redis: Redis

    def environment(self) -> dict[str, str]:
        """Return the variables that make other processes use these services."""
        return {
            rabbitmq.VARIABLE: self.rabbitmq.url,
            kafka.VARIABLE: self.kafka.url,
            redis.VARIABLE: self.redis.url,
        }

    def lines(self) -> list[str]:
        """Return a line for each service: version, address and where it comes from."""
        named = [
            ("RabbitMQ", self.rabbitmq),
            ("Apache Kafka", self.kafka),
            ("Redis", self.redis),
        ]
        return [
            f"{name} {service.version} at {service.url} ({service.origin})"
            for name, service in named
        ]


def prepare_all() -> None:
    """Install, fetch and build whatever the services need here."""
    for module in (redis, kafka, rabbitmq):
        module.prepare()


def launch_all() -> Running:
    """Start the three services side by side and return when all are ready."""
    rabbitmq_ready, kafka_ready, redis_ready = (
        RabbitMQ.begin(),
        Kafka.begin(),
        Redis.begin(),
    )
    return Running(redis=redis_ready(), kafka=kafka_ready(), rabbitmq=rabbitmq_ready())
