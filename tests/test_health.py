"""Health: one shape for both brokers, one word for the state, and probes that ask nobody else."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from mqauth import Cause, Outcome, Verdict
from mqauth.brokers.event_loop import LoopBeat
from mqauth.cli.app import app, run
from mqauth.delivery.assignment import Assignment
from mqauth.delivery.health import Counts, Health, LogHealth, QueueHealth, State, told_of
from mqauth.delivery.hold import Hold
from mqauth.delivery.window import Window
from mqauth.judging.rollout import Rollout, RolloutEntry, Rung
from mqauth.keystore import Keystore
from mqauth.telemetry.prometheus import Endpoint
from mqauth.testing import FakeClock

WELL = Health(
    consuming=True,
    in_flight=0,
    deferred=0,
    stalled_since=None,
    cause=None,
    detail=None,
    at=1000.0,
)
WAITING = replace(
    WELL, deferred=3, cause=Cause.REPLAY_STORE_UNAVAILABLE, detail="OSError (redis cache.example:6379/0)",
)  # fmt: skip


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    """An endpoint on a free port."""
    with Endpoint(0) as found:
        yield found


def get(endpoint: Endpoint, path: str) -> tuple[int, Any]:
    """Return status and JSON of a path."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{endpoint.port}{path}") as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


@pytest.mark.parametrize(
    ("health", "state"),
    [
        (WELL, State.OK),
        (
            replace(WELL, deferred=1, stalled_since=950.0, cause=Cause.CLAIM_HELD),
            State.DEGRADED,
        ),
        (
            replace(WELL, deferred=1, stalled_since=939.0, cause=Cause.CLAIM_HELD),
            State.STALLED,
        ),
        (replace(WELL, cause=Cause.BROKER_UNAVAILABLE), State.DEGRADED),
        (replace(WELL, rollout={"kafka:orders": "observe"}), State.DEGRADED),
        (replace(WELL, silent=61.0), State.DEGRADED),
        (replace(WELL, running=False, deferred=1, stalled_since=0.0), State.STOPPED),
    ],
)
def test_state(health: Health, state: State) -> None:
    """Each state follows from what is amiss, the worst first; each but ``ok`` has a line for people."""
    assert health.state is state
    assert bool(health.reasons) == (state is not State.OK)


def test_it_names_what(endpoint: Endpoint) -> None:
    """What is out of reach for five minutes makes it stalled by name, and live and ready all the same."""
    endpoint.telemetry.watch_consumer(
        "billing", lambda: replace(WAITING, stalled_since=700.0)
    )
    status, told = get(endpoint, "/health")
    assert (status, told["state"]) == (200, "stalled")
    assert told["consumers"]["billing"]["reasons"] == [
        "replay_store_unavailable for 300 s: OSError (redis cache.example:6379/0)"
    ]
    assert (get(endpoint, "/live")[0], get(endpoint, "/ready")[0]) == (200, 200)


def test_stopped(endpoint: Endpoint) -> None:
    """A consumer that stopped is neither ready nor healthy, and no reason to kill the process."""
    endpoint.telemetry.watch_consumer("well", lambda: WELL)
    endpoint.telemetry.watch_consumer("billing", lambda: replace(WELL, running=False))
    assert get(endpoint, "/health")[0] == 503
    assert get(endpoint, "/ready")[0] == 503
    assert get(endpoint, "/live")[0] == 200


def test_before_the_first_consumer(endpoint: Endpoint) -> None:
    """A process without a consumer lives, and is not ready."""
    assert (get(endpoint, "/live")[0], get(endpoint, "/ready")[0]) == (200, 503)


def test_a_loop_that_does_not_move(endpoint: Endpoint) -> None:
    """Five minutes without a move are the one thing that a restart cures."""
    silent = [299.0]
    endpoint.telemetry.watch_consumer("billing", lambda: replace(WELL, silent=silent[0]))
    assert get(endpoint, "/live")[0] == 200
    silent[0] = 300.0
    assert get(endpoint, "/live")[0] == 503


def test_metrics_are_still_there(endpoint: Endpoint) -> None:
    """Every other path answers as before."""
    endpoint.telemetry.watch_consumer("billing", lambda: WELL)
    with urllib.request.urlopen(f"http://127.0.0.1:{endpoint.port}/metrics") as answer:
        assert b'mqauth_deferred{consumer="billing"' in answer.read().replace(
            b'otel_scope_name="mqauth",', b""
        )


def test_it_changed_at_that_moment(endpoint: Endpoint) -> None:
    """A look that meets a change on another thread is made again."""
    found = iter([RuntimeError("changed size"), WELL])

    def health() -> Health:
        each = next(found)
        if isinstance(each, Exception):
            raise each
        return each

    endpoint.telemetry.watch_consumer("billing", health)
    assert get(endpoint, "/ready")[0] == 200


