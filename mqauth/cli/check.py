"""``mqauth check``: what is wrong with a configuration file, and what the network says; ``mqauth selftest``.

``mqauth config`` shows every setting that commands would take, and where each comes from.
"""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple
from urllib.parse import urlsplit

import typer

from mqauth.check import Finding, Severity
from mqauth.check import check as check_file
from mqauth.cli.app import Broker, Config, Json, answer, group
from mqauth.cli.broker import (
    check_stamps,
    kafka_admin,
    needing,
    opened,
    place_of,
    rabbitmq,
    table_of,
)
from mqauth.cli.forms import Column, one_line, table_lines, terminal_width
from mqauth.cli.settings import file_of, settings_of
from mqauth.clock import SYSTEM_CLOCK
from mqauth.config.declaration import Settings, read
from mqauth.config.issuer_settings import SourceSettings
from mqauth.config.load import load
from mqauth.config.settings import FileSettings
from mqauth.config.toml_file import Place, Table, lines_of, nearest, read_toml, spelt
from mqauth.errors import MqauthError, Unavailable, require
from mqauth.http.connection import Deadline, Endpoint, FetchFailed, tls_context
from mqauth.http.exchange import request
from mqauth.judging.selftest import self_test
from mqauth.keystore import Keystore
from mqauth.keystore.remote.fetch import DiscoveredFetch, URLFetch
from mqauth.keystore.remote.keyserver import HEALTH, PATHS
from mqauth.policies.opa import OPA

_SECONDS = 5.0


class NetworkAnswer(NamedTuple):
    """One question to the network, and its answer.

    Args:
        what: whom was asked.
        code: 0 where all is well, 1 where the answer is wrong, 3 where none came.
        said: in words.
    """

    what: str
    code: int
    said: str


def ask(settings: FileSettings) -> Iterator[NetworkAnswer]:
    """Ask everybody that a file names, and that can be asked; nothing that was there is changed anywhere."""
    consumer, release, authority = settings.consumer, settings.release, settings.authority
    trusted = (
        *(consumer.issuers if consumer else ()),
        *(release.authorities if release else ()),
    )
    for source in (*trusted, *(authority.credentials if authority else ())):
        if source.file is None:
            yield answered(f"issuer {source.issuer}", "no keys", partial(_issuer, source))
    if authority is not None:
        yield answered(
            f"authority {authority.url}",
            "no answer",
            partial(_authority, authority.url, keys=authority.keys),
        )
    identity = None if settings.producer is None else settings.producer.identity
    if identity is not None:
        yield answered(
            f"identity from {identity.authority}",
            "no answer",
            lambda: _authority(identity.authority, ca=identity.ca),
        )
    opa = None if consumer is None else consumer.opa
    if opa is not None:
        yield agent(f"agent {opa.path}", lambda: OPA(**opa.arguments(OPA)))
    for name in [
        *([None] if settings.broker is not None else []),
        *(settings.brokers or {}),
    ]:
        table = "[broker]" if name is None else f"[brokers.{name}]"
        yield answered(table, "", partial(_broker, name, settings))
        url = table_of(name, settings).unlocked().url or ""
        if (
            consumer is not None
            and consumer.append_evidence is not None
            and not url.startswith("kafka:")
        ):
            yield answered(
                f"append_evidence of {table}", "", partial(_interceptor, name, settings)
            )


def answered(what: str, missing: str, question: Callable[[], str]) -> NetworkAnswer:
    """Ask a question, and return what came of it.

    Args:
        what: whom it is put to.
        missing: what did not come, where the network gives no answer.
        question: returns the answer in words, or raises what is wrong.
    """
    try:
        return NetworkAnswer(what, 0, question())
    except FetchFailed as error:
        return NetworkAnswer(what, 3, f"{missing}: {error}")
    except MqauthError as error:
        is_out = (
            isinstance(error, Unavailable | ConnectionError)
            or getattr(error, "exit_code", 1) == 3
        )
        return NetworkAnswer(what, 3 if is_out else 1, str(error))


def agent(what: str, opened: Callable[[], OPA]) -> NetworkAnswer:
    """Ask an agent for a decision on what names no producer, which must be a refusal."""
    return answered(
        what,
        "no decision",
        lambda: f"refuses what names no producer; {opened().probed()}",
    )


def _authority(url: str, *, ca: Path | None = None, keys: Path | None = None) -> str:
    """Ask an authority how it is, and for its set; that has the key which signs, where its keystore is here."""
    context = tls_context(ca)
    health, published = (
        Endpoint.parse(url + path, unsafe_http_loopback=True)
        for path in (HEALTH, PATHS[0])
    )
    told = (
        request(
            health, deadline=Deadline(SYSTEM_CLOCK, _SECONDS), context=context
        ).document
        or {}
    )
    published_keys = URLFetch(
        published, timeout=_SECONDS, context=context, clock=SYSTEM_CLOCK
    )(None).keys
    active = None if keys is None else Keystore(folder=keys).ring().active
    require(told.get("active"), "none of its keys signs")
    known = () if published_keys is None else published_keys.keys
    require(
        active is None or active.kid in {key.kid for key in known},
        f"its set lacks the key that signs here, {active and active.kid}: another authority answers",
    )
    return f"well; {_counted(len(known))}"


