"""``mqauth demo``: the library tried out, on the broker in memory or on a real one."""

from __future__ import annotations

import contextlib
import logging
import re
import tempfile
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Final

import typer

from mqauth import (
    Attempts,
    AuditFile,
    HeadFile,
    Key,
    MemoryReplayStore,
    Message,
    Pipeline,
    Reason,
    Signer,
    Verified,
)
from mqauth.audit.chain import verify_chain
from mqauth.cli.app import Json, answer
from mqauth.cli.broker import check_url, reached
from mqauth.cli.forms import Column, table_lines
from mqauth.errors import refusing, require
from mqauth.review.letter import letter_headers
from mqauth.testing.forge import Forge
from mqauth.testing.stage import MemoryStage, Stage
from mqauth.testing.token_attacks import ATTACKS, honest_message
from mqauth.wire import destination

_CASE_HEADER: Final = "demo-case"
ACCEPTED: Final = "accepted"
"""What is expected of an honest case."""
LOST: Final = "lost"
"""The verdict where neither handler nor dead letter has a message, or both have it."""


@dataclass(slots=True, kw_only=True)
class Case:
    """One case of the demo, and what became of it, read back from the consumer.

    Args:
        case: its name, which stands in a header of the message.
        story: what it is, for the table.
        expected: ``accepted``, or the reason for which it must be refused.
        message: what is published.
        signer: signs the message when it is published.
        verdict: ``accepted``, ``rejected`` or ``lost``.
        reason: of its dead letter; ``None`` where there is none.
        audit: whether the audit has a record of a rejection.
    """

    case: str
    story: str
    expected: str
    message: Message
    signer: Signer | None = None
    verdict: str = LOST
    reason: str | None = None
    audit: bool = True

    @property
    def as_expected(self) -> bool:
        """Whether the case ended as it must."""
        refused = self.reason == self.expected and self.verdict != LOST and self.audit
        return self.verdict == ACCEPTED if self.expected == ACCEPTED else refused


def named(message: Message, name: str) -> Message:
    """Return a message with the name of its case in a last header, of the type that its broker uses."""
    value = name.encode() if destination.is_kafka(message.destination) else name
    return replace(message, headers=(*message.headers, (_CASE_HEADER, value)))


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


_STAGES: Final = {
    "kafka": ("kafka", "kafka", "KafkaStage"),
    "confluent": ("kafka", "confluent", "ConfluentStage"),
    "confluent+aio": ("kafka", "confluent", "AIOConfluentStage"),
    "aiokafka": ("kafka", "aiokafka", "AiokafkaStage"),
    "pika": ("amqp", "pika", "PikaStage"),
}
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
        Path | None,
        typer.Option(
            "--audit-file",
            help="Keep the audit file here, with its signed heads beside it.",
        ),
    ] = None,
    messages: Annotated[
        int,
        typer.Option(
            "--messages", min=1, max=1_000_000, help="How many honest messages."
        ),
    ] = 3,
) -> int:
    """Run a producer, a consumer and an attacker, and show what became of every message.

    Exits with 1 where a case did not end as it must. With --audit-file every verdict is recorded, not rejections
    alone; the signed heads are in FILE.heads and the key that signs them in FILE.pem.
    """
    # Each rejection is a line of the table already.
    logging.getLogger("mqauth").addHandler(logging.NullHandler())
    with contextlib.ExitStack() as stack:
        stage: Stage = MemoryStage()
        if broker is not None:
            scheme, mark, rest = broker.partition("://")
            kind, room, stage_of = _STAGES.get(
                scheme, (scheme, "rabbitmq", "RabbitMQStage")
            )
            url = kind + mark + rest
            check_url("--broker", url)
            stack.enter_context(reached(url))
            with refusing(ImportError, f"--broker {scheme}://: install mqauth[{room}]"):
                stage = getattr(import_module(f"mqauth.testing.stage_{room}"), stage_of)(
                    broker
                )
        stack.callback(stage.close)
        # An audit file that is kept has signed heads beside it. One that an earlier demo left goes on with the key
        # that signed them.
        folder, heads = Path(stack.enter_context(tempfile.TemporaryDirectory())), None
        if audit is not None:
            require(audit.parent.is_dir(), f"--audit-file: {audit.parent} is no folder")
            pem = Path(f"{audit}.pem")
            if not pem.exists():
                pem.touch(0o600)
                pem.write_bytes(Key.generate().to_pem())
            heads = HeadFile(f"{audit}.heads", Key.load(pem))
        with AuditFile(
            audit or folder / "audit.jsonl", heads=heads, fsync=audit is not None
        ) as file:
            cases = _cases(stage, file, messages, keep=audit is not None)
        chain = "intact" if verify_chain(file.path).intact else "broken"
    lost = sum(case.verdict == LOST for case in cases)
    attacks = [case for case in cases if case.expected != ACCEPTED]
    refused = sum(case.as_expected for case in attacks)
    odd = [case.case for case in cases if not case.as_expected]
    shown = ("case", "story", "expected", "verdict", "reason", "audit")
    answer(
        as_json,
        {
            "broker": stage.name,
            "cases": [{name: getattr(case, name) for name in shown} for case in cases],
            "audit_chain": chain,
            "lost": lost,
        },
        *table_lines(
            f"mqauth demo on {stage.name}",
            (
                Column("case"),
                Column("verdict", cut=False),
                Column("reason", cut=False),
                Column("what it is"),
            ),
            [(case.case, case.verdict, case.reason or "", case.story) for case in cases],
        ),
        *([f"NOT as expected: {', '.join(odd)}"] if odd else []),
        f"{len(cases) - len(attacks)} honest messages handled,"
        f" {refused} of {len(attacks)} attacks dead-lettered, {lost} lost;",
        f"audit chain {chain}.",
        *(
            "Next: mqauth init --help writes a producer and a consumer of your own,",
            "and mqauth demo --broker amqp://guest:guest@localhost/ shows this on a broker.",
        ),
    )
    return 0 if chain == "intact" and not odd else 1


