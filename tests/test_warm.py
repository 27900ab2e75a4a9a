"""What is remembered changes no verdict: a consumer that remembers, and one that forgets before each message."""

from __future__ import annotations

import asyncio
import gc
import string
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqauth.clock import SYSTEM_RANDOMNESS
from mqauth.errors import Cause, Reason, Rejection, Unavailable
from mqauth.flow import arun, run
from mqauth.judging.delivery import Delivery, Step, verdict_record
from mqauth.judging.pipeline import Pipeline
from mqauth.judging.policy import Allow, Decision, Policy
from mqauth.judging.token import CAPACITY, Candidate
from mqauth.judging.verified import Verified
from mqauth.judging.verifier import Verifier
from mqauth.letters.release import RELEASE_HEADER
from mqauth.replay.memory import MemoryReplayStore
from mqauth.testing import ATTACKS, BATCH_ATTACKS, Attack, FakeClock, Forge
from mqauth.testing.batchforge import forge_batch, leaf_hash, leaf_of
from mqauth.testing.forge import ISSUER, REMOVED, SUBJECT
from mqauth.testing.token_attacks import honest_message
from mqauth.wire import batch, envelope, jws, template
from mqauth.wire import claims as claim_set
from mqauth.wire import strict_json as strictjson
from mqauth.wire.envelope import add_named
from mqauth.wire.keys import Key, KeySet, Revocation
from mqauth.wire.memo import Memo
from mqauth.wire.message import (
    NO_PROPERTIES,
    PROTECTED_PROPERTIES,
    TOKEN_HEADER,
    HeaderPair,
    Message,
    Origin,
    form_of,
)

KAFKA, RABBITMQ = "kafka:orders", "rabbitmq:shop/orders.created"
PLACES = {"kafka": (KAFKA, "kafka:stock"), "rabbitmq": (RABBITMQ, "rabbitmq:shop/orders.paid")}
SIZE = 6
ALPHABET = string.ascii_letters + string.digits + "-_"
SETTINGS: tuple[dict[str, Any], ...] = (
    {}, {"require_headers": ["tenant"]}, {"require_headers": ["content-type"]}, {"unsigned_headers": "reject"},
    {"user_id": "subject"}, {"at": "append", "max_queue_age": 60, "append_evidence": "interceptor"},
)  # fmt: skip


@dataclass
class Source:
    """Keys that change between two messages, or are out of reach."""

    keys: KeySet
    down: bool = False

    def key_set(self) -> KeySet:
        """Return the keys of now."""
        if self.down:
            raise Unavailable(Cause.KEYS_UNAVAILABLE, "told to")
        return self.keys

    def refresh(self, _kid: str, _received: float) -> KeySet:
        """Find nothing new."""
        return self.key_set()


class Side:
    """A pipeline; a cold one forgets before each message."""

    def __init__(self, world: World, *, cold: bool, policy: Policy | None = None, **settings: Any) -> None:
        verifier = world.forge.verifier(keys={ISSUER: world.source}, **settings)
        places = [place for pair in PLACES.values() for place in pair[: 1 + world.wide]]
        self.guard = Pipeline(
            verifier=verifier, policy=policy or Allow({SUBJECT: places}), clock=world.clock,
            replay=MemoryReplayStore(clock=world.clock),
        )  # fmt: skip
        self.verifier, self._cold, self.warm = verifier, cold, 0
        honest = verifier.open

        def opened(message: Message) -> Candidate:
            candidate = honest(message)
            self.warm += candidate.learnt
            return candidate

        verifier.open = opened  # type: ignore[method-assign]

    def judge(self, message: Message, received: float) -> tuple[Any, ...]:
        """Return all that a verdict says, and all that a claim wishes for but its owner."""
        if self._cold:
            self.verifier.tokens.clear()
            self.verifier.shapes.clear()
        delivery = Delivery(message=message, received=received)
        outcome = run(self.guard.judge(delivery))
        claim = None if delivery.claim is None else replace(delivery.claim, owner="")
        facts = None if outcome.verified is None else outcome.verified._facts
        record = verdict_record(delivery, scope="billing", time=received, policy="1", instance="here")
        return (*outcome[:4], claim, facts, record, delivery.candidate is None, delivery.step)


@dataclass
class World:
    """A producer's batch, and two consumers that are to agree on it."""

    broker: str = "kafka"
    wide: bool = False
    clock: FakeClock = field(default_factory=FakeClock)

    def __post_init__(self) -> None:
        self.forge = Forge(self.clock)
        self.source = Source(self.forge.keys)
        self.settings: dict[str, Any] = {}

    def sides(self, **settings: Any) -> tuple[Side, Side]:
        """Return who remembers, and who does not."""
        return Side(self, cold=False, **settings), Side(self, cold=True, **settings)

    def sealed(self, *, headers: bool = True, single: bool = False) -> list[Message]:
        """Return signed messages, of a batch or each by itself; every third is for another destination."""
        honest, other = PLACES[self.broker]
        made = [honest_message(other if number % 3 == 2 else honest, number) for number in range(SIZE)]
        bare = [replace(message, headers=(), properties=NO_PROPERTIES) for message in made]
        signer, chosen = self.forge.signer(), made if headers else bare
        return [signer.sign(message) for message in chosen] if single else signer.sign_many(chosen)


