"""``mqauth.brokers.log.offsets``: the start of partitions is committed first; what is asked, and what fails."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import pytest

from mqauth import Cause, ConfigurationError
from mqauth.brokers.log.offsets import NAMED, OffsetCalls, beginning
from mqauth.brokers.log.poller import UNANSWERED
from mqauth.brokers.log.records import CommitUnansweredError, OffsetsRefusedError
from mqauth.delivery.health import UNCOMMITTED
from mqauth.delivery.start import Committed, Start
from mqauth.flow import run
from tests.kit.delivery_play import Play
from tests.log_leaves import Sink
from tests.simulation.kafka_stage import LogMember, simulated_log
from tests.simulation.threads import Process
from tests.test_delivery_assignment import At


class AwayError(Exception):
    """The client's error; it passes."""


class RefusedError(AwayError):
    """One that does not."""


METADATA = "mqauth partitions=4"
ALL = [At("orders", number) for number in range(4)]
ZERO, ONE, TWO, THREE = ALL


class Client(OffsetCalls):
    """The calls of a client, which notes them, on logs from offset 10 to 20."""

    scope, reset, failed = "billing", "latest", AwayError

    def __init__(self, commits: Mapping[Any, Committed] | None = None) -> None:
        self.commits = dict(commits or {})
        self.positions: dict[Any, int] = {}
        self.unsure: set[Any] = set()
        self.calls: list[Any] = []
        self.fails: dict[str, Any] = {}

    def called(self, name: str, *arguments: Any) -> Any:
        """Note a call; return or raise what it is to."""
        self.calls.append((name, *arguments))
        found = self.fails.get(name)
        if isinstance(found, Exception):
            raise found
        return found

    def committed(self, places: Collection[Any], /) -> dict[Any, Committed]:
        """Return the commits."""
        self.called("committed", sorted(places))
        return {place: self.commits[place] for place in places if place in self.commits}

    def places(self, topic: str, /) -> set[Any]:
        """Return the partitions."""
        self.called("places", topic)
        return set(ALL)

    def position(self, place: Any, /) -> int | None:
        """Return where it stands."""
        return self.positions.get(place)

    def bounds(self, places: Collection[Any], end: bool, /) -> dict[Any, int]:
        """Return the bounds."""
        self.called("bounds", sorted(places), end)
        return dict.fromkeys(places, 20 if end else 10)

    def send_commit(self, offsets: Mapping[Any, Committed], /) -> str | None:
        """Commit."""
        failure: str | None = self.called("commit", dict(offsets))
        if failure is None:
            self.commits |= offsets
        return failure

    def passes(self, error: BaseException, /) -> bool:
        """Tell whether an error passes."""
        return not isinstance(error, RefusedError)


