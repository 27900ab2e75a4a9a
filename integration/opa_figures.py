"""What a decision of a real agent costs, and a remembered one: ``python -m integration.opa_figures``.

It prints the least of several rounds for what is counted in microseconds, since a busy machine only adds to it.
"""

from __future__ import annotations

import statistics
import time
import timeit
import tracemalloc
from collections.abc import Callable
from typing import Any, Final

from integration.services.opa import Agent
from mqauth import OPA, Allow
from mqauth.judging.policy import Decision
from mqauth.policies.opa import MAX_MEMORY, Question, Remembered
from mqauth.testing.policy_contract import PLACE, honest
from mqauth.wire.memo import Recent, size_of

POLICY: Final = 'package mqauth\ndefault allow := false\nallow if input.destination == "kafka:orders"\n'
_ASKED: Final = 1000
_DECISIONS: Final = 3000
_ROUNDS: Final = 20
_EACH: Final = 5000


def main() -> None:
    """Print the figures."""
    message = honest()
    with Agent.launch() as agent:
        agent.load(POLICY)
        opa = OPA(agent.url, "mqauth/allow", remember=0, timeout=5)
        seconds = sorted(_timed(opa.decide, message) for _ in range(_ASKED))
        at = {"least": 0, "median": _ASKED // 2, "p99": _ASKED * 99 // 100}
        said = ", ".join(f"{name} {seconds[index] * 1e3:.2f} ms" for name, index in at.items())
        print(f"a decision of OPA {agent.version}, {_ASKED} requests: {said}")
        known = OPA(agent.url, "mqauth/allow", remember=300, timeout=5)
        known.decide(message)
        rules = Allow({"orders-api": [PLACE]})
        print(f"a remembered decision: {_least(lambda: known.remembered(message)):.2f} us")
        print(f"a decision of rules in memory: {_least(lambda: rules.decide(message)):.2f} us")
    print(_memory())


def _timed(call: Callable[[Any], Any], argument: Any) -> float:
    began = time.perf_counter()
    call(argument)
    return time.perf_counter() - began


def _least(call: Callable[[], Any]) -> float:
    """Return the microseconds of a call, the least of several rounds."""
    return min(timeit.repeat(call, number=_EACH, repeat=_ROUNDS)) / _EACH * 1e6


def _memory() -> str:
    """Return what a full memory takes, measured and as it is counted."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    found = Recent[Question, Remembered](MAX_MEMORY, lambda question, _: size_of(question))
    for number in range(_DECISIONS):
        names = [f"{name}-{number}" for name in ("https://auth.example", "orders-api", "billing", "kafka:orders")]
        question = Question("direct", *names, f"scope-{number}", b"{}")
        found.keep(question, Remembered(float(number), Decision.ALLOW))
    taken = tracemalloc.get_traced_memory()[0] - before
    counted = statistics.fmean(map(size_of, found))
    return f"{len(found)} decisions: {taken / 1e6:.2f} MB taken, {counted * len(found) / 1e6:.2f} MB counted"


if __name__ == "__main__":
    main()
