"""The identity form, judged here and in Go: two faults at once, so that the order of the steps shows."""

from __future__ import annotations

import json
from random import Random
from typing import Any, Final

import pytest

from integration import interop
from mqauth.flow import run
from mqauth.judging.pipeline import Pipeline
from mqauth.replay.memory import MemoryReplayStore
from mqauth.testing.attacks import honest_message
from mqauth.testing.forge import AUDIENCE, REMOVED, with_token
from mqauth.testing.identity import OTHER_WORKLOAD, TRUST_DOMAIN, WORKLOAD, BatchIdentityForge, IdentityForge
from mqauth.wire import jwk
from mqauth.wire.json_form import to_form
from mqauth.wire.message import Message

PLACE: Final = "kafka:orders"
WITS: Final[tuple[dict[str, Any], ...]] = (
    {}, {"header": {"alg": "none"}}, {"header": {"kid": "another"}}, {"header": {"kid": REMOVED}},
    {"header": {"jku": "x"}}, {"header": {"typ": "WIT+JWT"}}, {"claims": {"sub": "wimse://other.example/a"}},
    {"claims": {"sub": OTHER_WORKLOAD}}, {"claims": {"exp": 1}}, {"claims": {"exp": 2**53}},
    {"claims": {"aud": "x"}}, {"claims": {"fill": "f" * 3000}}, {"jwk": {"alg": "Ed25519"}},
    {"jwk": {"x": "A" * 43}}, {"jwk": {"d": "AA"}}, {"signature": b""},
)  # fmt: skip
PROOFS: Final[tuple[dict[str, Any], ...]] = (
    {}, {"header": {"typ": "wit+jwt"}}, {"header": {"alg": "Ed25519"}}, {"header": {"alg": "PS256"}},
    {"header": {"kid": "k"}}, {"claims": {"iss": "x"}}, {"claims": {"wth": REMOVED}},
    {"claims": {"wth": "A" * 43}}, {"claims": {"mqa": {}}}, {"claims": {"exp": 1}},
    {"claims": {"aud": "another"}}, {"signature": b""},
)  # fmt: skip
SHAPES: Final = (
    "{wit}~{proof}", "{wit}", "{wit}~", "{proof}~{wit}", "{wit}=~{proof}", "{wit}.~{proof}", "{wit}~{proof}=",
    "{wit}~{proof}~0.AAAA", "{wit}~{proof}~a~b", "{wit}\u00e9~{proof}",
)  # fmt: skip


def faulty(forge: IdentityForge, number: int, random: Random) -> Message:
    """Return a message whose WIT, proof and shape each may have a fault."""

    def chosen(faults: Any) -> Any:
        return random.choice(faults) if random.random() < 0.5 else faults[0]

    message = honest_message(PLACE, number)
    wit = forge.wit(**chosen(WITS))
    proof = forge.token(message, wit=wit, **chosen(PROOFS)).removeprefix(f"{wit}~")
    return with_token(message, chosen(SHAPES).format(wit=wit, proof=proof))


def consumer(forge: IdentityForge) -> str:
    """Return the consumer that both implementations are, as a line."""
    rule = {"subject": WORKLOAD, "issuer": TRUST_DOMAIN, "destinations": [PLACE]}
    said = {
        "issuer": "https://auth.example", "jwks": {"keys": []}, "audience": AUDIENCE, "leeway": 5,
        "max_lifetime": 3600, "max_identity_lifetime": 3600, "trust_domain": TRUST_DOMAIN,
        "authority_jwks": jwk.dump_key_set(forge.keys), "allow": [rule],
    }  # fmt: skip
    return json.dumps(said)


@pytest.mark.parametrize("forge", [IdentityForge(), BatchIdentityForge()], ids=["single", "batch"])
def test_faults_are_judged_alike(forge: IdentityForge) -> None:
    """Of two or three faults at once both implementations name the same one."""
    random = Random(16)
    messages = [faulty(forge, number, random) for number in range(400)]
    pipeline = Pipeline(verifier=forge.verifier(), policy=forge.policy(PLACE), replay=MemoryReplayStore())
    here = [run(pipeline.judge(pipeline.receive(message))) for message in messages]
    expected = [" ".join(filter(None, (outcome.verdict.value, outcome.reason))) for outcome in here]
    lines = [consumer(forge), *(json.dumps(to_form(message)) for message in messages)]
    assert interop.ask("verify", lines=lines) == expected
    assert len(set(expected)) > 12