def with_headers(change: Callable[[list[HeaderPair]], list[HeaderPair]]) -> Callable[[World, Message], Message]:
    """Return a change of a message's headers."""
    return lambda _world, message: replace(message, headers=tuple(change(list(message.headers))))


def with_token_value(change: Callable[[Any], Any]) -> Callable[[World, Message], Message]:
    """Return a change of a message's token header."""
    return with_headers(lambda pairs: [(name, change(value) if name == TOKEN_HEADER else value)
                                       for name, value in pairs])  # fmt: skip


def text(world: World, value: str) -> Any:
    """Return a header's text as a broker carries it."""
    return value.encode() if world.broker == "kafka" else value


def swapped(value: Any, old: str, new: str) -> Any:
    """Return a token with characters exchanged, in its type."""
    return value.replace(old.encode(), new.encode()) if isinstance(value, bytes) else value.replace(old, new)


CHANGES: dict[str, Callable[[World, Message], Message]] = {
    "nothing": lambda _world, message: message,
    "body": lambda _world, message: replace(message, body=b"forged"),
    "no body": lambda _world, message: replace(message, body=None),
    "empty body": lambda _world, message: replace(message, body=b""),
    "key": lambda _world, message: replace(message, key=b"forged"),
    "no key": lambda _world, message: replace(message, key=None),
    "destination": lambda world, message: replace(message, destination=PLACES[world.broker][1]),
    "malformed": lambda _world, message: replace(message, malformed="unreadable"),
    "redelivered": lambda _world, message: replace(message, origin=Origin(queue="q", redelivered=True)),
    "property": lambda _world, message: replace(message, properties={**message.properties, "type": "x"}),
    "user": lambda _world, message: replace(message, properties={**message.properties, "user-id": "x"}),
    "properties": lambda _world, message: replace(message, properties={}),
    "header": lambda world, message: with_headers(
        lambda pairs: [(n, text(world, "forged")) if n == "tenant" else (n, v) for n, v in pairs]
    )(world, message),
    "header's type": with_headers(lambda pairs: [(n, 7) if n == "tenant" else (n, v) for n, v in pairs]),
    "header gone": with_headers(lambda pairs: pairs[1:]),
    "header added": with_headers(lambda pairs: [("new", pairs[0][1]), *pairs]),
    "header behind": with_headers(lambda pairs: [*pairs, ("traceparent", pairs[0][1])]),
    "header twice": with_headers(lambda pairs: [pairs[0], *pairs]),
    "headers turned": with_headers(lambda pairs: pairs[::-1]),
    "no headers": with_headers(lambda pairs: []),
    "case twin": with_headers(lambda pairs: [("Tenant", pairs[0][1]), *pairs]),
    "release": with_headers(lambda pairs: [(RELEASE_HEADER, pairs[0][1]), *pairs]),
    "token twice": with_headers(lambda pairs: [*pairs, pairs[-1]]),
    "token misspelt": with_headers(lambda pairs: [("Mqauth-Token", v) if n == TOKEN_HEADER else (n, v)
                                                  for n, v in pairs]),
    "token of a type": with_token_value(lambda v: v.decode() if isinstance(v, bytes) else v.encode()),
    "no token value": with_token_value(lambda value: None),
    "number": with_token_value(lambda value: 7),
    "token too long": with_token_value(lambda value: value + value[-1:] * 9000),
    "proof cut": with_token_value(lambda value: value[:-4]),
    "proof bent": with_token_value(lambda value: value[:-8] + value[-4:] + value[-8:-4]),
    "proof padded": with_token_value(lambda value: swapped(value, ".", "..")),
    "no proof": with_token_value(lambda value: value.partition(b"~" if isinstance(value, bytes) else "~")[0]),
    "index": with_token_value(lambda value: swapped(value, "~0.", "~1.")),
    "index beyond": with_token_value(lambda value: swapped(value, "~0.", "~6.")),
    "index of another form": with_token_value(lambda value: swapped(value, "~1.", "~01.")),
    "shorts": with_token_value(lambda value: swapped(value, "~1.", "~1.AAAA")[:-4]),
    "signature": with_token_value(lambda value: swapped(value, "~", "A~")),
}  # fmt: skip


def change_keys(world: World, how: str) -> None:
    """Change the keys of the issuer."""
    key = world.forge.key
    made: dict[str, Callable[[], KeySet]] = {
        "back": lambda: world.forge.keys,
        "anew": lambda: KeySet([replace(key)]),
        "revoked": lambda: KeySet([replace(key, revocation=Revocation(reason="stolen"))]),
        "gone": lambda: KeySet([Key.generate(subjects=[SUBJECT])]),
        "another": lambda: KeySet([replace(Key.generate(subjects=[SUBJECT]), kid=key.kid)]),
        "of another": lambda: KeySet([replace(key, subjects=frozenset(["somebody"]))]),
    }
    world.source.down = how == "down"
    if how in made:
        world.source.keys = made[how]()