def _issuer(source: SourceSettings) -> str:
    given: dict[str, Any] = {
        "timeout": _SECONDS,
        "clock": SYSTEM_CLOCK,
        "context": tls_context(source.ca),
    }
    fetch: Any = (
        DiscoveredFetch(
            source.issuer, unsafe_http_loopback=source.unsafe_http_loopback, **given
        )
        if source.jwks is None
        else URLFetch(
            Endpoint.parse(source.jwks, unsafe_http_loopback=source.unsafe_http_loopback),
            svid=source.svid,
            **given,
        )
    )
    key_set = fetch(None).keys
    keys = require(
        () if key_set is None else tuple(key_set.keys),
        "its set has no key that can be used",
    )
    unbound = sum(key.subjects is None for key in keys)
    return (
        f"{_counted(len(keys))}, {unbound} without a subject"
        if unbound
        else _counted(len(keys))
    )


def _counted(keys: int) -> str:
    return f"{keys} {'key' if keys == 1 else 'keys'}"


def _broker(name: str | None, settings: FileSettings) -> str:
    """Look for the queue, or for the topic and the stamps of those that are consumed; nothing is read yet."""
    address = place_of(name, None, None, settings)
    if not address.on_kafka:
        with opened(address):
            return f"reached; {address.name} is there"
    # A review session would create the topic of resolutions beside it.
    with needing("[broker]", address), kafka_admin(address) as admin:
        require(address.name in admin.list_topics(), f"there is no topic {address.name}")
        check_stamps(admin, settings.consumer)
    return f"reached; {address.name} is there"


def _interceptor(name: str | None, settings: FileSettings) -> str:
    """Have a RabbitMQ prove that it overwrites append times, as a consumer does at its start."""
    from mqauth.brokers.queue.client import question
    from mqauth.brokers.rabbitmq.channel import echoed

    with rabbitmq(table_of(name, settings).unlocked()) as (connection, call):
        call(question(connection.transport.connection, echoed))
    return "proved: it overwrites what a sender writes"


def check(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]", show_default=False, help="By default mqauth.toml."
        ),
    ] = None,
    config: Config = None,
    as_json: Json = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Count warnings as errors.")
    ] = False,
    online: Annotated[
        bool,
        typer.Option("--online", help="Ask issuers and brokers too; changes nothing."),
    ] = False,
) -> int:
    """Find mistakes and risky settings in a configuration file.

    Exits with 1 where one of them is an error.
    """
    # The library logs some pitfalls when it loads a file. Here each of them is a finding already.
    logging.getLogger("mqauth").addHandler(logging.NullHandler())
    file = file_of(file or config)
    report = check_file(file)
    report = report.strict() if strict else report
    asked = list(ask(settings_of(file))) if online else []
    # What the network said no to is an error as any other.
    counted = [
        (
            report.count(each)
            + sum(each is Severity.ERROR and reply.code == 1 for reply in asked),
            each.value,
        )
        for each in Severity
    ]
    counts = ", ".join(
        f"{count} {noun}" + ("" if count == 1 else "s") for count, noun in counted
    )
    accepted = f"; {report.accepted} accepted" if report.accepted else ""
    unseen = [f"Not looked at: {', '.join(report.unseen)}."] if report.unseen else []
    answer(
        as_json,
        report.as_dict()
        | ({"online": [each._asdict() for each in asked]} if online else {}),
        *_lines(report.findings),
        f"{one_line(str(file))}: {counts}{accepted}.",
        *unseen,
        *(one_line(f"{each.what}: {each.said}") for each in asked),
    )
    codes = {each.code for each in asked} | (
        {1} if report.count(Severity.ERROR) else set()
    )
    return 1 if 1 in codes else max(codes, default=0)


def _lines(findings: tuple[Finding, ...]) -> Iterator[str]:
    """Yield the findings as paragraphs on a terminal, tab-separated for a program. The file may hold anything."""
    width = terminal_width()
    if width is not None:
        for each in findings:
            yield f"{each.severity}  {each.code.name}{f'  line {each.line}' if each.line else ''}"
            message = f"{each.key}: {each.message}" if each.key else each.message
            for text in (
                message,
                f"why: {each.code.why}",
                f"instead: {each.code.instead}",
            ):
                yield textwrap.fill(
                    one_line(text), width, initial_indent="  ", subsequent_indent="  "
                )
            yield ""
    elif findings:
        columns = tuple(
            map(Column, ("line", "severity", "code", "key", "message", "why", "instead"))
        )
        cells = [
            (
                str(each.line or ""),
                each.severity,
                each.code.name,
                each.key,
                each.message,
                each.code.why,
                each.code.instead,
            )
            for each in findings
        ]
        yield from table_lines("", columns, cells)


