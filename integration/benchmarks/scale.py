"""Does a message cost the same when there is more of everything.

More messages behind it, more producers and keys, larger JWK Sets, more partitions, a second process. Messages
are judged by the whole pipeline; those of the first question are in batches of 64, since there are many.
"""

from __future__ import annotations

import json
import math
import resource
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from integration.benchmarks.client.inprocess import PLACE, delivered, judge_all
from integration.benchmarks.client.rounds import Measured, Stopwatch
from integration.benchmarks.client.workload import (
    BATCH,
    LIFETIME,
    Refusals,
    Workload,
    guard,
)
from integration.benchmarks.scale_kafka import by_group, by_partitions
from integration.benchmarks.scale_world import (
    PATIENCE,
    Say,
    cpu_us,
    each_process,
    verifier_of,
)
from mqauth import Allow, Key, KeySet, Message, Signer
from mqauth.testing.forge import AUDIENCE, ISSUER, SUBJECT, Forge
from mqauth.wire.jwk import dump_key_set, load_key_set

PRODUCERS: Final = (1, 10, 100, 1000)
KEYS: Final = (10, 100, 1000, 10_000)
PARTITIONS: Final = (1, 4, 16, 64)
PROCESSES: Final = (1, 2)
_CHUNK: Final = 16 * BATCH
_JUDGED: Final = 1000
_ROUNDS: Final = 3


def by_messages(total: int, say: Say) -> list[dict[str, Any]]:
    """Return what a message costs after 10^3, 10^4, ... others, each stretch by itself; ids stay in memory."""
    forge, letters = Forge(lifetime=LIFETIME), Refusals()
    pipeline, signer = guard(forge, PLACE), forge.signer()
    plain, done, rows = [Workload().message(PLACE)] * BATCH, 0, list[dict[str, Any]]()
    for power in range(3, math.floor(math.log10(total)) + 1):
        signing, judging = list[Measured](), list[Measured]()
        while done < 10**power:
            sealed: list[Message] = []
            signing.append(
                _timed(lambda sealed=sealed: _seal(signer, plain, sealed), _CHUNK)
            )  # type: ignore[misc]
            waiting = [
                delivered(message, done + place) for place, message in enumerate(sealed)
            ]
            judging.append(
                _timed(
                    lambda waiting=waiting: judge_all(pipeline, waiting, letters), _CHUNK
                )
            )  # type: ignore[misc]
            done += _CHUNK
        rows.append({"messages": 10**power, "sign_us": cpu_us(signing), "verdict_us": cpu_us(judging),
                     "rss_mib": _rss()})  # fmt: skip
        say(f"scale: {rows[-1]}")
    letters.check()
    return rows


def _seal(signer: Signer, plain: list[Message], sealed: list[Message]) -> None:
    """Sign a chunk."""
    for _ in range(_CHUNK // BATCH):
        sealed += signer.sign_many(plain)


def by_producers(counts: Iterable[int], say: Say) -> list[dict[str, Any]]:
    """Return what a message costs when so many producers, each with a key, take turns."""
    rows = []
    for count in counts:
        keys = [Key.generate(subjects=[f"producer-{number}"]) for number in range(count)]
        signers = [_signer(key, f"producer-{number}") for number, key in enumerate(keys)]
        plain = Workload().message(PLACE)
        sealed = [signers[number % count].sign(plain) for number in range(_JUDGED)]
        waiting = [delivered(message, place) for place, message in enumerate(sealed)]
        policy = Allow({f"producer-{number}": [PLACE] for number in range(count)})
        rows.append(
            {"producers": count, "verdict_us": _verdicts(KeySet(keys), policy, waiting)}
        )
        say(f"scale: {rows[-1]}")
    return rows


def by_keys(counts: Iterable[int], say: Say) -> list[dict[str, Any]]:
    """Return what a JWK Set of so many keys costs to read, and a message whose key is its last."""
    rows = []
    for count in counts:
        keys = [Key.generate(subjects=[SUBJECT]) for _ in range(count)]
        document = dump_key_set(KeySet(keys))
        read = _timed(lambda document=document: load_key_set(document), 1)  # type: ignore[misc]
        signer = _signer(keys[-1], SUBJECT)
        waiting = [
            delivered(signer.sign(Workload().message(PLACE)), place)
            for place in range(_JUDGED)
        ]
        loaded = load_key_set(document)
        verdict = _verdicts(loaded, Allow({SUBJECT: [PLACE]}), waiting)
        rows.append({"keys": count, "document_kib": round(len(json.dumps(document)) / 1024, 1),
                     "read_ms": round(read.cpu * 1000, 2), "verdict_us": verdict})  # fmt: skip
        say(f"scale: {rows[-1]}")
    return rows


def by_processes(counts: Iterable[int], say: Say) -> list[dict[str, Any]]:
    """Return how many messages, each with a token of its own, so many processes judge a second together."""
    return each_process(counts, _judging, (), say, "processes")


def _judging(barrier: Any, results: Any, _members: int) -> None:
    """Judge messages in a process of its own."""
    forge, letters = Forge(lifetime=LIFETIME), Refusals()
    signer, plain = forge.signer(), Workload().message(PLACE)
    waiting = [delivered(signer.sign(plain), place) for place in range(4 * _JUDGED)]
    pipeline = guard(forge, PLACE)
    barrier.wait(PATIENCE)
    results.put(_timed(lambda: judge_all(pipeline, waiting, letters), len(waiting)))
    letters.check()


def _verdicts(keys: KeySet, policy: Allow, waiting: list[Message]) -> float:
    """Return the microseconds of a verdict."""
    rounds = []
    for _ in range(_ROUNDS):
        letters = Refusals()
        pipeline = guard(Forge(), PLACE, verifier=verifier_of(keys), policy=policy)
        rounds.append(_timed(lambda: judge_all(pipeline, waiting, letters), len(waiting)))  # noqa: B023 - at once
        letters.check()
    return cpu_us(rounds)


def _signer(key: Key, subject: str) -> Signer:
    """Return a producer's signer."""
    return Signer(
        key=key, issuer=ISSUER, subject=subject, audience=AUDIENCE, lifetime=LIFETIME
    )


def _timed(work: Callable[[], object], count: int) -> Measured:
    """Return how long one piece of work took."""
    watch = Stopwatch()
    watch.start()
    work()
    return watch.stop(count)


def _rss() -> float:
    """Return the memory this process holds now, MiB (proc(5))."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return round(pages * resource.getpagesize() / (1 << 20), 1)


def measure(address: str, *, messages: int, say: Say) -> dict[str, Any]:
    """Ask every question.

    Args:
        address: ``host:port`` of Kafka.
        messages: how many in all, in process.
        say: told each answer.
    """
    return {
        "messages": by_messages(messages, say), "producers": by_producers(PRODUCERS, say),
        "keys": by_keys(KEYS, say), "processes": by_processes(PROCESSES, say),
        "partitions": by_partitions(address, PARTITIONS, say), "group": by_group(address, PROCESSES, say),
    }  # fmt: skip
