"""The review core on the in-memory broker: nothing lost, nothing laundered, everything accounted for."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from integration.scale import nightly
from mqauth import flow
from mqauth.audit.record import AuditRecord
from mqauth.brokers import memory
from mqauth.errors import (
    Cause,
    ConfigurationError,
    MalformedMessage,
    Reason,
    Rejection,
    Unavailable,
)
from mqauth.judging.pipeline import Pipeline, Verdict
from mqauth.judging.policy import Allow
from mqauth.judging.verifier import Issuer
from mqauth.letters.authorities import Authority, ReleaseAuthorities, Releaser
from mqauth.letters.dead_letter import PREFIX, DeadLetter, content_digest
from mqauth.letters.release import MAX_HOPS, WAIVABLE
from mqauth.replay.memory import MemoryReplayStore
from mqauth.review import (
    ALL,
    Filter,
    Index,
    Letter,
    Plan,
    account,
    act,
    fill,
    judge,
    read,
    rehearse,
    take_in,
)
from mqauth.testing import FakeClock, Forge
from mqauth.testing.forge import ISSUER, SUBJECT
from mqauth.wire import json_form as jsonform
from mqauth.wire.envelope import MAX_DEPTH
from mqauth.wire.keys import Key, KeySet
from mqauth.wire.message import TOKEN_HEADER, Message
from tests.conftest import KAFKA, RABBITMQ, kafka_message, rabbitmq_message
from tests.letter_box import MemoryLetterBox

REVIEW = "https://review.example"
WHY = "the clock was skewed"
SCHEMA = Draft202012Validator(
    json.loads(
        (Path(__file__).parent.parent / "docs" / "audit-record.schema.json").read_text()
    )
)


class Records(list[dict[str, Any]]):
    """An audit sink in a list, that fails while told to."""

    failure: Exception | None = None

    def write(self, record: AuditRecord, /) -> None:
        """Keep one record."""
        if self.failure is not None:
            raise self.failure
        self.append(record.as_dict())


class Bureau:
    """A broker with one consumer, and a reviewer of its dead letters."""

    unverified: Callable[[Any], None] | None = None
    """What the consumer has for messages that nothing proved."""

    def __init__(self, clock: FakeClock, forge: Forge, place: str) -> None:
        self.clock, self.forge, self.place = clock, forge, place
        self.dead = "kafka:orders.dead" if place == KAFKA else "rabbitmq:/orders.dead"
        self.broker = memory.MemoryBroker()
        for queue in (place, self.dead):
            self.broker.declare(queue)
        self.audit = Records()
        self.key = Key.generate(subjects=["ada"])
        authority = Authority(keys=KeySet([self.key]), waive=frozenset(WAIVABLE))
        self.keys = [forge.key, forge.neighbour, forge.retired, forge.revoked]
        self.release = ReleaseAuthorities({REVIEW: authority})
        self.handled: list[Any] = []
        self.guard = self.pipeline()
        self.box = MemoryLetterBox(self.broker, self.dead)
        self.releaser = Releaser(key=self.key, issuer=REVIEW, reviewer="ada", clock=clock)

    def pipeline(self, **settings: Any) -> Pipeline:
        """Return the consumer's pipeline with the keys of now."""
        verifier = self.forge.verifier(
            keys={ISSUER: Issuer(keys=KeySet(self.keys))}, release=self.release
        )
        return Pipeline(
            verifier=verifier, policy=Allow({SUBJECT: [self.place]}), audit=self.audit, scope="billing",
            replay=MemoryReplayStore(clock=self.clock), clock=self.clock, **settings,
        )  # fmt: skip

    def learn(self, key: Key) -> None:
        """Let the consumer know one more key, claims kept."""
        self.keys.append(key)
        fresh = self.pipeline()
        fresh.replay = self.guard.replay
        self.guard = fresh

    def message(self, body: bytes = b"hello") -> Message:
        """Return an honest message, not sealed."""
        return (
            rabbitmq_message(body=body)
            if self.place == RABBITMQ
            else kafka_message(body=body)
        )

    def send(self, *messages: Message) -> list[Verdict]:
        """Publish messages as they are, consume them, and return the verdicts."""
        for message in messages:
            self.broker.publish(message)
        letters = memory.DeadLetters(self.broker, self.dead)
        consumer = memory.Consumer(
            self.broker, self.place, self.guard, self.handled.append, dead_letters=letters,
            unverified=self.unverified,
        )  # fmt: skip
        return [outcome.verdict for outcome in consumer.drain()]

    def survey(self) -> Index:
        """Look through the letters."""
        index = Index(self.clock.now())
        flow.run(fill(index, self.box))
        return index

    def redrive(
        self, wanted: Filter = ALL, *waive: Reason, **changes: Any
    ) -> dict[str, Any]:
        """Redrive what a filter means, and return the account."""
        plan = self.plan("redrive", wanted, waive=frozenset(waive), **changes)
        settings_: Any = {"guard": self.guard, "releaser": self.releaser}
        with self.survey() as index:
            selection = index.freeze(wanted)
            rehearsed = flow.run(rehearse(index, plan, **settings_))
        done = act(
            self.box, selection, plan, audit=self.audit, clock=self.clock, **settings_
        )
        found = flow.run(done).as_dict()
        if not found["error"]:
            assert rehearsed == Counter(found["refused"]) + Counter(
                accepted=found["done"]
            )
        return found

    def discard(self, wanted: Filter = ALL, **changes: Any) -> dict[str, Any]:
        """Discard what a filter means, and return the account."""
        watched = {
            name: changes.pop(name)
            for name in ("progress", "cancelled")
            if name in changes
        }
        plan = self.plan("discard", wanted, **changes)
        with self.survey() as index:
            selection = index.freeze(wanted)
        done = act(
            self.box, selection, plan, audit=self.audit, clock=self.clock, **watched
        )
        return flow.run(done).as_dict()

    def plan(self, act: str, wanted: Filter = ALL, **changes: Any) -> Plan:
        """Return a reviewer's plan."""
        return Plan(
            **({"act": act, "wanted": wanted, "reason": WHY, "reviewer": "ada"} | changes)
        )

    def letters(self) -> tuple[Message, ...]:
        """Return the letters that are open."""
        return self.broker.waiting(self.dead)

    def plant(self, letter: Message) -> None:
        """Publish a letter as somebody who may write to the dead-letter queue."""
        self.broker.publish(replace(letter, destination=self.dead))

    def difference(self) -> int:
        """Return what does not add up."""
        with self.survey() as index:
            return account(self.audit, index.ids()).difference


