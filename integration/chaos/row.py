"""What a row of the chaos tests sent on either broker, what became of it, and the sums that it asserts."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from integration.victim import Orders
from mqauth import Allow, AuditFile, Pipeline, Verified, Verifier
from mqauth.errors import Reason
from mqauth.flow import Attempts
from mqauth.judging.pipeline import Outcome
from mqauth.letters.dead_letter import PREFIX
from mqauth.replay.memory import MemoryReplayStore
from mqauth.replay.rules import ReplayStore
from mqauth.testing.forge import SUBJECT, Forge
from mqauth.wire.jwk import dump_key_set
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
        return cls(
            body=message.body or b"",
            id=_header(message, "id"),
            reason=_header(message, "reason"),
        )


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
        return (
            len(self.honest)
            + len(self.failing)
            + len(self.forged)
            + sum(self.copies.values())
        )

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


def count(
    row: str,
    broker: str,
    sent: Sent,
    *,
    handled: Iterable[bytes],
    letters: Iterable[Letter],
) -> Count:
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
        condemned=len(
            {letter.body for letter in letters if _condemns(letter, sent, honest)}
        ),
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


class Row:
    """The names, the issuer and the sums of a row.

    Args:
        url: of the broker.
        source: the queue or topic to consume.
        dead: that of dead letters.
        folder: for files.
        lifetime: seconds an honest token lives.
    """

    broker: ClassVar[str]
    client: ClassVar[str]
    """Of consumers in other processes."""
    append: ClassVar[dict[str, Any]]
    """Verifier settings for a source whose broker stamps what it receives."""
    place: ClassVar[str]
    """What stands before the source's name in a destination."""
    impatient: ClassVar[dict[str, Any]] = {}
    """Settings of a consumer that does not hold for long what waits."""
    few_at_once: ClassVar[dict[str, Any]] = {}
    many_at_once: ClassVar[dict[str, Any]] = {}
    one_partition: ClassVar[dict[str, Any]] = {}
    other_partition: ClassVar[dict[str, Any]] = {}
    process: ClassVar[dict[str, Any]] = {"at_once": 10}
    """Orders of a consumer process."""
    group = ""

    def __init__(
        self, url: str, source: str, dead: str, folder: Path, *, lifetime: int
    ) -> None:
        self.url, self.name, self.dead, self.folder = url, source, dead, folder
        self.forge = Forge(lifetime=lifetime)
        self.honest: list[bytes] = []
        self.failing: list[bytes] = []
        self.forged: list[bytes] = []
        self.copies: Counter[bytes] = Counter()
        self.handled: list[bytes] = []
        self.outcomes: list[Outcome] = []

    @property
    def destination(self) -> str:
        """That of the source."""
        return self.place + self.name

    @property
    def handled_file(self) -> Path:
        """Where consumers in other processes write what they handled."""
        return self.folder / "handled"

    def handled_elsewhere(self) -> list[bytes]:
        """Return what consumers in other processes handled."""
        return self.handled_file.read_bytes().split(b"\n")[:-1]

    def orders(self, **settings: Any) -> Orders:
        """Return what a consumer in another process is to do."""
        self.handled_file.touch()
        keys = self.folder / "jwks.json"
        keys.write_text(json.dumps(dump_key_set(self.forge.keys)))
        wanted: dict[str, Any] = {
            "client": self.client, "url": self.url, "destination": self.destination, "source": self.name,
            "dead": self.dead, "group": self.group, "keys": str(keys), "handled": str(self.handled_file),
            "audit": str(self.folder / "audit.jsonl"), "verifier": self.append, "session": 2.0,
        }  # fmt: skip
        return Orders(**(wanted | self.process | settings))

    def end(self, processes: Iterable[subprocess.Popen[bytes]]) -> None:
        """Let consumer processes end in order."""
        for process in processes:
            process.terminate()
        assert {process.wait(60) for process in processes} == {0}

    def settle_in(self, how: str) -> None:
        """Do what a broker needs before it is stopped, or killed."""

    def handle(self, verified: Verified) -> None:
        """Remember what was handled, at its end."""
        self.handled.append(verified.body or b"")

    def named(self, number: int, *, failing: bool = False) -> list[bytes]:
        """Return the bodies of so many further honest messages."""
        known = self.failing if failing else self.honest
        bodies = [
            b"%s %d" % (b"failing" if failing else b"honest", len(known) + n)
            for n in range(number)
        ]
        known += bodies
        return bodies

    def named_forged(self, number: int) -> list[bytes]:
        """Return the bodies of so many further forged messages."""
        bodies = [b"forged %d" % (len(self.forged) + n) for n in range(number)]
        self.forged += bodies
        return bodies

    def audit_file(self) -> AuditFile:
        """Return the audit of this row."""
        return AuditFile(self.folder / "audit.jsonl", fsync=False)

    def verifier(self, **settings: Any) -> Verifier:
        """Return a verifier that judges times by the broker's stamp."""
        return self.forge.verifier(**(self.append | settings))

    def guard(
        self, audit: AuditFile, replay: ReplayStore | None = None, **settings: Any
    ) -> Pipeline:
        """Return a pipeline that trusts the forge on the source."""
        wanted: dict[str, Any] = {
            "verifier": self.verifier(), "policy": Allow({SUBJECT: [self.destination]}), "audit": audit,
            "replay": replay or MemoryReplayStore(), "attempts": Attempts(limit=2, wait=0, wait_max=0),
            "observers": [lambda outcome, message, seconds: self.outcomes.append(outcome)],
        }  # fmt: skip
        return Pipeline(**(wanted | settings))

    def summed(
        self, row: str, handled: Iterable[bytes] | None, letters: Iterable[Letter]
    ) -> Count:
        """Return the sums of the row, from what was handled, here or elsewhere, and all letters."""
        sent = Sent(
            honest=self.honest,
            failing=self.failing,
            forged=self.forged,
            copies=self.copies,
        )
        handled = self.handled if handled is None else handled
        return count(row, self.broker, sent, handled=handled, letters=letters)
