"""Writes the generated reference, `python -m integration.reference`: pages that repeat what the code says.

`docs/reference/` holds commands, reasons, the glossary, metrics, audit records, attacks and the API. What of the
API may be called, and how, stands in `tests/signatures.txt`.
`docs/configuration.md` and its schema come from `integration.settings`, which this command runs as well. A test
compares all of them with the code.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any, Final, is_typeddict

import typer.main

from integration import settings
from integration.capabilities import table
from integration.documentation import ROOT
from mqauth.cli import app as command_line
from mqauth.errors import Cause, Reason
from mqauth.review.glossary import EXPLANATIONS, TERMS
from mqauth.telemetry import METRICS, AuthorityTelemetry, Telemetry
from mqauth.testing.attack_classes import CLASSES

FOLDER: Final = ROOT / "docs" / "reference"
DOORS: Final = (
    "mqauth", "mqauth.brokers.options", "mqauth.brokers.rabbitmq", "mqauth.brokers.pika", "mqauth.brokers.kafka",
    "mqauth.brokers.aiokafka", "mqauth.brokers.confluent", "mqauth.integrations.faststream",
    "mqauth.integrations.taskiq", "mqauth.integrations.dramatiq", "mqauth.integrations.celery",
    "mqauth.keystore", "mqauth.stores.redis",
    "mqauth.telemetry", "mqauth.telemetry.prometheus", "mqauth.testing",
)  # fmt: skip
"""The modules that programs import from."""
SHARED: Final = 2
"""An option that so many commands have, with the same words, is told once."""
_TOGETHER: Final = {
    "*broker*": ("`--broker`", "`--config`", "`--queue`", "`--topic`"),
    "*selection*": (
        "`--id`", "`--issuer`", "`--kid`", "`--subject`", "`--destination`", "`--from`, `--since`",
        "`--to`, `--until`", "`--intact`, `--not-intact`",
    ),
}  # fmt: skip
"""Options that many commands take together, under one word."""
_WRITTEN = "`python -m integration.reference` writes this page.\n"
_LABELS: Final = {
    "mqauth.messages": "`verdict`, `reason`, `destination`",
    "mqauth.judge.duration": "`verdict`",
    "mqauth.alerts": "`kind`",
    "mqauth.deferred": "`consumer`",
    "mqauth.stalled": "`consumer`",
    "mqauth.key_set.age": "`issuer`",
    "mqauth.issuer.ends": "`issuer`",
    "mqauth.identity.expires": "`subject`",
    "mqauth.policy.failing": "`policy`",
    "mqauth.replay.size": "`store`",
    "mqauth.replay.losses": "`store`",
    "mqauth.dead_letters.open": "`queue`",
    "mqauth.dead_letters.oldest": "`queue`",
    "mqauth.rollout.rung": "`destination`",
    "mqauth.rollout.days_left": "`destination`",
    "mqauth.rollout.aliases": "`destination`",
    "messaging.process.duration": "`messaging.*`, `error.type`",
    "mqauth.authority.requests": "`answer`, `refusal`, `credential`",
    "mqauth.authority.identities": "`subject`, `credential`",
    "mqauth.authority.duration": "`answer`",
    "mqauth.authority.cutoffs": "`trust_domain`",
    "mqauth.authority.key.age": "`trust_domain`",
}
_WATCHED: Final = {
    "mqauth.messages": "observe",
    "mqauth.judge.duration": "observe",
    "mqauth.alerts": "alert",
    "mqauth.deferred": "watch_consumer",
    "mqauth.stalled": "watch_consumer",
    "mqauth.key_set.age": "watch_keys",
    "mqauth.issuer.ends": "watch_issuers",
    "mqauth.identity.expires": "watch_identity",
    "mqauth.policy.failing": "watch_policy",
    "mqauth.replay.size": "watch_store",
    "mqauth.replay.losses": "watch_losses",
    "mqauth.dead_letters.open": "watch_dead_letters",
    "mqauth.dead_letters.oldest": "watch_dead_letters",
    "mqauth.rollout.rung": "watch_rollout",
    "mqauth.rollout.days_left": "watch_rollout",
    "mqauth.rollout.aliases": "watch_rollout",
    "messaging.process.duration": "timed",
}
"""The method of `Telemetry` by which a metric is fed; an authority feeds its own."""


def commands() -> str:
    """Return the page of commands: what each does, its arguments and its options, and how all of them end."""
    found = [(name, command, _parameters(command)) for name, command in verbs()]
    used = Counter(option for _, _, parameters in found for option in parameters.items())
    shared = dict(
        option for option, count in reversed(used.most_common()) if count >= SHARED
    )
    lines = [
        f"# Commands\n\nLook up a command, its arguments and its options. {_WRITTEN}",
        f"## Exit codes\n\n{_exit_codes()}",
        "## Options of several commands\n\nA command that takes one of these names it under *Also*.\n",
        *(shared[name] for name in sorted(shared)),
        *(f"* {word}: {', '.join(names)}" for word, names in _TOGETHER.items()),
        "",
    ]
    for name, command, parameters in found:
        lines.append(f"## `{name}`\n\n{_paragraphs(command.help)}\n")
        own = [line for option, line in parameters.items() if shared.get(option) != line]
        also = ", ".join(
            _together(
                [
                    option
                    for option, line in parameters.items()
                    if shared.get(option) == line
                ]
            )
        )
        lines += (
            [*own, f"* Also: {also}" if also else "", ""]
            if own
            else [f"Also: {also}\n" if also else ""]
        )
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def _together(options: list[str]) -> list[str]:
    """Return options with those that stand under one word replaced by it."""
    for word, names in _TOGETHER.items():
        if {*names} <= {*options}:
            options = [word, *(option for option in options if option not in names)]
    return options


def verbs() -> Iterator[tuple[str, Any]]:
    """Yield each command that does something, with its full name."""
    root = typer.main.get_command(command_line.app)
    yield from _below(root, "mqauth")


def _below(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    context = typer.Context(command)
    if not hasattr(command, "list_commands"):
        yield name, command
        return
    for inner in command.list_commands(context):
        yield from _below(command.get_command(context, inner), f"{name} {inner}")


def _parameters(command: Any) -> dict[str, str]:
    """Return a command's arguments and options by their names, each as an item of a list."""
    return dict(
        _parameter(found)
        for found in command.params
        if not found.hidden and found.name != "help"
    )


