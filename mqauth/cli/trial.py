"""``mqauth demo`` and ``mqauth bench``: the library tried out, on the broker in memory or on a real one.

In the demo each case is published by itself and judged by one consumer. Afterwards the demo looks up what became
of it: was it handled, is there a dead letter, is it in the audit. Nothing in the table is written by hand.
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Final, Protocol

import typer
from rich.console import Console

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
from mqauth.bench import report, run
from mqauth.cli.app import Json, answer, print_error
from mqauth.cli.broker import check_url, reached
from mqauth.cli.tables import Column, table_lines
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
CASE: Final = (
    Column("case"), Column("verdict", cut=False), Column("reason", cut=False), Column("as expected", cut=False),
    Column("what it is", goes=1),
)  # fmt: skip
_STAGES: Final = {
    "kafka": ("kafka", "KafkaStage"),
    "confluent": ("confluent", "ConfluentStage"),
    "confluent+aio": ("confluent", "AIOConfluentStage"),
    "aiokafka": ("aiokafka", "AiokafkaStage"),
    "pika": ("pika", "PikaStage"),
}
_SCHEMES: Final = {"confluent": "kafka", "confluent+aio": "kafka", "aiokafka": "kafka", "pika": "amqp"}
"""Schemes that name a client, and the scheme of their URL otherwise."""


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
        return _play(_stage(broker), audit, as_json=as_json, messages=messages)


def _stage(broker: str) -> Stage:
    scheme = broker.partition("://")[0]
    room, kind = _STAGES.get(scheme, ("rabbitmq", "RabbitMQStage"))
    try:
        stage: Stage = getattr(import_module(f"mqauth.testing.stage_{room}"), kind)(broker)
    except ImportError as error:
        raise ConfigurationError(f"--broker {scheme}://: install mqauth[{room}]") from error
    return stage


def _play(stage: Stage, kept: Path | None, *, as_json: bool, messages: int) -> int:
    """Publish the cases, consume them, and print the report."""
    forge = Forge(lifetime=600)
    with closing(stage), tempfile.TemporaryDirectory() as folder:
        path = kept or Path(folder) / "audit.jsonl"
        heads = None if kept is None else HeadFile(f"{path}.heads", head_key(Path(f"{path}.pem")))
        cases = list(_cases(forge, stage.destination, messages))
        with AuditFile(path, heads=heads) as audit:
            for case in cases:
                if case.unsigned:
                    stage.produce(forge.signer(), case.message)
                else:
                    stage.inject(case.message)
            results = consumed(stage, forge, audit, cases, kept is not None)
        intact = verify_chain(path).intact
    lost = sum(result.verdict == "lost" for result in results)
    if as_json:
        print(json.dumps(_report(stage.name, results, intact, lost), indent=2))
    else:
        answer(False, None, *_lines(stage.name, results, intact, lost))
    return 0 if intact and not lost and all(result.as_expected for result in results) else 1


def head_key(path: Path) -> Key:
    """Return the key that signs the heads of an audit file that is kept."""
    # An audit file that an earlier demo left goes on with the key that signed its heads.
    if not path.exists():
        path.touch(0o600)
        path.write_bytes(Key.generate().to_pem())
    return Key.load(path)


def _cases(forge: Forge, place: str, messages: int) -> Iterator[Case]:
    """Yield the honest messages, every attack that fits the broker, and a replay of the first message."""
    first = forge.signer().sign(named(honest_message(place, 0), "honest-0"))
    yield Case(name="honest-0", story="an honest order", expected=ACCEPTED, message=first)
    for number in range(1, messages):
        name = f"honest-{number}"
        message = named(honest_message(place, number), name)
        yield Case(name=name, story="an honest order", expected=ACCEPTED, message=message, unsigned=True)
    for number, attack in enumerate(ATTACKS, messages):
        if attack.fits(place):
            hostile = attack.mount(forge, named(honest_message(place, number), attack.name))
            yield Case(name=attack.name, story=attack.story, expected=attack.reason.value, message=hostile)
    story = "a copy of honest-0, published again"
    yield Case(name="replay", story=story, expected=Reason.REPLAYED.value, message=first)


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


def _report(broker: str, results: list[Result], intact: bool, lost: int) -> dict[str, Any]:
    return {
        "broker": broker,
        "cases": [
            {
                "case": result.case.name,
                "expected": result.case.expected,
                "verdict": result.verdict,
                "reason": result.reason,
                "handled": result.handled,
                "dead_letter": result.reason is not None,
                "audit": result.audit,
            }
            for result in results
        ],
        "audit_chain": "intact" if intact else "broken",
        "lost": lost,
    }


def _lines(broker: str, results: list[Result], intact: bool, lost: int) -> Iterator[str]:
    """Yield what became of every message, for people and for programs that read tables."""
    cells = (
        (one.case.name, one.verdict, one.reason or "", "yes" if one.as_expected else "NO", one.case.story)
        for one in results
    )
    yield from table_lines(f"mqauth demo on {broker}", CASE, cells)
    attacks = [result for result in results if result.case.expected != ACCEPTED]
    yield (
        f"{len(results) - len(attacks)} honest messages handled, "
        f"{sum(result.as_expected for result in attacks)} of {len(attacks)} attacks dead-lettered, {lost} lost;"
    )
    yield f"audit chain {'intact' if intact else 'BROKEN'}."
    yield "Next: mqauth demo --json, mqauth keys new --help,"
    yield "mqauth demo --broker amqp://guest:guest@localhost/"


def named(message: Message, name: str) -> Message:
    """Return a message with the name of its case in a last header, of the type that its broker uses."""
    value = name.encode() if destination.is_kafka(message.destination) else name
    return replace(message, headers=(*message.headers, (_CASE_HEADER, value)))


def _header(message: Message, name: str) -> str:
    values = message.occurrences(name)
    return _text(values[0]) if values else ""


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def bench(
    *,
    quick: Annotated[bool, typer.Option("--quick", help="At most two minutes; coarser figures.")] = False,
    as_json: Json = False,
    rabbitmq: Annotated[
        str | None, typer.Option("--rabbitmq", help="amqp://...: measure end to end on this broker too.")
    ] = None,
    kafka: Annotated[
        str | None, typer.Option("--kafka", help="host:port: measure end to end on this broker too.")
    ] = None,
    confluent: Annotated[
        str | None, typer.Option("--confluent", help="host:port: the same on this Kafka, by confluent-kafka.")
    ] = None,
    confluent_aio: Annotated[
        str | None,
        typer.Option("--confluent-aio", help="host:port: the same, by confluent-kafka's AIOConsumer."),
    ] = None,
    aiokafka: Annotated[
        str | None, typer.Option("--aiokafka", help="host:port: the same on this Kafka, by aiokafka.")
    ] = None,
    pika: Annotated[
        str | None, typer.Option("--pika", help="amqp://...: the same on this RabbitMQ, by pika.")
    ] = None,
    identity: Annotated[
        bool, typer.Option("--identity", help="With the identity form beside the direct form on each broker.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", help="Write every figure with its spread to this JSON file.")
    ] = None,
) -> int:
    """Measure what signing and verifying cost on this machine, beside the bare clients."""
    for option, url in (("--rabbitmq", rabbitmq), ("--pika", pika)):
        if url is not None:
            check_url(option, url)
    kafka, confluent = _address("--kafka", kafka), _address("--confluent", confluent)
    confluent_aio, aiokafka = _address("--confluent-aio", confluent_aio), _address("--aiokafka", aiokafka)
    console = Console(stderr=True, quiet=as_json)
    logs = (f"kafka://{address}" for address in (kafka, confluent, confluent_aio, aiokafka) if address)
    with reached(rabbitmq, pika, *logs), console.status("making keys") as status:
        amount = run.amount_of(quick=quick)
        found = run.measure(
            amount, rabbitmq=rabbitmq, kafka=kafka, confluent=confluent, confluent_aio=confluent_aio,
            aiokafka=aiokafka, pika=pika, identity=identity, progress=status.update,
        )  # fmt: skip
    if output is not None:
        output.write_text(json.dumps(found.whole(), indent=1) + "\n", "utf-8")
    answer(as_json, found.short(), *report.lines(found))
    failed = found.failed()
    for what, why in failed.items():
        print_error(f"{what}: {why}")
    return 1 if failed else 0


def _address(option: str, url: str | None) -> str | None:
    if url is None:
        return None
    address = run.address_of(url)
    check_url(option, f"kafka://{address}")
    return address
