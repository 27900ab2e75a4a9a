"""Dead letters of eight kinds on a real RabbitMQ and a real Kafka: reviewed, and everything adds up."""

from __future__ import annotations

from collections import Counter

from integration.review.scene import FORGED, KINDS, WHY, Scene
from mqauth.auditchain import verify_chain
from mqauth.errors import Reason
from mqauth.review import Filter, Pace, discard, judge, redrive

EACH = 25


def play(scene: Scene, each: int) -> None:
    """Review letters of eight kinds to the last, and hold every count."""
    scene.fill(each)
    assert scene.outcomes == {"rejected": each * len(KINDS)}
    with scene.desk() as (found, reviewer):
        groups = scene.look(found, lambda index: {group.reason: group.count for group in index.groups()})
        assert groups == dict.fromkeys(KINDS, each)
        assert scene.look(found, lambda index: index.count(Filter(sound=True))) == each * len(KINDS)
        assert scene.ledger(found).difference == 0
        scene.keys.append(scene.forge.stranger)
        counts = scene.look(found, lambda index: found.run(judge(index, scene.guard())))
        assert counts == Counter({kind: each for kind in KINDS if kind != "key_unknown"}) + Counter(accepted=each)
        guard = scene.guard()
        passing = scene.freeze(found, reason="key_unknown")
        done = found.run(redrive(found.box, passing, guard=guard, terms=scene.terms(), reviewer=reviewer))
        assert (done.done, done.selected) == (each, each)
        late = scene.freeze(found, reason="expired")
        terms = scene.terms(waive=frozenset([Reason.EXPIRED]))
        done = found.run(redrive(found.box, late, guard=guard, terms=terms, reviewer=reviewer))
        assert done.done == each
        everything = scene.freeze(found)
        done = found.run(redrive(found.box, everything, guard=guard, terms=terms, reviewer=reviewer))
        assert done.refused == Counter({kind: each for kind in (*FORGED, "producer_forbidden")})
        done = found.run(discard(found.box, everything, reviewer=reviewer, reason=WHY))
        assert (done.done, done.left) == (each * 6, 0)
        ledger = scene.ledger(found)
        assert (ledger.rejected, ledger.open) == (each * len(KINDS), 0)
        assert (ledger.redriven, ledger.discarded, ledger.difference) == (each * 2, each * 6, 0)
    scene.consume(each * 2)
    assert (scene.outcomes["accepted"], scene.outcomes["rejected"]) == (each * 2, each * len(KINDS)), scene.why()
    assert {verified.release.sub for verified in scene.handled if verified.release} == {"ada"}
    assert Counter(bytes(verified.body or b"").split()[0] for verified in scene.handled) == {
        b"key_unknown": each, b"expired": each
    }  # fmt: skip
    assert all(verify_chain(path).intact for path in scene.audits)


def test_letters_of_eight_kinds(scene: Scene) -> None:
    """200 letters: grouped, judged, redriven, released, discarded; zero difference, every act in the chain."""
    play(scene, EACH)


def test_letters_that_are_left_stay_and_a_cancelled_run_adds_up(scene: Scene) -> None:
    """Browsing three times consumes nothing; cancelled after three, exactly three are gone."""
    scene.fill(2)
    with scene.desk() as (found, reviewer):
        for _ in range(3):
            assert scene.look(found, lambda index: index.count()) == 16
        pace = Pace(rate=200)
        pace.progress = lambda so_far: pace.cancelled.set() if so_far.done == 3 else None
        everything = scene.freeze(found)
        done = found.run(discard(found.box, everything, reviewer=reviewer, reason=WHY, pace=pace))
        assert (done.done, done.left, done.cancelled) == (3, 13, True)
        assert scene.look(found, lambda index: index.count()) == 13
        assert scene.ledger(found).difference == 0
    with scene.desk() as (found, _):
        assert scene.look(found, lambda index: index.count()) == 13
