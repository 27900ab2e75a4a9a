"""``mqauth demo``: a producer, a consumer and an attacker, on the memory broker or a real one.

Every case is published one by one, judged by one consumer, and looked up afterwards: was it handled, is
there a dead letter, what does the audit say. Nothing in the table is written by hand.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from mqauth.audit.chain import verify_chain
from mqauth.audit.file import AuditFile, HeadFile
from mqauth.errors import ConfigurationError, Reason
from mqauth.flow import Attempts
from mqauth.judging.pipeline import Pipeline
from mqauth.judging.verified import Verified
from mqauth.replay.memory import MemoryReplayStore
from mqauth.testing.attacks import ATTACKS, honest_message
from mqauth.testing.forge import Forge
from mqauth.testing.stage import MemoryStage, Stage
from mqauth.wire.keys import Key
from mqauth.wire.message import Message

HONEST: Final = 3
_CASE_HEADER: Final = "demo-case"
_LIFETIME: Final = 600
_DEAD_REASON: Final = "mqauth-dead-reason"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One message of the demo: what it is, and what must become of it."""

    name: str
    story: str
    expected: str
    message: Message
    signed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of a case, read back from handler, dead-letter queue and audit file."""

    case: Case
    handled: bool
    reason: str | None
    dead_letter: bool
    audit: bool

    @property
    def verdict(self) -> str:
        """``accepted``, ``rejected``, or ``lost`` where neither handler nor dead letter has it."""
        if self.handled and not self.dead_letter:
            return "accepted"
        return "rejected" if self.dead_letter and not self.handled else "lost"

    @property
    def as_expected(self) -> bool:
        """Tell whether the case came out as it must."""
        if self.case.expected == "accepted":
            return self.verdict == "accepted"
        return self.reason == self.case.expected and self.verdict == "rejected" and self.audit


def demo(broker: str | None = None, *, as_json: bool = False, audit: Path | None = None,
         messages: int = HONEST) -> int:  # fmt: skip
    """Run the demo and print what happened.

    Args:
        broker: ``None`` for the memory broker, else ``amqp://...`` or ``kafka://host:port``.
        as_json: print one JSON object instead of a table.
        audit: leave the audit file here, with every verdict in it, its signed heads in ``FILE.heads`` and
            the key that signed them in ``FILE.pem``; by default rejections only are audited, and the file
            goes with the demo.
        messages: honest messages beside the attacks, at least 1.

    Returns:
        0 where every case came out as expected, else 1.

    Raises:
        ConfigurationError: the broker is of no known kind, or its client is not installed.
    """
    if messages < 1:
        raise ConfigurationError("--messages is at least 1")
    stage = open_stage(broker)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = audit or Path(folder) / "audit.jsonl"
            return _play(stage, path, as_json=as_json, messages=messages, keep=audit is not None)
    finally:
        stage.close()


def open_stage(broker: str | None) -> Stage:
    """Return the stage of a broker's URL.

    Raises:
        ConfigurationError: an unknown scheme, or the client library is missing.
    """
    if broker is None:
        return MemoryStage()
    scheme = broker.partition("://")[0]
    try:
        if scheme in ("amqp", "amqps"):
            from mqauth.testing.stage_rabbitmq import RabbitMQStage

            return RabbitMQStage(broker)
        if scheme == "kafka":
            from mqauth.testing.stage_kafka import KafkaStage

            return KafkaStage(broker)
    except ImportError as error:
        extra = "kafka" if scheme == "kafka" else "rabbitmq"
        raise ConfigurationError(f"--broker {scheme}://: install mqauth[{extra}]") from error
    raise ConfigurationError("--broker is amqp://..., amqps://... or kafka://host:port")


def _play(stage: Stage, audit_path: Path, *, as_json: bool, messages: int, keep: bool) -> int:
    """Publish the cases, consume them, and report."""
    heads = HeadFile(f"{audit_path}.heads", _head_key(Path(f"{audit_path}.pem"))) if keep else None
    forge = Forge(lifetime=_LIFETIME)
    cases = list(_cases(forge, stage.destination, messages))
    with AuditFile(audit_path, heads=heads) as audit:
        for case in cases:
            if case.signed:
                stage.produce(forge.signer(), case.message)
            else:
                stage.inject(case.message)
        results = _consume(stage, forge, audit, cases, keep)
    intact = verify_chain(audit_path).intact
    lost = sum(result.verdict == "lost" for result in results)
    if as_json:
        print(json.dumps(_report(stage.name, results, intact, lost), indent=2))
    else:
        _show(stage.name, results, intact, lost)
    return 0 if intact and not lost and all(result.as_expected for result in results) else 1


def _head_key(path: Path) -> Key:
    """Return the key of a demo that went before and left one, else a new one, left for the next."""
    if not path.exists():
        path.touch(0o600)
        path.write_bytes(Key.generate().to_pem())
    return Key.load(path)


def _cases(forge: Forge, place: str, messages: int) -> Iterator[Case]:
    """Yield honest messages, every attack the broker allows, and the replay of the first message."""
    copied = forge.signer().sign(_named(honest_message(place, 0), "honest-0"))
    yield Case(name="honest-0", story="an honest order", expected="accepted", message=copied)
    for number in range(1, messages):
        name = f"honest-{number}"
        message = _named(honest_message(place, number), name)
        yield Case(name=name, story="an honest order", expected="accepted", message=message, signed=True)
    for number, attack in enumerate(ATTACKS, messages):
        if attack.fits(place):
            hostile = attack.mount(forge, _named(honest_message(place, number), attack.name))
            yield Case(name=attack.name, story=attack.story, expected=attack.reason.value, message=hostile)
    yield Case(name="replay", story="a copy of honest-0, published again", expected=Reason.REPLAYED.value,
               message=copied)  # fmt: skip


def _consume(stage: Stage, forge: Forge, audit: AuditFile, cases: list[Case], keep: bool) -> list[Result]:
    """Run the consumer until every case has an end, and return what became of each."""
    handled: list[Verified] = []
    guard = Pipeline(
        verifier=forge.verifier(),
        policy=forge.policy(stage.destination),
        replay=MemoryReplayStore(),
        audit=audit,
        record="all" if keep else "rejections",
        attempts=Attempts(limit=1),
    )

    expected_letters = sum(case.expected != "accepted" for case in cases)
    stage.consume(
        guard,
        handled.append,
        until=lambda: len(handled) + expected_letters >= len(cases) and len(stage.letters()) >= expected_letters,
    )
    known = frozenset(re.findall(r'"(?:id|jti)":"([^"]*)"', audit.path.read_text("utf-8")))
    return _results(cases, handled, stage.letters(), known)


def _results(
    cases: list[Case], handled: list[Verified], letters: list[Message], audit: frozenset[str]
) -> list[Result]:
    """Look each case up in what was handled, dead-lettered and audited."""
    by_name: dict[str, Message] = {}
    for letter in letters:
        name = _header(letter, _CASE_HEADER)
        by_name["replay" if _header(letter, _DEAD_REASON) == Reason.REPLAYED.value else name] = letter
    seen = [(_text(verified.header(_CASE_HEADER)), verified.jti) for verified in handled]
    tokens = dict(seen) if len(dict(seen)) == len(seen) else {}
    return [_result(case, tokens.get(case.name), by_name.get(case.name), audit) for case in cases]


def _result(case: Case, jti: str | None, letter: Message | None, audit: frozenset[str]) -> Result:
    """Return what became of one case: the token its handler saw, its letter, and whether the audit knows."""
    trace = jti if letter is None else _header(letter, "mqauth-dead-audit")
    return Result(
        case=case,
        handled=jti is not None,
        reason=None if letter is None else _header(letter, _DEAD_REASON),
        dead_letter=letter is not None,
        audit=trace in audit,
    )


def _report(broker: str, results: list[Result], intact: bool, lost: int) -> dict[str, Any]:
    """Return the JSON report."""
    return {
        "broker": broker,
        "cases": [
            {
                "case": result.case.name,
                "expected": result.case.expected,
                "verdict": result.verdict,
                "reason": result.reason,
                "handled": result.handled,
                "dead_letter": result.dead_letter,
                "audit": result.audit,
            }
            for result in results
        ],
        "audit_chain": "intact" if intact else "broken",
        "lost": lost,
    }


def _show(broker: str, results: list[Result], intact: bool, lost: int) -> None:
    """Print the table and what to try next."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 110)
    table = Table("case", "what it is", "verdict", "reason", "as expected", title=f"mqauth demo on {broker}")
    for result in results:
        table.add_row(
            result.case.name,
            result.case.story,
            f"[{'green' if result.verdict == 'accepted' else 'yellow'}]{result.verdict}",
            result.reason or "",
            "yes" if result.as_expected else "[red]NO",
        )
    console.print(table)
    attacks = [result for result in results if result.case.expected != "accepted"]
    console.print(
        f"{len(results) - len(attacks)} honest messages handled, "
        f"{sum(result.as_expected for result in attacks)} of {len(attacks)} attacks dead-lettered, {lost} lost; "
        f"audit chain {'intact' if intact else 'BROKEN'}."
    )
    console.print(
        "Next: mqauth demo --json, mqauth demo --broker amqp://guest:guest@localhost/, mqauth keys new --help",
        soft_wrap=True,
    )


def _named(message: Message, name: str) -> Message:
    """Return a message that carries its case's name in a last header, in its broker's type."""
    on_kafka = message.destination.startswith("kafka:")
    return replace(message, headers=(*message.headers, (_CASE_HEADER, name.encode() if on_kafka else name)))


def _header(message: Message, name: str) -> str:
    """Return a header of a letter as text, empty where it is absent."""
    values = message.occurrences(name)
    return _text(values[0]) if values else ""


def _text(value: object) -> str:
    """Return a header value as text."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
