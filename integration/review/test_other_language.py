"""Letters of a consumer in Go, written from the wire page alone: intact for our reviewer, and redriven."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from integration import interop
from mqauth.errors import Reason
from mqauth.testing.forge import AUDIENCE, ISSUER, SUBJECT
from mqauth.wire.jwk import dump_key_set
from mqauth.wire.keys import KeySet

if TYPE_CHECKING:
    from integration.review.scene import Scene

EACH = 3
LETTERS = ("expired", "token_missing", "body_mismatch")


def bury(scene: Scene, url: str, source: str) -> list[str]:
    """Have Go judge messages of three kinds and publish a letter of each; return what it said."""
    for kind in LETTERS:
        for number in range(EACH):
            scene.stage.inject(scene.message(kind, number))
    consumer = json.dumps({
        "issuer": ISSUER, "audience": AUDIENCE, "leeway": 5, "max_lifetime": 3600, "scope": scene.scope,
        "jwks": dump_key_set(KeySet(scene.keys)), "allow": {SUBJECT: [scene.stage.destination]},
    })  # fmt: skip
    count = str(EACH * len(LETTERS))
    return interop.ask("bury", url, source, scene.scope, scene.stage.dead, count, lines=[consumer])


def review(scene: Scene) -> None:
    """Expect each letter to be intact, and the expired ones to be handled once a reviewer has let them through."""
    with scene.session() as found:
        rows = scene.look(found, lambda index: index.page())
        assert {row.intact for row in rows} == {True}
        reasons = Counter(row.reason for row in rows)
        assert reasons == dict.fromkeys(LETTERS, EACH)
        done = scene.redrive(found, Reason.EXPIRED, reason="expired").as_dict()
    assert (done["done"], done["refused"]) == (EACH, {})
    scene.consume(EACH)
    assert sorted(verified.body or b"" for verified in scene.handled) == [b"expired %d" % n for n in range(EACH)]


def test_a_letter_of_go_is_redriven(scene: Scene) -> None:
    """Id and digest of a letter that Go published are those of the message, and it can be let through."""
    stage: Any = scene.stage
    on_kafka = scene.place.on_kafka
    url = ",".join(stage.servers) if on_kafka else scene.place.broker
    said = bury(scene, url, stage.topic if on_kafka else stage.queue)
    assert Counter(said) == dict.fromkeys((f"rejected {kind}" for kind in LETTERS), EACH)
    review(scene)
