"""The identity form: a WIT and a proof in one header, signed, judged, remembered and cut off."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from integration.scale import nightly
from mqauth import load
from mqauth.errors import ConfigurationError, Reason, Unavailable, Verdict
from mqauth.flow import run
from mqauth.judging.identities import TrustDomain
from mqauth.judging.pipeline import Outcome, Pipeline
from mqauth.judging.verifier import Issuer
from mqauth.keystore.identity.identity_key import WITKey
from mqauth.keystore.remote.rules import merge
from mqauth.letters.authorities import Authority, ReleaseAuthorities, Releaser
from mqauth.letters.dead_letter import letter_id
from mqauth.letters.release import WAIVABLE
from mqauth.replay.memory import MemoryReplayStore
from mqauth.testing import FakeClock, Forge
from mqauth.testing.batchforge import forge_batch
from mqauth.testing.identity import (
    TRUST_DOMAIN,
    WORKLOAD,
    BatchIdentityForge,
    IdentityForge,
)
from mqauth.testing.token_attacks import honest_message
from mqauth.wire import jwk
from mqauth.wire.identity import opened_token
from mqauth.wire.keys import Cutoff, Key, KeySet
from mqauth.wire.message import TOKEN_HEADER, HeaderValue, Message

PLACES = ("kafka:orders", "rabbitmq:shop/orders.created")
FORMS = {"single": IdentityForge, "batch": BatchIdentityForge}


def pipeline(forge: Forge, clock: FakeClock, **settings: object) -> Pipeline:
    """Return a pipeline of the honest workload's consumer."""
    return Pipeline(
        verifier=forge.verifier(**settings), policy=forge.policy(*PLACES), replay=MemoryReplayStore(clock=clock),
        scope="billing", clock=clock,
    )  # fmt: skip


def judged(pipe: Pipeline, message: Message) -> Outcome:
    """Return what a message comes to."""
    delivery = pipe.receive(message)
    return run(pipe.judge(delivery))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("algorithm", ["EdDSA", "ES256", "ES384"])
def test_a_signed_message_is_verified_with_its_identity(
    form: str, place: str, algorithm: str
) -> None:
    """What a producer with an WITKey signs is accepted, and shows whose it is."""
    clock = FakeClock(1_900_000_000)
    forge = FORMS[form](clock, algorithm=algorithm)
    outcome = judged(pipeline(forge, clock), forge.signer().sign(honest_message(place)))
    assert outcome.verdict is Verdict.ACCEPTED, outcome
    assert outcome.verified.identity is not None
    assert (outcome.verified.issuer, outcome.verified.subject) == (TRUST_DOMAIN, WORKLOAD)
    assert outcome.verified.identity.expires == 1_900_003_600
    assert outcome.verified.kid == forge.authority.key.kid


def test_a_handler_changes_no_later_message() -> None:
    """Claims that messages share, of a remembered WIT or of a batch, are each handler's own."""
    clock = FakeClock(1_900_000_000)
    forge = BatchIdentityForge(clock)
    wit = forge.wit(claims={"teams": {"shop": ["orders"]}})
    pipe = pipeline(forge, clock)
    for number in range(3):
        message = replace(honest_message(PLACES[0]), body=b"%d" % number)
        outcome = judged(
            pipe, forge.seal(message, wit=wit, claims={"trace": {"spans": []}})
        )
        said, extra = (
            outcome.verified.identity.claims["teams"],
            outcome.verified.claims.extra["trace"],
        )
        assert (said, extra) == ({"shop": ["orders"]}, {"spans": []})
        said["shop"].append("payments")
        extra["spans"].append(number)


def test_what_is_remembered_is_bounded() -> None:
    """The oldest of the WITs goes, forged ones are not remembered, and one that is known costs no signature."""
    clock = FakeClock(1_900_000_000)
    forge = IdentityForge(clock)
    pipe = pipeline(forge, clock, identities=2)
    known = pipe.verifier.identities
    assert known is not None
    for number in range(200):
        forged = forge.wit(
            key=forge.stranger,
            header={"kid": forge.authority.key.kid},
            claims={"jti": f"{number}"},
        )
        assert (
            judged(pipe, forge.seal(honest_message(PLACES[0]), wit=forged)).reason
            is Reason.SIGNATURE_INVALID
        )
    assert not known._held
    wits = [forge.wit(claims={"jti": f"{number}"}) for number in range(3)]
    for wit in wits:
        assert (
            judged(pipe, forge.seal(honest_message(PLACES[0]), wit=wit)).verdict
            is Verdict.ACCEPTED
        )
    assert [text.decode() for text in known._held] == wits[1:]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", PLACES)
