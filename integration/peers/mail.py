"""What the trials pass around: one message, and what a peer says of it. Nothing of mqauth is imported here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

ACCEPTED: Final = "accepted"
REFUSED: Final = "refused"
CRASHED: Final = "refused, by an error that is not documented"
FORGED: Final = -1
"""Stands for no class: a message that a stranger signed in the producer's name."""
BODY: Final = b'{"amount": 10}'
OTHER: Final = b'{"amount": 1000000}'


@dataclass(frozen=True, slots=True)
class Mail:
    """One message on a queue.

    Args:
        body: the bytes, signed or packed as the peer does it.
        headers: text by name, the signature among them.
        place: the queue or topic.
        key: the record key.
    """

    body: bytes = BODY
    headers: dict[str, str] = field(
        default_factory=lambda: {
            "content-type": "application/json",
            "type": "orders.created",
        }
    )
    place: str = "orders"
    key: str = "7"

    def but(self, **headers: str | None) -> Mail:
        """Return the mail with other headers; ``None`` removes one."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return replace(
            self,
            headers={
                name: value
                for name, value in (self.headers | named).items()
                if value is not None
            },
        )


Trial = Callable[[], Any]


def outcome(trial: Trial, documented: tuple[type[Exception], ...]) -> str:
    """Run a trial and return what became of the message.

    Args:
        trial: returns if the message is accepted.
        documented: the errors by which the peer says that it refuses.
    """
    try:
        trial()
    except documented:
        return REFUSED
    except Exception:
        return CRASHED
    return ACCEPTED
