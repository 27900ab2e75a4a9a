"""``mqauth selftest``: tries whether the pipeline of a configuration refuses what nobody signed."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict

import typer

from mqauth.cli.app import UNDECIDED, Config, Json, one_line, print_json
from mqauth.cli.settings import file_of
from mqauth.config.load import load
from mqauth.errors import MqauthError
from mqauth.flow import is_async
from mqauth.judging.pipeline import Pipeline
from mqauth.judging.selftest import self_test
from mqauth.keystore.remote.jwks import JWKS


def selftest(config: Config = None, as_json: Json = False) -> int:
    """Try whether a consumer refuses what nobody signed.

    Its pipeline is given unsigned and forged messages, and a second one with the same settings honest ones.

    Issuers are asked for their keys; no broker, store or audit file is used. Exits with 1 where a hostile message
    was let in or an honest one was not handled, else with 3 where an issuer's keys are out of reach, else with 0.
    """
    guard = load(file_of(config)).trial
    _fetch_keys(guard)
    found = self_test(guard)
    if as_json:
        print_json(asdict(found))
    else:
        for line in found.lines():
            typer.echo(one_line(line))
    return 1 if found.accepted or found.condemned else UNDECIDED if found.undecided else 0


def _fetch_keys(guard: Pipeline) -> None:
    """Ask each issuer for its keys, once; those that are out of reach are told of as undecided."""
    for source in (issuer.keys for issuer in guard.verifier.issuers.values()):
        if not is_async(source.refresh):
            with suppress(MqauthError):
                source.refresh("mqauth-self-test", guard.clock.now())
        if isinstance(source, JWKS):
            source.close()