@pytest.fixture(params=[RABBITMQ, KAFKA], ids=["rabbitmq", "kafka"])
def bureau(request: pytest.FixtureRequest, clock: FakeClock, forge: Forge) -> Bureau:
    """A bureau on a broker like each of the two."""
    return Bureau(clock, forge, request.param)


@pytest.fixture
def mixed(bureau: Bureau) -> Bureau:
    """Letters of five kinds: 3 of an unknown key, 2 expired, 2 forged, 1 unsigned, 1 of a forbidden producer."""
    seal, forge = bureau.forge.seal, bureau.forge
    expired = [seal(bureau.message(b"late %d" % number)) for number in range(2)]
    bureau.clock.advance(3600)
    unknown = [
        seal(bureau.message(b"new key %d" % number), key=forge.stranger)
        for number in range(3)
    ]
    forged = [
        seal(bureau.message(b"forged %d" % number), signature=b"\0" * 64)
        for number in range(2)
    ]
    foreign = seal(
        bureau.message(b"foreign"), key=forge.neighbour, claims={"sub": "stock-api"}
    )
    assert set(
        bureau.send(*expired, *unknown, *forged, bureau.message(b"bare"), foreign)
    ) == {Verdict.REJECTED}
    return bureau


# --- reading ----------------------------------------------------------------------------------------------

NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1, max_size=8
)
VALUES = st.none() | st.binary(max_size=9)
AMQP = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.binary(max_size=9) | NAMES
    | st.floats(width=32, allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=4,
)  # fmt: skip
HEADER_NAMES = (
    st.sampled_from(
        ["a", "b", "CC", "BCC", "x-delay", "reply-to", TOKEN_HEADER, "MQAUTH-Token"]
    )
    | NAMES
)
KAFKA_MESSAGES = st.builds(
    lambda body, key, headers, offset: kafka_message(offset, body=body, key=key, headers=tuple(headers)),
    st.none() | st.binary(max_size=20), st.none() | st.binary(max_size=20),
    st.lists(st.tuples(HEADER_NAMES, VALUES), max_size=8), st.integers(0, 2**40),
)  # fmt: skip
RABBITMQ_MESSAGES = st.builds(
    lambda body, headers, properties: rabbitmq_message(
        body=body, headers=tuple(headers.items()), properties=properties
    ),
    st.binary(max_size=20), st.dictionaries(HEADER_NAMES, AMQP, max_size=6),
    st.dictionaries(st.sampled_from(["content-type", "message-id", "user-id", "reply-to", "expiration"]), NAMES),
)  # fmt: skip


def lying(letter: Message, **lines: str) -> Message:
    """Return a letter in which some lines of the lineage say something else."""
    kept = {PREFIX + name: value for name, value in lines.items()}
    return replace(
        letter,
        headers=tuple((name, kept.get(name, value)) for name, value in letter.headers),
    )


def restore(letter: Message) -> Message:
    """Return the original of a letter that can be restored."""
    original = read(Letter(message=letter)).original
    assert original is not None
    return original


def letter_of(message: Message, reason: Reason = Reason.EXPIRED) -> DeadLetter:
    """Return the letter of a message rejected now."""
    return DeadLetter(
        message=message,
        rejection=Rejection(reason, "late"),
        scope="billing",
        time=1_900_000_000.0,
        audit="a",
    )


@pytest.mark.parametrize("depth", range(1, MAX_DEPTH + 1))
@pytest.mark.parametrize(
    "wrap", [lambda value: {"a": value}, lambda value: (value,)], ids=["table", "list"]
)
def test_every_depth_that_is_accepted_can_be_read_back(
    depth: int, wrap: Callable[[Any], Any], forge: Forge, clock: FakeClock
) -> None:
    """A header nested as deep as a consumer accepts is restored from each form of its letter, and by the index."""
    value: Any = "x"
    for _ in range(depth):
        value = wrap(value)
    message = forge.seal(rabbitmq_message(headers=(("deep", value),)))
    verifier = forge.verifier()
    assert verifier.verify(message, verifier.open(message), forge.keys, clock.now()).jti
    letter = letter_of(message)
    letters = [
        letter.whole(lambda name, value: True),
        letter.whole(lambda name, value: False),
        letter.in_body(),
    ]
    assert [restore(form).headers for form in letters] == [message.headers] * 3
    assert [read(Letter(message=form)).fault for form in letters] == [None] * 3
    with Index(clock.now()) as index:
        index.add([Letter(message=form) for form in letters])
        assert [index.reading(number).fault for number in (1, 2, 3)] == [None] * 3


@pytest.mark.parametrize("carries_none", [True, False])
@given(message=KAFKA_MESSAGES | RABBITMQ_MESSAGES)
@settings(max_examples=nightly(150, otherwise=50), deadline=None)
def test_what_became_a_letter_is_restored(carries_none: bool, message: Message) -> None:
    """restore(letter(m)) is m, in the whole and in the JSON form, and the reading is intact."""
    letter = letter_of(message)
    for form in (
        letter.whole(lambda name, value: carries_none or value is not None),
        letter.in_body(),
    ):
        assert restore(form) == replace(message, origin=restore(form).origin)
        found = read(Letter(message=form))
        assert (found.intact, found.id, found.fault) == (True, letter.id, None)


