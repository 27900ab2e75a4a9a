"""The cases of ``mqauth demo``: one consumer judges them, and then it is looked up what became of each.

Was it handled, is there a dead letter, is it in the audit? Nothing in the table is written by hand.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

from mqauth import (
    Attempts,
    AuditFile,
    HeadFile,
    Key,
    MemoryReplayStore,
    Message,
    Pipeline,
    Reason,
    Verified,
    Verifier,
)
from mqauth.cli.tables import Column
from mqauth.errors import require
from mqauth.judging.policy import Policy
from mqauth.testing.stage import Stage
from mqauth.wire import destination

_CASE_HEADER: Final = "demo-case"
_REASON_HEADER: Final = "mqauth-dead-reason"
ACCEPTED: Final = "accepted"
"""What is expected of an honest case."""
CASE: Final = (
    Column("case"), Column("verdict", cut=False), Column("reason", cut=False), Column("as expected", cut=False),
    Column("what it is", goes=1),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One message of the demo.

    Args:
        name: stands in a header of the message.
        story: what it is, for the table.
        expected: ``accepted``, or the reason for which it must be rejected.
        message: what is published.
        unsigned: whether the producer signs it when it is published.
    """

    name: str
    story: str
    expected: str
    message: Message
    unsigned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of a case, read back from the handler, the dead letters and the audit file.

    Args:
        case: the case.
        handled: whether its handler saw it.
        reason: of its dead letter; ``None`` where there is none.
        audit: whether the audit file has a record of it.
    """

    case: Case
    handled: bool
    reason: str | None
    audit: bool

    @property
    def verdict(self) -> str:
        """``accepted``, ``rejected``, or ``lost`` where neither handler nor dead letter has it, or both."""
        if self.handled == (self.reason is not None):
            return "lost"
        return ACCEPTED if self.handled else "rejected"

    @property
    def as_expected(self) -> bool:
        """Whether the case ended as it must."""
        if self.case.expected == ACCEPTED:
            return self.verdict == ACCEPTED
        return self.reason == self.case.expected and self.verdict == "rejected" and self.audit


class Trust(Protocol):
    """Whom a consumer of the demo trusts."""

    def verifier(self) -> Verifier:
        """Return its verifier."""

    def policy(self, place: str, /) -> Policy:
        """Return who may publish to a destination."""


def audit_file(kept: Path | None, folder: Path) -> AuditFile:
    """Return the audit file of a demo: one that is kept has signed heads beside it.

    Args:
        kept: where to keep it.
        folder: for one that is not kept.

    Raises:
        ConfigurationError: there is no folder for it.
    """
    if kept is None:
        return AuditFile(folder / "audit.jsonl", fsync=False)
    require(kept.parent.is_dir(), f"--audit: {kept.parent} is no folder")
    key = Path(f"{kept}.pem")
    # An audit file that an earlier demo left goes on with the key that signed its heads.
    if not key.exists():
        key.touch(0o600)
        key.write_bytes(Key.generate().to_pem())
    return AuditFile(kept, heads=HeadFile(f"{kept}.heads", Key.load(key)))


def consumed(stage: Stage, trust: Trust, audit: AuditFile, cases: list[Case], keep: bool) -> list[Result]:
    """Run a consumer until every case is handled or dead-lettered, and return the results.

    Args:
        stage: where the cases were published.
        trust: whom the consumer trusts.
        audit: its audit file.
        cases: what was published.
        keep: whether every verdict is recorded, and not rejections alone.
    """
    handled: list[Verified] = []
    pipeline = Pipeline(
        verifier=trust.verifier(),
        policy=trust.policy(stage.destination),
        replay=MemoryReplayStore(),
        audit=audit,
        record="all" if keep else "rejections",
        attempts=Attempts(limit=1),
    )
    # Also where an attack is handled: the table has to say so.
    stage.consume(pipeline, handled.append, until=lambda: len(handled) + len(stage.letters()) >= len(cases))
    recorded = frozenset(re.findall(r'"(?:id|jti)":"([^"]*)"', audit.path.read_text("utf-8")))
    return _results(cases, handled, stage.letters(), recorded)


def _results(
    cases: list[Case], handled: list[Verified], letters: list[Message], recorded: frozenset[str]
) -> list[Result]:
    by_name: dict[str, Message] = {}
    for letter in letters:
        # The replay is a copy of honest-0 and has its name, so it is known by its reason.
        name = _header(letter, _CASE_HEADER)
        by_name["replay" if _header(letter, _REASON_HEADER) == Reason.REPLAYED.value else name] = letter
    seen = [(_text(verified.header(_CASE_HEADER)), verified.jti) for verified in handled]
    tokens = dict(seen) if len(dict(seen)) == len(seen) else {}
    return [_result(case, tokens.get(case.name), by_name.get(case.name), recorded) for case in cases]


def _result(case: Case, jti: str | None, letter: Message | None, recorded: frozenset[str]) -> Result:
    trace = jti if letter is None else _header(letter, "mqauth-dead-audit")
    return Result(
        case=case,
        handled=jti is not None,
        reason=None if letter is None else _header(letter, _REASON_HEADER),
        audit=trace in recorded,
    )


def named(message: Message, name: str) -> Message:
    """Return a message with the name of its case in a last header, of the type that its broker uses."""
    value = name.encode() if destination.is_kafka(message.destination) else name
    return replace(message, headers=(*message.headers, (_CASE_HEADER, value)))


def _header(message: Message, name: str) -> str:
    values = message.occurrences(name)
    return _text(values[0]) if values else ""


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
