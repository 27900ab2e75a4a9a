"""``mqauth authority``: gives identities to workloads, tells what a credential would get, cuts subjects off."""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from mqauth.audit.disk import read_bounded
from mqauth.audit.file import with_parts
from mqauth.audit.query import Selection, read_records
from mqauth.authority.credential import Refused
from mqauth.authority.issuing import ISSUED, PATH, Trace
from mqauth.cli.app import (
    USAGE,
    Config,
    Json,
    answer,
    group,
    options,
    print_error,
    standard_input,
)
from mqauth.cli.forms import CommandFailed, moment, shown_time
from mqauth.cli.serve import Serving, listen, origin
from mqauth.cli.settings import file_of
from mqauth.config.load import load
from mqauth.errors import ConfigurationError, Rejection, refusing, require
from mqauth.keystore.remote.keyserver import HEALTH, PATHS
from mqauth.wire import identity, strict_json

app: Final = group(
    "Run an authority, which gives identities that live for an hour or so.",
    "mqauth authority serve",
)
_MAX_FILE: Final = 64 * 1024
Subject = Annotated[
    str,
    typer.Option(
        "--sub", help="The identity, such as wimse://prod.example/shop/orders-api."
    ),
]


@app.command("serve")
@options(serving=Serving)
def serve(
    *,
    serving: Serving,
    config: Config = None,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65_535, help="0 for any that is free.")
    ] = 8443,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            "--metrics-port",
            min=0,
            max=65_535,
            help="Serve /metrics for Prometheus there; 0 for any free.",
        ),
    ] = None,
    metrics_host: Annotated[
        str,
        typer.Option(
            "--metrics-host",
            help="Address for /metrics, which asks nobody for a password.",
        ),
    ] = "127.0.0.1",
    as_json: Json = False,
) -> None:
    """Give identities at /v1/identity, and keys at /jwks.json.

    It runs until Ctrl-C.
    """
    metrics, observers, tls = (
        dict[str, str](),
        list[Any](),
        serving.certificate is not None,
    )
    with ExitStack() as stack:
        if metrics_port is None:
            configured = load(file_of(config)).authority
        else:
            with refusing(ImportError, '--metrics-port needs "mqauth[prometheus]"'):
                from mqauth.telemetry import AuthorityTelemetry
                from mqauth.telemetry.prometheus import Endpoint
            named = f"--metrics-host {metrics_host} --metrics-port {metrics_port}"
            with refusing(OSError, lambda error: f"{named}: {error.strerror}"):
                # Who names an address means it.
                endpoint = stack.enter_context(
                    Endpoint(metrics_port, host=metrics_host, expose=True)
                )
            telemetry = AuthorityTelemetry(endpoint.meter)
            configured = load(
                file_of(config), on_alert=endpoint.telemetry.alert
            ).authority
            telemetry.watch(
                configured.settings.trust_domain,
                cutoffs=lambda: len(configured.keystore.cutoffs()),
                key_age=configured.key_age,
            )
            observers.append(telemetry.observe)
            shown = f"[{metrics_host}]" if ":" in metrics_host else metrics_host
            metrics["metrics"] = f"http://{shown}:{endpoint.port}/metrics"
        application = configured.server(configured.authority(), observers)
        listener = stack.enter_context(listen(serving.host, port, tls=tls))
        address = origin(listener, tls=tls)
        found = {
            "url": address + PATH,
            "jwks": address + PATHS[0],
            "health": address + HEALTH,
            "trust_domain": configured.settings.trust_domain,
            **metrics,
        }
        told = partial(
            answer,
            as_json,
            found,
            f"identities of {found['trust_domain']} at {found['url']}, keys at {found['jwks']}",
            *(f"metrics at {url}" for url in metrics.values()),
        )
        serving.run(
            application,
            listener,
            told,
            requests=512,
            verb="authority serve",
            extra="serve",
        )


