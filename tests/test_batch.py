"""Batch tokens: every message of a batch is judged by itself, whatever became of the others."""

from __future__ import annotations

import hashlib
import itertools
import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqauth.audit.redaction import redact
from mqauth.errors import Reason, Rejection
from mqauth.flow import run
from mqauth.judging.pipeline import Outcome, Pipeline, Verdict
from mqauth.judging.verified import Verified
from mqauth.judging.verifier import Verifier
from mqauth.letters.authorities import Authority, ReleaseAuthorities, Releaser
from mqauth.letters.dead_letter import letter_id
from mqauth.letters.release import open_release
from mqauth.replay.memory import MemoryReplayStore
from mqauth.replay.rules import ClaimRequest, ClaimStatus, claim_id, release_id
from mqauth.testing import ATTACKS, BATCH_ATTACKS, BatchForge, FakeClock, Forge, verified
from mqauth.testing.batchforge import ForgedBatch, forge_batch, leaf_of
from mqauth.testing.token_attacks import changed_header, honest_message
from mqauth.wire import base64url, envelope
from mqauth.wire.batch import Tree, proof_of, proof_text
from mqauth.wire.claims import MAX_BATCH, Batch
from mqauth.wire.keys import Key, KeySet
from mqauth.wire.message import TOKEN_HEADER, Message, Origin
from tests.kit.tokens import tokens_in

ReasonOf = Callable[[Callable[[], object]], Reason]
PLACES = ("kafka:orders", "rabbitmq:shop/orders.created")
CLOCK = FakeClock()
FORGE = Forge(CLOCK)


def judged(verifier: Verifier, message: Message, received: float | None = None) -> Verified:
    """Open and verify a message."""
    candidate = verifier.open(message)
    keys = verifier.issuer(candidate.token).keys.key_set()
    return verifier.verify(message, candidate, keys, CLOCK.now() if received is None else received)


def verdict(verifier: Verifier, message: Message) -> Reason | int | None:
    """Return why a message is rejected, or its index."""
    try:
        return judged(verifier, message).index
    except Rejection as rejection:
        return rejection.reason


# --- attacks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attack", "place"),
    [(attack, place) for attack in (*ATTACKS, *BATCH_ATTACKS) for place in PLACES
     if attack.fits(place) and attack.reason is not Reason.PRODUCER_FORBIDDEN],
    ids=lambda value: getattr(value, "name", value),
)  # fmt: skip
def test_each_attack_meets_its_reason(attack: Any, place: str, clock: FakeClock, reason_of: ReasonOf) -> None:
    """Every attack of the single form passes unchanged in batch mode, and those on batches beside them."""
    forge = BatchForge(clock)
    hostile = attack.mount(forge, honest_message(place))
    verifier = forge.verifier()
    assert reason_of(lambda: judged(verifier, hostile, clock.now())) is attack.reason


@pytest.mark.parametrize("attack", BATCH_ATTACKS, ids=lambda attack: attack.name)
def test_a_rejection_holds_nothing_of_the_message(attack: Any) -> None:
    """Neither body, header values nor token stand in any rejection's text."""
    message = Message(
        destination="kafka:orders", key=b"k", body=b"the-secret", headers=(("tenant", b"the-secret"),)
    )
    hostile = attack.mount(FORGE, message) if attack.fits("kafka:x") else message
    with pytest.raises(Rejection) as caught:
        judged(FORGE.verifier(), hostile)
    text = repr(caught.value) + str(caught.value)
    assert "secret" not in text
    assert tokens_in(text, hostile) == []


def test_attack_names_are_stable_and_unique() -> None:
    """An attack is named once over both suites, so that tables and vectors can name it."""
    names = [(attack.name, attack.scheme) for attack in (*ATTACKS, *BATCH_ATTACKS)]
    assert len(set(names)) == len(names)


# --- each by itself ---------------------------------------------------------------------------------------


def batch_of(size: int, place: str = "kafka:orders") -> ForgedBatch:
    """Return an honest batch whose messages all differ."""
    return forge_batch(FORGE, [honest_message(place, number) for number in range(size)])


BATCHES = [batch_of(size, place) for size in (1, 2, 3, 5, 8) for place in PLACES]
OTHERS = {id(found): batch_of(len(found.messages), found.messages[0].destination) for found in BATCHES}


