"""The cases of ``mqauth demo``: one consumer judges them, and then it is looked up what became of each.

Was it handled, is there a dead letter, is it in the audit? Nothing in the table is written by hand.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
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
from mqauth.audit.chain import verify_chain
from mqauth.cli.app import answer
from mqauth.cli.tables import Column, table_lines
from mqauth.errors import require
from mqauth.judging.policy import Policy
from mqauth.testing.stage import Stage
from mqauth.wire import destination

_CASE_HEADER: Final = "demo-case"
_REASON_HEADER: Final = "mqauth-dead-reason"
ACCEPTED: Final = "accepted"
"""What is expected of an honest case."""
LOST: Final = "lost"
"""The verdict where neither handler nor dead letter has a message, or both have it."""
_COLUMNS: Final = (
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
    """What became of a case, read back from whoever decided on it.

    Args:
        case: its name.
        story: what it is.
        expected: ``accepted``, or the reason for which it must be refused.
        verdict: ``accepted``, ``rejected``, ``lost``, or what became of a question to an authority.
        reason: of its dead letter or its refusal; ``None`` where there is none.
        audit: whether the audit has a record of a rejection.
    """

    case: str
    story: str
    expected: str
    verdict: str
    reason: str | None
    audit: bool = True

    @property
    def as_expected(self) -> bool:
        """Whether the case ended as it must."""
        if self.expected == ACCEPTED:
            return self.verdict == ACCEPTED
        return self.reason == self.expected and self.verdict != LOST and self.audit


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
        verifier=trust.verifier(), policy=trust.policy(stage.destination), replay=MemoryReplayStore(), audit=audit,
        record="all" if keep else "rejections", attempts=Attempts(limit=1),
    )  # fmt: skip
    # Also where an attack is handled: the table has to say so.
    stage.consume(pipeline, handled.append, until=lambda: len(handled) + len(stage.letters()) >= len(cases))
    recorded = frozenset(re.findall(r'"(?:id|jti)":"([^"]*)"', audit.path.read_text("utf-8")))
    letters: dict[str, Message] = {}
    for letter in stage.letters():
        # The replay is a copy of honest-0 and has its name, so it is known by its reason.
        is_copy = _header(letter, _REASON_HEADER) == Reason.REPLAYED.value
        letters["replay" if is_copy else _header(letter, _CASE_HEADER)] = letter
    tokens = {_text(verified.header(_CASE_HEADER)): verified.jti for verified in handled}
    if len(tokens) < len(handled):
        tokens = {}
    results = []
    for case in cases:
        jti, found = tokens.get(case.name), letters.get(case.name)
        trace = jti if found is None else _header(found, "mqauth-dead-audit")
        is_lost = (jti is None) is (found is None)
        verdict = LOST if is_lost else ACCEPTED if found is None else "rejected"
        reason = None if found is None else _header(found, _REASON_HEADER)
        results.append(Result(case=case.name, story=case.story, expected=case.expected, verdict=verdict,
                              reason=reason, audit=trace in recorded))  # fmt: skip
    return results


def reported(
    broker: str, results: Sequence[Result], audit: Path, *, as_json: bool, end: str, more: Sequence[str]
) -> int:
    """Print what became of every case, and return the exit code.

    Args:
        broker: where the cases were published.
        results: of all cases.
        audit: the audit file, whose chain is verified.
        as_json: print JSON.
        end: what becomes of an attack, in a word.
        more: lines that people read in the end.
    """
    chain = "intact" if verify_chain(audit).intact else "broken"
    lost = sum(result.verdict == LOST for result in results)
    cells = [
        (each.case, each.verdict, each.reason or "", "yes" if each.as_expected else "NO", each.story)
        for each in results
    ]
    attacks = [result for result in results if result.expected != ACCEPTED]
    refused = sum(result.as_expected for result in attacks)
    answer(
        as_json,
        {"broker": broker, "cases": [asdict(each) for each in results], "audit_chain": chain, "lost": lost},
        *table_lines(f"mqauth demo on {broker}", _COLUMNS, cells),
        f"{len(results) - len(attacks)} honest messages handled,"
        f" {refused} of {len(attacks)} attacks {end}, {lost} lost;",
        f"audit chain {chain}.",
        *more,
    )
    return 0 if chain == "intact" and not lost and all(result.as_expected for result in results) else 1


def named(message: Message, name: str) -> Message:
    """Return a message with the name of its case in a last header, of the type that its broker uses."""
    value = name.encode() if destination.is_kafka(message.destination) else name
    return replace(message, headers=(*message.headers, (_CASE_HEADER, value)))


def _header(message: Message, name: str) -> str:
    values = message.occurrences(name)
    return _text(values[0]) if values else ""


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