def _parameter(found: Any) -> tuple[str, str]:
    if found.param_type_name == "argument":
        name = f"`{found.name.upper()}`"
    else:
        name = ", ".join(f"`{one}`" for one in (*found.opts, *found.secondary_opts))
    default = found.default
    shown = "" if default in (None, False, ()) or callable(default) else f" (`{default}`)"
    return (
        name,
        f"* {name}{' (*required*)' if found.required else shown}: {_plain(found.help or '')}",
    )


def _exit_codes() -> str:
    rows = {
        0: "Fine: it did what it was asked, and found nothing wrong.",
        1: "Found or failed: a rejected message, a finding, a broken chain, or the command could not finish.",
        command_line.USAGE: "Usage or configuration: an option, a file or a setting is wrong.",
        command_line.UNDECIDED: "Undecided: something was out of reach, or a message was deferred or a duplicate.",
        130: "Interrupted by Ctrl-C.",
    }
    table = "".join(f"* `{code}`: {said}\n" for code, said in rows.items())
    ends = "ends with 1 where any message was rejected, else with 3, else with 0."
    return f"{table}\n`mqauth verify --lines` {ends}\n"


def reasons() -> str:
    """Return the page of reasons and causes: what each means, and what to do."""
    head = f"# Reasons and causes\n\nLook up why a message was rejected, and what to do about it. {_WRITTEN}"
    forged = Counter(told.next for told in EXPLANATIONS.values()).most_common(1)[0][0]
    legend = "".join(
        f"* *{word}* means: {advice[:1].lower()}{advice[1:]}\n"
        for advice, word in _ADVICE.items()
    )
    explained, step = "", ""
    for reason in Reason:
        told = EXPLANATIONS[reason]
        explained += f"\n**{told.step}**\n\n" if told.step != step else ""
        advice = _ADVICE.get(told.next, told.next)
        explained += f"* `{reason}`: {told.meaning}{'' if told.next == forged else f' *{advice}*'}\n"
        step = told.step
    causes = "".join(
        f"* `{cause}`: {meaning}. *{look}.*\n"
        for cause, (meaning, look) in CAUSES.items()
    )
    return (
        f"{head}\n## Reasons\n\nA rejection is final: something is wrong with the message itself. Its dead "
        "letter names the reason in `mqauth-dead-reason`, its audit record in `reason`. Reasons stand under the "
        "step that failed, with what to do in italics. Where nothing is said: "
        f"{forged[:1].lower()}{forged[1:]}\n\n{legend}{explained}\n## Causes\n\nA message is deferred when mqauth "
        "cannot decide yet. It is neither handled nor dead-lettered, and mqauth tries again until it can decide. "
        "`health()` says since when and why.\n\n"
        f"{causes}"
    )


