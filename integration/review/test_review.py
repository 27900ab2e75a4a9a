"""Dead letters on real brokers: reviewed, redriven, released, discarded, killed meanwhile; zero difference."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from typing import Any

import aio_pika
import pytest

from integration import interop, scale
from integration.review.kills import acts, play_kills
from integration.review.scene import FORGED, KINDS, Scene
from integration.scale import nightly
from integration.services import RabbitMQ
from mqauth import Reason
from mqauth.audit.chain import verify_chain
from mqauth.brokers.rabbitmq.confirmed import declare_dead_letters
from mqauth.review import Filter, Session, judge
from mqauth.review.rabbitmq import RabbitMQLetterBox
from mqauth.testing.forge import AUDIENCE, ISSUER, SUBJECT
from mqauth.wire.jwk import dump_key_set
from mqauth.wire.keys import KeySet

EACH = nightly(25, otherwise=10)


def test_letters_of_eight_kinds(scene: Scene) -> None:
    """80 letters, 200 at night: grouped, judged, redriven, released, discarded; every act is in the chain."""
    scene.fill(EACH)
    assert scene.outcomes == {"rejected": EACH * len(KINDS)}
    with scene.session() as found:
        look(scene, found, EACH)
        act(scene, found, EACH)
        hold(scene, found, EACH)
    handle(scene, EACH)


def look(scene: Scene, found: Session, each: int) -> None:
    """List, group and judge, before and after the missing key arrives."""
    groups = scene.look(
        found, lambda index: {group.reason: group.count for group in index.groups()}
    )
    assert groups == dict.fromkeys(KINDS, each)
    assert scene.look(
        found, lambda index: index.count(Filter(intact=True))
    ) == each * len(KINDS)
    assert scene.ledger(found).difference == 0
    before = scene.look(found, lambda index: found.run(judge(index, scene.guard())))
    scene.keys.append(scene.forge.stranger)
    after = scene.look(found, lambda index: found.run(judge(index, scene.guard())))
    assert before == dict.fromkeys(KINDS, each)
    assert after == Counter(
        {kind: each for kind in KINDS if kind != "key_unknown"}
    ) + Counter(accepted=each)


def act(scene: Scene, found: Session, each: int) -> None:
    """Redrive what passes, release what has expired, refuse the rest, and discard it."""
    passing = scene.redrive(found, reason="key_unknown")
    late = scene.redrive(found, Reason.EXPIRED, reason="expired")
    assert (passing.done, passing.selected, late.done, late.selected) == (each,) * 4
    rest = scene.redrive(found, Reason.EXPIRED)
    assert rest.refused == Counter(
        {kind: each for kind in (*FORGED, "producer_forbidden")}
    )
    gone = found.act(scene.plan("discard"), scene.freeze(found))
    assert (gone.done, gone.left) == (each * 6, 0)


def hold(scene: Scene, found: Session, each: int) -> None:
    """Hold the audit against the queue; every act is in its chain, once."""
    ledger = scene.ledger(found)
    assert (ledger.rejected, ledger.open) == (each * len(KINDS), 0)
    assert (ledger.redriven, ledger.discarded, ledger.difference) == (
        each * 2,
        each * 6,
        0,
    )
    on_record = (acts(scene, "redriven"), acts(scene, "discarded"))
    assert on_record == (each * 2, each * 6)
    assert all(verify_chain(path).intact for path in scene.audits)


def handle(scene: Scene, each: int) -> None:
    """Let the consumer have what came back."""
    scene.consume(each * 2)
    assert (scene.outcomes["accepted"], scene.outcomes["rejected"]) == (
        each * 2,
        each * len(KINDS),
    ), scene.why()
    assert {verified.release.sub for verified in scene.handled if verified.release} == {
        "ada"
    }
    assert all(verified.release is not None for verified in scene.handled)
    assert Counter(bytes(verified.body or b"").split()[0] for verified in scene.handled) == {
        b"key_unknown": each, b"expired": each
    }  # fmt: skip


pytestmark = pytest.mark.slow

LETTERS = 40
KILLS = scale.nightly(3, otherwise=1)


@pytest.mark.parametrize("act", ["redrive", "discard"])
def test_killed(scene: Scene, capsys: pytest.CaptureFixture[str], act: str) -> None:
    """Killed at random moments, three at night: at each moment every letter is open or on record, zero difference.

    What is redriven is handled once, and duplicates are dropped.
    """
    seed = scale.nightly(random.randrange(10**6), otherwise=1)
    tally = play_kills(scene, act, KILLS, LETTERS, seed)
    with capsys.disabled():
        print(f"\n{scene.stage.name} {act}, seed {seed}: {tally}")
    assert tally.holds
    if act == "redrive":
        assert (tally.handled, tally.duplicates <= KILLS) == (LETTERS, True)
    else:
        assert tally.published == 0
        assert LETTERS <= tally.acts <= LETTERS + KILLS


MANY_LETTERS = 400
PASSES = nightly(40, otherwise=10)


@pytest.mark.slow
async def test_what_was_removed_does_not_come_again(rabbitmq: RabbitMQ) -> None:
    """RabbitMQ forgets acks that its channel keeps back when that is closed; a pass waits for them."""
    async with await aio_pika.connect(rabbitmq.url) as connection:
        publishing, left = await connection.channel(), list[int]()
        for number in range(PASSES):
            name = f"removed-{number}"
            queue = await declare_dead_letters(publishing, name)
            letter = aio_pika.Message(b"x" * 2000)
            await asyncio.gather(
                *(
                    publishing.default_exchange.publish(letter, name)
                    for _ in range(MANY_LETTERS)
                )
            )
            box = RabbitMQLetterBox(connection, name, unlimited=True)
            for each in await box.browse(MANY_LETTERS):
                await box.remove(each)
            # An act ends its pass once it is through; the next one sees what came again.
            await box.browse(0)
            left.append(len(await box.browse(MANY_LETTERS)))
            await queue.delete(if_empty=False, if_unused=False)
    assert left == [0] * PASSES


EACH_BROKER = 3
LETTERS_OF_GO = ("expired", "token_missing", "body_mismatch")


def bury(scene: Scene, url: str, source: str) -> list[str]:
    """Have Go judge messages of three kinds and publish a letter of each; return what it said."""
    for kind in LETTERS_OF_GO:
        for number in range(EACH_BROKER):
            scene.stage.inject(scene.message(kind, number))
    consumer = json.dumps({
        "issuer": ISSUER, "audience": AUDIENCE, "leeway": 5, "max_lifetime": 3600, "scope": scene.scope,
        "jwks": dump_key_set(KeySet(scene.keys)), "allow": {SUBJECT: [scene.stage.destination]},
    })  # fmt: skip
    count = str(EACH_BROKER * len(LETTERS_OF_GO))
    return interop.ask(
        "bury", url, source, scene.scope, scene.stage.dead, count, lines=[consumer]
    )


def review(scene: Scene) -> None:
    """Expect each letter to be intact, and the expired ones to be handled once a reviewer has let them through."""
    with scene.session() as found:
        rows = scene.look(found, lambda index: index.page())
        assert {row.intact for row in rows} == {True}
        reasons = Counter(row.reason for row in rows)
        assert reasons == dict.fromkeys(LETTERS_OF_GO, EACH_BROKER)
        done = scene.redrive(found, Reason.EXPIRED, reason="expired").as_dict()
    assert (done["done"], done["refused"]) == (EACH_BROKER, {})
    scene.consume(EACH_BROKER)
    assert sorted(verified.body or b"" for verified in scene.handled) == [
        b"expired %d" % n for n in range(EACH_BROKER)
    ]


def test_a_letter_of_go_is_redriven(scene: Scene) -> None:
    """Id and digest of a letter that Go published are those of the message, and it can be let through."""
    stage: Any = scene.stage
    on_kafka = scene.place.on_kafka
    url = ",".join(stage.servers) if on_kafka else scene.place.broker
    said = bury(scene, url, stage.topic if on_kafka else stage.queue)
    assert Counter(said) == dict.fromkeys(
        (f"rejected {kind}" for kind in LETTERS_OF_GO), EACH_BROKER
    )
    review(scene)
