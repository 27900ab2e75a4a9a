"""``mqauth health``: asks a process how its consumers are, for a probe in a container without curl."""

from __future__ import annotations

import http
import http.client
import json
from typing import Annotated
from urllib.parse import urlsplit

import typer

from mqauth.cli.app import UNDECIDED, Json, answer
from mqauth.cli.forms import one_line
from mqauth.errors import refusing, require, words_of


def health(
    url: Annotated[
        str,
        typer.Argument(
            metavar="[URL]",
            envvar="MQAUTH_HEALTH",
            help="Of Endpoint's /health, or /healthz of mqauth keys serve.",
        ),
    ] = "http://127.0.0.1:9464/health",
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout", min=0.1, max=3600, help="Seconds to wait for an answer."
        ),
    ] = 3.0,
    as_json: Json = False,
) -> int:
    """Ask a process how its consumers are.

    Exits with 0 where it is ok or degraded, 3 where it is stalled, 1 where it is stopped or does not answer.
    """
    with refusing(ValueError, "a URL is like http://127.0.0.1:9464/health"):
        parts = urlsplit(url)
        host, port = str(parts.hostname), parts.port or 80
    require(
        parts.scheme == "http" and bool(parts.hostname),
        "a URL is like http://127.0.0.1:9464/health",
    )
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request("GET", parts.path or "/health")
        response = connection.getresponse()
        document = json.loads(response.read(1024 * 1024))
        require(isinstance(document, dict), "no object", ValueError)
    except (OSError, ValueError, http.client.HTTPException) as error:
        why = words_of(error) if isinstance(error, OSError) else type(error).__name__
        typer.echo(
            f"{host}:{port} does not answer: {why}; is an Endpoint open there?", err=True
        )
        return 1
    finally:
        connection.close()
    # A key server has no states: it publishes the keys, or it does not.
    told = {
        "state": "ok" if response.status == http.HTTPStatus.OK else "stopped"
    } | document
    lines, consumers = [str(told.get("state"))], told.get("consumers")
    for name, each in consumers.items() if isinstance(consumers, dict) else ():
        health = each if isinstance(each, dict) else {}
        reasons = "; ".join(map(str, health.get("reasons", ())))
        lines.append(f"{name}: {health.get('state')}{': ' if reasons else ''}{reasons}")
    answer(as_json, told, *map(one_line, lines))
    return {"ok": 0, "degraded": 0, "stalled": UNDECIDED}.get(str(told.get("state")), 1)
