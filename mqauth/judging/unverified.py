"""A message that a handler gets although nothing proved who sent it, and what ``enforce`` would say of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import InitVar, dataclass
from enum import Enum
from typing import Any, Final, NamedTuple

from mqauth.errors import Cause, Reason, RejectNow, require
from mqauth.wire.message import HeaderPair, Message, Origin

_MAKER: Final = object()


class Verdict(Enum):
    """What a delivery came to; compared by identity."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    DEFERRED = "deferred"
    DUPLICATE = "duplicate"
    UNVERIFIED = "unverified"


class Would(NamedTuple):
    """What ``enforce`` would have said of a message.

    Args:
        verdict: ``REJECTED``, ``DEFERRED`` or ``DUPLICATE``.
        reason: why it would have been rejected.
        cause: why it would have been deferred.
        detail: one line for people.
    """

    verdict: Verdict
    reason: Reason | None = None
    cause: Cause | None = None
    detail: str | None = None

    @property
    def code(self) -> str:
        """The reason or cause, or ``duplicate``: what reports count by."""
        return (self.reason or self.cause or self.verdict).value


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Unverified:
    """A message below ``enforce``, or exempt: anybody who may write to the broker can have made it.

    It has no issuer, subject, claims, value or reply: nobody can authorise by it. It is no ``Verified``, and has
    no base in common with one.
    """

    maker: InitVar[object]
    _message: Message
    _would: Would | None
    _kind: str | None

    def __post_init__(self, maker: object) -> None:
        require(maker is _MAKER, "only the pipeline makes an Unverified; mqauth.testing.unverified() makes one")

    def __repr__(self) -> str:
        return f"Unverified({self.destination!r}, would={None if self.would is None else self.would.code!r})"

    @property
    def would(self) -> Would | None:
        """What ``enforce`` would have said; ``None`` at ``off``, where nothing is judged."""
        return self._would

    @property
    def body(self) -> bytes | None:
        """The raw bytes; ``None`` for a Kafka tombstone."""
        return self._message.body

    @property
    def payload(self) -> bytes:
        """The raw bytes, where there are some, as ``Verified.payload``.

        Raises:
            RejectNow: it is a tombstone.
        """
        if self._message.body is None:
            raise RejectNow("a tombstone has no payload")
        return self._message.body

    @property
    def key(self) -> bytes | None:
        """The Kafka record key, or ``None``."""
        return self._message.key

    @property
    def headers(self) -> tuple[HeaderPair, ...]:
        """All headers, in order."""
        return self._message.headers

    @property
    def destination(self) -> str:
        """The destination in its canonical form, as the broker says it."""
        return self._message.destination

    @property
    def origin(self) -> Origin:
        """What the broker says of the delivery."""
        return self._message.origin

    @property
    def native(self) -> Any:
        """The message of the client library."""
        return self._message.native


UnverifiedHandler = Callable[[Unverified], Any]
Unverifieds = UnverifiedHandler | Mapping[str, UnverifiedHandler]
"""A handler of ``Unverified``; or one for each kind of an exemption, and under ``"*"`` one for the rest."""


def listed(unverified: Unverifieds | None) -> dict[str, UnverifiedHandler]:
    """Return the handlers by kind; one without kinds stands under ``"*"``."""
    if unverified is None:
        return {}
    return dict(unverified) if isinstance(unverified, Mapping) else {"*": unverified}


def make_unverified(message: Message, would: Would | None, kind: str | None = None) -> Unverified:
    """Return the view of a message that nothing proved; for the pipeline and for tests."""
    return Unverified(_MAKER, message, would, kind)


def kind_of(unverified: Unverified) -> str | None:
    """Return the kind whose exemption let a message pass; ``None`` where a kind was not asked for."""
    return unverified._kind
