"""``mqauth selftest``: tries whether the pipeline of a configuration refuses what nobody signed."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict

import typer

from mqauth.cli.app import UNDECIDED, Config, Json, one_line, print_json
from mqauth.cli.online import agent
from mqauth.cli.settings import file_of
from mqauth.config.load import load
from mqauth.errors import MqauthError
from mqauth.flow import is_async
from mqauth.judging.selftest import self_test
from mqauth.keystore.remote.jwks import JWKS
from mqauth.policies.opa import OPA


def selftest(config: Config = None, as_json: Json = False) -> int:
    """Try whether a consumer refuses unsigned and forged messages.

    Its pipeline is given unsigned and forged messages, and a second one with the same settings honest ones.

    Issuers are asked for their keys, and an agent of [consumer.opa] for a decision; no broker, store or audit file
    is used. Exits with 1 where a hostile message was let in, an honest one was not handled, or the agent does not
    decide. Exits with 3 where only an issuer's keys or the agent are out of reach.
    """
    guard = load(file_of(config)).trial
    # Each issuer is asked for its keys once; those that are out of reach are told of as undecided.
    for source in (issuer.keys for issuer in guard.verifier.issuers.values()):
        if not is_async(source.refresh):
            with suppress(MqauthError):
                source.refresh("mqauth-self-test", guard.clock.now())
        if isinstance(source, JWKS):
            source.close()
    policy, found = guard.policy, self_test(guard)
    asked = agent(f"agent {policy.source}", lambda: policy) if isinstance(policy, OPA) else None
    if as_json:
        print_json(asdict(found) | {"agent": None if asked is None else asked._asdict()})
    else:
        for line in (*found.lines(), *([] if asked is None else [f"{asked.what}: {asked.said}"])):
            typer.echo(one_line(line))
    code = 0 if asked is None else asked.code
    return 1 if found.accepted or found.condemned or code == 1 else UNDECIDED if found.undecided else code
