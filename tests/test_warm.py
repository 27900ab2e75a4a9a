"""What is remembered changes no verdict: a consumer that remembers, and one that forgets before each message."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqauth import Cause, MemoryReplayStore, Pipeline, Unavailable, Verifier
from mqauth.flow import run
from mqauth.judging.delivery import Delivery, Step, verdict_record
from mqauth.judging.policy import Allow, Policy
from mqauth.judging.token import CAPACITY
from mqauth.judging.verifier import Candidate
from mqauth.letters.release import RELEASE_HEADER
from mqauth.testing import ATTACKS, BATCH_ATTACKS, Attack, FakeClock, Forge
from mqauth.testing.batchforge import forge_batch
from mqauth.testing.forge import ISSUER, SUBJECT
from mqauth.testing.token_attacks import honest_message
from mqauth.wire import claims as claim_set
from mqauth.wire import envelope, jws
from mqauth.wire.keys import Key, KeySet, Revocation
from mqauth.wire.memo import Memo
from mqauth.wire.message import NO_PROPERTIES, TOKEN_HEADER, HeaderPair, Message, Origin

KAFKA, RABBITMQ = "kafka:orders", "rabbitmq:shop/orders.created"
PLACES = {
    "kafka": (KAFKA, "kafka:stock"),
    "rabbitmq": (RABBITMQ, "rabbitmq:shop/orders.paid"),
}
SIZE = 6
NOW = int(FakeClock().now())
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

    def __init__(
        self, world: World, *, cold: bool, policy: Policy | None = None, **settings: Any
    ) -> None:
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
        record = verdict_record(
            delivery, scope="billing", time=received, policy="1", instance="here"
        )
        return (
            *outcome[:4],
            claim,
            facts,
            record,
            delivery.candidate is None,
            delivery.step,
        )


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
        made = [
            honest_message(other if number % 3 == 2 else honest, number)
            for number in range(SIZE)
        ]
        bare = [
            replace(message, headers=(), properties=NO_PROPERTIES) for message in made
        ]
        signer, chosen = self.forge.signer(), made if headers else bare
        return (
            [signer.sign(message) for message in chosen]
            if single
            else signer.sign_many(chosen)
        )


def with_headers(
    change: Callable[[list[HeaderPair]], list[HeaderPair]],
) -> Callable[[World, Message], Message]:
    """Return a change of a message's headers."""
    return lambda _world, message: replace(
        message, headers=tuple(change(list(message.headers)))
    )


def with_token_value(change: Callable[[Any], Any]) -> Callable[[World, Message], Message]:
    """Return a change of a message's token header."""
    return with_headers(lambda pairs: [(name, change(value) if name == TOKEN_HEADER else value)
                                       for name, value in pairs])  # fmt: skip


def text(world: World, value: str) -> Any:
    """Return a header's text as a broker carries it."""
    return value.encode() if world.broker == "kafka" else value


def swapped(value: Any, old: str, new: str) -> Any:
    """Return a token with characters exchanged, in its type."""
    return (
        value.replace(old.encode(), new.encode())
        if isinstance(value, bytes)
        else value.replace(old, new)
    )


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
        "revoked soon": lambda: KeySet(
            [replace(key, revocation=Revocation(revoked_at=NOW + 30))]
        ),
        "ended": lambda: KeySet([replace(key, expires=NOW)]),
        "gone": lambda: KeySet([Key.generate(subjects=[SUBJECT])]),
        "another": lambda: KeySet(
            [replace(Key.generate(subjects=[SUBJECT]), kid=key.kid)]
        ),
        "of a curve": lambda: KeySet(
            [replace(Key.generate("ES256", subjects=[SUBJECT]), kid=key.kid)]
        ),
        "of another": lambda: KeySet([replace(key, subjects=frozenset(["somebody"]))]),
    }
    world.source.down = how == "down"
    if how in made:
        world.source.keys = made[how]()


STEPS = st.tuples(
    st.integers(0, SIZE - 1),
    st.sampled_from(sorted(CHANGES)) | st.just("nothing"),
    st.sampled_from(
        [""] * 6
        + [
            "back",
            "anew",
            "revoked",
            "revoked soon",
            "ended",
            "gone",
            "another",
            "of a curve",
            "of another",
            "down",
        ]
    ),
    st.sampled_from([0.0, 0.0, 0.0, 1.0, -4.0, -40.0, 59.0, 66.0, 1e6]),
)


WORLDS = st.tuples(
    st.sampled_from(sorted(PLACES)), st.booleans(), st.booleans(), st.booleans()
)