@given(
    headers=st.lists(
        st.tuples(
            st.sampled_from(
                [
                    PREFIX + n
                    for n in (
                        "id",
                        "metadata",
                        "form",
                        "source",
                        "destination",
                        "time",
                        "token",
                    )
                ]
            )
            | NAMES,
            VALUES | NAMES | AMQP,
        ),
        max_size=8,
    ),
    body=st.none()
    | st.binary(max_size=30)
    | st.sampled_from([b"{}", b"[1]", b'{"destination": "kafka:o"}']),
)
@settings(max_examples=nightly(300, otherwise=100), deadline=None)
def test_reading_never_raises(headers: list[Any], body: bytes | None) -> None:
    """Whatever is written into a letter, it is read, and is not intact."""
    assert (
        read(Letter(message=kafka_message(headers=tuple(headers), body=body))).intact
        is False
    )


@pytest.mark.parametrize(
    "metadata",
    [
        "x", "[]", '{"headers": 1}', '{"headers": [[1, 2]]}', '{"headers": [["a", {"no": 1}]]}',
        '{"properties": []}',
        '{"headers": [["a", {"str": "b"}]], "places": [-1]}', '{"headers": [["a", {"str": "b"}]], "places": [99]}',
        '{"headers": [["a", {"str": "b"}], ["c", {"str": "d"}]], "places": [0, 0]}',
        '{"headers": [["a", {"str": "b"}]], "places": []}', '{"headers": [["a", {"str": "b"}]], "places": ["0"]}',
        '{"stripped": 1}', '{"properties": {"user-id": 1}}',
    ],
)  # fmt: skip
def test_bad_metadata_is_a_fault(metadata: str) -> None:
    """Metadata in no form leave a letter not intact, and nothing worse."""
    form = letter_of(rabbitmq_message()).whole(lambda name, value: True)
    assert PREFIX + "metadata" in dict(form.headers)
    found = read(Letter(message=lying(form, metadata=metadata)))
    assert (found.intact, found.original) == (False, None)
    assert found.fault


@pytest.mark.parametrize(
    ("history", "count"),
    [
        ("x", 0),
        ("{}", 0),
        ("[1]", 0),
        ("[{}]", 1),
        ("[{}, {}]", 2),
        (f"[{'{}, ' * MAX_HOPS}{{}}]", 0),
    ],
)
def test_a_history_that_is_none_is_left_out(history: str, count: int) -> None:
    """What a letter says of earlier letters is a list of at most eight objects, or nothing."""
    headers = ((PREFIX + "history", history),)
    assert len(read(Letter(message=rabbitmq_message(headers=headers))).history) == count


def test_what_brokers_write_on_a_letter_leaves_it_intact() -> None:
    """A delivery count, and an interceptor's header and property on the letter itself, are not the original's."""
    message = rabbitmq_message(headers=(("timestamp_in_ms", 5), ("tenant", "acme")))
    message = replace(message, properties={**message.properties, "timestamp": "5"})
    form = letter_of(message).whole(lambda name, value: True)
    headers = (
        *form.headers,
        ("timestamp_in_ms", 9),
        ("x-delivery-count", 3),
        ("x-acquired-count", 4),
    )
    lying = replace(
        form, headers=headers, properties={**form.properties, "timestamp": "9"}
    )
    found = read(Letter(message=lying))
    assert found.intact
    assert found.original is not None
    assert content_digest(found.original) == content_digest(message)