STEPS = st.tuples(
    st.integers(0, SIZE - 1),
    st.sampled_from(sorted(CHANGES)) | st.just("nothing"),
    st.sampled_from(["", "", "", "", "back", "anew", "revoked", "gone", "another", "of another", "down"]),
    st.sampled_from([0.0, 0.0, 0.0, 1.0, -4.0, -40.0, 59.0, 66.0, 1e6]),
)


WORLDS = st.tuples(st.sampled_from(sorted(PLACES)), st.booleans(), st.booleans(), st.booleans())


@given(steps=st.lists(STEPS, max_size=14), settings=st.sampled_from(SETTINGS), world_of=WORLDS)
def test_warm_says_what_cold_says(
    steps: list[tuple[int, str, str, float]], settings: dict[str, Any], world_of: tuple[str, bool, bool, bool]
) -> None:
    """Whatever of messages, keys and time changes in between, what is remembered changes no verdict."""
    broker, wide, single, headers = world_of
    world = World(broker, wide)
    warm, cold = world.sides(**settings)
    sealed = world.sealed(headers=headers, single=single)
    for index, change, keys, later in steps:
        change_keys(world, keys)
        bare = not headers and "header" in change
        message = sealed[index] if bare else CHANGES[change](world, sealed[index])
        received = world.clock.now() + later
        assert warm.judge(message, received) == cold.judge(message, received)
    assert cold.warm == 0


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("headers", [True, False])
@pytest.mark.parametrize("broker", sorted(PLACES))
@pytest.mark.parametrize("change", sorted(CHANGES))
def test_each_change_after_honest_ones(change: str, broker: str, headers: bool, single: bool) -> None:
    """A changed message after honest ones is told as if it were the first, and so are honest ones after it."""
    world = World(broker, wide=True)
    warm, cold = world.sides()
    sealed = world.sealed(headers=headers, single=single)
    changed = CHANGES[change](world, sealed[1]) if headers or "header" not in change else sealed[1]
    for message in (
        sealed[0],
        sealed[2],
        sealed[3],
        changed,
        sealed[4],
        sealed[5],
        sealed[1],
        CHANGES[change](world, sealed[0]),
    ):
        assert warm.judge(message, world.clock.now()) == cold.judge(message, world.clock.now())


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("headers", [True, False])
@pytest.mark.parametrize("broker", sorted(PLACES))
def test_something_is_remembered(broker: str, headers: bool, single: bool) -> None:
    """All but the first message of a form are warm; each is accepted, claimed, and a copy of it is not."""
    world = World(broker)
    warm, _ = world.sides()
    sealed = world.sealed(headers=headers, single=single)
    messages = [message for number, message in enumerate(sealed) if number % 3 != 2]
    for message in messages:
        assert warm.judge(message, world.clock.now())[-1] is Step.HANDLE
    assert warm.warm == len(messages) - 1
    assert warm.judge(messages[2], world.clock.now())[-1] is Step.RECORD


@pytest.mark.parametrize("settings", SETTINGS[-2:])
@pytest.mark.parametrize("single", [False, True])
def test_where_messages_differ_in_more(settings: dict[str, Any], single: bool) -> None:
    """A broker's user and append times are looked at for each message, however much else is remembered."""
    world = World("rabbitmq")
    warm, cold = world.sides(**settings)
    for message in world.sealed(single=single):
        origin = replace(message.origin, timestamp_ms=int(world.clock.now() * 1000), timestamp_type="append")
        stamped = replace(message, origin=origin)
        assert warm.judge(stamped, world.clock.now()) == cold.judge(stamped, world.clock.now())
    assert warm.warm == 3


class Changing:
    """A policy that changes its mind."""

    version = "1"

    def __init__(self) -> None:
        self.decisions = iter([Decision.ALLOW, Decision.DENY])

    def decide(self, _verified: Verified, /) -> Decision:
        """Return the next decision."""
        return next(self.decisions)


class Subclass(Allow):
    """An ``Allow`` of which one cannot know what it does."""


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("make", [Changing, lambda: Subclass({SUBJECT: [KAFKA]})])
def test_another_policy_is_asked_each_time(make: Callable[[], Policy], single: bool) -> None:
    """What a policy said of one message is not said of the next."""
    world, policy = World(), make()
    warm = Side(world, cold=False, policy=policy)
    verdicts = [warm.judge(message, world.clock.now())[-1] for message in world.sealed(single=single)[:2]]
    assert verdicts == [Step.HANDLE, Step.RECORD if isinstance(policy, Changing) else Step.HANDLE]


@pytest.mark.parametrize("single", [True, False])
def test_an_awaited_key_source_is_asked_once(single: bool) -> None:
    """Of keys that must be awaited one coroutine is made for each message, and none is dropped."""

    class Awaited:
        calls = 0

        async def key_set(self) -> KeySet:
            self.calls += 1
            return world.forge.keys

        async def refresh(self, _kid: str, _received: float) -> KeySet:
            return world.forge.keys

    world = World()
    source: Any = Awaited()
    world.source = source
    warm, _ = world.sides()

    async def judge() -> list[Step]:
        deliveries = [
            Delivery(message=message, received=world.clock.now()) for message in world.sealed(single=single)[:2]
        ]
        for delivery in deliveries:
            await arun(warm.guard.judge(delivery))
        return [delivery.step for delivery in deliveries]

    assert asyncio.run(judge()) == [Step.HANDLE, Step.HANDLE]
    assert source.calls == 2


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("later", [-5, -6, -40, 0, 64, 65, 1e6])
def test_another_time(later: float, single: bool) -> None:
    """A message received before the first, or past the end of their token, is told as if it were the first."""
    world = World()
    warm, cold = world.sides()
    sealed = world.sealed(single=single)
    for index, received in ((0, 0.0), (1, later), (3, 0.0)):
        moment = world.clock.now() + received
        assert warm.judge(sealed[index], moment) == cold.judge(sealed[index], moment)


