"""What became of what was sent: the sums that every row of the chaos table prints and asserts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

from mqauth.errors import Reason
from mqauth.letters.dead_letter import PREFIX
from mqauth.wire.message import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A dead letter as the counting needs it."""

    body: bytes
    id: str
    reason: str

    @classmethod
    def of(cls, message: Message) -> Self:
        """Read a letter taken from the dead-letter queue or topic; Kafka's headers are bytes."""
        return cls(body=message.body or b"", id=_header(message, "id"), reason=_header(message, "reason"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What was published, by body; bodies are all different.

    Args:
        honest: signed, and to be handled.
        failing: signed, but their handler raises to the last: dead letters by ``handler_failed``.
        forged: not to be believed, for whatever reason.
        copies: how many copies of honest messages an attacker published.
    """

    honest: Collection[bytes]
    failing: Collection[bytes] = ()
    forged: Collection[bytes] = ()
    copies: Mapping[bytes, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """How many messages went in."""
        return len(self.honest) + len(self.failing) + len(self.forged) + sum(self.copies.values())

    @property
    def letters(self) -> Counter[bytes]:
        """How many dead letters there have to be of each body."""
        return Counter([*self.failing, *self.forged]) + Counter(self.copies)


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """The sums of a row.

    Args:
        row: its name.
        broker: ``rabbitmq`` or ``kafka``.
        sent: messages published.
        handled: honest ones whose handler ran to its end.
        dead_lettered: forged, copied or failing ones with a dead letter.
        handled_again: handler runs beyond the first of a message.
        letters_again: dead letters beyond those that have to be.
        lost: sent, and neither handled nor dead-lettered.
        condemned: honest ones dead-lettered for anything but their own handler.
        admitted: forged ones that reached a handler.
    """

    row: str
    broker: str
    sent: int
    handled: int
    dead_lettered: int
    handled_again: int
    letters_again: int
    lost: int
    condemned: int
    admitted: int

    @property
    def duplicates(self) -> int:
        """Handler runs and dead letters beyond the first."""
        return self.handled_again + self.letters_again

    @property
    def line(self) -> str:
        """All sums in one line."""
        return (
            f"{self.broker}, {self.row}: sent {self.sent}, handled {self.handled},"
            f" dead-lettered {self.dead_lettered}, duplicates {self.duplicates}"
            f" ({self.handled_again} handled, {self.letters_again} letters),"
            f" lost {self.lost}, honest condemned {self.condemned}, forged handled {self.admitted}"
        )

    def check(self) -> None:
        """Assert what holds in every row: sent = handled + dead-lettered, nothing lost, condemned or let in."""
        assert (self.lost, self.condemned, self.admitted) == (0, 0, 0), self.line
        assert self.sent == self.handled + self.dead_lettered, self.line


def count(row: str, broker: str, sent: Sent, *, handled: Iterable[bytes], letters: Iterable[Letter]) -> Count:
    """Return the sums of a row.

    Args:
        row: its name.
        broker: ``rabbitmq`` or ``kafka``.
        sent: what was published.
        handled: the body of each handler run that came to its end.
        letters: all there are in the dead-letter queue or topic.
    """
    runs, letters = Counter(handled), list(letters)
    honest, due = {*sent.honest}, sent.letters
    found = Counter(letter.body for letter in letters)
    buried = sum(min(found[body], wanted) for body, wanted in due.items())
    done = sum(body in runs for body in honest)
    return Count(
        row=row,
        broker=broker,
        sent=sent.total,
        handled=done,
        dead_lettered=buried,
        handled_again=runs.total() - len(runs),
        letters_again=sum((found - due).values()),
        lost=sent.total - done - buried,
        condemned=len({letter.body for letter in letters if _condemns(letter, sent, honest)}),
        admitted=sum(body not in honest for body in runs),
    )


def _condemns(letter: Letter, sent: Sent, honest: set[bytes]) -> bool:
    """Tell whether a letter is of an honest message, and not of its copy nor by its own handler."""
    if letter.body in honest:
        return letter.body not in sent.copies or letter.reason != Reason.REPLAYED
    return letter.body in sent.failing and letter.reason != Reason.HANDLER_FAILED


def _header(message: Message, name: str) -> str:
    """Return one of our headers as text."""
    (value,) = message.occurrences(PREFIX + name)
    return value.decode() if isinstance(value, bytes) else str(value)
