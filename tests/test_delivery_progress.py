"""What is kept of deliveries that come again is bounded in bytes, the oldest dropped first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mqauth import AuditFile, MemoryReplayStore, Pipeline
from mqauth.delivery.progress import OVERHEAD, Progress
from mqauth.errors import Unavailable
from mqauth.judging.pipeline import Delivery, Step, Verdict
from mqauth.testing.forge import Forge
from mqauth.wire.message import Message

BODY = 1000
PLACE = "rabbitmq:shop/orders.created"


@pytest.fixture
def guard(tmp_path: Path) -> Pipeline:
    """Return a pipeline."""
    forge = Forge()
    return Pipeline(
        verifier=forge.verifier(), policy=forge.policy(PLACE), replay=MemoryReplayStore(),
        audit=AuditFile(tmp_path / "audit.jsonl", fsync=False),
    )  # fmt: skip


def message(number: int, *, headers: int = 0) -> Message:
    """Return one of different messages."""
    return Message(
        destination=PLACE, body=number.to_bytes(4, "big") * (BODY // 4), headers=(("many", (b"x" * headers,)),)
    )


def again(progress: Progress, given_back: Message) -> Delivery:
    """Return the delivery of what the broker delivers again."""
    return progress.receive(replace(given_back, origin=replace(given_back.origin, redelivered=True)))


def keep(progress: Progress, guard: Pipeline, *messages: Message) -> list[Delivery]:
    """Give deliveries back."""
    found = [guard.receive(each) for each in messages]
    for each in found:
        progress.keep(each)
    return found


def test_the_oldest_are_dropped(guard: Pipeline) -> None:
    """A bound for three bodies keeps three; what came before them is as new."""
    progress = Progress(guard, lambda _: True, max_bytes=3 * (BODY + OVERHEAD + 4))
    given_back = [message(number) for number in range(5)]
    kept = keep(progress, guard, *given_back)
    known = [again(progress, each).deferred for each in given_back]
    assert known == [False, False, True, True, True]
    assert progress._bytes == 0
    assert len(kept) == 5


def test_copies_of_one_content_count_each(guard: Pipeline) -> None:
    """A thousand deliveries of one content take no more than any others."""
    progress = Progress(guard, lambda _: True, max_bytes=10 * (BODY + OVERHEAD + 4))
    keep(progress, guard, *[message(1)] * 1000)
    assert sum(map(len, progress._kept.values())) == 10
    assert progress._bytes <= 10 * (BODY + OVERHEAD + 4)


def test_headers_count(guard: Pipeline) -> None:
    """What stands in headers, however deep, is as large as in a body."""
    progress = Progress(guard, lambda _: True, max_bytes=50_000)
    keep(progress, guard, *(message(number, headers=20_000) for number in range(10)))
    assert len(progress._kept) == 2


def test_the_latest_is_always_kept(guard: Pipeline) -> None:
    """A message larger than the bound is known when it comes again."""
    progress = Progress(guard, lambda _: True, max_bytes=1)
    keep(progress, guard, message(1), message(2))
    assert [again(progress, message(number)).deferred for number in (1, 2)] == [False, True]


def test_what_was_handled_is_not_judged_anew(guard: Pipeline) -> None:
    """Of two deliveries of one content the one that was handled is known first, however late it was given back."""
    progress = Progress(guard, lambda _: True)
    unjudged, handled = (guard.receive(message(1)) for _ in range(2))
    handled.step = Step.SETTLE
    for each in (unjudged, handled):
        progress.keep(each)
    assert again(progress, message(1)) is handled
    assert again(progress, message(1)).owner == unjudged.owner


def test_a_copy_that_waits_hides_no_handler(guard: Pipeline) -> None:
    """Of two lost deliveries of one content the one that is handled holds back what comes again."""
    progress = Progress(guard, lambda _: True)
    waiting, handled = (guard.receive(message(1)) for _ in range(2))
    handled.step = Step.HANDLE
    for each in (waiting, handled):
        progress.begin(each)
    fence = progress.fenced(redelivered := again(progress, message(1)), lambda _: None)
    with pytest.raises(Unavailable):
        fence(redelivered)
    progress.end(handled)
    assert fence(redelivered) is None


def test_what_was_confirmed_is_not_judged_anew(guard: Pipeline) -> None:
    """What comes again while its confirm is missing is settled with it, even where a copy took the claim over."""
    progress = Progress(guard, lambda _: True)
    progress.begin(handled := guard.receive(message(1)))
    handled.step = Step.CONFIRM
    redelivered = again(progress, message(1))
    handled.step = Step.SETTLE
    progress.keep(handled)
    progress.end(handled)
    assert (redelivered.step, redelivered.verdict) == (Step.RECORD, Verdict.DUPLICATE)
    assert progress._bytes == 0


def test_each_copy_waits_for_the_one_that_goes_on(guard: Pipeline) -> None:
    """Of two copies that wait for one handler, one confirms what it did and the other waits for that, too."""
    progress = Progress(guard, lambda native: native is None)
    progress.begin(handled := guard.receive(message(1)))
    handled.step = Step.CONFIRM
    copies = [again(progress, replace(message(1), native=number)) for number in range(2)]
    fences = [progress.fenced(each, lambda _: None) for each in copies]
    for each in copies:
        progress.begin(each)
    progress.keep(handled)
    progress.end(handled)
    assert [each.step for each in copies] == [Step.JUDGE, Step.CONFIRM]
    with pytest.raises(Unavailable):
        fences[0](copies[0])
    copies[1].step = Step.SETTLE
    progress.end(copies[1])
    assert (copies[0].step, copies[0].verdict) == (Step.RECORD, Verdict.DUPLICATE)
    progress.end(copies[0])
    assert not progress._followers
    assert not progress._keys


def test_what_is_here_again_is_in_flight(guard: Pipeline) -> None:
    """A delivery that came again before the task that gave it back has ended stays known when its channel ends."""
    ends: list[bool] = []
    progress = Progress(guard, lambda _: bool(ends))
    progress.begin(failed := guard.receive(message(1)))
    failed.step = Step.BURY
    progress.keep(failed)
    progress.begin(here_again := again(progress, message(1)))
    assert here_again is failed
    ends.append(True)
    assert not progress.end(failed)
    waiting = again(progress, message(1))
    with pytest.raises(Unavailable):
        progress.fenced(waiting, lambda _: None)(waiting)
    assert progress.end(here_again)
    assert not progress._in_flight


def test_those_that_wait_are_bounded_by_a_channel(guard: Pipeline) -> None:
    """A long handler keeps nothing of the copies whose channels ended before the latest came."""
    ended: set[object] = {None}
    progress = Progress(guard, ended.__contains__)
    progress.begin(handled := guard.receive(message(1)))
    handled.step = Step.HANDLE
    for number in range(5):
        again(progress, replace(message(1), native=number))
        ended.add(number)
    assert [len(each) for each in progress._followers.values()] == [1]


def test_a_copy_that_waits_hides_nothing_that_was_given_back(guard: Pipeline) -> None:
    """What was handled and given back is known before a lost copy that was not judged."""
    progress = Progress(guard, lambda _: True)
    waiting, handled = (guard.receive(message(1)) for _ in range(2))
    progress.begin(waiting)
    handled.step = Step.CONFIRM
    progress.keep(handled)
    assert again(progress, message(1)) is handled
    assert again(progress, message(1)).received == waiting.received