def test_a_header_too_long_by_its_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sibling whose longer proof makes its header longer than allowed is refused like any other."""
    world = World()
    warm, cold = world.sides()
    honest, _ = PLACES[world.broker]
    sealed = world.forge.signer().sign_many([honest_message(honest, number) for number in range(5)])
    fits, longer = (len(str(sealed[index].occurrences(TOKEN_HEADER)[0])) - 3 for index in (4, 0))
    assert fits < longer
    monkeypatch.setattr(envelope, "MAX_TOKEN", fits)
    for index, step in ((4, Step.HANDLE), (0, Step.RECORD)):
        said = warm.judge(sealed[index], world.clock.now())
        assert (said[-1], said) == (step, cold.judge(sealed[index], world.clock.now()))


def test_owners_are_drawn_at_once() -> None:
    """Deliveries of one draw have owners of 12 random bytes, all different; one that has an owner keeps it."""
    drawn: list[int] = []

    def randomness(size: int) -> bytes:
        drawn.append(size)
        return SYSTEM_RANDOMNESS(size)

    world = World()
    guard = Pipeline(verifier=world.forge.verifier(), policy=Allow({}), replay=MemoryReplayStore(), instance="i",
                     randomness=randomness)  # fmt: skip
    drawn.clear()
    deliveries = [Delivery(message=message, received=0.0) for message in world.sealed()]
    deliveries[2].owner = "kept"
    guard.verdicts.draw_owners(deliveries)
    assert drawn == [12 * SIZE]
    assert len({delivery.owner for delivery in deliveries}) == SIZE
    assert [len(delivery.owner or "") for delivery in deliveries] == [24, 24, 4, 24, 24, 24]


@pytest.mark.parametrize("headers", [
    (), (("tenant", b"acme"),), (("content-type", b"x"),), (("tenant", b"a"), ("tenant", b"b")),
    (("content-type", b"a"), ("tenant", b"b"), ("reply-to", b"c")), (("tenant", None),),
])  # fmt: skip
@pytest.mark.parametrize("names", [(), ("tenant",), ("absent",), ("tenant", "content-type", "absent")])
def test_a_leaf_is_the_same_both_ways(headers: tuple[HeaderPair, ...], names: tuple[str, ...]) -> None:
    """The prepared hash of a leaf is the hash of its parts, with and without key, body and covered values."""
    first = Message(destination=KAFKA, body=b"first", headers=headers)
    encode = envelope.encoder(form_of(first), names)
    for key in (None, b"", b"key"):
        for body in (None, b"", b"body"):
            values = tuple((name, value and b"other") for name, value in headers)
            other = replace(first, key=key, body=body, headers=values)
            leaf = leaf_of(other, names).hash
            alone = batch.Proof(0, b"", b"")
            batch.check(other, alone, batch.Proven(leaf, 1), encode)
            with pytest.raises(Rejection):
                batch.check(other, alone, batch.Proven(leaf_hash(leaf), 1), encode)


@pytest.mark.parametrize("properties", [
    {}, {"content-type": "x"}, {"reply-to": "amq.rabbitmq.reply-to.g1h"}, {"reply-to": "replies", "priority": "5"},
    {"app-id": "a", "content-type": "b", "message-id": "c", "user-id": "d"},
])  # fmt: skip
def test_properties_are_the_same_both_ways(properties: dict[str, str]) -> None:
    """What is prepared of AMQP properties and headers is what is hashed of them, reply-to without its suffix."""
    headers = (("tenant", "acme"), ("list", (1, "a", None)), ("x-delay", 5))
    first = Message(destination=RABBITMQ, body=b"first", headers=headers, properties=properties)
    others = {name: value.replace("g1h", "g2i") + "x" for name, value in properties.items()}
    other = replace(first, properties=others, headers=(("tenant", "other"), ("list", {"a": 1}), ("x-delay", 6)))
    for names in ((), ("tenant",), ("list", "absent")):
        encode = envelope.encoder(form_of(first), names)
        assert [encode(each) for each in (first, other)] == [plain_input(each, names) for each in (first, other)]


def plain_input(message: Message, names: tuple[str, ...]) -> bytes:
    """Return what is hashed of the properties and headers of an AMQP message, one after another."""
    parts = [b"mqauth-hds-1"]
    for name in PROTECTED_PROPERTIES:
        text = message.properties.get(name)
        direct = text is not None and text.startswith("amq.rabbitmq.reply-to.")
        value = "amq.rabbitmq.reply-to" if direct and name == "reply-to" else text
        add_named(parts, name, () if value is None else (value,))
    for name in names:
        add_named(parts, name, message.occurrences(name))
    return b"".join(parts)


# --- tokens that a producer's own key has signed, and that are not as mqauth makes them ---------------------

NOW = int(FakeClock().now())
BENDS: dict[str, dict[str, Any]] = {
    "another life": {"claims": {"exp": NOW + 61}},
    "too long a life": {"claims": {"exp": NOW + 4000}},
    "from the future": {"claims": {"iat": NOW + 3600, "exp": NOW + 3660}},
    "of the past": {"claims": {"iat": NOW - 3600, "exp": NOW - 3540}},
    "no life": {"claims": {"exp": NOW}},
    "nbf": {"claims": {"nbf": NOW}},
    "too early": {"claims": {"nbf": NOW + 60}},
    "a claim more": {"claims": {"role": "x"}},
    "no jti": {"claims": {"jti": REMOVED}},
    "short jti": {"claims": {"jti": "short"}},
    "longer jti": {"claims": {"jti": "j" * 40}},
    "jti of quotes": {"claims": {"jti": '"' * 22}},
    "jti of spaces": {"claims": {"jti": " " * 22}},
    "jti of controls": {"claims": {"jti": "\x00" * 22}},
    "jti of umlauts": {"claims": {"jti": "\u00e4" * 11}},
    "jti of umlauts, too many bytes": {"claims": {"jti": "\u00e4" * 22}},
    "float": {"claims": {"iat": NOW + 0.5}},
    "truth": {"claims": {"iat": True}},
    "text": {"claims": {"iat": str(NOW)}},
    "ten characters of text": {"claims": {"iat": str(NOW)[:8]}},
    "zero": {"claims": {"iat": 0}},
    "before 1970": {"claims": {"iat": -123456789}},
    "another subject": {"claims": {"sub": "stock-api"}},
    "another issuer": {"claims": {"iss": "https://evil.example"}},
    "another audience": {"claims": {"aud": "shipping"}},
    "another version": {"binding": {"v": 2}},
    "covers nothing": {"binding": {"hdr": []}},
    "another destination": {"binding": {"dst": "kafka:stock"}},
    "no body": {"binding": {"bod": None}},
    "another body": {"binding": {"bod": "A" * 43}},
    "no digest": {"binding": {"hds": None}},
    "another key": {"binding": {"key": "A" * 43}},
    "a member more": {"binding": {"x": 1}},
    "another algorithm": {"header": {"alg": "ES256"}},
    "another type": {"header": {"typ": "at+jwt"}},
    "a parameter": {"header": {"jku": "https://evil.example"}},
    "no signature": {"signature": b""},
    "a bad signature": {"signature": b"x" * 64},
    "a bad signature of the past": {"claims": {"iat": NOW - 3600, "exp": NOW - 3540}, "signature": b"x" * 64},
}  # fmt: skip
REWRITES: dict[str, Callable[[bytes], bytes]] = {
    "space": lambda raw: raw.replace(b",", b", ", 1),
    "space behind": lambda raw: raw + b" ",
    "twice": lambda raw: raw.replace(b'{"iss"', b'{"exp":9999999999,"iss"', 1),
    "turned": lambda raw: strictjson.dumps(dict(reversed(strictjson.loads(raw, depth=8).items()))),
    "escaped": lambda raw: raw.replace(b'"sub":"o', b'"sub":"\\u006f', 1),
    "zero before": lambda raw: raw.replace(b'"iat":1', b'"iat":0', 1),
    "plus before": lambda raw: raw.replace(b'"iat":1', b'"iat":+', 1),
    "minus before": lambda raw: raw.replace(b'"iat":1', b'"iat":-', 1),
    "exponent": lambda raw: raw.replace(b'"iat":' + str(NOW).encode()[:10], b'"iat":17000000e2', 1),
    "ten digits of text": lambda raw: raw.replace(b'"iat":%d' % NOW, b'"iat":"%d"' % (NOW // 100)),
    "cut": lambda raw: raw[:-1],
    "nothing": lambda raw: b"",
    "other digits": lambda raw: raw.replace(str(NOW).encode(), "\u0661".encode() * 5, 1),
}  # fmt: skip


def after_honest_ones(bent: Callable[[World, Message], Message]) -> None:
    """Have both sides judge honest messages, a bent one, and honest ones."""
    for broker, (place, _) in PLACES.items():
        world = World(broker)
        warm, cold = world.sides()
        honest = [world.forge.signer().sign(honest_message(place, number)) for number in range(4)]
        odd = [bent(world, honest_message(place, number)) for number in (8, 9)]
        for message in (*honest[:2], *odd, *honest[2:]):
            assert warm.judge(message, world.clock.now()) == cold.judge(message, world.clock.now())
        assert warm.warm >= 2  # of the honest ones; what is odd may have been accepted, and learnt


@pytest.mark.parametrize("name", sorted(BENDS))
def test_each_bent_token(name: str) -> None:
    """A token bent in one place is told as by a consumer that remembers nothing, and spoils nothing."""
    after_honest_ones(lambda world, message: world.forge.seal(message, **BENDS[name]))


@pytest.mark.parametrize("name", sorted(REWRITES))
def test_each_rewritten_payload(name: str) -> None:
    """A payload that means nearly the same in other bytes is told as by a consumer that remembers nothing."""

    def bent(world: World, message: Message) -> Message:
        return world.forge.seal(message, payload=REWRITES[name](strictjson.dumps(world.forge.claims(message))))

    after_honest_ones(bent)


@pytest.mark.parametrize("attack", [*ATTACKS, *BATCH_ATTACKS], ids=lambda attack: attack.name)
def test_each_attack_after_honest_ones(attack: Attack) -> None:
    """Every attack is told by the same reason when messages of its kind were accepted before."""
    for broker, (place, _) in PLACES.items():
        if attack.fits(place):
            world = World(broker)
            warm, cold = world.sides()
            for message in [*world.sealed(single=True), *world.sealed()]:
                warm.judge(message, world.clock.now())
            hostile = attack.mount(world.forge, honest_message(place, 9))
            found = warm.judge(hostile, world.clock.now())
            assert found == cold.judge(hostile, world.clock.now())
            assert found[1] is attack.reason


@given(iat=st.integers(0, 2**53), life=st.integers(-10, 10**7), jti=st.text(min_size=1, max_size=130))
def test_the_claims_of_a_payload_are_what_it_says(iat: int, life: int, jti: str) -> None:
    """Whatever a payload's own values, the template reads them as the strict parser does, or not at all."""
    forge = Forge(FakeClock())
    message = honest_message(KAFKA)
    first = strictjson.dumps(forge.claims(message))
    parsed = claim_set.parse(first)
    made = template.reader_of(first, parsed)
    assert made is not None
    other = strictjson.dumps(forge.claims(message) | {"iat": iat, "exp": iat + life, "jti": jti})
    found = made.read(other)
    if found is not None:
        assert found == claim_set.parse(other)


