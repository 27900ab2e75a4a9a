"""``mqauth selftest``: tries whether the pipeline of a configuration refuses what nobody signed."""

from __future__ import annotations

from dataclasses import asdict

import typer

from mqauth.cli.app import Config, Json, one_line, print_json
from mqauth.cli.online import Asked, agent
from mqauth.cli.settings import file_of
from mqauth.config.load import load
from mqauth.judging.pipeline import Pipeline
from mqauth.judging.selftest import self_test
from mqauth.policies.opa import OPA


def selftest(config: Config = None, as_json: Json = False) -> int:
    """Try whether a consumer refuses unsigned and forged messages.

    Its pipeline is given unsigned and forged messages, and a second one with the same settings honest ones.

    An agent of [consumer.opa] is asked for a decision; no issuer, broker, store or audit file is used. Exits with
    1 where a hostile message was let in, an honest one was not handled, or the agent does not decide. Exits with
    3 where only the agent is out of reach.
    """
    guard = load(file_of(config)).trial
    found, asked = self_test(guard), _agent(guard)
    if as_json:
        print_json(asdict(found) | {"agent": None if asked is None else asked._asdict()})
    else:
        for line in (*found.lines(), *([] if asked is None else [f"{asked.what}: {asked.said}"])):
            typer.echo(one_line(line))
    code = 0 if asked is None else asked.code
    return 1 if found.accepted or found.condemned or code == 1 else code


def _agent(guard: Pipeline) -> Asked | None:
    """Ask the agent that decides who may publish where, if there is one."""
    policy = guard.policy
    return agent(f"agent {policy.source}", lambda: policy) if isinstance(policy, OPA) else None