def test_a_release_waives_an_end_and_no_cut_off(form: str, place: str) -> None:
    """A released letter passes though its identity ended; cut off, or under another WIT, it does not."""
    clock, reviewer = FakeClock(1_900_000_000), Key.generate(subjects=["ada"])
    forge = FORMS[form](clock)
    trusted = ReleaseAuthorities(
        {"review": Authority(keys=KeySet([reviewer]), waive=frozenset(WAIVABLE))}
    )
    pipe, message = (
        pipeline(forge, clock, release=trusted),
        forge.seal(honest_message(place)),
    )
    clock.advance(4000)
    assert judged(pipe, message).reason is Reason.EXPIRED
    releaser = Releaser(key=reviewer, issuer="review", reviewer="ada", clock=clock)
    letter = letter_id(message, "billing")
    released = releaser.release(
        message, waive=WAIVABLE, letter=letter, scope="billing", reason="skew"
    )[0]
    position, (name, value) = next(
        (n, pair) for n, pair in enumerate(released.headers) if pair[0] == TOKEN_HEADER
    )
    token = value if isinstance(value, bytes) else str(value).encode()
    other = (
        forge.wit(claims={"jti": "another"}).encode() + b"~" + token.partition(b"~")[2]
    )
    changed: HeaderValue = other if isinstance(value, bytes) else other.decode()
    headers = (
        *released.headers[:position],
        (name, changed),
        *released.headers[position + 1 :],
    )
    assert (
        judged(pipe, replace(released, headers=headers)).reason
        is Reason.IDENTITY_MISMATCH
    )
    cut = KeySet(forge.authority.keys, (), {WORKLOAD: Cutoff(before=1_900_000_001)})
    cut_off = pipeline(
        forge, clock, release=trusted, keys={TRUST_DOMAIN: TrustDomain(keys=cut)}
    )
    assert judged(cut_off, released).reason is Reason.KEY_REVOKED
    assert judged(pipe, released).verdict is Verdict.ACCEPTED


def test_identities_that_are_good_for_nothing_push_none_out() -> None:
    """Whoever kept old messages, or has a WIT and no key, cannot make a consumer forget the WITs in use."""
    clock = FakeClock(1_900_000_000)
    forge = IdentityForge(clock)
    old = [
        forge.seal(honest_message(PLACES[0]), wit=forge.wit(claims={"jti": f"{n}"}))
        for n in range(8)
    ]
    live = forge.wit(claims={"iat": 1_900_003_600, "exp": 1_900_007_200})
    clock.advance(3700)
    pipe = pipeline(forge, clock, identities=2)
    assert (
        judged(pipe, forge.seal(honest_message(PLACES[0]), wit=live)).verdict
        is Verdict.ACCEPTED
    )
    assert {judged(pipe, message).reason for message in old} == {Reason.EXPIRED}
    stolen = [
        forge.wit(claims={"iat": 1_900_003_600, "exp": 1_900_007_200, "jti": f"{n}"})
        for n in range(8)
    ]
    forged = [
        forge.seal(honest_message(PLACES[0]), wit=wit, key=forge.stranger)
        for wit in stolen
    ]
    assert {judged(pipe, message).reason for message in forged} == {
        Reason.SIGNATURE_INVALID
    }
    assert [*pipe.verifier.identities._held] == [live.encode()]


HEAD = """
[consumer]
audience = "billing"
identities = 64
[[consumer.issuers]]
issuer = "https://auth.example"
file = "direct.json"
[[consumer.issuers]]
trust_domain = "wimse://prod.example"
jwks = "https://authority.example/jwks.json"
max_stale = 600
[[consumer.allow]]
subject = "orders-api"
issuer = "https://auth.example"
destinations = ["kafka:orders"]
[[consumer.allow]]
subject = "wimse://prod.example/shop/orders-api"
issuer = "wimse://prod.example"
destinations = ["kafka:orders"]
claims = { env = "prod" }
"""


