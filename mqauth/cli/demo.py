"""``mqauth demo``: the library tried out, on the broker in memory or on a real one."""

from __future__ import annotations

import logging
import tempfile
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Annotated, Final

import typer

from mqauth import ConfigurationError, Reason
from mqauth.cli.app import Json
from mqauth.cli.broker import check_url, reached
from mqauth.cli.demo_cases import ACCEPTED, Case, audit_file, consumed, named, reported
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
            results = consumed(stage, forge, audit, cases, kept is not None)
        return reported(stage.name, results, audit.path, as_json=as_json, end="dead-lettered", more=_NEXT)
