"""Scale on Kafka with partitions assigned by hand: bare, ``workers=0``, the default; one process, two.

``python -m integration.benchmarks.scale_kafka_hand kafka://127.0.0.1:9092 5``: rounds alternate, and medians of
ratios within a round are told, since a shared machine moves the rates.
"""

from __future__ import annotations

import sys
import uuid
from collections import defaultdict
from statistics import median
from typing import Any, Final

from kafka import KafkaConsumer, TopicPartition

from integration.benchmarks.client.rounds import Stopwatch
from integration.benchmarks.client.workload import Refusals, RoundEnd, Tally
from integration.benchmarks.scale_kafka import Topic, _pipeline
from integration.benchmarks.scale_world import PATIENCE, Say, _together, cpu_us
from mqauth import Allow, Key
from mqauth.brokers import kafka
from mqauth.testing.forge import SUBJECT
from mqauth.testing.stage_kafka import servers
from mqauth.wire.destination import kafka as destination

PARTITIONS: Final = 4
RECORDS: Final = 24_576
PROCESSES: Final = (1, 2)
WAYS: Final[dict[str, dict[str, int] | None]] = {"bare": None, "workers=0": {"workers": 0}, "default": {}}
Told = tuple[str, str, int, bytes, int]


def by_hand(address: str, rounds: int, say: Say) -> dict[str, float]:
    """Return the default's rate to ``workers=0``'s, and of each way two processes' rate to one's.

    Args:
        address: ``host:port``.
        rounds: how many, each of every way with one process and with two.
        say: is told of each round.
    """
    rates: dict[tuple[str, int], list[float]] = defaultdict(list)
    with Topic(address, PARTITIONS, RECORDS) as topic:
        for number in range(rounds):
            for processes in PROCESSES:
                for way in WAYS:
                    found = _together(processes, _consuming, (way, topic.told))
                    rate = sum(one.messages for one in found) / max(one.wall for one in found)
                    rates[way, processes].append(rate)
                    say(f"round {number}, {processes} x {way}: {rate:.0f}/s, {cpu_us(found)} us CPU each")
    return _ratios(rates)


def _ratios(rates: dict[tuple[str, int], list[float]]) -> dict[str, float]:
    """Return medians of ratios within rounds."""

    def ratio(one: tuple[str, int], other: tuple[str, int]) -> float:
        return round(median(a / b for a, b in zip(rates[one], rates[other], strict=True)), 2)

    against = {f"default to workers=0, {n} x": ratio(("default", n), ("workers=0", n)) for n in PROCESSES}
    return against | {f"two to one, {way}": ratio((way, 2), (way, 1)) for way in WAYS}


def _consuming(barrier: Any, results: Any, members: int, way: str, told: Told) -> None:
    """Consume one process's share of the partitions, one way."""
    address, name, partitions, pem, _ = told
    number = barrier.wait(PATIENCE)
    client: Any = KafkaConsumer(
        bootstrap_servers=address, group_id=f"{name}.{uuid.uuid4().hex[:8]}", enable_auto_commit=False,
        auto_offset_reset="earliest",
    )  # fmt: skip
    places = [TopicPartition(name, one) for one in range(partitions) if one % members == number]
    client.assign(places)
    client.poll(timeout_ms=2000, max_records=1)
    share = sum(client.end_offsets(places).values())
    for place in places:
        client.seek(place, 0)
    watch = Stopwatch()
    ended = RoundEnd(lambda: watch.stop(share))
    tally = Tally(share, ended.set)
    settings = WAYS[way]
    barrier.wait(PATIENCE)
    watch.start()
    if settings is None:
        _bare(client, tally, ended)
    else:
        _ours(client, tally, ended, (pem, name), settings)
    client.close()
    results.put(ended.measured())


def _bare(client: Any, tally: Tally, ended: RoundEnd) -> None:
    """Consume as users of kafka-python do."""
    while not ended.is_set():
        for records in client.poll(timeout_ms=200).values():
            for record in records:
                tally(record.value)
        client.commit()


def _ours(client: Any, tally: Tally, ended: RoundEnd, told: tuple[bytes, str], settings: Any) -> None:
    """Consume through the wrapper."""
    pem, name = told
    guard = _pipeline(Key.from_pem(pem), Allow({SUBJECT: [destination(name)]}))
    refusals = Refusals(lambda reason: ended.fail(f"refused as {reason}"))
    with kafka.Consumer(client, guard, lambda verified: tally(verified.body), dead_letters=refusals, **settings):
        ended.wait()


def main() -> None:
    """Measure, and print."""
    url, rounds = sys.argv[1], int(sys.argv[2])
    say: Say = print
    for what, ratio in by_hand(servers(url)[0], rounds, say).items():
        say(f"{what}: {ratio}")


if __name__ == "__main__":
    main()