def begun(
    client: Client,
    *places: At,
    early: dict[Any, int] | None = None,
    unchanged: Callable[[], bool] = lambda: True,
) -> dict[Any, Start]:
    """Begin partitions."""
    found: dict[Any, Start] = run(
        beginning(client, set(places), {} if early is None else early, unchanged)
    )
    return found


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the events that were logged."""
    return [record.event for record in caplog.records if hasattr(record, "event")]


def test_known_partitions_cost_one_question() -> None:
    """Partitions with a commit of ours begin where it says, by one question for all, and nothing is committed."""
    client = Client(dict.fromkeys(ALL, Committed(15, METADATA)))
    assert begun(client, *ALL) == dict.fromkeys(
        ALL, Start(15, Committed(15, METADATA), seek=False)
    )
    assert client.calls == [("committed", ALL)]


def test_where_the_client_stands() -> None:
    """A client that its owner has moved is read on there; what is committed stays what it is."""
    client = Client({ZERO: Committed(15, METADATA), ONE: Committed(15, METADATA)})
    client.positions = {ZERO: 12, ONE: 13}
    client.unsure = {ONE}
    assert begun(client, ZERO, ONE) == {
        ZERO: Start(12, Committed(15, METADATA), seek=False), ONE: Start(15, Committed(15, METADATA), seek=True),
    }  # fmt: skip


@pytest.mark.parametrize(("reset", "offset"), [("latest", 20), ("earliest", 10)])
def test_a_group_that_begins(
    caplog: pytest.LogCaptureFixture, reset: str, offset: int
) -> None:
    """A new group begins where its clients say, and commits that at once."""
    client = Client()
    client.reset = reset
    commit = Committed(offset, METADATA)
    assert begun(client, ZERO, ONE) == dict.fromkeys(
        (ZERO, ONE), Start(offset, commit, seek=True)
    )
    assert client.calls[-1] == ("commit", {ZERO: commit, ONE: commit})
    assert events(caplog) == (["client.offsets_latest"] if reset == "latest" else [])


def test_a_client_that_has_begun() -> None:
    """Where the client has its own position that counts, and what it has read since then above all."""
    client = Client()
    client.positions = {ZERO: 17, ONE: 18}
    assert begun(client, ZERO, ONE, early={ONE: 16}) == {
        ZERO: Start(17, Committed(17, METADATA), seek=False), ONE: Start(16, Committed(16, METADATA), seek=True),
    }  # fmt: skip


def test_partitions_that_were_added(caplog: pytest.LogCaptureFixture) -> None:
    """Partitions that are new to the group begin at their beginning, wherever the client stands."""
    caplog.set_level(logging.INFO)
    client = Client({ZERO: Committed(15, "mqauth partitions=2")})
    client.positions = {TWO: 20}
    commit = Committed(10, "mqauth partitions=2")
    assert begun(client, TWO, THREE, early={THREE: 19}) == dict.fromkeys(
        (TWO, THREE), Start(10, commit, seek=True)
    )
    assert events(caplog) == ["client.partitions_added"]


def test_a_group_from_before(caplog: pytest.LogCaptureFixture) -> None:
    """Without metadata nothing is taken for new: it begins at the end, loudly, and all get their metadata."""
    client = Client({ZERO: Committed(15, ""), TWO: Committed(15, "theirs")})
    assert begun(client, ZERO, ONE) == {
        ZERO: Start(15, Committed(15, METADATA), seek=False), ONE: Start(20, Committed(20, METADATA), seek=True),
    }  # fmt: skip
    assert [(record.levelname, record.event) for record in caplog.records] == [
        ("CRITICAL", "client.partitions_unmarked")
    ]
    caplog.clear()
    begun(client, THREE)
    assert events(caplog) == ["client.offsets_latest"]


def test_nothing_is_skipped_without_records(caplog: pytest.LogCaptureFixture) -> None:
    """Where nothing is left out, nothing is said."""
    client = Client({ZERO: Committed(15, "")})
    client.positions = {ONE: 10}
    begun(client, ONE)
    assert [
        record.levelname for record in caplog.records if record.levelname == "CRITICAL"
    ] == []


def test_a_commit_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """Where the start cannot be committed nothing begins; it stays the same start, whatever comes meanwhile."""
    client, early = Client(), dict[Any, int]()
    client.fails = {"commit": "NotCoordinator"}
    assert begun(client, ZERO, early=early) == {}
    assert events(caplog) == ["client.commit_failed"]
    client.bounds = lambda places, _end, /: dict.fromkeys(places, 30)  # type: ignore[method-assign]
    client.fails = {}
    assert begun(client, ZERO, early=early) == {
        ZERO: Start(20, Committed(20, METADATA), seek=True)
    }


@pytest.mark.parametrize("call", ["committed", "places", "bounds", "commit"])
def test_an_answer_that_does_not_come(
    call: str, caplog: pytest.LogCaptureFixture
) -> None:
    """While the broker does not answer, partitions wait whose start is not known; the others begin."""
    client = Client({ONE: Committed(15, METADATA)})
    client.fails = {call: AwayError()}
    assert begun(client, ZERO, ONE).keys() == (set() if call == "committed" else {ONE})
    assert events(caplog) == ["client.offsets_unknown"]


@pytest.mark.parametrize("call", ["committed", "places", "bounds", "commit"])
def test_a_refusal(call: str) -> None:
    """Where the broker refuses for good, the error names the group, its topics, and what is to be granted."""
    client = Client()
    client.fails = {call: RefusedError("secret")}
    with pytest.raises(
        OffsetsRefusedError, match=r"group billing .* of orders \(RefusedError\).* READ"
    ) as found:
        begun(client, ZERO)
    assert "secret" not in str(found.value)


def test_a_rebalance_meanwhile(caplog: pytest.LogCaptureFixture) -> None:
    """After a rebalance nothing is committed: somebody else may have begun, and got further."""
    client = Client()
    assert begun(client, ZERO, unchanged=lambda: False) == {}
    assert [name for name, *_ in client.calls] == [
        "committed",
        "places",
        "committed",
        "bounds",
    ]
    assert events(caplog) == ["client.commit_failed"]


@pytest.mark.parametrize("commits", [{}, {ZERO: Committed(15, "mqauth partitions=1")}])
def test_no_reset(commits: dict[Any, Committed]) -> None:
    """A client with ``none`` begins nowhere without an offset, nor at an added partition; it says what to do."""
    client = Client(commits)
    client.reset = "none"
    with pytest.raises(
        ConfigurationError,
        match=r"billing has no offset of orders-3.* commit one, or choose",
    ):
        begun(client, THREE)
    client.positions = {THREE: 12}
    if not commits:
        assert begun(client, THREE)[THREE].offset == 12


def test_lines_are_short(caplog: pytest.LogCaptureFixture) -> None:
    """A line names some partitions, and how many more there are."""
    client = Client()
    begun(client, *(At("orders", number) for number in range(NAMED + 5)))
    (record,) = caplog.records
    assert record.getMessage().endswith("orders-19 at 20, and 5 more")


def test_a_client_that_went_to_the_end_before_it_was_ours(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where what the group committed is gone, it begins at the first record that is left, and says so."""
    client = Client({ZERO: Committed(5, METADATA), ONE: Committed(12, METADATA)})
    # The client went to the end of one; of the other its user passes over two records.
    client.positions = {ZERO: 20, ONE: 14}
    starts = run(beginning(client, {ZERO, ONE}, {}, lambda: True))
    assert starts[ZERO] == Start(10, Committed(5, METADATA), seek=True)
    assert starts[ONE] == Start(14, Committed(12, METADATA), seek=False)
    assert [each.getMessage() for each in caplog.records] == [
        "group billing: offset 5 of orders-0 is out of range, its records are lost; it goes on at 10"
    ]


