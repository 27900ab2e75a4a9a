"""``mqauth health``: asks a process how its consumers are, for a probe in a container without curl."""

from __future__ import annotations

import http
import http.client
import json
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import typer

from mqauth.cli.app import UNDECIDED, Json, one_line, print_json
from mqauth.errors import refusing, require, words_of

_MOST: Final = 1024 * 1024


def health(
    url: Annotated[
        str,
        typer.Argument(
            metavar="[URL]",
            envvar="MQAUTH_HEALTH",
            help="Of Endpoint's /health, or /healthz of mqauth keys serve.",
        ),
    ] = "http://127.0.0.1:9464/health",
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait for an answer.")] = 3.0,
    as_json: Json = False,
) -> int:
    """Ask a process how its consumers are.

    Exits with 0 where it is ok or degraded, 3 where it is stalled, 1 where it is stopped or does not answer.
    """
    parts = urlsplit(url)
    with refusing(ValueError, "a URL is like http://127.0.0.1:9464/health"):
        port = parts.port
    require(parts.scheme == "http" and bool(parts.hostname), "a URL is like http://127.0.0.1:9464/health")
    host, port = str(parts.hostname), port or 80
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request("GET", parts.path or "/health")
        response = connection.getresponse()
        document = json.loads(response.read(_MOST))
        require(isinstance(document, dict), "no object", ValueError)
    except (OSError, ValueError, http.client.HTTPException) as error:
        why = words_of(error) if isinstance(error, OSError) else type(error).__name__
        typer.echo(f"{host}:{port} does not answer: {why}; is an Endpoint open there?", err=True)
        return 1
    finally:
        connection.close()
    # A key server has no states: it publishes the keys, or it does not.
    told = {"state": "ok" if response.status == http.HTTPStatus.OK else "stopped"} | document
    if as_json:
        print_json(told)
    else:
        for line in _lines(told):
            typer.echo(one_line(line))
    return {"ok": 0, "degraded": 0, "stalled": UNDECIDED}.get(str(told.get("state")), 1)


def _lines(told: dict[str, Any]) -> list[str]:
    consumers = told.get("consumers")
    lines = [str(told.get("state"))]
    for name, found in consumers.items() if isinstance(consumers, dict) else ():
        reasons = "; ".join(map(str, found.get("reasons", ()))) if isinstance(found, dict) else ""
        lines.append(
            f"{name}: {found.get('state')}{': ' if reasons else ''}{reasons}" if isinstance(found, dict) else name
        )
    return lines
