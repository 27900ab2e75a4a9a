"""An Open Policy Agent that is a script: it answers over a connection that exists in memory alone."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

from mqauth import OPA
from mqauth.http.connection import Deadline, Endpoint
from mqauth.testing import FakeClock
from mqauth.testing.forge import ISSUER, SUBJECT
from mqauth.testing.policy_contract import PLACE

URL = "http://127.0.0.1:8181"
PATH = "mqauth/allow"
UNDEFINED = object()
"""What a rule says that says nothing: the answer has no result."""


def only_orders(question: dict[str, Any]) -> object:
    """Allow the contract's producer its destination."""
    said = tuple(question.get(name) for name in ("issuer", "subject", "destination"))
    return said == (ISSUER, SUBJECT, PLACE)


class Agent:
    """Says what its test tells it to, and keeps what it was asked.

    Attributes:
        says: returns the result for an input; ``UNDEFINED`` leaves it out.
        status: of its answers.
        body: its answer, in place of a good one.
        bundles: of its answers' provenance.
        takes: seconds that its clock moves on with each answer.
        asked: the inputs, in their order.
        raw: the requests as they came.
        reached: set once it was asked.
        open: it answers only while this is set.
    """

    def __init__(self, clock: FakeClock | None = None) -> None:
        self.clock = clock or FakeClock()
        self.says: Callable[[dict[str, Any]], object] = only_orders
        self.status = 200
        self.body: bytes | None = None
        self.bundles: dict[str, Any] = {}
        self.takes = 0.0
        self.asked: list[dict[str, Any]] = []
        self.raw: list[bytes] = []
        self.away = False
        self.reached, self.open = threading.Event(), threading.Event()
        self.open.set()

    def opa(self, **settings: Any) -> OPA:
        """Return a client of this agent."""
        return OPA(
            **(
                {"url": URL, "path": PATH, "clock": self.clock, "dial": self.dial}
                | settings
            )
        )

    def vanish(self) -> None:
        """Refuse connections from now on."""
        self.away = True

    def dial(self, _endpoint: Endpoint, _deadline: Deadline, _context: object) -> Any:
        """Open a connection."""
        self.clock.advance(self.takes)
        if self.away:
            raise ConnectionRefusedError(111, "Connection refused")
        return _Wire(self)

    def answer(self, raw: bytes) -> bytes:
        """Return the whole answer to a request."""
        self.raw.append(raw)
        question = json.loads(raw.partition(b"\r\n\r\n")[2])["input"]
        self.asked.append(question)
        self.reached.set()
        self.open.wait(10)
        said = self.says(question)
        good = {} if said is UNDEFINED else {"result": said}
        provenance = (
            {"version": "1.22.4", "bundles": self.bundles}
            if self.bundles
            else {"version": "1.22.4"}
        )
        body = (
            json.dumps(good | {"provenance": provenance}).encode()
            if self.body is None
            else self.body
        )
        head = f"HTTP/1.1 {self.status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        return head.encode() + b"Connection: close\r\n\r\n" + body


class _Wire:
    """A socket whose other end is the script."""

    def __init__(self, agent: Agent) -> None:
        self._agent, self._sent, self._left = agent, b"", b""

    def settimeout(self, _seconds: float) -> None:
        """Never wait."""

    def sendall(self, data: bytes) -> None:
        """Take a part of the request."""
        self._sent += bytes(data)

    def recv_into(self, buffer: memoryview) -> int:
        """Give a part of the answer."""
        if self._sent:
            self._left, self._sent = self._agent.answer(self._sent), b""
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size

    def close(self) -> None:
        """Do nothing."""