@pytest.mark.parametrize(
    "written", ["x-delivery-count", "x-acquired-count", "timestamp_in_ms"]
)
def test_what_brokers_wrote_on_the_original_moves_no_other_header(written: str) -> None:
    """A message that a queue delivered for the second time, with a header that no client can send, is restored."""
    headers = ((written, 2), ("ratio", 0.5), ("tenant", "acme"), ("CC", ("copy",)))
    message = rabbitmq_message(headers=headers)
    found = read(
        Letter(
            message=letter_of(message).whole(
                lambda name, value: not isinstance(value, float)
            )
        )
    )
    assert found.intact, found.fault
    assert found.original is not None
    assert [
        pair for pair in found.original.headers if pair[0] in dict(headers[1:])
    ] == list(headers[1:])


# --- looking ----------------------------------------------------------------------------------------------


def test_filters_and_pages(mixed: Bureau) -> None:
    """Every filter narrows; pages follow each other in the order of the queue; nothing is consumed."""
    before = mixed.letters()
    with mixed.survey() as index:
        assert index.count() == 9
        assert index.count(Filter(reason="expired")) == 2
        assert index.count(Filter(issuer=ISSUER, subject=SUBJECT)) == 7
        assert index.count(Filter(kid=mixed.forge.stranger.kid)) == 3
        assert index.count(Filter(destination=mixed.place)) == 9
        assert index.count(Filter(since=mixed.clock.now() + 1)) == 0
        assert (
            index.count(Filter(since=mixed.clock.now() - 1, until=mixed.clock.now() + 1))
            == 9
        )
        rows = index.page(limit=4)
        rows += index.page(after=rows[-1].number, limit=100)
        assert len({row.number for row in rows}) == 9
        assert index.count(Filter(id=rows[0].id[:12])) == 1
        assert (
            index.reading(rows[0].number).as_dict()["message"]["destination"]
            == mixed.place
        )
        with pytest.raises(ConfigurationError):
            index.reading(10_000)
    index.close()
    assert mixed.letters() == before


def test_judging_touches_nothing_and_finds_exactly_what_the_key_helps(
    mixed: Bureau,
) -> None:
    """After the missing key arrives exactly its letters pass; nothing is claimed, removed or recorded."""
    before, records = mixed.letters(), len(mixed.audit)
    with mixed.survey() as index:
        assert flow.run(judge(index, mixed.guard))["accepted"] == 0
        mixed.learn(mixed.forge.stranger)
        counts = flow.run(judge(index, mixed.guard))
        assert counts == {
            "accepted": 3, "expired": 2, "signature_invalid": 2, "token_missing": 1, "producer_forbidden": 1
        }  # fmt: skip
        assert index.count(Filter(today="accepted", reason="key_unknown")) == 3
    assert (mixed.letters(), len(mixed.audit)) == (before, records)


# --- acting -----------------------------------------------------------------------------------------------


def test_the_whole_story_adds_up(mixed: Bureau) -> None:
    """Key arrives: its letters pass. Expired are released. Forged are discarded. Nothing is left over."""
    mixed.learn(mixed.forge.stranger)
    assert mixed.redrive(Filter(reason="key_unknown"))["done"] == 3
    assert mixed.redrive(Filter(reason="expired"))["refused"] == {"expired": 2}
    assert mixed.redrive(Filter(reason="expired"), Reason.EXPIRED)["done"] == 2
    assert (
        mixed.redrive(Filter(reason="producer_forbidden"), Reason.PRODUCER_FORBIDDEN)[
            "done"
        ]
        == 1
    )
    assert mixed.send() == [Verdict.ACCEPTED] * 6
    assert {verified.release.sub for verified in mixed.handled} == {"ada"}
    assert {frozenset(verified.release.waive) for verified in mixed.handled} == {
        frozenset(), frozenset([Reason.EXPIRED]), frozenset([Reason.PRODUCER_FORBIDDEN])
    }  # fmt: skip
    assert mixed.discard()["done"] == 3
    assert mixed.letters() == ()
    with mixed.survey() as index:
        ledger = account(mixed.audit, index.ids())
    assert (ledger.rejected, ledger.open, ledger.redriven, ledger.discarded) == (
        9,
        0,
        6,
        3,
    )
    assert (ledger.difference, ledger.unproven) == (0, ())