def _cases(stage: Stage, audit: AuditFile, messages: int, *, keep: bool) -> list[Case]:
    """Return what became of honest messages, every attack that fits the broker, and a replay of the first message.

    Args:
        stage: where they are published.
        audit: the consumer's audit file.
        messages: how many are honest.
        keep: whether every verdict is recorded, and not rejections alone.
    """
    forge, target = Forge(lifetime=600), stage.destination
    honest = [
        named(honest_message(target, number), f"honest-{number}")
        for number in range(messages)
    ]
    first = forge.signer().sign(honest[0])
    cases = [
        Case(case="honest-0", story="an honest order", expected=ACCEPTED, message=first)
    ]
    cases += [
        Case(
            case=f"honest-{number}",
            story="an honest order",
            expected=ACCEPTED,
            message=message,
            signer=forge.signer(),
        )
        for number, message in enumerate(honest[1:], 1)
    ]
    cases += [
        Case(
            case=attack.name,
            story=attack.story,
            expected=attack.reason.value,
            message=attack.mount(
                forge, named(honest_message(target, number), attack.name)
            ),
        )
        for number, attack in enumerate(ATTACKS, messages)
        if attack.fits(target)
    ]
    cases.append(
        Case(
            case="replay",
            story="a copy of honest-0, published again",
            expected=Reason.REPLAYED.value,
            message=first,
        )
    )
    # They are published, and consumed.
    for case in cases:
        if case.signer is None:
            stage.inject(case.message)
        else:
            stage.produce(case.signer, case.message)
    handled: list[Verified] = []
    pipeline = Pipeline(
        verifier=forge.verifier(),
        policy=forge.policy(target),
        replay=MemoryReplayStore(),
        audit=audit,
        record="all" if keep else "rejections",
        attempts=Attempts(limit=1),
    )
    # Also where an attack is handled: the table has to say so.
    stage.consume(
        pipeline,
        handled.append,
        until=lambda: len(handled) + len(stage.letters()) >= len(cases),
    )
    recorded = frozenset(
        re.findall(r'"(?:id|jti)":"([^"]*)"', audit.path.read_text("utf-8"))
    )
    letters: dict[str, dict[str, str]] = {}
    for letter in stage.letters():
        # The replay is a copy of honest-0 and has its name, so it is known by its reason.
        told = letter_headers(letter)
        is_copy = told.get("reason") == Reason.REPLAYED.value
        letters[
            "replay"
            if is_copy
            else next(map(_text, letter.occurrences(_CASE_HEADER)), "")
        ] = told
    tokens = {_text(verified.header(_CASE_HEADER)): verified.jti for verified in handled}
    if len(tokens) < len(handled):
        tokens = {}
    for case in cases:
        trace, dead = tokens.get(case.case), letters.get(case.case)
        if (trace is None) is not (dead is None):
            case.verdict = ACCEPTED if dead is None else "rejected"
        if dead is not None:
            trace, case.reason = dead.get("audit"), dead.get("reason")
        case.audit = trace in recorded
    return cases
