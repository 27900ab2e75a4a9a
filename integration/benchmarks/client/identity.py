"""Contenders of the identity form, beside those of the direct form on the same broker.

``identity`` and ``identity_batch`` are ``message`` and ``batch`` with a WIT before each token. ``padded`` and
``padded_batch`` are the direct form with as many bytes more in a header that nobody checks: what the bytes alone
cost, before any of it is judged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Final

from integration.benchmarks.client.contenders import Contender, Make
from integration.benchmarks.client.workload import BATCH, PADDING, Workload
from mqauth.keystore.identity.identity_key import WITKey
from mqauth.signer import Signer
from mqauth.testing.forge import Forge
from mqauth.testing.identity import IdentityForge
from mqauth.wire.message import TOKEN_HEADER

LIFETIME: Final = 1700
"""Seconds; a token lives for less than half of an identity of an hour."""
_PLACE: Final = "kafka:integration.benchmarks.client"


class OneIdentity(IdentityForge):
    """A workload that keeps its identity, as a producer does for half an hour."""

    def __init__(self) -> None:
        super().__init__(lifetime=LIFETIME)
        self._held = WITKey(self.wit(), self.key, clock=self.clock)

    def identity(self, **settings: Any) -> dict[str, Any]:
        """Return the arguments of the workload's signer."""
        return super().identity(**{"key": self._held} | settings)


class LeavesPadding(Forge):
    """A producer of the direct form whose tokens do not cover the padding."""

    def signer(self, **settings: Any) -> Signer:
        """Return its signer."""
        return super().signer(leave_unsigned=[PADDING], **settings)


class Padded:
    """The connections of a broker, whose messages have one header more.

    Args:
        connections: to the broker.
        size: bytes that the header takes, its name aside.
    """

    def __init__(self, connections: Any, size: int) -> None:
        self._connections = connections
        self.workload = replace(connections.workload, padding=size)
        self.headers = [
            (name, text.encode()) for name, text in self.workload.header_texts().items()
        ]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connections, name)


def makes(broker: Any) -> Iterator[Make]:
    """Yield what makes the four contenders.

    Args:
        broker: its module, with ``Signed`` and ``Batched``.
    """
    for kind, ending, size in ((broker.Signed, "", 1), (broker.Batched, "_batch", BATCH)):
        yield partial(_identity, kind, f"identity{ending}")
        yield partial(_padded, kind, f"padded{ending}", size)


def more_bytes(size: int) -> int:
    """Return by how many bytes a token of the identity form is longer than a direct one, ``size`` in a batch."""
    whole, direct = (
        _token(forge, size) for forge in (OneIdentity(), Forge(lifetime=LIFETIME))
    )
    return whole - direct


def _token(forge: Forge, size: int) -> int:
    messages = [Workload().message(_PLACE, number) for number in range(size)]
    signer = forge.signer()
    signed = signer.sign_many(messages) if size > 1 else [signer.sign(messages[0])]
    tokens = [
        value for one in signed for name, value in one.headers if name == TOKEN_HEADER
    ]
    return sum(len(token) for token in tokens if isinstance(token, bytes)) // size


def _identity(kind: Any, name: str, connections: Any) -> Contender:
    found: Contender = kind(connections, OneIdentity())
    found.name = name
    return found


def _padded(kind: Any, name: str, size: int, connections: Any) -> Contender:
    padding = more_bytes(size) - len(PADDING)
    found: Contender = kind(
        Padded(connections, padding), LeavesPadding(lifetime=LIFETIME)
    )
    found.name = name
    return found
