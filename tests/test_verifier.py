"""The verdict on a token: each step's reason, each limit at its edge, and the order of the steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mqauth.errors import Cause, ConfigurationError, Reason, Rejection, Unavailable
from mqauth.judging.token import Times
from mqauth.judging.trust_domain import TrustDomain
from mqauth.judging.verified import Verified
from mqauth.judging.verifier import Issuer, Verifier
from mqauth.testing import ATTACKS, FakeClock, Forge
from mqauth.testing.token_attacks import honest_message
from mqauth.wire import claims as claim_set
from mqauth.wire.keys import Key, KeySet, Revocation
from mqauth.wire.message import Message, Origin
from tests.kit.tokens import tokens_in

ReasonOf = Callable[[Callable[[], object]], Reason]
Maker = Callable[..., Message]
ISSUER = "https://auth.example"


def judged(verifier: Verifier, message: Message, received: float, keys: KeySet | None = None) -> Verified:
    """Open and verify a message."""
    candidate = verifier.open(message)
    return verifier.verify(message, candidate, keys or verifier.issuer(candidate.token).keys.key_set(), received)


PLACES = ("kafka:orders", "rabbitmq:shop/orders.created")


@pytest.mark.parametrize(
    ("attack", "place"),
    [(attack, place) for attack in ATTACKS for place in PLACES
     if attack.fits(place) and attack.reason is not Reason.PRODUCER_FORBIDDEN],
    ids=lambda value: getattr(value, "name", value),
)  # fmt: skip
@pytest.mark.parametrize("algorithm", ["EdDSA", "ES256"])
def test_each_attack_meets_its_reason(
    attack: Any, place: str, algorithm: str, clock: FakeClock, reason_of: ReasonOf
) -> None:
    """Every attack of the public suite but the policy's is rejected by the verifier, for the right reason."""
    forge = Forge(clock, algorithm=algorithm)
    hostile = attack.mount(forge, honest_message(place))
    verifier = forge.verifier()
    assert reason_of(lambda: judged(verifier, hostile, clock.now(), forge.keys)) is attack.reason


@pytest.mark.parametrize("algorithm", ["EdDSA", "ES256", "ES384", "PS256", "RS256"])
def test_honest_messages_pass_with_every_algorithm(algorithm: str, clock: FakeClock, kafka: Maker) -> None:
    """A message that was signed and not changed is verified."""
    forge = Forge(clock, algorithm=algorithm)
    assert judged(forge.verifier(), forge.signer().sign(kafka()), clock.now(), forge.keys).subject == "orders-api"


def test_a_message_its_adapter_could_not_represent_is_malformed(
    forge: Forge, rabbit: Maker, reason_of: ReasonOf
) -> None:
    """What the broker wrapper notes comes before the token is looked at."""
    assert reason_of(lambda: forge.verifier().open(rabbit(malformed="no table"))) is Reason.MESSAGE_MALFORMED