_ADVICE: Final = {
    EXPLANATIONS[Reason.EXPIRED].next: "Waive.",
    EXPLANATIONS[Reason.TOKEN_MISSING].next: "Send again.",
}
"""What is to be done for many reasons, and the word for it on the page."""
CAUSES: Final[dict[Cause, tuple[str, str]]] = {
    Cause.KEYS_UNAVAILABLE: (
        "no key set of this issuer may still be used, or a key does not sign",
        "Look at the issuer and the way to it; of a producer at its keystore, HSM, service or authority",
    ),
    Cause.KEY_PENDING: (
        "nobody knows the key yet, and the issuer cannot be asked",
        "Look at the issuer",
    ),
    Cause.REPLAY_STORE_UNAVAILABLE: (
        "the replay store does not answer, or has lost its memory; `detail` names it",
        "Look at the store",
    ),
    Cause.REPLAY_STORE_FULL: (
        "more live ids than it may hold, or no room on its disk",
        "More capacity or room, or shorter lives",
    ),
    Cause.CLAIM_HELD: (
        "another consumer may still be handling it",
        "Nothing: it waits at most a lease (60 s)",
    ),
    Cause.POLICY_UNAVAILABLE: (
        "a policy of yours raised, or OPA gave no decision",
        "Look at that policy; `health()` names the agent",
    ),
    Cause.APPEND_TIME_UNAVAILABLE: (
        '`at = "append"`, and the broker does not prove when it took the message',
        "LogAppendTime, or the interceptor; for messages of before that `without_evidence`",
    ),
    Cause.AUDIT_UNAVAILABLE: (
        "the record was not written",
        "Look at the disk, or the sink",
    ),
    Cause.DEAD_LETTER_UNAVAILABLE: (
        "the letter was not confirmed: no such queue, full, refused, unreachable; `detail` has the verdict, too",
        "Look at the dead-letter queue or topic; a start warns where it is missing (`consumer.sink_missing`)",
    ),
    Cause.HANDLER_DEFERRED: (
        "your handler raised `RetryLater`, or `verified.reply` could not reach its broker or key",
        "Look at what it waits for",
    ),
    Cause.BROKER_UNAVAILABLE: (
        "of `health()` only. RabbitMQ: for a minute the consumer could not consume, or an alarm blocks its "
        "connection. Kafka: for ten seconds no commit has succeeded",
        "Look at what `detail` names: the connection, a queue that is missing; on Kafka the broker, and handlers "
        "that take longer than the session of the group",
    ),
}
"""Of each cause what it means, and what to look at."""


def glossary() -> str:
    """Return the page of words: each term of the console, ``mqauth dlq`` and the manual, with its meaning."""
    head = f"# Glossary\n\nLook up a word of the console, of `mqauth dlq` and of this manual. {_WRITTEN}"
    return f"{head}\n" + "".join(
        f"* **{term}**: {_plain(meaning)}\n" for term, meaning in sorted(TERMS.items())
    )


class _Meter:
    """A meter that keeps what is said of each instrument."""

    def __init__(self) -> None:
        self.said: dict[str, tuple[str, str, str]] = {}

    def __getattr__(self, name: str) -> Callable[..., None]:
        def create(metric: str, *, unit: str, description: str, **_rest: Any) -> None:
            self.said[metric] = (
                name.removeprefix("create_").removeprefix("observable_"),
                unit,
                description,
            )

        return create


def metrics() -> str:
    """Return the page of metrics: name, kind, unit, labels."""
    meter: Any = _Meter()
    Telemetry(meter)
    AuthorityTelemetry(meter)
    rows = "".join(
        f"* `{name}` ({kind}, `{unit}`; {_LABELS[name]}): {description}{_from(name)}\n"
        for name, (kind, unit, description) in (
            (name, meter.said[name]) for name in METRICS
        )
    )
    return (
        f"# Metrics\n\nLook up what a metric counts, its unit and its labels. {_WRITTEN}\n"
        "[Alert on trouble](../how-to/alert-on-trouble.md) says how to serve them. Names are OpenTelemetry's. "
        "Prometheus shows `mqauth.messages` as `mqauth_messages_total`, and times with `_seconds`. A name in "
        "brackets is the method of `telemetry` that feeds a metric.\n\n"
        f"{rows}\n"
        "No label has a key id or a token id. Destinations and subjects have a hundred labels, half of them for "
        "verified messages; all others are `other`. Of a deferred message `reason` is its cause, of an unverified "
        "one what `enforce` would have said. `refusal` of an authority may also be a cause, or `unread` for an "
        "address that was refused too often.\n"
    )