@app.command("grants")
def grants(
    *,
    token: Annotated[
        Path,
        typer.Option("--token", help="File with a credential; - for standard input."),
    ],
    subject: Annotated[
        str | None, typer.Option("--sub", help="The identity that would be asked for.")
    ] = None,
    config: Config = None,
    as_json: Json = False,
) -> int:
    """Tell what a credential would get, and why. Nothing is given.

    Exits with 1 where it would get nothing.
    """
    desk, trace, told = (
        load(file_of(config)).authority.desk,
        Trace("command"),
        dict[str, Any](),
    )
    try:
        # One newline at its end is no part of it.
        raw = (
            standard_input().read(_MAX_FILE)
            if token == Path("-")
            else read_bounded(token, _MAX_FILE)
        )
        require(raw.isascii(), f"{token}: no JWT")
        grant = desk.grant(desk.read(raw.decode("ascii").strip(), trace), subject)
        told |= {
            "granted": grant.subject,
            "claims": dict(grant.claims),
            "lifetime": grant.lifetime,
        }
        line = grant.subject
    except Refused as refused:
        told |= {
            "granted": None,
            "refused": refused.refusal.value,
            "detail": refused.detail,
        }
        line = f"nothing: {refused}"
    # What was shown, and of each grant whether it matches, and what differs.
    shown, lines = trace.credential, list[str]()
    told["credential"] = None if shown is None else shown.issuer.name
    if shown is not None:
        told |= {
            "iss": shown.issuer.issuer,
            "sub": shown.text("sub"),
            "verified": shown.verified,
        }
        lines = [
            f"  {grant.subject}: {grant.difference(shown) or 'matches'}"
            for grant in desk.grants
        ]
    answer(as_json, told, line, *lines)
    return 0 if told["granted"] else 1


@app.command("issue")
def issue(
    *,
    subject: Subject,
    jwk: Annotated[
        Path,
        typer.Option("--jwk", help="File with the public key, as a JWK with its alg."),
    ],
    audit: Annotated[
        Path | None,
        typer.Option(
            "--audit-file",
            help="Audit file in place of [authority] audit, which serve may have.",
        ),
    ] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Sign an identity (a WIT) by hand, in an emergency.

    It is for a public key in a file, without any credential. A grant has to name the subject.
    """
    configured = load(file_of(config)).authority
    granted = (grant for grant in configured.desk.grants if grant.subject == subject)
    grant = require(next(granted, None), "--sub: no grant names this subject")
    with refusing(
        (Rejection, ValueError),
        lambda error: (
            f"{jwk}: not one public key as a JWK: {getattr(error, 'detail', error)}"
        ),
        lambda text: CommandFailed(text, USAGE),
    ):
        members = identity.read_jwk(
            strict_json.loads(read_bounded(jwk, _MAX_FILE), depth=2)
        )
        identity.key_of(members)
    trace = Trace("command", subject, identity.jkt_of(members))
    authority = configured.authority(audit)
    try:
        wit, lifetime = authority.vouch(grant, members, trace)
    except Refused as refused:
        authority.refuse(refused, trace)
        raise CommandFailed(str(refused)) from refused
    answer(as_json, {"wit": wit, "sub": subject, "expires_in": lifetime}, wit)


@app.command("cutoff")
def cutoff(
    *,
    subject: Subject,
    reason: Annotated[
        str, typer.Option("--why", help="Why, for the readers of the JWK Set.")
    ],
    before: Annotated[
        float | None,
        typer.Option(
            "--before",
            parser=moment,
            metavar="TIME",
            help="Identities issued before this time are refused; by default all up to now.",
        ),
    ] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Refuse every identity that a subject got up to now.

    Consumers see it within a minute. Identities that it gets later count again.
    """
    configured = load(file_of(config)).authority
    require(
        identity.trust_domain_of(subject) == configured.settings.trust_domain,
        f"--sub: must be an identifier in {configured.settings.trust_domain}",
    )
    cut = configured.keystore.cut_off(
        subject, reason=reason, before=None if before is None else int(before)
    )
    # How many identities still live by the audit file here, if it tells anything.
    alive, since = None, time.time() - configured.settings.lifetime
    with suppress(ConfigurationError):
        wanted = Selection(subject=subject, verdict=ISSUED, since=since)
        alive = sum(
            map(wanted.holds, read_records(with_parts([configured.settings.audit])))
        )
    answer(
        as_json,
        {"sub": subject, "before": cut.before, "reason": cut.reason, "alive": alive},
        f"{subject} is cut off: what was issued before {shown_time(cut.before)} UTC is refused",
    )
    if alive == 0:
        print_error(
            f"note: {configured.settings.audit} has no identity of {subject} that still lives: is it spelt right?"
        )
    if any(grant.subject == subject for grant in configured.desk.grants):
        print_error(
            f"note: a grant still names {subject}: whoever has its credential can ask again"
        )
