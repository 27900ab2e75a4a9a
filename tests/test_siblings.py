"""Siblings judged by what differs: the same verdicts as by all steps, whatever was changed, and none by chance."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqauth import batch, merkle
from mqauth.clock import SYSTEM_RANDOMNESS
from mqauth.delivery import Delivery, Step
from mqauth.errors import Cause, Unavailable
from mqauth.flow import arun, run
from mqauth.keys import Key, KeySet, Revocation
from mqauth.message import NO_PROPERTIES, TOKEN_HEADER, HeaderPair, Message, Origin
from mqauth.pipeline import Pipeline
from mqauth.policy import Allow, Decision, Policy
from mqauth.release import RELEASE_HEADER
from mqauth.replay import MemoryReplayStore
from mqauth.testing import FakeClock, Forge
from mqauth.testing.attacks import honest_message
from mqauth.testing.forge import ISSUER, SUBJECT
from mqauth.verified import Verified

KAFKA, RABBITMQ = "kafka:orders", "rabbitmq:shop/orders.created"
PLACES = {"kafka": (KAFKA, "kafka:stock"), "rabbitmq": (RABBITMQ, "rabbitmq:shop/orders.paid")}
SIZE = 6
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
    """A pipeline; ``plain`` ones never take the short way."""

    def __init__(self, world: World, *, plain: bool, policy: Policy | None = None, **settings: Any) -> None:
        verifier = world.forge.verifier(keys={ISSUER: world.source}, **settings)
        places = [place for pair in PLACES.values() for place in pair[: 1 + world.wide]]
        self.guard = Pipeline(
            verifier=verifier, policy=policy or Allow({SUBJECT: places}), clock=world.clock,
            replay=MemoryReplayStore(clock=world.clock),
        )  # fmt: skip
        self.siblings = self.guard._judge._siblings
        self.short = 0
        honest = self.siblings.judge

        def judge(delivery: Delivery) -> Verified | None:
            found = None if plain else honest(delivery)
            self.short += found is not None
            return found

        self.siblings.judge = judge  # type: ignore[method-assign]

    def judge(self, message: Message, received: float) -> tuple[Any, ...]:
        """Return all that a verdict says, and all that a claim wishes for but its owner."""
        delivery = Delivery(message=message, received=received)
        outcome = run(self.guard.judge(delivery))
        claim = None if delivery.claim is None else replace(delivery.claim, owner="")
        candidate, verified = delivery.candidate, outcome.verified
        facts = None if verified is None else verified._facts
        return (*outcome[:4], claim, facts, candidate and (candidate.opened, candidate.claims, candidate.proof),
                delivery.key_set, delivery.step)  # fmt: skip


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
        """Return who takes the short way, and who does not."""
        return Side(self, plain=False, **settings), Side(self, plain=True, **settings)

    def batch(self, *, headers: bool = True) -> list[Message]:
        """Return a signed batch; every third message is for another destination."""
        honest, other = PLACES[self.broker]
        made = [honest_message(other if number % 3 == 2 else honest, number) for number in range(SIZE)]
        bare = [replace(message, headers=(), properties=NO_PROPERTIES) for message in made]
        return self.forge.signer().sign_many(made if headers else bare)


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


@given(
    broker=st.sampled_from(sorted(PLACES)), steps=st.lists(STEPS, max_size=14), settings=st.sampled_from(SETTINGS),
    headers=st.booleans(), wide=st.booleans(),
)  # fmt: skip
def test_agrees_with_all_steps(
    broker: str, steps: list[tuple[int, str, str, float]], settings: dict[str, Any], headers: bool, wide: bool
) -> None:
    """Whatever of messages, keys and time changes between siblings, the short way says what all steps say."""
    world = World(broker, wide)
    short, plain = world.sides(**settings)
    sealed = world.batch(headers=headers)
    for index, change, keys, later in steps:
        change_keys(world, keys)
        bare = not headers and "header" in change
        message = sealed[index] if bare else CHANGES[change](world, sealed[index])
        received = world.clock.now() + later
        assert short.judge(message, received) == plain.judge(message, received)
    assert plain.short == 0


@pytest.mark.parametrize("headers", [True, False])
@pytest.mark.parametrize("broker", sorted(PLACES))
@pytest.mark.parametrize("change", sorted(CHANGES))
def test_each_change_after_an_honest_sibling(change: str, broker: str, headers: bool) -> None:
    """One changed message after honest ones is told as by all steps, and so are the honest ones after it."""
    world = World(broker, wide=True)
    short, plain = world.sides()
    sealed = world.batch(headers=headers)
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
        assert short.judge(message, world.clock.now()) == plain.judge(message, world.clock.now())


@pytest.mark.parametrize("headers", [True, False])
@pytest.mark.parametrize("broker", sorted(PLACES))
def test_the_short_way_is_taken(broker: str, headers: bool) -> None:
    """All but the first message of a form go the short way; each is accepted, claimed, and a copy of it is not."""
    world = World(broker)
    short, _ = world.sides()
    messages = [message for number, message in enumerate(world.batch(headers=headers)) if number % 3 != 2]
    for message in messages:
        assert short.judge(message, world.clock.now())[-1] is Step.HANDLE
    assert short.short == len(messages) - 1
    assert short.judge(messages[2], world.clock.now())[-1] is Step.RECORD


@pytest.mark.parametrize("settings", SETTINGS[-2:])
def test_where_siblings_differ_in_more(settings: dict[str, Any]) -> None:
    """With append times or a broker's user to look at, each message takes all steps."""
    world = World("rabbitmq")
    short, plain = world.sides(**settings)
    for message in world.batch():
        stamped = replace(
            message,
            origin=replace(message.origin, timestamp_ms=int(world.clock.now() * 1000), timestamp_type="append"),
        )
        assert short.judge(stamped, world.clock.now()) == plain.judge(stamped, world.clock.now())
    assert short.short == 0


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


