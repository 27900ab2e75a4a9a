"""Random changes of a token in the identity form: a reason, never another exception, and accepted nowhere."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from integration.scale import nightly
from mqauth.errors import Verdict
from mqauth.flow import run
from mqauth.testing import BatchIdentityForge, FakeClock, IdentityForge
from mqauth.testing.token_attacks import honest_message
from mqauth.wire.message import TOKEN_HEADER
from tests.test_identity import FORMS, PLACES, pipeline

NOW = 1_900_000_000
TWELVE = 16
"""Characters of the twelve bytes that are not protected (wire profile, section 13)."""


def mutants(token: bytes, rng: random.Random) -> Iterator[bytes]:
    """Yield changed tokens without end: bits, characters, pieces moved, doubled, cut out, swapped."""
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~="
    while True:
        start, end = sorted(rng.sample(range(len(token)), 2))
        kind = rng.randrange(6)
        if kind == 0:
            yield token[:start] + bytes([token[start] ^ 1 << rng.randrange(8)]) + token[start + 1 :]
        elif kind == 1:
            yield token[:start] + rng.choice(alphabet).to_bytes(1) + token[start + 1 :]
        elif kind == 2:
            yield token[:start] + token[end:]
        elif kind == 3:
            yield token[:end] + token[start:end] + token[end:]
        elif kind == 4:
            yield token[:start] + rng.choice(alphabet).to_bytes(1) + token[start:]
        else:
            parts = token.split(rng.choice((b"~", b".")))
            rng.shuffle(parts)
            yield rng.choice((b"~", b".")).join(parts)


def tried(form: str, count: int, seed: int) -> list[int]:
    """Return where the changed tokens differ from the honest one that were accepted, of so many.

    Half of them come to a consumer that remembers the identity and the batch.
    """
    clock = FakeClock(NOW)
    forge: IdentityForge | BatchIdentityForge = FORMS[form](clock)
    sealed = forge.seal(honest_message(PLACES[0]))
    token = next(value for name, value in sealed.headers if name == TOKEN_HEADER)
    assert isinstance(token, bytes)
    warm, places = pipeline(forge, clock), list[int]()
    assert (
        run(warm.judge(warm.receive(forge.seal(honest_message(PLACES[0]), wit=token.split(b"~")[0].decode()))))
        is not None
    )
    found = mutants(token, random.Random(seed))
    for number in range(count):
        mutant = next(found)
        if mutant == token:
            continue
        headers = tuple((name, mutant if name == TOKEN_HEADER else value) for name, value in sealed.headers)
        pipe = pipeline(forge, clock) if number % 2 else warm
        outcome = run(pipe.judge(pipe.receive(replace(sealed, headers=headers))))
        assert outcome.verdict in (Verdict.ACCEPTED, Verdict.REJECTED), outcome
        if outcome.verdict is Verdict.ACCEPTED:
            assert len(mutant) == len(token)
            places += [at for at, (old, new) in enumerate(zip(token, mutant, strict=True)) if old != new]
    begin = token.rindex(b".") + 1
    return [at for at in places if form == "single" or not begin <= at < begin + TWELVE]


@pytest.mark.parametrize("form", FORMS)
def test_a_changed_token_is_rejected(form: str) -> None:
    """Of random changes none passes, but in the twelve bytes of a batch that nothing protects."""
    assert tried(form, nightly(15_000, otherwise=3_000), 2) == []
