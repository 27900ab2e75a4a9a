"""``mqauth config``: shows every setting that commands would take, and where each comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, Final
from urllib.parse import urlsplit

import typer

from mqauth.check.target import Path, lines_of, nearest
from mqauth.cli.app import Broker, Config, Json, answer, group
from mqauth.cli.broker import table_of
from mqauth.cli.settings import file_of
from mqauth.config.declaration import Settings, read
from mqauth.config.settings import FileSettings
from mqauth.config.toml_file import Table, read_toml, spelt
from mqauth.errors import require

app: Final = group("Show the settings that commands take, and where each comes from.", "mqauth config show")


Shown = tuple[str, str, str]
"""Table and name of a setting; its value as the file has it, of a URL the host alone; an option, a variable, a
line of the file, or ``default``, which says so."""


@app.command("show")
def show(context: typer.Context, config: Config = None, broker: Broker = None, as_json: Json = False) -> None:
    """Show every setting with its value, and whether option, environment, file or default says so."""
    path = file_of(config)
    text, members = read_toml(path)
    settings = read(FileSettings, Table(file=str(path), members=members))
    rows: list[Shown] = [("file", str(path), _source(context, "config", "MQAUTH_CONFIG", "this folder"))]
    if broker is not None:
        is_url = "://" in broker
        table_of(None if is_url else broker, settings)
        said = _host(broker) if is_url else f"[brokers.{spelt(broker)}]"
        rows.append(("broker", said, _source(context, "broker", "MQAUTH_BROKER", "")))
    rows += _settings(settings, str(path), lines_of(text))
    width = max(len(key) for key, _, _ in rows)
    told = [{"key": key, "value": value, "source": source} for key, value, source in rows]
    answer(as_json, {"settings": told}, *(f"{key:<{width}}  {value}  ({source})" for key, value, source in rows))


def _source(context: typer.Context, name: str, variable: str, otherwise: str) -> str:
    source = require(context.get_parameter_source(name), name).name
    said = {"COMMANDLINE": "option", "ENVIRONMENT": "environment"}.get(source)
    return otherwise if said is None else f"{said} {variable if source == 'ENVIRONMENT' else f'--{name}'}"


def _settings(settings: Settings, file: str, lines: Mapping[Path, int]) -> Iterator[Shown]:
    """Yield the settings of a table and of those within it, in the order in which they are declared."""
    hidden = {each.name for each in fields(settings) if not each.repr}
    for name in settings.settings():
        found, path = getattr(settings, name), (*settings.table.path, name)
        inner = found.values() if isinstance(found, Mapping) else found if isinstance(found, tuple) else [found]
        tables = [one for one in inner if isinstance(one, Settings)]
        for table in tables:
            yield from _settings(table, file, lines)
        if not tables and (name in settings.table.members or found not in (None, (), frozenset())):
            value = ", ".join(map(_host, map(str, inner))) if name in hidden else _words(found)
            line = f"{file}:{nearest(lines, path)}" if name in settings.table.members else "default"
            yield f"{settings.table.name} {spelt(name)}", value, line


def _words(found: Any) -> str:
    if isinstance(found, Mapping):
        return ", ".join(f"{name} = {_words(value)}" for name, value in found.items())
    if isinstance(found, tuple | frozenset):
        return ", ".join(map(str, found if isinstance(found, tuple) else sorted(found)))
    return str(found).lower() if isinstance(found, bool) else str(found)


def _host(url: str) -> str:
    """Return scheme and hosts of a URL, which may hold a password."""
    scheme, mark, rest = url.partition("://")
    servers = (urlsplit(f"//{server}").netloc.rpartition("@")[2] for server in rest.split(","))
    return f"{scheme}://{','.join(servers)}" if mark else url