def selftest(config: Config = None, as_json: Json = False) -> int:
    """Try whether a consumer refuses unsigned and forged messages.

    An agent of [consumer.opa] is asked for a decision; no issuer, broker, store or audit file is used. Exits with
    1 where a hostile message was let in, or the agent does not decide. Exits with 3 where only the agent is out of
    reach.
    """
    guard = load(file_of(config)).trial
    policy, result = guard.policy, self_test(guard)
    asked = (
        agent(f"agent {policy.source}", lambda: policy)
        if isinstance(policy, OPA)
        else None
    )
    lines = [*result.lines(), *([] if asked is None else [f"{asked.what}: {asked.said}"])]
    answer(
        as_json,
        asdict(result) | {"agent": None if asked is None else asked._asdict()},
        *map(one_line, lines),
    )
    code = 0 if asked is None else asked.code
    return 1 if result.accepted or code == 1 else code


app: Final = group(
    "Show the settings that commands take, and where each comes from.",
    "mqauth config show",
)


Shown = tuple[str, str, str]
"""Table and name of a setting; its value as the file has it, of a URL the host alone; an option, a variable, a
line of the file, or ``default``, which says so."""


@app.command("show")
def show(
    context: typer.Context,
    config: Config = None,
    broker: Broker = None,
    as_json: Json = False,
) -> None:
    """Show every setting with its value, and whether option, environment, file or default says so."""
    path = file_of(config)
    text, members = read_toml(path)
    settings = read(FileSettings, Table(file=str(path), members=members))
    rows: list[Shown] = [
        ("file", str(path), _source(context, "config", "MQAUTH_CONFIG", "this folder"))
    ]
    if broker is not None:
        is_url = "://" in broker
        table_of(None if is_url else broker, settings)
        value = _host(broker) if is_url else f"[brokers.{spelt(broker)}]"
        rows.append(("broker", value, _source(context, "broker", "MQAUTH_BROKER", "")))
    rows += _settings(settings, str(path), lines_of(text))
    width = max(len(key) for key, _, _ in rows)
    answer(
        as_json,
        {
            "settings": [
                {"key": key, "value": value, "source": source}
                for key, value, source in rows
            ]
        },
        *(f"{key:<{width}}  {value}  ({source})" for key, value, source in rows),
    )


def _source(context: typer.Context, name: str, variable: str, otherwise: str) -> str:
    source = require(context.get_parameter_source(name), name).name
    kind = {"COMMANDLINE": "option", "ENVIRONMENT": "environment"}.get(source)
    return (
        otherwise
        if kind is None
        else f"{kind} {variable if source == 'ENVIRONMENT' else f'--{name}'}"
    )


def _settings(
    settings: Settings, file: str, lines: Mapping[Place, int]
) -> Iterator[Shown]:
    """Yield the settings of a table and of those within it, in the order in which they are declared."""
    hidden = {each.name for each in fields(settings) if not each.repr}
    for name in settings.settings():
        setting, path = getattr(settings, name), (*settings.table.path, name)
        inner = (
            setting.values()
            if isinstance(setting, Mapping)
            else setting
            if isinstance(setting, tuple)
            else [setting]
        )
        tables = [each for each in inner if isinstance(each, Settings)]
        for table in tables:
            yield from _settings(table, file, lines)
        if not tables and (
            name in settings.table.members or setting not in (None, (), frozenset())
        ):
            value = (
                ", ".join(map(_host, map(str, inner)))
                if name in hidden
                else _words(setting)
            )
            yield (
                f"{settings.table.name} {spelt(name)}",
                value,
                f"{file}:{nearest(lines, path)}"
                if name in settings.table.members
                else "default",
            )


def _words(setting: Any) -> str:
    if isinstance(setting, Mapping):
        return ", ".join(f"{name} = {_words(value)}" for name, value in setting.items())
    if isinstance(setting, tuple | frozenset):
        return ", ".join(
            map(str, setting if isinstance(setting, tuple) else sorted(setting))
        )
    return str(setting).lower() if isinstance(setting, bool) else str(setting)


def _host(url: str) -> str:
    """Return scheme and hosts of a URL, which may hold a password."""
    scheme, mark, rest = url.partition("://")
    servers = (
        urlsplit(f"//{server}").netloc.rpartition("@")[2] for server in rest.split(",")
    )
    return f"{scheme}://{','.join(servers)}" if mark else url