def test_every_act_is_in_the_audit(mixed: Bureau) -> None:
    """Who, why, which letter and which release stand in a record for each letter."""
    mixed.redrive(Filter(reason="expired"), Reason.EXPIRED)
    mixed.discard(Filter(reason="token_missing"))
    acts = [
        record for record in mixed.audit if record["verdict"] in ("redriven", "discarded")
    ]
    assert [
        error.message for record in mixed.audit for error in SCHEMA.iter_errors(record)
    ] == []
    assert [record["verdict"] for record in acts] == ["redriven", "redriven", "discarded"]
    assert {(record["review"]["reviewer"], record["detail"]) for record in acts} == {
        ("ada", WHY)
    }
    assert all(len(record["dead_letter"]) == 64 for record in acts)
    assert (acts[0]["review"]["waive"], acts[0]["token"]["verified"]["sub"]) == (
        ["expired"],
        SUBJECT,
    )
    assert "claimed" in acts[2]["token"]


def test_a_release_waives_no_more_than_is_needed(mixed: Bureau) -> None:
    """Whatever the reviewer would waive, a letter that passes by itself gets a release that waives nothing."""
    mixed.learn(mixed.forge.stranger)
    assert mixed.redrive(Filter(reason="key_unknown"), *WAIVABLE)["done"] == 3
    mixed.send()
    assert {verified.release.waive for verified in mixed.handled} == {frozenset()}


def test_a_selection_is_frozen(mixed: Bureau) -> None:
    """What arrives after the count was shown is not touched; what went meanwhile is accounted as gone."""
    with mixed.survey() as index:
        selection = index.freeze()
    mixed.discard(Filter(reason="token_missing"))
    mixed.send(mixed.message(b"new"))
    wish = act(
        mixed.box, selection, mixed.plan("discard"), audit=mixed.audit, clock=mixed.clock
    )
    done = flow.run(wish).as_dict()
    assert (done["selected"], done["done"], done["gone"], done["left"]) == (9, 8, 1, 0)
    assert [letter.body for letter in mixed.letters()] == [b"new"]


def test_a_broker_that_fails_ends_the_run_and_nothing_is_lost(mixed: Bureau) -> None:
    """Unroutable: the letter is left, the run says why, and the account adds up."""
    mixed.learn(mixed.forge.stranger)
    mixed.broker.delete(mixed.place)
    found = mixed.redrive(Filter(reason="key_unknown"))
    assert (found["done"], found["failed"], found["left"]) == (0, 1, 2)
    assert "dead_letter_unavailable" in found["error"]
    assert len(mixed.letters()) == 9


@pytest.mark.parametrize(
    "error", [Unavailable(Cause.AUDIT_UNAVAILABLE, "disk full"), OSError("broken")]
)
def test_without_a_record_no_letter_goes(mixed: Bureau, error: Exception) -> None:
    """An audit that fails leaves every letter where it is, whatever it raises."""
    mixed.audit.failure = error
    if isinstance(error, Unavailable):
        assert mixed.discard()["failed"] == 1
    else:
        with pytest.raises(OSError, match="broken"):
            mixed.discard()
    assert len(mixed.letters()) == 9


class Dying(MemoryLetterBox):
    """A letter box whose process dies before the n-th removal."""

    left = 1

    def remove(self, letter: Letter, /) -> None:
        """Remove, or die."""
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        super().remove(letter)


def test_killed_before_a_removal_the_letter_comes_again_as_a_duplicate(
    mixed: Bureau,
) -> None:
    """Published and not removed: redriven again after the crash, handled once, and no replay is dead-lettered."""
    mixed.box = Dying(mixed.broker, mixed.dead)
    with pytest.raises(KeyboardInterrupt):
        mixed.redrive(Filter(reason="expired"), Reason.EXPIRED)
    mixed.box.browse(0)
    mixed.box = MemoryLetterBox(mixed.broker, mixed.dead)
    assert mixed.redrive(Filter(reason="expired"), Reason.EXPIRED)["done"] == 1
    assert mixed.send() == [Verdict.ACCEPTED, Verdict.ACCEPTED, Verdict.DUPLICATE]
    assert sorted(verified.body for verified in mixed.handled) == [b"late 0", b"late 1"]
    assert mixed.difference() == 0


