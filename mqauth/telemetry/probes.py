"""What an orchestrator asks a process: does it live, is it ready, how is it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from mqauth.delivery.health import Health, State

LIVE, READY, HEALTH = "/live", "/ready", "/health"
DEAD_AFTER: Final = 300.0
"""Seconds without a move of its loop or poll thread after which a process is taken for dead."""
_WORST: Final = (State.STOPPED, State.STALLED, State.DEGRADED, State.OK)
_TRIES: Final = 3
Consumers = Mapping[str, Callable[[], Health]]
Start = Callable[[str, list[tuple[str, str]]], Any]


def answering(consumers: Consumers, others: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    """Return a WSGI application that answers the probes, and hands every other path on.

    No probe asks a broker, an issuer, a store or a disk: a restart cures none of them.

    Args:
        consumers: ``health`` of each consumer by its name; looked at when a probe asks.
        others: answers every other path.
    """

    def application(environ: Mapping[str, Any], start: Start) -> Iterable[bytes]:
        asked = _PROBES.get(str(environ.get("PATH_INFO")))
        if asked is None:
            return others(environ, start)
        fine, told = asked({name: _looked(health) for name, health in list(consumers.items())})
        body = json.dumps(told, default=str).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        start("200 OK" if fine else "503 Service Unavailable", [*headers, ("Cache-Control", "no-store")])
        return [body]

    return application


def _looked(health: Callable[[], Health]) -> Health:
    """Look at a consumer, again where it changed at that moment: it runs on another thread."""
    for _ in range(_TRIES):
        try:
            return health()
        except RuntimeError:
            continue
    return health()


def _live(found: Mapping[str, Health]) -> tuple[bool, Any]:
    silent = {name: each.silent for name, each in found.items() if each.running}
    return all(seconds < DEAD_AFTER for seconds in silent.values()), {"silent": silent}


def _ready(found: Mapping[str, Health]) -> tuple[bool, Any]:
    running = {name: each.running for name, each in found.items()}
    return bool(running) and all(running.values()), {"running": running}


def _whole(found: Mapping[str, Health]) -> tuple[bool, Any]:
    states = {each.state for each in found.values()}
    state = next((state for state in _WORST if state in states), State.OK)
    told = {"state": state.value, "consumers": {name: each.as_dict() for name, each in found.items()}}
    return state is not State.STOPPED, told


_PROBES: Final[Mapping[str, Callable[[Mapping[str, Health]], tuple[bool, Any]]]] = {
    LIVE: _live, READY: _ready, HEALTH: _whole,
}  # fmt: skip
