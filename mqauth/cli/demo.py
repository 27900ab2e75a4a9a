"""``mqauth demo``: the library tried out, on the broker in memory or on a real one."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Final

import typer

from mqauth import (
    Attempts,
    AuditFile,
    ConfigurationError,
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
from mqauth.cli.app import Json, answer
from mqauth.cli.broker import check_url, reached
from mqauth.cli.forms import Column, table_lines
from mqauth.errors import require
from mqauth.judging.policy import Policy
from mqauth.testing.forge import Forge
from mqauth.testing.stage import MemoryStage, Stage
from mqauth.testing.token_attacks import ATTACKS, honest_message
from mqauth.wire import destination

_CASE_HEADER: Final = "demo-case"
_REASON_HEADER: Final = "mqauth-dead-reason"
ACCEPTED: Final = "accepted"
"""What is expected of an honest case."""
LOST: Final = "lost"
"""The verdict where neither handler nor dead letter has a message, or both have it."""
_COLUMNS: Final = (
    Column("case"),
    Column("verdict", cut=False),
    Column("reason", cut=False),
    Column("as expected", cut=False),
    Column("what it is", goes=1),
)


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


def consumed(
    stage: Stage, verifier: Verifier, policy: Policy, audit: AuditFile, cases: list[Case], *, keep: bool
) -> list[Result]:
    """Run a consumer until every case is handled or dead-lettered, and return the results.

    Args:
        stage: where the cases were published.
        verifier: knows whom the consumer trusts.
        policy: says who may publish there.
        audit: its audit file.
        cases: what was published.
        keep: whether every verdict is recorded, and not rejections alone.
    """
    handled: list[Verified] = []
    pipeline = Pipeline(
        verifier=verifier,
        policy=policy,
        replay=MemoryReplayStore(),
        audit=audit,
        record="all" if keep else "rejections",
        attempts=Attempts(limit=1),
    )
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
        results.append(
            Result(
                case=case.name,
                story=case.story,
                expected=case.expected,
                verdict=verdict,
                reason=reason,
                audit=trace in recorded,
            )
        )
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


_STAGES: Final = {
    "kafka": ("kafka", "KafkaStage"),
    "confluent": ("confluent", "ConfluentStage"),
    "confluent+aio": ("confluent", "AIOConfluentStage"),
    "aiokafka": ("aiokafka", "AiokafkaStage"),
    "pika": ("pika", "PikaStage"),
}
_SCHEMES: Final = {"confluent": "kafka", "confluent+aio": "kafka", "aiokafka": "kafka", "pika": "amqp"}
"""Schemes that name a client, and the scheme of their URL otherwise."""
_NEXT: Final = (
    "Next: mqauth init --help writes a producer and a consumer of your own,",
    "and mqauth demo --broker amqp://guest:guest@localhost/ shows this on a broker.",
)


def demo(
    broker: Annotated[
        str | None,
        typer.Option(
            "--broker",
            help="amqp:// or pika://..., kafka://, confluent://, confluent+aio:// or aiokafka://host:port. "
            "By default in memory.",
        ),
    ] = None,
    as_json: Json = False,
    audit: Annotated[
        Path | None, typer.Option("--audit", help="Keep the audit file here, with its signed heads beside it.")
    ] = None,
    messages: Annotated[int, typer.Option("--messages", min=1, help="How many honest messages.")] = 3,
    identity: Annotated[
        bool, typer.Option("--identity", help="In memory: an authority gives identities, and cuts one off.")
    ] = False,
) -> int:
    """Run a producer, a consumer and an attacker, and show what became of every message.

    Exits with 1 where a case did not end as it must. With --audit every verdict is recorded, not rejections alone;
    the signed heads are in FILE.heads and the key that signs them in FILE.pem.
    """
    # Each rejection is a line of the table already.
    logging.getLogger("mqauth").addHandler(logging.NullHandler())
    if identity:
        require(broker is None, "--identity: in memory only, without --broker")
        # It needs the authority, which the other demo does not.
        return int(import_module("mqauth.cli.identity_demo").play(audit, as_json=as_json, messages=messages))
    if broker is None:
        return _play(MemoryStage(), audit, as_json=as_json, messages=messages)
    scheme, mark, rest = broker.partition("://")
    url = _SCHEMES.get(scheme, scheme) + mark + rest
    check_url("--broker", url)
    with reached(url):
        room, kind = _STAGES.get(scheme, ("rabbitmq", "RabbitMQStage"))
        try:
            stage: Stage = getattr(import_module(f"mqauth.testing.stage_{room}"), kind)(broker)
        except ImportError as error:
            raise ConfigurationError(f"--broker {scheme}://: install mqauth[{room}]") from error
        return _play(stage, audit, as_json=as_json, messages=messages)


def _play(stage: Stage, kept: Path | None, *, as_json: bool, messages: int) -> int:
    """Publish the cases, consume them, and print the report."""
    forge, place = Forge(lifetime=600), stage.destination
    # The honest messages, every attack that fits the broker, and a replay of the first message.
    first = forge.signer().sign(named(honest_message(place, 0), "honest-0"))
    cases = [Case(name="honest-0", story="an honest order", expected=ACCEPTED, message=first)]
    for name, number in [(f"honest-{number}", number) for number in range(1, messages)]:
        message = named(honest_message(place, number), name)
        cases.append(Case(name=name, story="an honest order", expected=ACCEPTED, message=message, unsigned=True))
    for number, attack in enumerate(ATTACKS, messages):
        if attack.fits(place):
            hostile = attack.mount(forge, named(honest_message(place, number), attack.name))
            expected = attack.reason.value
            cases.append(Case(name=attack.name, story=attack.story, expected=expected, message=hostile))
    story = "a copy of honest-0, published again"
    cases.append(Case(name="replay", story=story, expected=Reason.REPLAYED.value, message=first))
    with closing(stage), tempfile.TemporaryDirectory() as folder:
        with audit_file(kept, Path(folder)) as audit:
            for case in cases:
                if case.unsigned:
                    stage.produce(forge.signer(), case.message)
                else:
                    stage.inject(case.message)
            policy = forge.policy(place)
            results = consumed(stage, forge.verifier(), policy, audit, cases, keep=kept is not None)
        return reported(stage.name, results, audit.path, as_json=as_json, end="dead-lettered", more=_NEXT)
