"""Scale on Kafka with partitions assigned by hand: bare and ours, one process, two, four; without keys and with.

``python -m integration.benchmarks.scale_kafka_hand kafka://127.0.0.1:9092 5``: rounds alternate, and medians of
ratios within a round are told, since a shared machine moves the rates. A round takes a minute.
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
PROCESSES: Final = (1, 2, 4)
WAYS: Final = ("bare", "ours")
Told = tuple[str, str, int, bytes, int]


def by_hand(
    address: str, rounds: int, say: Say, *, keyed: bool, records: int = RECORDS
) -> dict[str, float]:
    """Return of each way the rate of several processes to that of one.

    Args:
        address: ``host:port``.
        rounds: how many, each of every way with each number of processes.
        say: is told of each round.
        keyed: whether the records have keys.
        records: how many.
    """
    rates: dict[tuple[str, int], list[float]] = defaultdict(list)
    with Topic(address, PARTITIONS, records, keyed=keyed) as topic:
        for number in range(rounds):
            for processes in PROCESSES:
                for way in WAYS:
                    found = _together(processes, _consuming, (way, topic.told))
                    rate = sum(one.messages for one in found) / max(
                        one.wall for one in found
                    )
                    rates[way, processes].append(rate)
                    say(
                        f"round {number}, {processes} x {way}: {rate:.0f}/s, {cpu_us(found)} us CPU each"
                    )
    return _ratios(rates)


def _ratios(rates: dict[tuple[str, int], list[float]]) -> dict[str, float]:
    """Return medians of ratios within rounds."""
    return {
        f"{count} to 1, {way}": round(
            median(a / b for a, b in zip(rates[way, count], rates[way, 1], strict=True)),
            2,
        )
        for way in WAYS
        for count in PROCESSES[1:]
    }


def _consuming(barrier: Any, results: Any, members: int, way: str, told: Told) -> None:
    """Consume one process's share of the partitions, one way."""
    address, name, partitions, pem, _ = told
    number = barrier.wait(PATIENCE)
    client: Any = KafkaConsumer(
        bootstrap_servers=address, group_id=f"{name}.{uuid.uuid4().hex[:8]}", enable_auto_commit=False,
        auto_offset_reset="earliest",
    )  # fmt: skip
    places = [
        TopicPartition(name, one) for one in range(partitions) if one % members == number
    ]
    client.assign(places)
    client.poll(timeout_ms=2000, max_records=1)
    share = sum(client.end_offsets(places).values())
    for place in places:
        client.seek(place, 0)
    watch = Stopwatch()
    ended = RoundEnd(lambda: watch.stop(share))
    tally = Tally(share, ended.set)
    barrier.wait(PATIENCE)
    watch.start()
    if way == "bare":
        _bare(client, tally, ended)
    else:
        _ours(client, tally, ended, (pem, name))
    client.close()
    results.put(ended.measured())


def _bare(client: Any, tally: Tally, ended: RoundEnd) -> None:
    """Consume as users of kafka-python do."""
    while not ended.is_set():
        for records in client.poll(timeout_ms=200).values():
            for record in records:
                tally(record.value)
        client.commit()


def _ours(client: Any, tally: Tally, ended: RoundEnd, told: tuple[bytes, str]) -> None:
    """Consume through the wrapper."""
    pem, name = told
    guard = _pipeline(Key.from_pem(pem), Allow({SUBJECT: [destination(name)]}))
    refusals = Refusals(lambda reason: ended.fail(f"refused as {reason}"))
    with kafka.Consumer(
        client, guard, lambda verified: tally(verified.body), dead_letters=refusals
    ):
        ended.wait()


def main() -> None:
    """Measure, and print."""
    url, rounds = sys.argv[1], int(sys.argv[2])
    say: Say = print
    for keyed in (False, True):
        for what, ratio in by_hand(servers(url)[0], rounds, say, keyed=keyed).items():
            say(f"{'keyed' if keyed else 'keyless'}, {what}: {ratio}")


if __name__ == "__main__":
    main()
