"""Two implementations of the wire profile agree: ours, and one in Go that was written from the page alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from integration import interop
from mqauth.errors import Rejection
from mqauth.testing import ATTACKS, BATCH_ATTACKS, BatchForge, Forge
from mqauth.testing.attacks import Attack, honest_message
from mqauth.testing.forge import AUDIENCE, ISSUER, NEIGHBOUR, SUBJECT, with_token
from mqauth.wire import jwk
from mqauth.wire.json_form import from_form, to_form
from mqauth.wire.keys import Key, KeySet
from mqauth.wire.message import Message

VECTORS: Final = Path(__file__).parent.parent / "tests" / "vectors"
PLACES: Final = ("kafka:orders", "rabbitmq:shop/orders.created")


def consumer(keys: KeySet) -> str:
    """Return the consumer that both implementations are, as a line."""
    said = {
        "issuer": ISSUER, "audience": AUDIENCE, "leeway": 5, "max_lifetime": 3600, "jwks": jwk.dump_key_set(keys),
        "allow": {SUBJECT: PLACES, NEIGHBOUR: ["kafka:stock"]},
    }  # fmt: skip
    return json.dumps(said)


def line(message: Message) -> str:
    """Return a message as one line of JSON."""
    return json.dumps(to_form(message))


def deliveries(name: str) -> int:
    """Return how many deliveries a file of vectors has."""
    found: Any = json.loads((VECTORS / name).read_text("ascii"))
    return len(found["vectors"]) + sum(len(sequence["deliveries"]) for sequence in found["sequences"])


def test_every_vector_passes_in_go() -> None:
    """Verdicts, digests, ids, key sets, forms and trees are those of our files."""
    (*failed, count) = interop.ask("vectors", str(VECTORS), lines=[])
    assert failed == []
    passed, _, rest = count.partition(" ")
    assert rest == "passed, 0 failed"
    assert int(passed) > 1000 + deliveries("identity.json")


@pytest.mark.parametrize("forge", [Forge(), BatchForge()], ids=["single", "batch"])
def test_what_we_sign_is_judged_alike(forge: Forge) -> None:
    """Honest messages are accepted there, and every attack meets the reason that it meets here."""
    attacks = ATTACKS if type(forge) is Forge else (*ATTACKS, *BATCH_ATTACKS)
    mounted: list[tuple[Attack | None, str]] = [(attack, place) for attack in (None, *attacks) for place in PLACES]
    mounted = [(attack, place) for attack, place in mounted if attack is None or attack.fits(place)]
    messages = [
        forge.seal(honest_message(place)) if attack is None else attack.mount(forge, honest_message(place))
        for attack, place in mounted
    ]
    expected = ["accepted" if attack is None else f"rejected {attack.reason.value}" for attack, _ in mounted]
    assert interop.ask("verify", lines=[consumer(forge.keys), *map(line, messages)]) == expected


def values() -> list[Message]:
    """Return the messages of the vectors of the digest: every type of value, absent, empty and null."""
    found: Any = json.loads((VECTORS / "hds.json").read_text("ascii"))
    return [from_form(vector["message"]) for vector in found["vectors"]]


@pytest.mark.parametrize("form", ["single", "batch"])
def test_what_go_signs_is_verified_here(form: str) -> None:
    """Its tokens bind what ours bind, whatever the values; another body is refused."""
    private = ed25519.Ed25519PrivateKey.generate()
    key = Key.from_private(private, subjects=[SUBJECT])
    messages = values() if form == "single" else [honest_message(PLACES[0], number) for number in range(7)]
    tokens = interop.ask(
        "sign", private.private_bytes_raw().hex(), key.kid, ISSUER, SUBJECT, AUDIENCE, form,
        lines=list(map(line, messages)),
    )  # fmt: skip
    verifier = Forge().verifier(keys={ISSUER: KeySet([key])})
    for message, token in zip(messages, tokens, strict=True):
        sealed = with_token(message, token)
        now = Forge().clock.now()
        verified = verifier.verify(sealed, verifier.open(sealed), KeySet([key]), now)
        assert verified.subject == SUBJECT
        other = replace(sealed, body=b"another")
        opened = verifier.open(other)
        with pytest.raises(Rejection, match="body_mismatch"):
            verifier.verify(other, opened, KeySet([key]), now)