# --- laundering -------------------------------------------------------------------------------------------


def test_forged_letters_gain_nothing(bureau: Bureau) -> None:
    """Another destination, an edited body, another id, an edited digest: refused, and left where they are."""
    sealed = bureau.forge.seal(bureau.message(), signature=b"\0" * 64)
    bureau.send(
        sealed, bureau.forge.seal(bureau.message(b"stale"), claims={"exp": 1, "iat": 0})
    )
    forged, stale = bureau.letters()
    bureau.discard()
    other = "kafka:payments" if bureau.place == KAFKA else "rabbitmq:/payments"
    bureau.broker.declare(other)
    bureau.plant(lying(stale, destination=other))
    bureau.plant(replace(stale, body=b"edited"))
    bureau.plant(lying(stale, id="0" * 64))
    bureau.plant(lying(stale, digest="0" * 64))
    elsewhere = replace(restore(stale), destination=other)
    intact = DeadLetter(
        message=elsewhere,
        rejection=Rejection(Reason.EXPIRED),
        scope="billing",
        time=bureau.clock.now(),
        audit="a",
    )
    bureau.plant(intact.whole(lambda name, value: True))
    bureau.plant(lying(forged, reason="expired"))
    found = bureau.redrive(ALL, *WAIVABLE)
    assert found["refused"] == {
        "letter_not_intact": 4,
        "destination_mismatch": 1,
        "signature_invalid": 1,
    }
    assert (
        found["done"],
        bureau.broker.waiting(other),
        bureau.broker.waiting(bureau.place),
    ) == (0, (), ())
    assert len(bureau.letters()) == 6


def test_a_message_handled_before_is_not_let_through_again(bureau: Bureau) -> None:
    """A replay's letter can be sent again only where replayed is waived."""
    sealed = bureau.forge.seal(bureau.message())
    assert bureau.send(sealed, sealed) == [Verdict.ACCEPTED, Verdict.REJECTED]
    assert bureau.redrive()["done"] == 1
    assert bureau.send() == [Verdict.REJECTED]
    assert bureau.audit[-1]["reason"] == "replayed"
    assert bureau.redrive(ALL, Reason.REPLAYED)["done"] == 1
    assert bureau.send() == [Verdict.ACCEPTED]


def test_an_authority_that_may_not_waive_is_refused_here_already(mixed: Bureau) -> None:
    """What the consumer would refuse as release_invalid is not even sent."""
    mixed.guard.verifier.release = None
    found = mixed.redrive(Filter(reason="expired"), Reason.EXPIRED)
    assert found["refused"] == {"release_invalid": 2}


def test_a_planted_copy_is_told_from_the_letter_it_names(bureau: Bureau) -> None:
    """Discarding a forged letter with an honest one's id leaves the honest one open; the account says so."""
    bureau.send(bureau.message(b"honest"))
    (honest,) = bureau.letters()
    bureau.plant(replace(honest, body=b"forged"))
    with bureau.survey() as index:
        assert account(bureau.audit, index.ids()).difference == 0
        assert [row.intact for row in index.page()] == [True, False]
    assert bureau.discard(Filter(intact=False))["done"] == 1
    assert bureau.letters() == (honest,)
    assert bureau.difference() == 0


# --- moving -----------------------------------------------------------------------------------------------


def test_letters_go_out_and_come_in(mixed: Bureau) -> None:
    """Exported, discarded and imported again, every letter is intact and has its id."""
    with mixed.survey() as index:
        lines = [json.dumps(form) for form in index.forms()]
        ids = dict(index.ids())
    mixed.discard()
    assert flow.run(take_in(mixed.box, map(json.loads, lines))) == 9
    with mixed.survey() as index:
        assert dict(index.ids()) == ids