def test_the_first_failing_step_decides(forge: Forge, kafka: Maker, clock: FakeClock, reason_of: ReasonOf) -> None:
    """A message wrong in everything meets the reasons of the steps in their order, as each is put right."""
    now = int(clock.now())
    wrong: dict[str, Any] = {
        "header": {"kid": "nobody", "typ": "JWT", "jku": "x", "alg": "none"},
        "claims": {"iss": "https://evil.example", "sub": "another", "aud": "x", "iat": now - 3000, "exp": "x"},
        "binding": {"dst": "kafka:other", "key": None, "bod": None, "hdr": []},
        "signature": b"x",
    }
    seen: list[Reason] = []

    def meet(**settings: Any) -> None:
        message = forge.seal(kafka(), **wrong)
        verifier = forge.verifier(require_headers=["tenant"], **settings)
        seen.append(reason_of(lambda: judged(verifier, message, clock.now())))

    def fix(part: str, **changes: Any) -> None:
        wrong[part] = wrong[part] | changes
        meet()

    seen.append(reason_of(lambda: forge.verifier().open(replace(forge.seal(kafka(), **wrong), malformed="x"))))
    meet()
    fix("header", typ="mqauth+jwt")
    del wrong["header"]["jku"]
    meet()
    fix("header", alg="ES256")
    fix("claims", exp=now - 10)
    fix("claims", iss=ISSUER)
    fix("header", kid=forge.revoked.kid)
    fix("header", kid=forge.key.kid)
    fix("header", alg="EdDSA")
    del wrong["signature"]
    meet()
    wrong["key"] = forge.retired
    fix("header", kid=forge.retired.kid)
    fix("claims", aud="billing")
    wrong["key"] = forge.key
    fix("header", kid=forge.key.kid)
    fix("claims", iat=now, exp=now + 60)
    fix("claims", sub="orders-api")
    fix("binding", dst="kafka:orders")
    del wrong["binding"]["key"]
    meet()
    del wrong["binding"]["bod"]
    meet()
    wrong["cover"] = []
    meet()
    assert seen == [
        Reason.MESSAGE_MALFORMED, Reason.TOKEN_TYPE, Reason.HEADER_FORBIDDEN, Reason.ALGORITHM_FORBIDDEN,
        Reason.CLAIMS_MALFORMED, Reason.ISSUER_UNTRUSTED, Reason.KEY_UNKNOWN, Reason.KEY_REVOKED,
        Reason.ALGORITHM_FORBIDDEN, Reason.SIGNATURE_INVALID, Reason.AUDIENCE_MISMATCH, Reason.AUDIENCE_MISMATCH,
        Reason.KEY_EXPIRED, Reason.EXPIRED,
        Reason.SUBJECT_MISMATCH, Reason.DESTINATION_MISMATCH, Reason.RECORD_KEY_MISMATCH, Reason.BODY_MISMATCH,
        Reason.HEADERS_MISMATCH, Reason.COVERAGE_INSUFFICIENT,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("iat", "exp", "nbf", "leeway", "reason"),
    [
        (0, 60, None, 5, None),
        (5, 60, None, 5, None), (6, 60, None, 5, Reason.ISSUED_IN_FUTURE),
        (0, 60, None, 0, None), (1, 60, None, 0, Reason.ISSUED_IN_FUTURE),
        (0, 60, 5, 5, None), (0, 60, 6, 5, Reason.NOT_YET_VALID), (0, 60, 60, 60, None),
        (-60, -4, None, 5, None), (-60, -5, None, 5, Reason.EXPIRED), (-60, 1, None, 0, None),
        (-60, 0, None, 0, Reason.EXPIRED), (-60, -59, None, 60, None), (-61, -60, None, 60, Reason.EXPIRED),
        (0, 0, None, 5, Reason.EXPIRED), (2, 1, None, 5, Reason.EXPIRED),
        (0, 3600, None, 5, None), (0, 3601, None, 5, Reason.LIFETIME_EXCESSIVE),
        (-10, 3591, None, 60, Reason.LIFETIME_EXCESSIVE), (6, 9999, 9, 5, Reason.ISSUED_IN_FUTURE),
        (0, 9999, 9, 5, Reason.NOT_YET_VALID), (-9999, -9, None, 5, Reason.EXPIRED),
    ],
)  # fmt: skip
def test_times_at_their_edges(  # noqa: PLR0917 - the table's columns and fixtures
    iat: int, exp: int, nbf: int | None, leeway: int, reason: Reason | None, forge: Forge, kafka: Maker,
    clock: FakeClock, reason_of: ReasonOf,
) -> None:  # fmt: skip
    """Leeway widens iat, nbf and exp by exactly its seconds and never the lifetime; iat before nbf before exp."""
    now = int(clock.now())
    bends = {"iat": now + iat, "exp": now + exp} | ({} if nbf is None else {"nbf": now + nbf})
    message = forge.seal(kafka(), claims=bends)
    verifier = forge.verifier(leeway=leeway)
    if reason is None:
        assert judged(verifier, message, float(now)).claims.exp == now + exp
    else:
        assert reason_of(lambda: judged(verifier, message, float(now))) is reason


