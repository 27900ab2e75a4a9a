"""``mqauth demo``: the library tried out, on the broker in memory or on a real one."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from mqauth import ConfigurationError, Reason
from mqauth.audit.chain import verify_chain
from mqauth.cli.app import Json, answer
from mqauth.cli.broker import check_url, reached
from mqauth.cli.demo_cases import ACCEPTED, CASE, Case, Result, audit_file, consumed, named
from mqauth.cli.tables import table_lines
from mqauth.errors import require
from mqauth.testing.forge import Forge
from mqauth.testing.stage import MemoryStage, Stage
from mqauth.testing.token_attacks import ATTACKS, honest_message

_STAGES: Final = {
    "kafka": ("kafka", "KafkaStage"),
    "confluent": ("confluent", "ConfluentStage"),
    "confluent+aio": ("confluent", "AIOConfluentStage"),
    "aiokafka": ("aiokafka", "AiokafkaStage"),
    "pika": ("pika", "PikaStage"),
}
_SCHEMES: Final = {"confluent": "kafka", "confluent+aio": "kafka", "aiokafka": "kafka", "pika": "amqp"}
"""Schemes that name a client, and the scheme of their URL otherwise."""


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
        cases = list(_cases(forge, stage.destination, messages))
        with audit_file(kept, Path(folder)) as audit:
            for case in cases:
                if case.unsigned:
                    stage.produce(forge.signer(), case.message)
                else:
                    stage.inject(case.message)
            results = consumed(stage, forge, audit, cases, kept is not None)
        intact = verify_chain(audit.path).intact
    lost = sum(result.verdict == "lost" for result in results)
    answer(as_json, _report(stage.name, results, intact, lost), *_lines(stage.name, results, intact, lost))
    return 0 if intact and not lost and all(result.as_expected for result in results) else 1


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
    yield "Next: mqauth init --help writes a producer and a consumer of your own,"
    yield "and mqauth demo --broker amqp://guest:guest@localhost/ shows this on a broker."
