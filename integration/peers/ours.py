"""The same classes against mqauth: the attacks of its own suite, on a pipeline in memory."""

from __future__ import annotations

from mqauth.flow import run
from mqauth.judging.pipeline import Pipeline, Verdict
from mqauth.judging.policy import Allow
from mqauth.replay.memory import MemoryReplayStore
from mqauth.testing import FakeClock, Forge
from mqauth.testing.attack_classes import CLASSES
from mqauth.testing.attacks import ALL_ATTACKS, Attack, honest_message
from mqauth.testing.forge import SUBJECT
from mqauth.wire.message import Message

PLACES = ("kafka:orders", "rabbitmq:shop/orders.created")
COPIES = frozenset(("copy", "race"))
"""Attacks of two messages: the same one again."""


def judged(
    forge: Forge, clock: FakeClock, message: Message, times: int = 1
) -> list[Verdict]:
    """Return the verdicts on a message that comes so many times, at places of its own."""
    pipeline = Pipeline(
        verifier=forge.verifier(), policy=Allow({SUBJECT: [*PLACES]}), replay=MemoryReplayStore(clock=clock),
        clock=clock, scope="billing",
    )  # fmt: skip
    found = []
    for _ in range(times):
        delivery = pipeline.receive(message)
        found.append(run(pipeline.judge(delivery)).verdict)
        if found[-1] is Verdict.ACCEPTED:
            run(pipeline.confirm(delivery))
    return found


def is_refused(attack: Attack) -> bool:
    """Tell whether an attack is refused at every place that it fits."""
    clock = FakeClock()
    forge = Forge(clock)
    return all(
        judged(forge, clock, attack.mount(forge, honest_message(place))) == [Verdict.REJECTED]
        for place in PLACES if attack.fits(place)
    )  # fmt: skip


def outcomes() -> dict[int, str]:
    """Return what becomes of each class that can be mounted as a message or two."""
    refused = {attack.name for attack in ALL_ATTACKS if is_refused(attack)} | (
        COPIES if _copies() else set()
    )
    known = {attack.name for attack in ALL_ATTACKS} | COPIES
    mounted = {each.number: set(each.attacks) & known for each in CLASSES}
    return {
        number: "refused" if names <= refused else "accepted" for number, names in mounted.items() if names
    }  # fmt: skip


def _copies() -> bool:
    """Tell whether the copy of a handled message is refused."""
    clock = FakeClock()
    forge = Forge(clock)
    found = judged(forge, clock, forge.seal(honest_message(PLACES[0])), times=2)
    return found == [Verdict.ACCEPTED, Verdict.REJECTED]


def forged() -> str:
    """Return what becomes of a message that a stranger signed in the producer's name."""
    attack = next(each for each in ALL_ATTACKS if each.name == "forged-signature")
    return "refused" if is_refused(attack) else "accepted"
