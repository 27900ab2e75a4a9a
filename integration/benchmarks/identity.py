"""``python -m integration.benchmarks.identity``: the identity form beside the direct form, in this process.

CPU time of one message of 1 kB with five headers, single and in batches of 64, in alternating rounds; their
median. *Cold* is a consumer that has not seen the identity before: one more signature, and a key to load.
``python -m integration.benchmarks.client --identity`` measures on brokers.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Final

from mqauth.flow import run
from mqauth.judging.pipeline import Pipeline
from mqauth.replay.memory import MemoryReplayStore
from mqauth.signer import Signer
from mqauth.testing.clock import FakeClock
from mqauth.testing.forge import Forge
from mqauth.testing.identity import IdentityForge
from mqauth.wire.message import TOKEN_HEADER, Message

PLACE: Final = "kafka:bench"
NOW: Final = 1_900_000_000
BATCH: Final = 64
HEADERS: Final = tuple((f"header-{number}", b"value") for number in range(5))


def messages(count: int) -> list[Message]:
    """Return messages of 1 kB that all differ."""
    bodies = (b"%08d" % number + bytes(1016) for number in range(count))
    return [Message(destination=PLACE, body=body, key=body[:8], headers=HEADERS) for body in bodies]


def consumer(forge: Forge, clock: FakeClock) -> Pipeline:
    """Return a consumer that has seen nothing yet."""
    return Pipeline(
        verifier=forge.verifier(), policy=forge.policy(PLACE), replay=MemoryReplayStore(clock=clock),
        scope="bench", clock=clock,
    )  # fmt: skip


def judge(pipe: Pipeline, sealed: Sequence[Message]) -> None:
    """Judge messages, all of which must be accepted."""
    for message in sealed:
        delivery = pipe.receive(message)
        outcome = run(pipe.judge(delivery))
        if outcome.verified is None:
            raise SystemExit(f"an honest message was {outcome.verdict}: {outcome.reason}")


def cost(count: int, work: Callable[[], object]) -> float:
    """Return the CPU time of work on so many messages, microseconds a message."""
    begun = time.process_time()
    work()
    return (time.process_time() - begun) / count * 1e6


def one_round(forge: Forge, signer: Signer, clock: FakeClock, count: int) -> dict[str, float]:
    """Return what each operation took in one round."""
    bare, found = messages(count), dict[str, float]()
    single, batched = list[Message](), list[Message]()
    found["sign"] = cost(count, lambda: single.extend(map(signer.sign, bare)))
    found["sign, batches of 64"] = cost(
        count, lambda: [batched.extend(signer.sign_many(bare[at : at + BATCH])) for at in range(0, count, BATCH)]
    )
    pipe = consumer(forge, clock)
    judge(pipe, [signer.sign(message) for message in messages(8)])
    found["judge"] = cost(count, lambda: judge(pipe, single))
    found["judge, batches of 64"] = cost(count, lambda: judge(pipe, batched))
    fresh = [consumer(forge, clock) for _ in range(BATCH)]
    found["judge, cold"] = cost(
        BATCH, lambda: [judge(pipe, [message]) for pipe, message in zip(fresh, single, strict=False)]
    )
    return found


def sizes(signer: Signer) -> dict[str, int]:
    """Return the bytes of the token header, single and in a batch of 64."""
    sealed = signer.sign(messages(1)[0]), signer.sign_many(messages(BATCH))[BATCH // 2]
    found = [len(value) for message in sealed for name, value in message.headers if name == TOKEN_HEADER]
    return dict(zip(("header", "header, batch of 64"), found, strict=True))


def measured(rounds: int, count: int) -> dict[str, dict[str, float]]:
    """Return the medians of each form."""
    clock = FakeClock(NOW)
    forges: dict[str, Forge] = {
        "direct": Forge(clock), "identity": IdentityForge(clock),
        "identity ES256": IdentityForge(clock, algorithm="ES256"),
    }  # fmt: skip
    signers = {name: forge.signer() for name, forge in forges.items()}
    results: dict[str, list[dict[str, float]]] = {name: [] for name in forges}
    for _ in range(rounds):
        for name, forge in forges.items():
            results[name].append(one_round(forge, signers[name], clock, count))
    return {
        name: {key: round(median(each[key] for each in found), 1) for key in found[0]} | sizes(signers[name])
        for name, found in results.items()
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--count", type=int, default=1024)
    given = parser.parse_args()
    print(json.dumps(measured(given.rounds, given.count), indent=1))
