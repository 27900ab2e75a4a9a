"""The claims of a poll on a real Kafka and a real Redis: round trips are counted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from integration.chaos.kafka_scene import scene
from integration.services import Kafka, Redis
from mqauth.replay.rules import ClaimRequest, ClaimStatus
from mqauth.stores.redis import RedisReplayStore


class Counting(RedisReplayStore):
    """Counts its claims."""

    batches: list[int]

    def claim(self, request: ClaimRequest, /) -> ClaimStatus:
        """Claim one."""
        self.batches.append(1)
        return super().claim(request)

    def claim_many(self, requests: Sequence[ClaimRequest], /) -> list[ClaimStatus]:
        """Claim each."""
        self.batches.append(len(requests))
        return super().claim_many(requests)


def test_one_round_trip_for_a_batch(kafka: Kafka, redis: Redis, tmp_path: Path) -> None:
    """A thousand records of a partition, read by polls of 500, cost a claim a poll; none is handled twice."""
    with scene(kafka.url, tmp_path, partitions=1) as row, row.audit_file() as audit:
        row.send(1000)
        store = Counting.from_url(redis.url, namespace=row.name)
        assert isinstance(store, Counting)
        row.keep(store)
        store.batches = []
        with row.consumer(row.guard(audit, store)) as consumer:
            row.done(consumer)
        assert sum(store.batches) == 1000
        assert len(store.batches) <= 10  # a poll may return fewer than it might
        assert sorted(row.handled) == sorted(row.honest)
        assert row.letters() == []