def _bit(raw: bytes, at: int) -> bytes:
    """Return bytes with a bit changed, where there are any."""
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at:][1:] if raw else raw


def _path(found: ForgedBatch, index: int, path: bytes) -> Message:
    """Return a message with another path."""
    return found.seal(index, proof=found.proof(index, path=path))


BENDS: dict[str, Callable[[ForgedBatch, int, int], Message]] = {
    "honest": lambda b, i, j: b.seal(i),
    "honest again": lambda b, i, j: b.seal(i),
    "other shorts": lambda b, i, j: b.seal(i, proof=b.proof(i, shorts=bytes(12))),
    "edited body": lambda b, i, j: b.seal(i, replace(b.messages[i], body=b"evil")),
    "edited header": lambda b, i, j: b.seal(i, changed_header(b.messages[i], "evil")),
    "rerouted": lambda b, i, j: replace(b.seal(i), destination=b.messages[i].destination + "2"),
    "head of path": lambda b, i, j: _path(b, i, _bit(b.tree.paths()[i], 0)),
    "tail of path": lambda b, i, j: _path(b, i, _bit(b.tree.paths()[i], len(b.tree.paths()[i]) - 1)),
    "middle of path": lambda b, i, j: _path(b, i, _bit(b.tree.paths()[i], len(b.tree.paths()[i]) // 2)),
    "path of another": lambda b, i, j: _path(b, i, b.tree.paths()[j]),
    "number of another": lambda b, i, j: b.seal(i, number=str(j)),
    "header of another": lambda b, i, j: b.seal(j, b.messages[i]),
    "path of another tree": lambda b, i, j: _path(b, i, OTHERS[id(b)].tree.paths()[i]),
    "path too long": lambda b, i, j: _path(b, i, b.tree.paths()[i] + bytes(32)),
    "no proof": lambda b, i, j: b.seal(i, number="", proof=""),
    "token of another batch": lambda b, i, j: OTHERS[id(b)].seal(i, b.messages[j]),
    "bent signature": lambda b, i, j: replace(b, jws=b.jws[:-4] + "AAAA").seal(i),
    "bent payload": lambda b, i, j: replace(b, jws=b.jws.replace(".", ".A", 1)).seal(i),
}


@given(st.sampled_from(BATCHES), st.lists(
    st.tuples(st.sampled_from(sorted(BENDS)), st.integers(0, 7), st.integers(0, 7)), max_size=14))  # fmt: skip
def test_no_verdict_depends_on_what_was_judged_before(found: ForgedBatch, events: Any) -> None:
    """Lost, reordered, repeated and forged siblings: each message gets the verdict it gets alone."""
    shared = FORGE.verifier()
    for kind, first, second in events:
        index, other = first % len(found.messages), second % len(found.messages)
        message = BENDS[kind](found, index, other)
        said = verdict(shared, message)
        assert said == verdict(FORGE.verifier(), message)
        honest = [place for place, sent in enumerate(found.messages) if sent == _bare(message)]
        assert isinstance(said, Reason) or honest == [said]
        assert kind not in ("honest", "honest again", "other shorts") or said == index


def _bare(message: Message) -> Message:
    """Return a message without its token."""
    return replace(message, headers=tuple(pair for pair in message.headers if pair[0] != TOKEN_HEADER))


def test_a_proof_bent_in_its_tail_is_refused_after_its_sibling(reason_of: ReasonOf) -> None:
    """What is remembered of a sibling's path does not stand in for the bytes of this one."""
    found, verifier = batch_of(8), FORGE.verifier()
    judged(verifier, found.seal(0))
    judged(verifier, found.seal(3))
    bent = _path(found, 2, _bit(found.tree.paths()[2], 95))
    assert reason_of(lambda: judged(verifier, bent)) is Reason.PROOF_INVALID
    assert judged(verifier, found.seal(2)).index == 2


def test_every_order_of_a_batch_is_accepted() -> None:
    """All permutations of four messages, each through one verifier."""
    found = batch_of(4)
    for order in itertools.permutations(range(4)):
        verifier = FORGE.verifier()
        assert [judged(verifier, found.seal(index)).index for index in order] == list(order)


def test_a_batch_of_the_largest_size_is_accepted() -> None:
    """1,024 messages under one signature, the first, the last and some between."""
    found, verifier = batch_of(MAX_BATCH), FORGE.verifier()
    for index in (0, 1, 511, 512, 1023):
        assert judged(verifier, found.seal(index)).index == index


def test_threads_share_a_verifier() -> None:
    """Siblings, honest and forged, judged by several threads at once get the verdicts they get alone."""
    found, verifier, said = batch_of(8), FORGE.verifier(), set()
    kinds = sorted(BENDS)

    def judge(shift: int) -> None:
        for number in range(len(kinds) * 4):
            kind, index = kinds[(number + shift) % len(kinds)], number % 8
            said.add((kind, index, verdict(verifier, BENDS[kind](found, index, 7 - index))))

    OTHERS[id(found)] = batch_of(8)
    threads = [threading.Thread(target=judge, args=(shift,)) for shift in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(answer == verdict(FORGE.verifier(), BENDS[kind](found, index, 7 - index))
               for kind, index, answer in said)  # fmt: skip


# --- what a leaf covers -----------------------------------------------------------------------------------


MESSAGE = honest_message("kafka:orders")
DIFFERENT: dict[str, Message] = {
    "as it is": MESSAGE,
    "another destination": replace(MESSAGE, destination="kafka:refunds"),
    "another key": replace(MESSAGE, key=b"1"), "an empty key": replace(MESSAGE, key=b""),
    "no key": replace(MESSAGE, key=None),
    "another body": replace(MESSAGE, body=b"x"), "an empty body": replace(MESSAGE, body=b""),
    "a tombstone": replace(MESSAGE, body=None),
    "key and body moved": replace(MESSAGE, key=b"", body=(MESSAGE.key or b"") + (MESSAGE.body or b"")),
    "another header": changed_header(MESSAGE, "x"), "no headers": replace(MESSAGE, headers=()),
    "a header twice": replace(MESSAGE, headers=(*MESSAGE.headers, MESSAGE.headers[0])),
    "another property": replace(MESSAGE, headers=(("tenant", b"acme"), ("content-type", b"x"))),
}  # fmt: skip


@pytest.mark.parametrize("size", [*range(1, 34), 63, 64, 65, 1023, 1024])
def test_a_proof_has_the_length_of_its_place(size: int, reason_of: ReasonOf) -> None:
    """At every place of a tree the proof has as many hashes as its tree has; one more or one less is refused."""
    tree = Tree([bytes([number & 255]) * 32 for number in range(size)])
    claims = FORGE.verifier().open(batch_of(2).seal(0)).token.claims
    claims = claims._replace(mqa=Batch(root="A" * 43, size=size))
    for index in {0, 1, 2, size // 2, size - 2, size - 1} & set(range(size)):
        path = tree.paths()[index]
        proof = proof_of(proof_text(index, bytes(12), path)[1:].encode(), claims)
        assert proof == (index, bytes(12), path)
        for wrong in (path + bytes(32), path[32:] if path else path + bytes(64)):
            text = proof_text(index, bytes(12), wrong)[1:].encode()
            assert reason_of(lambda text=text: proof_of(text, claims)) is Reason.PROOF_INVALID


def test_no_two_messages_share_a_leaf() -> None:
    """Destination, key, body, headers: absent, empty and moved are all different leaves."""
    leaves = {name: leaf_of(message, ("tenant",)).hash for name, message in DIFFERENT.items()}
    assert len(set(leaves.values())) == len(DIFFERENT)


def test_a_leafs_bytes_are_the_profiles() -> None:
    """Domain, destination, key, body, headers, each under its tag; the twelve bytes are of the parts' digests."""
    leaf = leaf_of(MESSAGE, ("tenant",))
    headers = envelope.headers_input(MESSAGE, ("tenant",))
    parts = (
        b"mqauth-leaf-1" + b"dv" + (12).to_bytes(8, "big") + b"kafka:orders",
        b"kv" + (1).to_bytes(8, "big") + b"0",
        b"bv" + len(MESSAGE.body or b"").to_bytes(8, "big") + (MESSAGE.body or b""),
        b"hv" + len(headers).to_bytes(8, "big") + headers,
    )
    assert leaf == parts
    digests = [hashlib.sha256(part).digest() for part in parts]
    assert leaf.hash == hashlib.sha256(b"\x00" + b"".join(digests[:3]) + parts[3]).digest()
    assert leaf.shorts == b"".join(digest[:3] for digest in digests)
    nothing = leaf_of(replace(MESSAGE, key=None, body=None), ())
    assert nothing[1:3] == (b"kn", b"bn")


def test_a_twin_in_another_case_is_headers_mismatch(reason_of: ReasonOf) -> None:
    """As in the single form: no header may pass for a covered one."""
    sealed = batch_of(3).seal(1)
    twin = replace(sealed, headers=(*sealed.headers, ("Tenant", b"evil")))
    assert reason_of(lambda: judged(FORGE.verifier(), twin)) is Reason.HEADERS_MISMATCH


def test_only_covered_headers_are_shown_and_required_ones_must_be(reason_of: ReasonOf) -> None:
    """Coverage is the batch's list: what is not on it is hidden, or refused."""
    found = forge_batch(FORGE, [honest_message("kafka:orders", number) for number in range(3)], cover=[])
    assert judged(FORGE.verifier(), found.seal(1)).headers == ()
    for settings in ({"require_headers": ["tenant"]}, {"unsigned_headers": "reject"}):
        strict = FORGE.verifier(**settings)
        assert reason_of(lambda v=strict: judged(v, found.seal(1))) is Reason.COVERAGE_INSUFFICIENT


def test_a_covered_header_may_be_absent_in_some() -> None:
    """Absence is bound: a batch's list may name what one of its messages has not, and nobody may add it."""
    bare = replace(MESSAGE, headers=())
    found = forge_batch(FORGE, [MESSAGE, bare], cover=["tenant"])
    verifier = FORGE.verifier()
    assert [judged(verifier, found.seal(index)).header("tenant") for index in (0, 1)] == [b"acme", None]
    added = found.seal(1, replace(bare, headers=(("tenant", b"acme"),)))
    assert verdict(verifier, added) is Reason.HEADERS_MISMATCH


# --- once each --------------------------------------------------------------------------------------------


def guard(store: MemoryReplayStore | None = None, **settings: Any) -> Pipeline:
    """Return a consumer of this forge."""
    wanted: dict[str, Any] = {
        "verifier": FORGE.verifier(), "policy": FORGE.policy(*PLACES), "clock": CLOCK,
        "replay": MemoryReplayStore(clock=CLOCK) if store is None else store,
    }  # fmt: skip
    return Pipeline(**(wanted | settings))


def consume(pipeline: Pipeline, message: Message) -> Outcome:
    """Judge a message and confirm it where it was accepted."""
    delivery = pipeline.receive(message)
    outcome = run(pipeline.judge(delivery))
    if outcome.verdict is Verdict.ACCEPTED:
        run(pipeline.confirm(delivery))
    return outcome


def at(message: Message, offset: int) -> Message:
    """Return a record at an offset."""
    return replace(message, origin=Origin(topic="orders", partition=0, offset=offset))


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=20))
def test_each_message_of_a_batch_is_handled_once(events: list[tuple[int, bool]]) -> None:
    """Whatever is lost, copied, reordered or forged: the first honest copy is handled, every other is a replay."""
    found, pipeline, seen = batch_of(5), guard(), set()
    for offset, (index, forged) in enumerate(events):
        sealed = at(found.seal(index), offset)
        outcome = consume(pipeline, replace(sealed, body=b"evil") if forged else sealed)
        if forged:
            assert outcome.reason is Reason.BODY_MISMATCH
        else:
            assert outcome.reason is (Reason.REPLAYED if index in seen else None)
            seen.add(index)


def test_on_kafka_the_same_record_again_is_a_reread() -> None:
    """Coordinates tell a redelivered sibling from a copy, each by itself."""
    found, pipeline = batch_of(3), guard(reread="duplicate")
    assert [consume(pipeline, at(found.seal(index), index)).verdict for index in (0, 1)] == [Verdict.ACCEPTED] * 2
    assert consume(pipeline, at(found.seal(1), 1)).verdict is Verdict.DUPLICATE
    assert consume(pipeline, at(found.seal(2), 2)).verdict is Verdict.ACCEPTED
    assert consume(pipeline, at(found.seal(0), 7)).reason is Reason.REPLAYED


def test_on_rabbitmq_a_redelivered_sibling_is_a_duplicate() -> None:
    """The broker's mark counts for the one message, not for its siblings."""
    found, pipeline = batch_of(3, PLACES[1]), guard()
    assert consume(pipeline, replace(found.seal(1), origin=Origin(queue="q"))).verdict is Verdict.ACCEPTED
    again = replace(found.seal(1), origin=Origin(queue="q", redelivered=True))
    assert consume(pipeline, again).verdict is Verdict.DUPLICATE
    first = replace(found.seal(0), origin=Origin(queue="q", redelivered=True))
    assert consume(pipeline, first).verdict is Verdict.ACCEPTED


class Asked(MemoryReplayStore):
    """A store that keeps what it was asked."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock=clock)
        self.asked: list[tuple[bytes, int | None]] = []

    def claim(self, request: ClaimRequest, /) -> ClaimStatus:
        """Note the id and the index, and claim."""
        self.asked.append((request.id, request.index))
        return super().claim(request)


def test_the_claim_is_of_issuer_id_and_index() -> None:
    """18 bytes: the token's id, then the index; siblings share the first sixteen."""
    store = Asked(CLOCK)
    pipeline, found = guard(store), batch_of(3)
    outcomes = [consume(pipeline, found.seal(index)) for index in (0, 2)]
    verified = outcomes[0].verified
    assert verified is not None
    token = claim_id(verified.issuer, verified.subject, verified.jti)
    assert store.asked == [(token + b"\x00\x00", 0), (token + b"\x00\x02", 2)]


@pytest.mark.parametrize(
    ("life", "waited", "reason"), [(60, 600, Reason.EXPIRED), (7200, 0, Reason.LIFETIME_EXCESSIVE)]
)
def test_a_dead_letter_of_a_batch_is_released(life: int, waited: int, reason: Reason) -> None:
    """A reviewer lets one message through, once; its siblings are judged as ever, the token remembered or not."""
    clock = FakeClock()
    store, forge, reviewer = Asked(clock), Forge(clock), Key.generate(subjects=["ada"])
    authority = Authority(keys=KeySet([reviewer]), waive=frozenset([reason]))
    verifier = forge.verifier(release=ReleaseAuthorities({"https://review.example": authority}))
    pipeline = guard(store, verifier=verifier, clock=clock, scope="orders", policy=forge.policy(*PLACES))
    found = forge_batch(forge, [honest_message(PLACES[1], number) for number in range(3)],
                        claims={"exp": int(clock.now()) + life})  # fmt: skip
    clock.advance(waited)
    assert consume(pipeline, found.seal(1)).reason is reason
    releaser = Releaser(key=reviewer, issuer="https://review.example", reviewer="ada", clock=clock)
    letter = letter_id(found.seal(1), "orders")
    message, release = releaser.release(found.seal(1), letter=letter, scope="orders", reason="outage",
                                        waive=[reason])  # fmt: skip
    assert release.tok == base64url.digest(found.header(1).encode())
    assert open_release(message).release == release
    verified = consume(pipeline, message).verified
    assert verified is not None
    assert verified.index == 1
    token = claim_id(verified.issuer, verified.subject, verified.jti)
    assert store.asked == [(release_id(release.iss, letter), None), (token + b"\x00\x01", 1)]
    assert consume(pipeline, found.seal(2)).reason is reason
    again = replace(message, origin=Origin(queue="q", redelivered=True))
    assert consume(pipeline, again).verdict is Verdict.DUPLICATE
    moved = replace(message, headers=(*found.seal(2).headers, message.headers[-1]), body=found.messages[2].body)
    assert consume(pipeline, moved).reason is Reason.RELEASE_INVALID


@pytest.mark.parametrize("index", [None, 0, 1, 7])
def test_a_handlers_own_test_may_ask_for_a_place(index: int | None) -> None:
    """``mqauth.testing.verified`` seals a message in a batch where it is told to."""
    assert verified(index=index, body=b"x").index == index
    assert verified(index=index, body=b"x").body == b"x"


def test_a_log_shows_neither_token_nor_proof() -> None:
    """What client libraries log of a batch's header is replaced whole."""
    record = logging.LogRecord("kafka", logging.DEBUG, "x", 1, "headers: [%s, 1]", (batch_of(3).header(1),), None)
    redact(record)
    assert record.getMessage() == "headers: [<token>, 1]"