@pytest.mark.parametrize("text", [b'"19000000"', b"-190000006", b"0190000006", b"1900000_60", b" 190000006",
                                  b"19000000.5", b"190000000e", b"+190000006", "\u0661".encode() * 5])  # fmt: skip
@pytest.mark.parametrize("name", [b"iat", b"exp"])
def test_a_time_is_ten_digits(name: bytes, text: bytes) -> None:
    """No other ten characters are read as a time."""
    payload, made = readable()
    at = payload.index(b'"%s":' % name) + len(name) + 3
    assert made.read(payload) == claim_set.parse(payload)
    assert made.read(payload[:at] + text + payload[at + 10 :]) is None


@pytest.mark.parametrize("odd", [b'"', b"\\", b" ", b"\x00", b"\x7f", b"\xc3", b"=", b"+", b"/"])
def test_a_jti_is_plain(odd: bytes) -> None:
    """No character that could mean another thing in JSON is read as one of an id or a digest."""
    payload, made = readable()
    for name in (b'"jti":"', b'"bod":"', b'"key":"', b'"hds":"'):
        at = payload.index(name) + 7
        assert made.read(payload[: at + 3] + odd + payload[at + 4 :]) is None


@pytest.mark.parametrize("end", sorted(set(ALPHABET) - set("AEIMQUYcgkosw048")))
@pytest.mark.parametrize("name", [b"bod", b"key", b"hds"])
def test_a_digest_is_canonical(name: bytes, end: str) -> None:
    """A digest that ends in bits that no digest has is not read as one."""
    payload, made = readable()
    at = payload.index(b'"%s":"' % name) + 7 + 42
    assert made.read(payload[:at] + end.encode() + payload[at + 1 :]) is None