APPEND: dict[str, Any] = {"at": "append", "max_queue_age": 600}


def appended(message: Message, moment: float, **origin: Any) -> Message:
    """Return a message with the broker's word on when it was appended."""
    settings = {"timestamp_ms": int(moment * 1000), "timestamp_type": "append"} | origin
    return replace(message, origin=replace(message.origin, **settings))


def test_append_time_judges_life_at_append_and_age_on_receipt(
    forge: Forge, kafka: Maker, clock: FakeClock, reason_of: ReasonOf
) -> None:
    """An expired token is honest if it lived when appended; waiting has its own, exact limit."""
    verifier = forge.verifier(**APPEND)
    now = clock.now()
    message = appended(forge.seal(kafka()), now + 64)
    assert judged(verifier, message, now + 664).subject == "orders-api"
    assert reason_of(lambda: judged(verifier, message, now + 664.1)) is Reason.QUEUE_AGE_EXCEEDED
    late = appended(message, now + 65)
    assert reason_of(lambda: judged(verifier, late, now + 65)) is Reason.EXPIRED
    assert reason_of(lambda: judged(forge.verifier(), message, now + 65)) is Reason.EXPIRED


@pytest.mark.parametrize(
    "origin", [{"timestamp_type": "create"}, {"timestamp_type": None}, {"timestamp_ms": None}]
)
def test_append_without_evidence_is_deferred(
    origin: dict[str, Any], forge: Forge, kafka: Maker, clock: FakeClock
) -> None:
    """A time the producer set, or none, is no evidence: the fault is ours and the message waits."""
    message = appended(forge.seal(kafka()), clock.now(), **origin)
    with pytest.raises(Unavailable) as caught:
        judged(forge.verifier(**APPEND), message, clock.now())
    assert caught.value.cause is Cause.APPEND_TIME_UNAVAILABLE


def test_on_rabbitmq_append_time_counts_only_with_the_interceptor(
    forge: Forge, rabbit: Maker, clock: FakeClock
) -> None:
    """Without the operator's word anyone may have written the timestamp."""
    message = appended(forge.seal(rabbit()), clock.now())
    with pytest.raises(Unavailable):
        judged(forge.verifier(**APPEND), message, clock.now())
    assert judged(forge.verifier(**APPEND, append_evidence="interceptor"), message, clock.now() + 300)


def test_retention_covers_every_copy_that_could_be_accepted(forge: Forge) -> None:
    """Past exp a copy may still come within leeway, and with append time within the queue age."""
    assert forge.verifier(leeway=7).retention == 7
    assert forge.verifier(leeway=7, **APPEND).retention == 607


def test_a_retired_key_serves_what_it_signed_before(
    forge: Forge, kafka: Maker, clock: FakeClock, reason_of: ReasonOf
) -> None:
    """iat one second before the key's end passes, at its end it does not."""
    now = int(clock.now())
    keys = KeySet([replace(forge.key, expires=now)])
    before, at = (forge.seal(kafka(), claims={"iat": now + offset, "exp": now + 60}) for offset in (-1, 0))
    assert judged(forge.verifier(), before, now, keys)
    assert reason_of(lambda: judged(forge.verifier(), at, now, keys)) is Reason.KEY_EXPIRED


def test_with_append_time_a_retired_key_is_judged_by_it(
    forge: Forge, kafka: Maker, clock: FakeClock, reason_of: ReasonOf
) -> None:
    """The broker's time counts, so iat cannot be backdated."""
    now = int(clock.now())
    keys = KeySet([replace(forge.key, expires=now)])
    message = forge.seal(kafka(), claims={"iat": now - 5, "exp": now + 60})
    verifier = forge.verifier(**APPEND)
    assert judged(verifier, appended(message, now - 0.001), now, keys)
    assert reason_of(lambda: judged(verifier, appended(message, now), now, keys)) is Reason.KEY_EXPIRED


