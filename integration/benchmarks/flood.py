"""``python -m integration.benchmarks.flood``: a consumer under forged batch tokens, its time and memory.

Every forged token is another one, well formed, of a known issuer and key, and differs from an honest one in
its id; so each costs a signature check, the dearest way to be refused. Honest siblings of one batch are judged
before, amid and after the flood: their token must still be remembered, or the attacker has pushed it out.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, Final

from integration.benchmarks.client.inprocess import PLACE, delivered
from integration.benchmarks.client.rounds import Measured, Spread, Stopwatch
from integration.benchmarks.client.workload import BATCH, LIFETIME, Workload
from mqauth import MemoryReplayStore, Message, Pipeline, Verdict
from mqauth.audit.record import AuditRecord
from mqauth.flow import run
from mqauth.letters.dead_letter import DeadLetter
from mqauth.testing.forge import Forge
from mqauth.wire import base64url
from mqauth.wire.message import TOKEN_HEADER

TOKENS: Final = 100_000
_HONEST: Final = 20
_STRETCH: Final = 500
_STRETCHES: Final = 10


class Counted:
    """Audit sink and dead-letter sink that keep a count."""

    name = "counted"

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()

    def write(self, _record: AuditRecord, /) -> None:
        """Take an audit record."""

    def publish(self, letter: DeadLetter, /) -> None:
        """Count a letter by its reason."""
        self.reasons[str(letter.rejection.reason)] += 1


def flood(
    tokens: int = TOKENS,
    *,
    stretch: int = _STRETCH,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Judge so many forged tokens, and return what it cost.

    Args:
        tokens: how many, rounded up to whole stretches, ten at least.
        stretch: how many are timed together.
        say: told how it goes.
    """
    forge, sink = Forge(lifetime=LIFETIME), Counted()
    guard = Pipeline(
        verifier=forge.verifier(),
        policy=forge.policy(PLACE),
        replay=MemoryReplayStore(),
        audit=sink,
    )
    honest, forged = _honest(forge), _forged(forge)
    before = _judged(guard, sink, islice(honest, _HONEST), Verdict.ACCEPTED)
    _judged(guard, sink, islice(forged, stretch), Verdict.REJECTED)
    rss, taken, amid = _rss(), list[Measured](), list[Measured]()
    for part in range(_STRETCHES):
        found = [_judged(guard, sink, islice(forged, stretch), Verdict.REJECTED)
                 for _ in range(-(-tokens // (stretch * _STRETCHES)))]  # fmt: skip
        taken += found
        amid.append(_judged(guard, sink, islice(honest, 1), Verdict.ACCEPTED))
        say(
            f"flood: {part + 1} of {_STRETCHES}, {found[-1].microseconds:.0f} us a forged token"
        )
    grown = _rss() - rss
    after = _judged(guard, sink, islice(honest, _HONEST), Verdict.ACCEPTED)
    middle = Spread.of(one.microseconds for one in taken)
    return {
        "tokens": sum(one.messages for one in taken), "reasons": dict(sink.reasons), "seconds": _sum(taken),
        "us_a_token": {"first": _us(taken[0]), "median": round(middle.median, 1), "last": _us(taken[-1])},
        "cpu_s_per_1000": round(Spread.of(one.cpu_per_1000 for one in taken).median, 4),
        "peak_rss_grown_mib": round(grown, 1), "kept_bytes_a_token": _kept(guard, sink, forged, stretch),
        "honest_us": {"before": _us(before), "amid": _us(min(amid, key=_us)), "after": _us(after)},
        "remembered": after.microseconds < middle.median / 2,
    }  # fmt: skip


def _us(measured: Measured) -> float:
    """Return the microseconds of one message."""
    return round(measured.microseconds, 1)


def _sum(taken: list[Measured]) -> float:
    """Return the seconds of all."""
    return round(sum(one.wall for one in taken), 1)


def _honest(forge: Forge) -> Iterator[Message]:
    """Yield the messages of one batch."""
    for offset, message in enumerate(
        forge.signer().sign_many([Workload().message(PLACE)] * BATCH)
    ):
        yield delivered(message, offset)


def _forged(forge: Forge) -> Iterator[Message]:
    """Yield messages of batches nobody signed: another id in an honest token, under its proof."""
    model = forge.signer().sign_many([Workload().message(PLACE)] * BATCH)[0]
    header, payload, rest = _token(model).split(b".", 2)
    claims = base64url.decode(payload)
    at = claims.index(b'"jti":"') + 7
    for number in range(1 << 30):
        text = claims[:at] + f"{number:022d}".encode() + claims[at + 22 :]
        token = b".".join((header, base64url.encode(text), rest))
        headers = (*model.headers[:-1], (TOKEN_HEADER, token))
        yield delivered(replace(model, headers=headers), 1000 + number)


def _token(message: Message) -> bytes:
    """Return the token header of a message, which is its last."""
    name, value = message.headers[-1]
    assert name == TOKEN_HEADER
    assert isinstance(value, bytes)
    return value


def _judged(
    guard: Pipeline, sink: Counted, messages: Iterable[Message], wanted: Verdict
) -> Measured:
    """Judge messages, all of which must get this verdict, and return what they took."""
    waiting, watch = list(messages), Stopwatch()
    watch.start()
    for message in waiting:
        outcome = run(guard.process(guard.receive(message), _nothing, sink))
        assert outcome.verdict is wanted, outcome.reason
    return watch.stop(len(waiting))


def _nothing(_verified: object) -> None:
    """Handle a message."""


def _kept(
    guard: Pipeline, sink: Counted, forged: Iterator[Message], stretch: int
) -> float:
    """Return the bytes of memory one forged token leaves behind."""
    messages = list(islice(forged, 2 * stretch))
    gc.collect()
    tracemalloc.start()
    _judged(guard, sink, messages[:stretch], Verdict.REJECTED)
    gc.collect()
    before, _ = tracemalloc.get_traced_memory()
    _judged(guard, sink, messages[stretch:], Verdict.REJECTED)
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return round((after - before) / stretch, 2)


def _rss() -> float:
    """Return the most memory this process ever held, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Flood, and print what it cost."""
    parser = argparse.ArgumentParser(
        prog="python -m integration.benchmarks.flood", description=main.__doc__
    )
    parser.add_argument(
        "--tokens", type=int, default=TOKENS, help=f"forged tokens (default {TOKENS})"
    )
    print(json.dumps(flood(parser.parse_args().tokens, say=print), indent=1))


if __name__ == "__main__":
    main()