@pytest.mark.parametrize(("body", "key"), [(None, None), (None, b"k"), (b"b", None), (b"b", b"k")])
def test_a_message_without_body_or_key_is_read_too(body: bytes | None, key: bytes | None) -> None:
    """What reads payloads of tombstones, or of records without a key, reads others like them and no others."""
    forge = Forge(FakeClock())
    message = replace(honest_message(KAFKA), body=body, key=key)
    payload, other = (strictjson.dumps(forge.claims(message)) for _ in range(2))
    made = template.reader_of(payload, claim_set.parse(payload))
    assert made is not None
    assert made.read(other) == claim_set.parse(other)
    for changes in ({"body": None}, {"key": None}, {"body": b"b"}, {"key": b"k"}):
        changed = strictjson.dumps(forge.claims(replace(message, **changes)))
        assert made.read(changed) in (None, claim_set.parse(changed))


def readable() -> tuple[bytes, template.Reader]:
    """Return a payload, and what reads payloads like it."""
    payload = strictjson.dumps(Forge(FakeClock()).claims(honest_message(KAFKA)))
    made = template.reader_of(payload, claim_set.parse(payload))
    assert made is not None
    return payload, made


def test_a_template_of_another_layout() -> None:
    """A payload that mqauth would not have built so has no template."""
    forge, message = Forge(FakeClock()), honest_message(KAFKA)
    for changes in ({"nbf": NOW}, {"role": "x"}, {"jti": "a b c d e f g h i j"}, {"iat": 5, "exp": 60}):
        raw = strictjson.dumps(forge.claims(message) | changes)
        assert template.reader_of(raw, claim_set.parse(raw)) is None
    raw = strictjson.dumps(forge.claims(message))
    assert template.reader_of(raw + b" ", claim_set.parse(raw)) is None
    early = claim_set.parse(raw)._replace(nbf=NOW)
    assert template.reader_of(claim_set.build(early), early) is None