@pytest.mark.parametrize("policy", [Changing(), Subclass({SUBJECT: [KAFKA]})])
def test_another_policy_is_asked_each_time(policy: Policy) -> None:
    """Of other policies than ``Allow`` nobody knows that they say the same again."""
    world = World()
    short = Side(world, plain=False, policy=policy)
    verdicts = [short.judge(message, world.clock.now())[-1] for message in world.batch()[:2]]
    assert short.short == 0
    assert verdicts == [Step.HANDLE, Step.RECORD if isinstance(policy, Changing) else Step.HANDLE]


def test_an_awaited_key_source_is_not_called() -> None:
    """Of keys that must be awaited no coroutine is made and dropped."""

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
    short, _ = world.sides()

    async def judge() -> list[Step]:
        deliveries = [Delivery(message=message, received=world.clock.now()) for message in world.batch()[:2]]
        for delivery in deliveries:
            await arun(short.guard.judge(delivery))
        return [delivery.step for delivery in deliveries]

    assert asyncio.run(judge()) == [Step.HANDLE, Step.HANDLE]
    assert (short.short, source.calls) == (0, 2)


@pytest.mark.parametrize("later", [-5, -6, -40, 0, 64, 65, 1e6])
def test_another_time_is_judged_by_all_steps(later: float) -> None:
    """A sibling received before the first, or past the end of their token, is told as by all steps."""
    world = World()
    short, plain = world.sides()
    sealed = world.batch()
    for index, received in ((0, 0.0), (1, later), (3, 0.0)):
        moment = world.clock.now() + received
        assert short.judge(sealed[index], moment) == plain.judge(sealed[index], moment)


def test_a_header_too_long_by_its_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sibling whose longer proof makes its header longer than allowed is refused like any other."""
    world = World()
    short, plain = world.sides()
    sealed = world.batch()
    fits, longer = (len(str(sealed[index].occurrences(TOKEN_HEADER)[0])) - 3 for index in (4, 0))
    assert fits < longer
    for module in ("envelope", "siblings"):
        monkeypatch.setattr(f"mqauth.{module}.MAX_TOKEN", fits)
    for index, step in ((4, Step.HANDLE), (0, Step.RECORD)):
        said = short.judge(sealed[index], world.clock.now())
        assert (said[-1], said) == (step, plain.judge(sealed[index], world.clock.now()))


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
    deliveries = [Delivery(message=message, received=0.0) for message in world.batch()]
    deliveries[2].owner = "kept"
    guard.name_owners(deliveries)
    assert drawn == [12 * SIZE]
    assert len({delivery.owner for delivery in deliveries}) == SIZE
    assert [len(delivery.owner or "") for delivery in deliveries] == [24, 24, 4, 24, 24, 24]


def test_a_leaf_is_the_same_both_ways() -> None:
    """The prepared hash of a leaf is the hash of its parts, with and without key, body and covered values."""
    for headers in ((), (("tenant", b"acme"),), (("content-type", b"x"),)):
        for names in ((), ("tenant",), ("absent",)):
            first = Message(destination=KAFKA, body=b"first", headers=headers)
            leaf = batch.leaf_hashes(first, names)
            for key in (None, b"", b"key"):
                for body in (None, b"", b"body"):
                    other = replace(first, key=key, body=body)
                    assert leaf(other) == merkle.leaf_hash(*batch.checked_leaf(other, names))