def _from(name: str) -> str:
    return f" (`{_WATCHED[name]}`)" if name in _WATCHED else ""


def audit_schema() -> str:
    """Return the page of the audit record: each member, as its schema has it."""
    schema = json.loads((ROOT / "docs" / "audit-record.schema.json").read_text("utf-8"))
    rows = "".join(_members("", schema, schema["$defs"], {}))
    return (
        f"# Audit record\n\nLook up a member of an audit record. {_WRITTEN}\n"
        "A record is a line of JSON. [The schema](../audit-record.schema.json) has all members, types and bounds; "
        "[the audit page](../audit.md) says when records are written and how their chain is checked. Members with "
        f"a star are always there.\n\n{schema['description']}\n\n{rows}"
    )


def _members(
    prefix: str, schema: dict[str, Any], known: dict[str, Any], shown: dict[str, str]
) -> Iterator[str]:
    """Yield each member as an item of a list; members that one before has too are not told again."""
    for name, own in schema.get("properties", {}).items():
        said = known.get(own.get("$ref", "").rpartition("/")[2], {}) | own
        always = "*" if name in schema.get("required", ()) else ""
        text = _plain(said.get("description", ""))
        below = json.dumps(said.get("properties", {}))
        like = f" Members as in `{shown[below]}`." if below in shown else ""
        if text or like:
            yield f"* `{prefix}{name}`{always} ({_kind(said)}): {text}{like}\n"
        if below != "{}" and not like:
            shown[below] = f"{prefix}{name}"
            yield from _members(f"{prefix}{name}.", said, known, shown)


def _kind(said: dict[str, Any]) -> str:
    if "const" in said or "enum" in said:
        return ", ".join(
            f"`{json.dumps(one)}`" for one in said.get("enum", [said.get("const")])
        )
    if "anyOf" in said and "type" not in said:
        return " or ".join(_kind(one) for one in said["anyOf"])
    kind = said.get("type", said.get("$ref", "").rpartition("/")[2])
    return " or ".join(kind) if isinstance(kind, list) else str(kind)


def api() -> str:
    """Return the page of public names, by the module they are imported from."""
    lines = [
        f"# API\n\nLook up a public name. {_WRITTEN}",
        "What is not listed here may change in any release.\n",
    ]
    told: dict[str, str] = {}
    for door in DOORS:
        with (
            warnings.catch_warnings()
        ):  # kafka-python reads its schemas by a deprecated function
            warnings.simplefilter("ignore", DeprecationWarning)
            module = importlib.import_module(door)
        lines.append(f"## `{door}`\n\n{_first(module.__doc__)}\n")
        alike: dict[str, list[str]] = {}
        for name in public_names(module):
            line = f"* `{name}`: {_first(_docstring(module, name)).partition('; ')[0].removesuffix('.')}"
            if told.setdefault(line, door) == door:
                lines += [line, *options(getattr(module, name))]
            else:
                alike.setdefault(told[line], []).append(f"`{name}`")
        lines += [
            f"* As in `{above}`: {', '.join(names)}" for above, names in alike.items()
        ]
        lines.append("")
    return "\n".join(lines)


def signatures() -> str:
    """Return every public name with its signature: what a release keeps, or warns of before it goes."""
    lines = []
    for door in DOORS:
        module = importlib.import_module(door)
        for name in public_names(module):
            found = getattr(module, name)
            lines.append(f"{door}.{name}{_signature(found)}")
            if inspect.isclass(found) and found.__module__.startswith("mqauth"):
                lines += [f"{door}.{name}.{member}" for member in _public_members(found)]
    return "\n".join(lines) + "\n"