# A commit of confluent-kafka that never returns: it is told, ends the consumer, and holds no stop.


@pytest.fixture(
    params=[("confluent", 1), ("confluent", 0), ("confluent-aio", 1)],
    ids=["threads", "no workers", "aio"],
)
def member(request: pytest.FixtureRequest) -> Iterator[LogMember]:
    """A consumer of each kind that was asked to commit, and waits for its client."""
    client, workers = request.param
    asked: list[bool] = []
    with simulated_log(client) as stage:

        def commit(**_: Any) -> None:
            asked.append(True)
            stage.threads.wait(lambda: False)

        play = Play(stage, Sink(), stage.clock)  # type: ignore[arg-type]
        found = stage.second(
            play.guard(),
            lambda _: setattr(found.client, "commit", commit),
            workers=workers,
            grace=0,
        )
        play.inject(key=b"k")
        while not asked:
            stage.sleep(0.1)
        yield found


def test_it_is_told(member: LogMember) -> None:
    """After ten seconds ``health()`` has the cause; the consumer stops although the call never returns."""
    assert member.health().cause is None
    member.stage.sleep(UNCOMMITTED)
    health = member.health()
    assert (health.cause, health.state) == (Cause.BROKER_UNAVAILABLE, "degraded")
    member.close()


def test_it_ends_the_consumer(member: LogMember) -> None:
    """After ninety seconds the consumer ends with an error that says what to do."""
    member.stage.sleep(UNANSWERED + 10)
    assert member.failed
    with pytest.raises(CommitUnansweredError, match="start the process again"):
        member.close()


def test_it_runs_once_its_block_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """``health`` says that a consumer on threads runs once its block has begun, although its thread has not."""
    begun = threading.Event()
    with simulated_log("confluent") as stage:
        play = Play(stage, Sink(), stage.clock)  # type: ignore[arg-type]
        process = Process("consumer", stage.threads)
        client = stage.leaf.client(stage.broker, process, 1)
        consumer = stage.leaf.consumer(client, stage.broker, process, play.guard(), print)
        monkeypatch.setattr(consumer, "run", begun.wait)
        with consumer:
            health = consumer.health()
            begun.set()
    assert health.running