@pytest.mark.parametrize(
    ("revoked_at", "moment", "settings", "refused"),
    [
        (0, None, {}, True), (-10, None, {}, True), (0, -1, {}, True), (10, None, {}, False), (1, None, {}, False),
        (0, -1, APPEND, False), (0, 0, APPEND, True), (0, 1, APPEND, True), (10, 0, APPEND, False),
    ],
)  # fmt: skip
def test_only_append_time_proves_a_message_older_than_a_revocation(  # noqa: PLR0917 - the table's columns and fixtures
    revoked_at: int, moment: int | None, settings: dict[str, Any], refused: bool, forge: Forge, kafka: Maker,
    clock: FakeClock, reason_of: ReasonOf,
) -> None:  # fmt: skip
    """Without evidence a revoked key is refused wholly; a revocation ahead of now waits for its time."""
    now = int(clock.now())
    keys = KeySet([replace(forge.key, revocation=Revocation(revoked_at=now + revoked_at))])
    message = forge.seal(kafka(), claims={"iat": now - 5, "exp": now + 60})
    message = message if moment is None else appended(message, now + moment)
    action = lambda: judged(forge.verifier(**settings), message, now + 5 if moment == 1 else now, keys)  # noqa: E731
    assert (reason_of(action) is Reason.KEY_REVOKED) if refused else action()


KID, OTHER = "kid", "other"


@pytest.mark.parametrize(
    ("key_subjects", "issuer", "good"),
    [
        (["me"], {}, True), (["you"], {}, False), ([], {}, False), (["me", "you"], {}, True), (None, {}, False),
        (None, {"vouches": True}, True), (["you"], {"vouches": True}, False), ([], {"vouches": True}, False),
        (None, {"subjects": {"*": frozenset(["me"])}}, True),
        (None, {"subjects": {"*": frozenset(["you"])}}, False),
        (None, {"subjects": {"*": frozenset()}}, False), (["you"], {"subjects": {"*": frozenset(["me"])}}, False),
        (["me"], {"subjects": {"*": frozenset(["you"])}}, True),
        (None, {"subjects": {KID: frozenset(["me"])}}, True),
        (None, {"subjects": {KID: frozenset(["you"])}}, False),
        (None, {"subjects": {OTHER: frozenset(["me"])}}, False),
        (["me"], {"subjects": {KID: frozenset(["you"])}}, False),
        (["you"], {"subjects": {KID: frozenset(["me"])}}, False),
        (["me"], {"subjects": {KID: frozenset(["me"])}}, True),
        (None, {"subjects": {KID: frozenset(["you"]), "*": frozenset(["me"])}}, False),
    ],
)  # fmt: skip
def test_a_key_speaks_only_for_its_subjects(key_subjects: Any, issuer: dict[str, Any], good: bool) -> None:
    """What the JWK says and what the configuration pins both bind; where nobody says, nobody may."""
    key = replace(Key.generate(subjects=key_subjects), kid=KID)
    assert Issuer(keys=KeySet([key]), **issuer).speaks_for(key, "me") is good


@pytest.mark.parametrize(
    "settings",
    [{"vouches": True, "subjects": {"*": frozenset(["a"])}}, {"subjects": {"*": "orders-api"}}],
    ids=repr,
)
def test_an_issuer_that_contradicts_itself_is_refused(settings: dict[str, Any]) -> None:
    """Vouching excludes pinning, and a lone text, in which substrings would be found, is no set."""
    with pytest.raises(ConfigurationError):
        Issuer(keys=KeySet([]), **settings)


@pytest.mark.parametrize(
    ("user_id", "user", "good"),
    [
        (None, "mallory", True), ("subject", None, True), ("subject", "orders-api", True),
        ("subject", "mallory", False),
        ({"rabbit-orders": "orders-api"}, "rabbit-orders", True),
        ({"rabbit-orders": "orders-api"}, "mallory", False),
        ({"mallory": "stock-api"}, "mallory", False), ({}, "orders-api", False), ({}, None, True),
    ],
)  # fmt: skip
def test_the_brokers_user_may_not_contradict_the_subject(  # noqa: PLR0917 - the table's columns and fixtures
    user_id: Any, user: str | None, good: bool, forge: Forge, rabbit: Maker, reason_of: ReasonOf, clock: FakeClock
) -> None:
    """user_id is held against sub as configured; where the message has none it says nothing."""
    message = forge.seal(rabbit(properties={} if user is None else {"user-id": user}))
    verifier = forge.verifier(user_id=user_id)
    if good:
        assert judged(verifier, message, clock.now())
    else:
        assert reason_of(lambda: judged(verifier, message, clock.now())) is Reason.SUBJECT_MISMATCH