def _signature(found: Any) -> str:
    """Return the parameters of what can be called, without their types and what is returned."""
    if inspect.isclass(found) and issubclass(found, Enum):
        return ""
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):
        return ""
    plain = [
        each.replace(
            annotation=each.empty,
            default="..." if each.default is not each.empty else each.empty,
        )
        for each in parameters
    ]
    return str(inspect.Signature(plain)).replace("'...'", "...")


def _public_members(kind: type) -> Iterator[str]:
    """Yield the public attributes of a class that it has from a class of ours, with their parameters."""
    for name in sorted(dir(kind)):
        owner = next((each for each in kind.__mro__ if name in vars(each)), object)
        if not name.startswith("_") and owner.__module__.startswith("mqauth"):
            yield name + (
                _signature(getattr(kind, name))
                if inspect.isroutine(getattr(kind, name))
                else ""
            )


def options(found: Any) -> list[str]:
    """Return an item for each option that a type of options adds, as its docstring tells it."""
    if not is_typeddict(found):
        return []
    # From Python 3.13 on the compiler takes the indentation away.
    listed = inspect.cleandoc(found.__doc__ or "").partition("Attributes:\n")[2]
    items = re.findall(
        r"^ {4}(\w+): (.+?)(?=^ {4}\w|\Z)", listed, re.DOTALL | re.MULTILINE
    )
    return [
        f"  * `{name}`: {_plain(text).removesuffix('.').replace('``', '`')}"
        for name, text in items
    ]


def public_names(module: Any) -> list[str]:
    """Return the names a module offers: its `__all__`, else what it defines without an underscore."""
    if hasattr(module, "__all__"):
        return [name for name in module.__all__ if not name.startswith("_")]
    return [
        name
        for name, found in vars(module).items()
        if not name.startswith("_")
        and getattr(found, "__module__", None) == module.__name__
        and callable(found)
    ]


def _docstring(module: Any, name: str) -> str:
    """Return the docstring of a name; of a constant the text below it in the source, or none."""
    found = getattr(module, name)
    if inspect.isclass(found) or inspect.isroutine(found):
        return found.__doc__ or ""
    source = inspect.getsource(module)
    below = re.search(rf'^{name}\b.*?\n"""(.+?)"""', source, re.DOTALL | re.MULTILINE)
    return below[1] if below else f"A constant of the type {type(found).__name__}."


def _first(text: str | None) -> str:
    return _plain((text or "").strip().partition("\n\n")[0]).replace("``", "`")


def _plain(text: str) -> str:
    return " ".join(text.split())


def _paragraphs(text: str | None) -> str:
    return "\n\n".join(" ".join(part.split()) for part in (text or "").split("\n\n"))


def attacks() -> str:
    """Return the page of attacks: each class, and what stands for it."""
    head = f"# Attacks\n\nLook up what [the attack suite](../how-to/attack-your-consumer.md) tries. {_WRITTEN}"
    classes = "".join(
        f"{one.number}. {_plain(one.story)} ({_plain(one.source)}){_held(one.elsewhere)}\n"
        for one in CLASSES
    )
    return (
        f"{head}\n## Classes\n\nEach class has where it was seen; the suite's report names its attacks. The test "
        "that is named holds what needs an issuer, a disk or an operator's mistake, and cannot be a message.\n\n"
        f"{classes}"
    )


def _held(elsewhere: str) -> str:
    return (
        f": `{elsewhere.rpartition('::')[2]}`"
        if "::" in elsewhere
        else f": {_plain(elsewhere)}" * bool(elsewhere)
    )


PAGES: Final[dict[str, Callable[[], str]]] = {
    "api.md": api,
    "attacks.md": attacks,
    "audit-record.md": audit_schema,
    "commands.md": commands,
    "metrics.md": metrics,
    "reasons.md": reasons,
    "glossary.md": glossary,
}


SIGNATURES: Final = ROOT / "tests" / "signatures.txt"
"""The public names with their signatures; a change of it is a change for whoever uses them."""
CAPABILITIES: Final = "## What each client can do\n"
"""The section of the page of clients that is written from the table."""


def write() -> None:
    """Write every generated page."""
    settings.write()
    clients = FOLDER.parent / "clients.md"
    before, start, rest = clients.read_text("utf-8").partition(CAPABILITIES)
    clients.write_text(
        f"{before}{start}\n{table.page()}\n## {rest.partition(chr(10) + '## ')[2]}",
        "utf-8",
    )
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), "utf-8")
    SIGNATURES.write_text(signatures(), "utf-8")


if __name__ == "__main__":
    write()
