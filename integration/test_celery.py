"""What a token on every Celery task holds, and where it breaks (decision 21), on a real RabbitMQ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import kombu
import pytest
from celery import Celery, chain

from integration.examples import celery_tasks as example
from integration.services import RabbitMQ
from mqauth import Allow, AuditFile, MemoryReplayStore, Pipeline
from mqauth.errors import Reason
from mqauth.testing import Forge
from mqauth.testing.forge import NEIGHBOUR, SUBJECT

PATIENCE = 60
LOG, REFUND = "log", "refund"

# Celery's worker for tests may end its thread by the very exception with which it tells itself to stop.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@dataclass
class Bench:
    """The shop's application, what the worker sees, and the broker's address."""

    shop: Celery
    seen: example.Seen
    url: str

    def task(self, name: str, **options: Any) -> Any:
        """Return one call of a task that says nothing of its result."""
        return self.shop.signature(name, immutable=True, options=options)


def taken(queue: Queue[Any], count: int) -> list[Any]:
    """Return the next few of a queue, once they are there."""
    return [queue.get(timeout=PATIENCE) for _ in range(count)]


@pytest.fixture
def bench(rabbitmq: RabbitMQ, tmp_path: Path) -> Iterator[Bench]:
    """A worker that may publish anything, and a shop that may publish to one of two queues."""
    forge = Forge()
    guard = Pipeline(
        verifier=forge.verifier(),
        policy=Allow({
            SUBJECT: [f"rabbitmq:/{example.OPEN}"],
            NEIGHBOUR: [f"rabbitmq:/{name}" for name in (example.OPEN, example.CLOSED)],
        }),
        replay=MemoryReplayStore(),
        audit=AuditFile(tmp_path / "audit.jsonl"),
    )  # fmt: skip
    own = forge.signer(key=forge.neighbour, subject=NEIGHBOUR)
    with example.worker(rabbitmq.url, own, guard) as seen:
        yield Bench(example.producing(rabbitmq.url, forge.signer()), seen, rabbitmq.url)


def test_signed_tasks(bench: Bench) -> None:
    """A verdict on every task is possible: the honest one is run, a forbidden and an unsigned one are not."""
    bench.task(LOG).apply_async()
    bench.task(REFUND).apply_async()
    with kombu.Connection(bench.url) as connection:
        stranger = kombu.Producer(connection.channel())
        stranger.publish(
            [[], {}, {}], exchange=example.OPEN, routing_key=example.OPEN, headers={"task": LOG, "id": "x"}
        )
    assert set(taken(bench.seen.verdicts, 3)) == {
        (LOG, None, SUBJECT), (REFUND, Reason.PRODUCER_FORBIDDEN, None), (LOG, Reason.TOKEN_MISSING, None),
    }  # fmt: skip
    assert taken(bench.seen.executed, 1) == [LOG]
    with pytest.raises(Empty):
        bench.seen.executed.get_nowait()


@pytest.mark.parametrize("form", ["chain", "link"])
def test_worker_signs_what_a_task_names(bench: Bench, form: str) -> None:
    """Whoever may have one task run has others run as the worker, which signs what comes after the first."""
    first, second = bench.task(LOG), bench.task(REFUND)
    if form == "chain":
        chain(first, second).apply_async()
    else:
        first.apply_async(link=second)
    assert taken(bench.seen.verdicts, 2) == [(LOG, None, SUBJECT), (REFUND, None, NEIGHBOUR)]
    assert taken(bench.seen.executed, 2) == [LOG, REFUND]


def test_remote_control_goes_past_it(bench: Bench) -> None:
    """A worker obeys commands that nobody has signed: they go to a consumer of their own, in ``kombu.pidbox``."""
    stranger = Celery("stranger", broker=bench.url)
    [answer] = stranger.control.rate_limit(REFUND, "1000/s", reply=True, limit=1, timeout=PATIENCE)
    assert list(answer.values()) == [{"ok": "new rate limit set successfully"}]
    stranger.close()