@given(
    steps=st.lists(STEPS, max_size=14),
    settings=st.sampled_from(SETTINGS),
    world_of=WORLDS,
)
def test_warm_says_what_cold_says(
    steps: list[tuple[int, str, str, float]],
    settings: dict[str, Any],
    world_of: tuple[str, bool, bool, bool],
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
def test_each_change_after_honest_ones(
    change: str, broker: str, headers: bool, single: bool
) -> None:
    """A changed message after honest ones is told as if it were the first, and so are honest ones after it."""
    world = World(broker, wide=True)
    warm, cold = world.sides()
    sealed = world.sealed(headers=headers, single=single)
    changed = (
        CHANGES[change](world, sealed[1])
        if headers or "header" not in change
        else sealed[1]
    )
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
        assert warm.judge(message, world.clock.now()) == cold.judge(
            message, world.clock.now()
        )


# --- tokens that a producer's own key has signed, and that are not as mqauth makes them ---------------------


@pytest.mark.parametrize(
    "attack", [*ATTACKS, *BATCH_ATTACKS], ids=lambda attack: attack.name
)
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


# --- and messages signed like one before them -----------------------------------------------------------------


def claims_of(message: Message) -> claim_set.Claims:
    """Return the claims of a message's token, whose payload is as mqauth builds it."""
    payload = jws.take_apart(envelope.token_of(message)).payload
    found = claim_set.parse(payload)
    assert claim_set.build(found) == payload
    return found


@pytest.mark.parametrize(
    "moment", [5.0, 999_999_999.0, 9_999_999_950.0, 10_000_000_000.0]
)
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

    held = kept(
        lambda n: Message(
            destination=KAFKA, body=b"x", headers=((f"x-{n}-{'y' * 50}", b"x"),)
        ),
        sign,
        400,
    )
    assert held < 2 * capacity
    assert len(signer._singles) < 100
    assert len(signer._groups) < 100


# --- what an attacker may add: headers that nobody covers, on copies of honest messages ------------------------


def renamed(message: Message, *names: str) -> Message:
    """Return a copy with more headers, which no token covers."""
    return replace(message, headers=(*((name, b"x") for name in names), *message.headers))


def kept(
    change: Callable[[int], Message], judge: Callable[[Message], object], count: int
) -> int:
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
@pytest.mark.parametrize("covered", [0, 200])
def test_copies_with_other_names_grow_nothing(single: bool, covered: int) -> None:
    """Copies, each with a name of its own, keep no more than the bound, however much their token covers."""
    world, capacity = World(), 256 * 1024
    verifier = world.forge.verifier()
    verifier.shapes._capacity = capacity
    message = replace(
        honest_message(KAFKA),
        headers=tuple((f"name-{number}", b"x") for number in range(covered)),
    )
    sealed = (
        world.forge.signer().sign(message)
        if single
        else world.forge.signer().sign_many([message] * 2)[0]
    )

    def judge(copy: Message) -> None:
        accept(verifier, copy, world.forge.keys, world.clock.now())

    judge(sealed)
    held = kept(lambda number: renamed(sealed, f"x-{number}-{'y' * 50}"), judge, 400)
    assert held < 1.25 * capacity + 150_000


@pytest.mark.parametrize(
    "names", [["x" * 1_000_000], [f"x-{number}" for number in range(12_000)]]
)
def test_large_forms_are_not_remembered(names: list[str]) -> None:
    """A message with very long or very many names is judged as ever, and leaves no trace."""
    world = World()
    warm, cold = world.sides()
    sealed = world.sealed()
    for message in (sealed[0], sealed[1]):
        large = renamed(message, *names)
        assert warm.judge(large, world.clock.now()) == cold.judge(
            large, world.clock.now()
        )
    assert len(warm.verifier.shapes) == 0


@pytest.mark.parametrize("extra", [[[]] * 63, ["x" * 60] * 63, ["\U0001f600" * 700]])
def test_tokens_with_other_claims_are_bounded_in_bytes(extra: list[Any]) -> None:
    """Batch tokens with as many other claims as may be keep no more than the bound of all tokens."""
    world, capacity = World(), 1536 * 1024
    verifier, keys = world.forge.verifier(), world.forge.keys
    verifier.tokens._capacity = capacity

    def made(number: int) -> Message:
        return forge_batch(
            world.forge, [honest_message(KAFKA, number)], claims={"x": extra}
        ).seal(0)

    accept(verifier, made(0), keys, world.clock.now())
    held = kept(made, lambda one: accept(verifier, one, keys, world.clock.now()), 60)
    assert verifier.tokens._held <= capacity
    assert 0 < held < verifier.tokens._held + 100_000


@pytest.mark.parametrize("size", [2, 64, 1024])
def test_a_whole_batch_takes_what_is_counted(size: int) -> None:
    """What a token keeps once all messages of its batch were proven is no more than what is counted for it."""
    world = World()
    verifier, keys, now = world.forge.verifier(), world.forge.keys, world.clock.now()
    sealed = world.forge.signer().sign_many(
        [honest_message(KAFKA, number) for number in range(size)]
    )
    accept(verifier, world.sealed()[0], keys, now)
    counted = verifier.tokens._held

    def fresh(number: int) -> Message:
        headers = sealed[number].headers
        return replace(
            sealed[number],
            headers=(*headers[:-1], (TOKEN_HEADER, bytes(bytearray(headers[-1][1])))),
        )

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