async def test_a_blocked_loop(clock: FakeClock) -> None:
    """A loop that answers is not silent; one that does not is, since it was first asked."""
    beat = LoopBeat(clock)
    assert beat.silent() == 0.0
    beat.start(asyncio.get_running_loop())
    assert beat.silent() == 0.0
    clock.advance(301)
    asked: list[float] = []
    thread = threading.Thread(target=lambda: asked.append(beat.silent()))
    thread.start()
    thread.join()
    assert asked == [301]
    await asyncio.sleep(0)
    assert beat.silent() == 0.0


async def test_a_loop_that_is_over(clock: FakeClock) -> None:
    """A closed loop owes no answer: its consumer has stopped."""
    loop = asyncio.new_event_loop()
    beat = LoopBeat(clock)
    beat.start(loop)
    loop.close()
    assert beat.silent() == 0.0


def test_counts() -> None:
    """Every verdict counts as what it is."""
    counts = Counts()
    for verdict in Verdict:
        counts.add(Outcome(verdict))
    assert counts == Counts(1, 1, 1, 1, 1)


def test_both_brokers_have_one_shape(clock: FakeClock) -> None:
    """What both tell has one name; a queue has its connection beside it, and a log its partitions."""
    log = Assignment(clock).health(True)
    hold = Hold(clock, seconds=60, consumer_timeout=1800)
    queue = Window("billing", clock, hold, 1).health(
        in_flight=0, unsettled=0, blocked=False
    )
    assert isinstance(log, LogHealth)
    assert isinstance(queue, QueueHealth)
    common = WELL.as_dict().keys()
    assert set(log.as_dict()) - common == {"stalls"}
    assert set(queue.as_dict()) - common == {
        "connection_deaths", "prefetch", "unsettled", "party", "held", "at_limit",
    }  # fmt: skip
    assert (log.state, queue.state) == (State.OK, State.OK)
    json.dumps([log.as_dict(), queue.as_dict()])


def test_poll_thread(clock: FakeClock) -> None:
    """Of a log it is the poll that moves."""
    assignment = Assignment(clock)
    assignment.heartbeat()
    clock.advance(301)
    assert assignment.health(True).silent == 301


def test_rungs() -> None:
    """Below ``enforce`` the rung of each pattern is in the health."""
    entry = RolloutEntry(
        destinations=("kafka:orders", "kafka:refunds"), rung=Rung.OBSERVE, since=date(2026, 11, 1),
        until=date(2026, 12, 1), owner="orders-team", window=86_400.0,
    )  # fmt: skip
    nobody: Any = SimpleNamespace(aliases={})
    assert told_of(Rollout([entry]), nobody)["rollout"] == {
        "kafka:orders": "observe",
        "kafka:refunds": "observe",
    }
    assert told_of(None, nobody) == {"rollout": {}, "aliases": {}}


@pytest.mark.parametrize(
    ("health", "code"),
    [
        (WELL, 0),
        (WAITING, 0),
        (replace(WAITING, stalled_since=0.0), 3),
        (replace(WELL, running=False), 1),
    ],
)
def test_command(
    health: Health, code: int, endpoint: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    """``mqauth health`` says the state and why, and exits by it."""
    endpoint.telemetry.watch_consumer("billing", lambda: health)
    assert run(["health", f"http://127.0.0.1:{endpoint.port}/health"]) == code
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == health.state.value
    assert printed[1].startswith(f"billing: {health.state.value}")


@pytest.mark.parametrize(("fine", "code"), [(True, 0), (False, 1)])
def test_a_key_server_can_be_asked(
    fine: bool,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """``mqauth health`` knows ``/healthz`` of ``keys serve`` too, and takes the URL from ``MQAUTH_HEALTH``."""
    keys = Keystore(folder=tmp_path / "keys")
    keys.create(subjects=["orders-api"])
    command = [
        sys.executable,
        "-m",
        "mqauth",
        "keys",
        "serve",
        "--dir",
        f"{keys.folder}",
        "--port",
        "0",
        "--json",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        told = json.loads(process.stdout.readline())
        if not fine:
            (tmp_path / "keys").rename(tmp_path / "gone")
        monkeypatch.setenv("MQAUTH_HEALTH", told["health"])
        try:
            assert run(["health"]) == code
        finally:
            process.terminate()
    assert capsys.readouterr().out.splitlines()[0] == ("ok" if fine else "stopped")


def test_command_without_an_answer(
    endpoint: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody at the port is 1, with host and port named; what is no URL is 2."""
    port = endpoint.port
    endpoint.close()
    assert run(["health", f"http://127.0.0.1:{port}/health"]) == 1
    assert (
        f"127.0.0.1:{port} does not answer: Connection refused; is an Endpoint open there?"
        in capsys.readouterr().err
    )
    assert run(["health", "https://example"]) == 2
    assert CliRunner().invoke(app, ["health", "--help"]).exit_code == 0