@pytest.mark.parametrize(
    ("require", "cover", "good"),
    [
        (["tenant"], None, True), (["tenant"], [], False), (["tenant"], ["count"], False),
        (["absent"], None, False),
        (["absent"], ["absent"], False), (["content-type"], [], True), (["app-id"], None, False), ([], [], True),
        (["Tenant"], None, False), (["mqauth-token"], None, False),
    ],
)  # fmt: skip
def test_required_headers_are_present_and_covered(  # noqa: PLR0917 - the table's columns and fixtures
    require: list[str], cover: list[str] | None, good: bool, forge: Forge, rabbit: Maker, reason_of: ReasonOf,
    clock: FakeClock,
) -> None:  # fmt: skip
    """Present alone or covered alone does not do; the seven properties are always covered."""
    message = forge.seal(rabbit(), cover=cover)
    verifier = forge.verifier(require_headers=require)
    if good:
        assert judged(verifier, message, clock.now())
    else:
        assert reason_of(lambda: judged(verifier, message, clock.now())) is Reason.COVERAGE_INSUFFICIENT


def test_required_property_is_no_table_header(
    forge: Forge, rabbit: Maker, clock: FakeClock, reason_of: ReasonOf
) -> None:
    """On RabbitMQ a header that is called content-type does not stand for the property of that name."""
    message = forge.seal(rabbit(properties={}, headers=(("content-type", "application/json"),)))
    verifier = forge.verifier(require_headers=["content-type"])
    assert reason_of(lambda: judged(verifier, message, clock.now())) is Reason.COVERAGE_INSUFFICIENT


def test_unsigned_headers_are_hidden_or_refused(
    forge: Forge, rabbit: Maker, kafka: Maker, clock: FakeClock, reason_of: ReasonOf
) -> None:
    """An added header is invisible by default and refused where asked; what brokers add is neither."""
    strict = forge.verifier(unsigned_headers="reject")
    for message in (forge.seal(rabbit()), forge.seal(kafka())):
        added = replace(message, headers=(*message.headers, ("x-evil", b"1")))
        assert judged(forge.verifier(), added, clock.now()).header("x-evil") is None
        assert reason_of(lambda m=added: judged(strict, m, clock.now())) is Reason.COVERAGE_INSUFFICIENT
        by_broker = replace(message, headers=(*message.headers, ("x-death", ()), ("traceparent", b"x")))
        assert judged(strict, by_broker, clock.now())


@pytest.mark.parametrize("keys", ["jwks.json", Path("jwks.json"), b"{}", None])
def test_what_is_no_source_of_keys_is_refused(keys: Any) -> None:
    """A path in place of a source is a configuration error that says what is wanted, and not one at a message."""
    with pytest.raises(ConfigurationError, match="keys come from a source"):
        Verifier(keys={"https://auth.example": keys}, audience="billing")
    with pytest.raises(ConfigurationError, match="keys come from a source"):
        TrustDomain(keys=keys)


def test_a_key_of_one_issuer_verifies_no_token_of_another(
    forge: Forge, kafka: Maker, clock: FakeClock, reason_of: ReasonOf
) -> None:
    """Keys are looked up by the issuer's own source alone."""
    other = Key.generate(subjects=["orders-api"])
    verifier = forge.verifier(keys={ISSUER: forge.keys, "https://b.example": KeySet([other])})
    message = forge.seal(kafka(), key=other)
    assert reason_of(lambda: judged(verifier, message, clock.now())) is Reason.KEY_UNKNOWN
    crossed = forge.seal(kafka(), claims={"iss": "https://b.example"})
    assert reason_of(lambda: judged(verifier, crossed, clock.now())) is Reason.KEY_UNKNOWN


