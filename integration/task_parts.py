"""What the tests of task queues share: a store that may be away, a pickle that tells, and letters."""

from __future__ import annotations

import threading
from pathlib import Path
from queue import Queue
from typing import Any

import pika

from mqauth import FileReplayStore

PATIENCE = 60.0


class Store(FileReplayStore):
    """A replay store that may be away."""

    away: str = ""
    asked: threading.Event
    renewals: Queue[Any] | None = None

    def claim(self, request: Any, /) -> Any:
        """Claim, or fail; note what is renewed."""
        self._fail("claim")
        if request.renew and self.renewals is not None:
            self.renewals.put(request)
        return super().claim(request)

    def confirm(self, request: Any, /) -> Any:
        """Confirm, or fail."""
        self._fail("confirm")
        return super().confirm(request)

    def _fail(self, what: str) -> None:
        if self.away == what:
            self.asked.set()
            raise ConnectionError


class Hijack:
    """A pickle that writes a file where it is decoded."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return (Path.write_text, (self._path, "decoded"))


def buried(url: str, name: str, count: int) -> list[str]:
    """Return the reasons of so many dead letters, sorted, and take them."""
    reasons = []
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        for method, properties, _ in channel.consume(name, inactivity_timeout=PATIENCE):
            assert method is not None
            reasons.append(str(properties.headers["mqauth-dead-reason"]))
            channel.basic_ack(method.delivery_tag)
            if len(reasons) == count:
                return sorted(reasons)
    raise AssertionError