@pytest.mark.parametrize("changes", [{"revocation": Revocation(revoked_at=NOW + 10)}, {"expires": NOW + 10}])
def test_a_key_ends_between_two_messages(changes: dict[str, Any]) -> None:
    """With one and the same key set, a message after the key's end is refused."""
    world = World()
    world.source.keys = KeySet([replace(world.forge.key, **changes)])
    warm, cold = world.sides()
    for index, later in enumerate((0, 9, 10, 11)):
        moment = world.clock.now() + later
        sealed = world.forge.seal(
            honest_message(KAFKA, index), claims={"iat": int(moment), "exp": int(moment) + 60}
        )
        found = warm.judge(sealed, moment)
        assert found == cold.judge(sealed, moment)
        assert found[-1] is (Step.HANDLE if later < 10 else Step.RECORD)
    assert warm.warm == 3


@pytest.mark.parametrize("single", [True, False])
def test_what_is_added_behind_the_token(single: bool) -> None:
    """A trace header that transports add behind the token keeps nothing from being remembered."""
    world = World()
    warm, _ = world.sides()
    sealed = world.sealed(single=single)
    for index in (0, 1, 3):
        traced = CHANGES["header behind"](world, sealed[index])
        assert warm.judge(traced, world.clock.now())[-1] is Step.HANDLE
    assert warm.warm == 2


def test_a_bad_signature_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forgery like an accepted message costs one check of its signature."""
    world = World()
    warm, _ = world.sides()
    assert warm.judge(world.sealed(single=True)[0], world.clock.now())[-1] is Step.HANDLE
    checked: list[bytes] = []
    verify = jws.verify
    monkeypatch.setattr(
        jws, "verify", lambda opened, key: (checked.append(opened.signature), verify(opened, key))[1]
    )
    forged = world.forge.seal(honest_message(KAFKA, 1), signature=b"x" * 64)
    found = warm.judge(forged, world.clock.now())
    assert (found[1], checked) == (Reason.SIGNATURE_INVALID, [b"x" * 64])


# --- and messages signed like one before them -----------------------------------------------------------------

VALUES = st.binary(max_size=20)


@given(
    body=st.none() | VALUES, key=st.none() | VALUES, values=st.tuples(VALUES, VALUES),
    repeated=st.booleans(), cover=st.none() | st.sampled_from([(), ("b",), ("absent", "a")]),
)  # fmt: skip
def test_a_second_token_is_made_as_the_first(
    body: bytes | None,
    key: bytes | None,
    values: tuple[bytes, bytes],
    repeated: bool,
    cover: tuple[str, ...] | None,
) -> None:
    """Whatever the message, a signer that has signed one of its form makes the claims that a new signer makes."""
    world = World()
    names = ("a", "a", "content-type") if repeated else ("a", "b", "content-type")
    signer = world.forge.signer(cover=cover)
    first = Message(destination=KAFKA, body=b"first", headers=tuple((name, b"first") for name in names))
    second = replace(first, body=body, key=key, headers=tuple(zip(names, (*values, b"x"), strict=True)))
    signer.sign(first)
    assert len(signer._singles) == 1
    made = claims_of(signer.sign(second))
    assert made.mqa == envelope.bind(second, cover)
    assert made._replace(jti="") == claims_of(world.forge.signer(cover=cover).sign(second))._replace(jti="")


def claims_of(message: Message) -> claim_set.Claims:
    """Return the claims of a message's token, whose payload is as mqauth builds it."""
    payload = jws.take_apart(envelope.token_of(message)).payload
    found = claim_set.parse(payload)
    assert claim_set.build(found) == payload
    return found


@pytest.mark.parametrize("moment", [5.0, 999_999_999.0, 9_999_999_950.0, 10_000_000_000.0])
def test_a_clock_of_fewer_or_more_digits(moment: float) -> None:
    """A clock that is set to another century makes tokens that parse, before and after."""
    world = World()
    signer = world.forge.signer()
    for now in (NOW, moment, NOW, moment):
        world.clock.step(now - world.clock.now())
        assert claims_of(signer.sign(honest_message(KAFKA))).iat == int(now)


@pytest.mark.slow
def test_forms_of_a_signer_are_bounded() -> None:
    """Of however many forms, a signer remembers no more bytes than it may, alone and in batches."""
    capacity, signer = 128 * 1024, World().forge.signer()
    signer._singles, signer._groups = (
        Memo(signer._single, capacity=capacity),
        Memo(signer._group, capacity=capacity),
    )

    def sign(message: Message) -> None:
        signer.sign(message)
        signer.prepare(message)

    held = kept(lambda n: Message(destination=KAFKA, body=b"x", headers=((f"x-{n}-{'y' * 50}", b"x"),)), sign, 400)
    assert held < 2 * capacity
    assert len(signer._singles) < 100
    assert len(signer._groups) < 100


def test_ids_are_never_used_twice() -> None:
    """Each token has an id of its own, also of those made like another."""
    world = World()
    signer = world.forge.signer()
    made = [claims_of(signer.sign(honest_message(KAFKA))).jti for _ in range(50)]
    assert len(set(made)) == 50