def configured(folder: Path, text: str) -> Path:
    """Return a configuration file beside the key set of a direct issuer."""
    (folder / "direct.json").write_text(
        json.dumps(jwk.dump_key_set(KeySet([Key.generate(subjects=["orders-api"])])))
    )
    path = folder / "mqauth.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(("old", "new", "said"), [
    ('trust_domain = "wimse://prod.example"', 'trust_domain = "https://prod.example"', "must be wimse://"),
    ('trust_domain = "wimse', 'issuer = "x"\ntrust_domain = "wimse', "contradicts issuer"),
    ('trust_domain = "wimse://prod.example"', "", "a trust_domain in its place"),
    ("max_stale = 600", "vouches = true", "contradicts vouches"),
    ("max_stale = 600", "max_identity_lifetime = 86401", "must be 1 to 86400"),
    ("max_stale = 600", "max_stale = 600\nuntil = 2030-03-01", "contradicts trust_domain"),
    ('file = "direct.json"', 'file = "direct.json"\nmax_identity_lifetime = 60', "only with trust_domain"),
    ('issuer = "https://auth.example"', 'issuer = "wimse://prod.example/a"', "lies in a trust domain"),
    ('subject = "orders-api"', 'subject = "orders-api"\nclaims = { a = "b" }', "only for the subject"),
])  # fmt: skip
def test_a_contradiction_is_refused(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    """Never both forms in one table, and nothing that would have no effect."""
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        load(configured(tmp_path, HEAD.replace(old, new)))


@pytest.mark.parametrize(("day", "event", "level"), [
    ("2030-04-02", None, None), ("2030-03-31", "issuer.ending", "WARNING"),
    ("2030-03-16", "issuer.overdue", "CRITICAL"),
])  # fmt: skip
def test_a_direct_issuer_that_is_to_go_is_loud_and_its_messages_are_accepted(
    day: str, event: str | None, level: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """From 14 days before its ``until`` on it is said each day, after it each hour; no verdict changes."""
    clock = FakeClock(datetime(2030, 3, 17, 12, tzinfo=UTC).timestamp())
    forge = Forge(clock)
    direct = Issuer(keys=forge.keys, until=date.fromisoformat(day))
    pipe = pipeline(forge, clock, keys={forge.issuer: direct})
    for seconds in (0, 3599, 61, 86_401):
        clock.advance(seconds)
        run(pipe.tick())
        assert (
            judged(pipe, forge.seal(honest_message(PLACES[0]))).verdict
            is Verdict.ACCEPTED
        )
    said = [
        (one.event, one.levelname)
        for one in caplog.records
        if one.event.startswith("issuer.")
    ]
    assert said == (
        [] if event is None else [(event, level)] * (2 if level == "WARNING" else 3)
    )


def test_a_producer_stops_before_its_identity_ends() -> None:
    """A token that would outlive its identity is not signed, and a renewed identity signs again."""
    clock = FakeClock(1_900_000_000)
    forge = IdentityForge(clock)
    held = forge.authority.issue(WORKLOAD, forge.key)
    signer = forge.signer(key=held)
    clock.advance(3600 - 60 - 30 + 1)
    with pytest.raises(Unavailable, match="ends too soon"):
        signer.sign(honest_message(PLACES[0]))
    held.renew(forge.wit(), forge.key)
    assert (
        judged(pipeline(forge, clock), signer.sign(honest_message(PLACES[0]))).verdict
        is Verdict.ACCEPTED
    )


@pytest.mark.parametrize(
    "changes", [{"issuer": "wimse://other.example"}, {"subject": f"{TRUST_DOMAIN}/other"}]
)
def test_a_producer_is_whom_its_identity_names(changes: dict[str, str]) -> None:
    """Another trust domain or subject is refused when the signer is made."""
    with pytest.raises(ConfigurationError):
        IdentityForge(FakeClock(1_900_000_000)).signer(**changes)


def test_an_identity_of_another_key_is_none() -> None:
    """WITKey takes no WIT that vouches for another key, no token that is no WIT, and none that has ended."""
    clock = FakeClock(1_900_000_000)
    forge = IdentityForge(clock)
    for wit in (
        forge.authority.wit(WORKLOAD, forge.neighbour),
        "a.b.c",
        "\u00e9",
        forge.wit(claims={"exp": 1}),
    ):
        with pytest.raises(ConfigurationError):
            WITKey(wit, forge.key, clock=clock)


def test_a_cut_off_travels_with_its_set() -> None:
    """A set that is dumped and read again cuts off alike, and one that cannot be read keeps those before it."""
    cut = KeySet([Key.generate()], (), {WORKLOAD: Cutoff(before=7, reason="stolen")})
    again = jwk.load_key_set(jwk.dump_key_set(cut))
    assert (again.cutoffs, again.version) == (cut.cutoffs, cut.version)
    assert again.version != KeySet(cut.keys).version
    for bad in (
        {},
        [{}],
        [{"sub": WORKLOAD, "before": "x"}],
        [{"sub": WORKLOAD, "before": 1}] * 1025,
    ):
        broken = jwk.load_key_set(
            jwk.dump_key_set(KeySet(cut.keys)) | {"mqauth_cutoff": bad}
        )
        assert any("mqauth_cutoff" in line for line in broken.skipped)
        assert broken.after(cut).cutoffs == cut.cutoffs
        assert merge(cut, broken, frozenset(), outdated=False).keys.cutoffs == cut.cutoffs
    assert (
        merge(cut, KeySet(cut.keys), frozenset(), outdated=True).keys.cutoffs
        == cut.cutoffs
    )
    assert merge(cut, KeySet(cut.keys), frozenset(), outdated=False).keys.cutoffs == {}


def test_a_letter_shows_what_its_identity_claims() -> None:
    """A reader that judges nothing shows trust domain, subject and the authority's kid, in both forms."""
    for form in FORMS.values():
        forge = form(FakeClock(1_900_000_000))
        opened, said = opened_token(forge.token(honest_message(PLACES[0])).encode())
        assert (opened.kid, said.iss, said.sub) == (
            forge.authority.key.kid,
            TRUST_DOMAIN,
            WORKLOAD,
        )


def test_a_sibling_ends_with_its_identity() -> None:
    """What was found of a batch stands for its siblings until the WIT has ended, or the authority's key."""
    clock = FakeClock(1_900_000_000)
    forge = IdentityForge(clock)
    wit = forge.wit(claims={"exp": 1_900_000_030})
    messages = [
        replace(honest_message(PLACES[0]), body=b"%d" % number) for number in range(3)
    ]
    found = forge_batch(forge, messages, wit=wit, claims={"exp": 1_900_000_600})
    pipe = pipeline(forge, clock)
    for place, seconds, reason in ((0, 0, None), (1, 34, None), (2, 1, Reason.EXPIRED)):
        clock.advance(seconds)
        assert judged(pipe, found.seal(place)).reason is reason


# Random changes of a token in the identity form: a reason, never another exception, and accepted nowhere.

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
            yield (
                token[:start]
                + bytes([token[start] ^ 1 << rng.randrange(8)])
                + token[start + 1 :]
            )
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
        run(
            warm.judge(
                warm.receive(
                    forge.seal(
                        honest_message(PLACES[0]), wit=token.split(b"~")[0].decode()
                    )
                )
            )
        )
        is not None
    )
    found = mutants(token, random.Random(seed))
    for number in range(count):
        mutant = next(found)
        if mutant == token:
            continue
        headers = tuple(
            (name, mutant if name == TOKEN_HEADER else value)
            for name, value in sealed.headers
        )
        pipe = pipeline(forge, clock) if number % 2 else warm
        outcome = run(pipe.judge(pipe.receive(replace(sealed, headers=headers))))
        assert outcome.verdict in (Verdict.ACCEPTED, Verdict.REJECTED), outcome
        if outcome.verdict is Verdict.ACCEPTED:
            assert len(mutant) == len(token)
            places += [
                at
                for at, (old, new) in enumerate(zip(token, mutant, strict=True))
                if old != new
            ]
    begin = token.rindex(b".") + 1
    return [at for at in places if form == "single" or not begin <= at < begin + TWELVE]


@pytest.mark.parametrize("form", FORMS)
def test_a_changed_token_is_rejected(form: str) -> None:
    """Of random changes none passes, but in the twelve bytes of a batch that nothing protects."""
    assert tried(form, nightly(15_000, otherwise=3_000), 2) == []
