"""Ports that tests claim: no client's, and one run's at a time."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.services.machine import Port


@pytest.fixture
def port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Port]:
    """A port claimed in a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    claimed = Port()
    yield claimed
    claimed.release()


def test_no_client_is_given_it(port: Port) -> None:
    """A server may leave its port and come back: the kernel gives it to no client in between."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert port.number < first


def test_released_while_another_claims_it(
    port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever locks a file that its owner has just removed has not claimed the port: a third one may have."""
    lock = fcntl.flock

    def lock_late(file: Any, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        port.release()
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", lock_late)
    other = Port(port.number)
    assert other.number != port.number
    other.release()