# --- what an attacker may add: headers that nobody covers, on copies of honest messages ------------------------


def renamed(message: Message, *names: str) -> Message:
    """Return a copy with more headers, which no token covers."""
    return replace(message, headers=(*((name, b"x") for name in names), *message.headers))


def kept(change: Callable[[int], Message], judge: Callable[[Message], object], count: int) -> int:
    """Return how many bytes are kept after so many messages, made one at a time."""
    gc.collect()
    tracemalloc.start()
    for number in range(count):
        judge(change(number))
    gc.collect()
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return held


@pytest.mark.slow
@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("covered", [0, 30, 200])
def test_copies_with_other_names_grow_nothing(single: bool, covered: int) -> None:
    """Copies, each with a name of its own, keep no more than the bound, however much their token covers."""
    world, capacity = World(), 256 * 1024
    verifier = world.forge.verifier()
    verifier.shapes._capacity = capacity
    message = replace(honest_message(KAFKA), headers=tuple((f"name-{number}", b"x") for number in range(covered)))
    sealed = world.forge.signer().sign(message) if single else world.forge.signer().sign_many([message] * 2)[0]

    def judge(copy: Message) -> None:
        accept(verifier, copy, world.forge.keys, world.clock.now())

    judge(sealed)
    held = kept(lambda number: renamed(sealed, f"x-{number}-{'y' * 50}"), judge, 400)
    assert held < 1.25 * capacity + 150_000


@pytest.mark.parametrize("names", [["x" * 1_000_000], [f"x-{number}" for number in range(12_000)]])
def test_large_forms_are_not_remembered(names: list[str]) -> None:
    """A message with very long or very many names is judged as ever, and leaves no trace."""
    world = World()
    warm, cold = world.sides()
    sealed = world.sealed()
    for message in (sealed[0], sealed[1]):
        large = renamed(message, *names)
        assert warm.judge(large, world.clock.now()) == cold.judge(large, world.clock.now())
    assert len(warm.verifier.shapes) == 0


@pytest.mark.parametrize("extra", [[[]] * 63, ["x" * 60] * 63, ["\U0001f600" * 700]])
def test_tokens_with_other_claims_are_bounded_in_bytes(extra: list[Any]) -> None:
    """Batch tokens with as many other claims as may be keep no more than the bound of all tokens."""
    world, capacity = World(), 1536 * 1024
    verifier, keys = world.forge.verifier(), world.forge.keys
    verifier.tokens._capacity = capacity

    def made(number: int) -> Message:
        return forge_batch(world.forge, [honest_message(KAFKA, number)], claims={"x": extra}).seal(0)

    accept(verifier, made(0), keys, world.clock.now())
    held = kept(made, lambda one: accept(verifier, one, keys, world.clock.now()), 60)
    assert verifier.tokens._held <= capacity
    assert 0 < held < verifier.tokens._held + 100_000


@pytest.mark.parametrize("size", [2, 64, 1024])
def test_a_whole_batch_takes_what_is_counted(size: int) -> None:
    """What a token keeps once all messages of its batch were proven is no more than what is counted for it."""
    world = World()
    verifier, keys, now = world.forge.verifier(), world.forge.keys, world.clock.now()
    sealed = world.forge.signer().sign_many([honest_message(KAFKA, number) for number in range(size)])
    accept(verifier, world.sealed()[0], keys, now)
    counted = verifier.tokens._held

    def fresh(number: int) -> Message:
        headers = sealed[number].headers
        return replace(sealed[number], headers=(*headers[:-1], (TOKEN_HEADER, bytes(bytearray(headers[-1][1])))))

    held = kept(fresh, lambda one: accept(verifier, one, keys, now), size)
    assert held <= verifier.tokens._held - counted
    assert verifier.tokens._held <= CAPACITY


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("why", ["body", "policy"])
def test_what_is_not_accepted_is_not_remembered(single: bool, why: str) -> None:
    """A good token with another body, or of a subject no rule allows, leaves nothing of it behind."""
    world = World()
    warm = Side(world, cold=False, policy=None if why == "body" else Allow({}))
    message = world.sealed(single=single)[0]
    bad = replace(message, body=b"forged") if why == "body" else message
    assert warm.judge(bad, world.clock.now())[-1] is Step.RECORD
    assert len(warm.verifier.tokens) == 0
    assert warm.verifier.open(message).learnt is False


def accept(verifier: Verifier, message: Message, keys: KeySet, now: float) -> None:
    """Verify a message, and learn from it as after a policy that permits it."""
    candidate = verifier.open(message)
    verifier.verify(message, candidate, keys, now)
    if not candidate.learnt:
        verifier.learn(candidate)


@pytest.mark.parametrize("single", [True, False])
def test_what_cannot_be_learnt_costs_no_consumer(single: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault in what is learnt leaves the verdict as it is."""
    world = World()
    warm, _ = world.sides()
    sealed = world.sealed(single=single)
    monkeypatch.setattr(Verifier, "learn", lambda *_: 1 / 0)
    for message in sealed[:2]:
        assert warm.judge(message, world.clock.now())[-1] is Step.HANDLE
    assert warm.warm == 0