@pytest.mark.parametrize("audience", ["billing", ["billing"], ("other", "billing"), iter(["billing"])])
def test_a_consumer_may_accept_several_audiences(
    audience: Any, forge: Forge, kafka: Maker, clock: FakeClock
) -> None:
    """The accepted audiences are a set of the consumer's."""
    assert judged(forge.verifier(audience=audience), forge.seal(kafka()), clock.now())


@pytest.mark.parametrize(
    "settings",
    [
        {"keys": {}}, {"keys": []}, {"keys": {"": KeySet([])}}, {"audience": ""}, {"audience": []},
        {"audience": "*"},
        {"audience": ["a", "b*"]}, {"audience": [1]}, {"max_lifetime": 0}, {"max_lifetime": 1.5}, {"leeway": -1},
        {"leeway": 61}, {"leeway": True}, {"at": "append"}, {"max_queue_age": 5}, {"at": "produce"},
        {"at": "append", "max_queue_age": 0}, {"at": "append", "max_queue_age": 1.0},
        {"append_evidence": "header"},
        {"unsigned_headers": "show"}, {"user_id": "issuer"}, {"user_id": ["a"]}, {"require_headers": "tenant"},
    ],
    ids=repr,
)  # fmt: skip
def test_contradicting_settings_are_refused(settings: dict[str, Any], forge: Forge) -> None:
    """No issuer, no audience, a wildcard, or times out of bounds: a configuration error."""
    with pytest.raises(ConfigurationError):
        forge.verifier(**settings)


def test_the_limits_of_settings_pass() -> None:
    """No leeway, 60 s of it, and a lifetime and queue age of one second are allowed."""
    assert Times(leeway=0, max_lifetime=1).leeway == 0
    assert Times(leeway=60, at="append", max_queue_age=1).max_queue_age == 1


def test_far_times_do_not_overflow(forge: Forge, kafka: Maker, clock: FakeClock, reason_of: ReasonOf) -> None:
    """The largest integers JSON may carry are judged like any other time."""
    big = 2**53
    for bends, reason in (
        ({"exp": big}, Reason.LIFETIME_EXCESSIVE), ({"iat": big, "exp": big}, Reason.ISSUED_IN_FUTURE),
        ({"iat": 0, "exp": 0}, Reason.EXPIRED), ({"nbf": big}, Reason.NOT_YET_VALID),
    ):  # fmt: skip
        message = forge.seal(kafka(), claims=bends)
        assert reason_of(lambda m=message: judged(forge.verifier(), m, clock.now())) is reason


def test_a_rejection_holds_nothing_of_the_message(forge: Forge, kafka: Maker, clock: FakeClock) -> None:
    """Neither body, header values, claims nor token stand in any rejection's text or representation."""
    message = kafka(body=b"the-secret", headers=(("tenant", b"the-secret"),))
    for attack in ATTACKS:
        hostile = attack.mount(forge, message)
        try:
            judged(forge.verifier(), hostile, clock.now())
        except Rejection as rejection:
            text = repr(rejection) + str(rejection) + repr(rejection.args)
            assert "secret" not in text
            assert tokens_in(text, hostile) == []


def test_claims_are_handed_over_as_parsed(forge: Forge, kafka: Maker, clock: FakeClock) -> None:
    """Unknown claims reach the handler."""
    found = judged(forge.verifier(), forge.seal(kafka(), claims={"role": "x"}), clock.now())
    assert isinstance(found.claims, claim_set.Claims)
    assert found.claims.extra == {"role": "x"}


def test_origin_is_the_brokers_alone(forge: Forge, kafka: Maker, clock: FakeClock) -> None:
    """Nothing of the origin is bound, since a sender cannot know it."""
    sealed = forge.seal(kafka())
    moved = replace(sealed, origin=Origin(topic="orders", partition=9, offset=9))
    assert judged(forge.verifier(), moved, clock.now()).origin.partition == 9
