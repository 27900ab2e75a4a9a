"""Writes the generated reference, `python -m integration.reference`: pages that repeat what the code says.

`docs/reference/` holds commands, exit codes, reasons, the glossary, metrics, audit records and the API.
`docs/configuration.md` and its schema come from `integration.settings`, which this command runs as well. A test
compares all of them with the code.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Final

import typer.main

from integration import settings
from integration.documentation import ROOT
from mqauth.cli import app as command_line
from mqauth.errors import Cause, Reason
from mqauth.review.glossary import EXPLANATIONS, TERMS
from mqauth.telemetry import METRICS, AuthorityTelemetry, Telemetry
from mqauth.testing.attack_classes import CLASSES
from mqauth.testing.attacks import ALL_ATTACKS

FOLDER: Final = ROOT / "docs" / "reference"
DOORS: Final = (
    "mqauth", "mqauth.brokers.rabbitmq", "mqauth.brokers.pika", "mqauth.brokers.kafka", "mqauth.brokers.aiokafka",
    "mqauth.brokers.confluent", "mqauth.integrations.faststream", "mqauth.keystore", "mqauth.stores.redis",
    "mqauth.telemetry", "mqauth.telemetry.prometheus", "mqauth.testing",
)  # fmt: skip
"""The modules that programs import from."""
_WRITTEN = "`python -m integration.reference` writes this page from the code: change the code, not the page.\n"
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


def commands() -> str:
    """Return the page of commands: what each does, its arguments and its options."""
    lines = [f"# Commands\n\nLook up a command, its arguments and its options. {_WRITTEN}"]
    lines.append("Every command ends with one of these [exit codes](exit-codes.md).\n")
    for name, command in verbs():
        lines.append(f"## `{name}`\n\n{_paragraphs(command.help)}\n")
        lines += _options(command)
    return "\n".join(lines)


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


def _options(command: Any) -> Iterator[str]:
    rows = [_option(found) for found in command.params if not found.hidden and found.name != "help"]
    if rows:
        yield "| Argument or option | Default | What it says |\n| --- | --- | --- |\n" + "".join(rows)


def _option(found: Any) -> str:
    if found.param_type_name == "argument":
        name = f"`{found.name.upper()}`"
    else:
        name = ", ".join(f"`{one}`" for one in (*found.opts, *found.secondary_opts))
    default = found.default
    shown = "" if default in (None, False, ()) or callable(default) else f"`{default}`"
    return f"| {name} | {'*required*' if found.required else shown} | {_cell(found.help or '')} |\n"


def exit_codes() -> str:
    """Return the page of exit codes."""
    rows = {
        0: "Fine: it did what it was asked, and found nothing wrong.",
        1: "Found or failed: a rejected message, a finding, a broken chain, or the command could not finish.",
        command_line.USAGE: "Usage or configuration: an option, a file or a setting is wrong.",
        command_line.UNDECIDED: "Undecided: something was out of reach, or a message was deferred or a duplicate.",
        command_line.INTERRUPTED: "Interrupted by Ctrl-C.",
    }
    table = "".join(f"| {code} | {said} |\n" for code, said in rows.items())
    said = "`mqauth verify --lines` ends with 1 where any message was rejected, else with 3, else with 0."
    head = f"# Exit codes\n\nTell in a script how a `mqauth` command ended. {_WRITTEN}"
    return f"{head}\n| Code | Meaning |\n| --- | --- |\n{table}\n{said}\n"


def reasons() -> str:
    """Return the page of reasons and causes: what each means, and what to do."""
    head = f"# Reasons and causes\n\nLook up why a message was rejected, and what to do about it. {_WRITTEN}"
    explained = "".join(
        f"| `{reason}` | {EXPLANATIONS[reason].step} | {_cell(EXPLANATIONS[reason].meaning)} "
        f"| {_cell(EXPLANATIONS[reason].next)} |\n"
        for reason in Reason
    )
    page = (ROOT / "docs" / "operations.md").read_text("utf-8")
    told = dict(re.findall(r"^(\| `(\w+)` \| [^|]+ \| [^|]+ \|)$", page.partition("\n| cause |")[2], re.MULTILINE))
    causes = "".join(f"{line}\n" for cause in Cause for line, name in told.items() if name == cause)
    return (
        f"{head}\n## Reasons\n\nA rejection is final: something is wrong with the message itself. Its dead letter "
        "names the reason in `mqauth-dead-reason`, its audit record in `reason`.\n\n"
        "| Reason | Step that failed | What it means | What to do |\n| --- | --- | --- | --- |\n"
        f"{explained}\n## Causes\n\nA message is deferred when mqauth cannot decide yet. mqauth tries again "
        "until it can; `health()` names the cause.\n\n| Cause | What it means | What to look at |\n"
        "| --- | --- | --- |\n"
        f"{causes}"
    )


def glossary() -> str:
    """Return the page of words: each term of the console, ``mqauth dlq`` and the manual, with its meaning."""
    head = f"# Glossary\n\nLook up a word of the console, of `mqauth dlq` and of this manual. {_WRITTEN}"
    rows = "".join(f"| **{term}** | {_cell(meaning)} |\n" for term, meaning in sorted(TERMS.items()))
    return f"{head}\n| Term | Meaning |\n| --- | --- |\n{rows}"


class _Meter:
    """A meter that keeps what is said of each instrument."""

    def __init__(self) -> None:
        self.said: dict[str, tuple[str, str, str]] = {}

    def __getattr__(self, name: str) -> Callable[..., None]:
        def create(metric: str, *, unit: str, description: str, **_rest: Any) -> None:
            self.said[metric] = (name.removeprefix("create_").removeprefix("observable_"), unit, description)

        return create


def metrics() -> str:
    """Return the page of metrics: name, kind, unit, labels."""
    meter: Any = _Meter()
    Telemetry(meter)
    AuthorityTelemetry(meter)
    rows = "".join(
        f"| `{name}` | {kind} | `{unit}` | {_LABELS[name]} | {description} |\n"
        for name, (kind, unit, description) in ((name, meter.said[name]) for name in METRICS)
    )
    return (
        f"# Metrics\n\nLook up what a metric counts and which labels it has. {_WRITTEN}\n"
        "Names are OpenTelemetry's. Prometheus shows `mqauth.messages` as `mqauth_messages_total`, and times with "
        "`_seconds`. Alert rules and a dashboard: [alerts.yml](../observability/alerts.yml), "
        "[grafana-dashboard.json](../observability/grafana-dashboard.json).\n\n"
        f"| Name | Kind | Unit | Labels | What it measures |\n| --- | --- | --- | --- | --- |\n{rows}"
    )


def audit_schema() -> str:
    """Return the page of the audit record: each member, as its schema has it."""
    schema = json.loads((ROOT / "docs" / "audit-record.schema.json").read_text("utf-8"))
    rows = "".join(_members("", schema, schema["$defs"]))
    return (
        f"# Audit record\n\nLook up a member of an audit record. {_WRITTEN}\n"
        "A record is one line of JSON. [The schema](../audit-record.schema.json) is exact about types and bounds; "
        "[the audit page](../audit.md) says when records are written and how their chain is checked.\n\n"
        f"{schema['description']}\n\n| Member | Type | Always there | What it says |\n"
        f"| --- | --- | --- | --- |\n{rows}"
    )


def _members(prefix: str, schema: dict[str, Any], known: dict[str, Any]) -> Iterator[str]:
    for name, own in schema.get("properties", {}).items():
        said = known.get(own.get("$ref", "").rpartition("/")[2], {}) | own
        always = "yes" if name in schema.get("required", ()) else ""
        yield f"| `{prefix}{name}` | {_kind(said)} | {always} | {_cell(said.get('description', ''))} |\n"
        yield from _members(f"{prefix}{name}.", said, known)


def _kind(said: dict[str, Any]) -> str:
    if "const" in said or "enum" in said:
        return ", ".join(f"`{json.dumps(one)}`" for one in said.get("enum", [said.get("const")]))
    if "anyOf" in said and "type" not in said:
        return " or ".join(_kind(one) for one in said["anyOf"])
    kind = said.get("type", said.get("$ref", "").rpartition("/")[2])
    return " or ".join(kind) if isinstance(kind, list) else str(kind)


def api() -> str:
    """Return the page of public names, by the module they are imported from."""
    lines = [f"# API\n\nLook up a public name. {_WRITTEN}", "What is not listed here may change in any release.\n"]
    for door in DOORS:
        with warnings.catch_warnings():  # kafka-python reads its schemas by a deprecated function
            warnings.simplefilter("ignore", DeprecationWarning)
            module = importlib.import_module(door)
        lines.append(f"## `{door}`\n\n{_first(module.__doc__)}\n\n| Name | What it is |\n| --- | --- |")
        lines += [f"| `{name}` | {_first(_docstring(module, name))} |" for name in public_names(module)]
        lines.append("")
    return "\n".join(lines)


def public_names(module: Any) -> list[str]:
    """Return the names a module offers: its `__all__`, else what it defines without an underscore."""
    if hasattr(module, "__all__"):
        return [name for name in module.__all__ if not name.startswith("_")]
    return [
        name
        for name, found in vars(module).items()
        if not name.startswith("_") and getattr(found, "__module__", None) == module.__name__ and callable(found)
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
    return _cell((text or "").strip().partition("\n\n")[0]).replace("``", "`")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _paragraphs(text: str | None) -> str:
    return "\n\n".join(" ".join(part.split()) for part in (text or "").split("\n\n"))


def attacks() -> str:
    """Return the page of attacks: each class, and what stands for it; then each attack with its reason."""
    head = f"# Attacks\n\nLook up what [the attack suite](../how-to/attack-your-consumer.md) tries. {_WRITTEN}"
    rows = "".join(
        f"| {one.number} | {_cell(one.story)} | {_cell(one.source)} | {_code(one.attacks)} "
        f"| {_held(one.elsewhere)} |\n"
        for one in CLASSES
    )
    listed = "".join(f"| `{one.name}` | {_cell(one.story)} | `{one.reason}` |\n" for one in ALL_ATTACKS)
    return (
        f"{head}\n## Classes\n\nWhat needs an issuer, a disk or an operator's mistake cannot be sent as a "
        "message. A test of this repository holds it.\n\n| Class | What is tried | Seen at | Attacks | Held by |\n"
        f"| --- | --- | --- | --- | --- |\n{rows}\n## Attacks of one message\n\n"
        f"| Name | What is sent | Reason |\n| --- | --- | --- |\n{listed}"
    )


def _code(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _held(elsewhere: str) -> str:
    return f"`{elsewhere}`" if "::" in elsewhere else _cell(elsewhere)


PAGES: Final[dict[str, Callable[[], str]]] = {
    "api.md": api,
    "attacks.md": attacks,
    "audit-record.md": audit_schema,
    "commands.md": commands,
    "exit-codes.md": exit_codes,
    "metrics.md": metrics,
    "reasons.md": reasons,
    "glossary.md": glossary,
}


def write() -> None:
    """Write every generated page."""
    settings.write()
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), "utf-8")


if __name__ == "__main__":
    write()