def test_what_is_no_letter_is_not_taken_in(mixed: Bureau) -> None:
    """A message without lineage, or an edited letter, is refused; the ones before it are in."""
    form = jsonform.to_form(mixed.letters()[0])
    edited = form | {"body": "eA=="}
    with pytest.raises(MalformedMessage, match="letter 2"):
        flow.run(take_in(mixed.box, [form, edited]))
    assert len(mixed.letters()) == 10


def test_account_finds_what_is_missing_and_what_nobody_rejected() -> None:
    """A rejection with neither letter nor act, and a letter without a rejection, do not add up."""
    records = [
        {"verdict": "rejected", "dead_letter": "a"}, {"verdict": "rejected", "dead_letter": "b"},
        {"verdict": "rejected", "dead_letter": "c"}, {"verdict": "accepted", "dead_letter": None},
        {"verdict": "discarded", "dead_letter": "b", "review": {"intact": False}},
    ]  # fmt: skip
    found = account(records, [("c", False), ("d", True)])
    assert (found.missing, found.unknown, found.unproven) == (("a",), ("d",), ("b", "c"))
    assert found.as_dict()["difference"] == 2


def plain_letters(bureau: Bureau, count: int) -> None:
    """Put so many letters of two groups where they lie, every third of another reason."""
    for number in range(count):
        message = bureau.message(b"%d" % number)
        reason = Reason.REPLAYED if number % 3 == 0 else Reason.EXPIRED
        letter = replace(letter_of(message, reason), time=1_900_000_000.0 + number)
        bureau.plant(letter.whole(lambda name, value: True))


def test_groups_are_those_that_are_there(bureau: Bureau) -> None:
    """Counts, first and last time of groups, and columns, are those of the letters; a limit keeps the largest."""
    plain_letters(bureau, 450)
    begin = 1_900_000_000.0
    with bureau.survey() as index:
        times: dict[str, list[float]] = {}
        for row in index.page(limit=1000):
            times.setdefault(row.reason, []).append(row.time or 0.0)
        columns = Counter(
            (reason, (time - begin) // 100) for reason, of in times.items() for time in of
        )
        drawn = index.columns(begin, 100.0, 5, before=2e9)
        assert {(reason, column): count for reason, column, count in drawn} == columns
        wanted = {reason: (len(of), min(of), max(of)) for reason, of in times.items()}
        for filter_ in (ALL, Filter(since=0.0)):
            found = index.groups(filter_)
            assert {
                group.reason: (group.count, group.first, group.last) for group in found
            } == wanted
            assert index.count(filter_) == 450
        assert [group.count for group in index.groups(limit=1)] == [300]
        assert (index.kinds(), index.reasons()) == (
            2,
            [("expired", 300), ("replayed", 150)],
        )


def test_a_cancelled_reading_keeps_what_it_has_and_gives_everything_back(
    bureau: Bureau,
) -> None:
    """Cancelled after the first letters the index has those and is not complete; the queue has all of them."""
    plain_letters(bureau, 450)
    cancelled = threading.Event()
    cancelled.set()
    with Index(0.0) as index:
        flow.run(fill(index, bureau.box, cancelled=cancelled))
        assert (index.count(), index.complete) == (200, False)
    assert len(bureau.letters()) == 450
    with bureau.survey() as index:
        assert index.count() == 450


def test_a_reading_that_breaks_gives_everything_back(bureau: Bureau) -> None:
    """Where the index fails the pass ends: no letter is held back from the next reviewer."""
    plain_letters(bureau, 3)

    def full(count: int) -> None:
        raise OSError("disk full")

    with Index(0.0) as index, pytest.raises(OSError, match="disk full"):
        flow.run(fill(index, bureau.box, progress=full))
    assert len(bureau.letters()) == 3
