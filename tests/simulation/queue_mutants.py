"""Mistakes in the queue engine that random schedules must find: what each replaces, and by what."""

from __future__ import annotations

from typing import Any, Final

from mqauth.delivery import progress, slot
from mqauth.delivery.hold import HeldDelivery, Hold
from mqauth.delivery.progress import Progress
from mqauth.delivery.queue_work import QueueLeases, QueueWork
from mqauth.delivery.slot import Ack, DeliveryTags, RoundTripQueue, Slot
from mqauth.delivery.window import Window
from mqauth.judging.pipeline import Step
from tests.simulation.engine_mutants import Mutant, returning


def always(value: Any) -> Any:
    """Return a property that never changes."""
    return lambda _: property(lambda _found: value)


def past_what_is_open(original: Any) -> Any:
    """Make every ack one of many."""

    def take(ledger: DeliveryTags) -> list[Ack]:
        acks: list[Ack] = original(ledger)
        return [Ack(ack.tag, True, ack.deliveries) for ack in acks]

    return take


def before_it_is_back(original: Any) -> Any:
    """Forget that earlier deliveries are open."""

    def opened(ledger: DeliveryTags, tag: int) -> None:
        original(ledger, tag)
        ledger._open = {each: None for each in ledger._open if each == tag}

    return opened


def unlocked(original: Any) -> Any:
    """Forget what is to be acked."""

    def settled(ledger: DeliveryTags, tag: int, delivery: Any) -> None:
        original(ledger, tag, delivery)
        ledger._settled.pop(tag)

    return settled


def unproven(original: Any) -> Any:
    """Record every rejection without a round trip."""

    def found(place: Slot, delivery: Any) -> None:
        original(place, delivery)

    return found


def latecomers(original: Any) -> Any:
    """Answer also those who came after the question."""

    def answered(questions: RoundTripQueue[Any]) -> list[Any]:
        late, questions._waiting = questions._waiting, []
        return [*original(questions), *late]

    return answered


def unreleased(_: Any) -> Any:
    """Keep the claim of what is given back."""

    def release(_work: QueueWork, _delivery: Any) -> Any:
        return
        yield

    return release


def released_though_handled(_: Any) -> Any:
    """Release the claim of a message that was handled and not confirmed."""

    def release(work: QueueWork, delivery: Any) -> Any:
        if delivery.step is not Step.JUDGE or delivery.claim is not None:
            delivery.step = Step.HANDLE if delivery.step is Step.CONFIRM else delivery.step
            yield from work._guard.release(delivery)

    return release


def kept_in_the_room(_: Any) -> Any:
    """Never give back the room of a held delivery."""
    return lambda hold, held: hold._held.pop(id(held))


def unlike(original: Any) -> Any:
    """Know nothing of earlier deliveries."""
    return lambda progress, message: progress._guard.receive(message)


def received_anew(original: Any) -> Any:
    """Judge a redelivery by the time of its last receipt."""

    def again(message: Any, earlier: Any) -> Any:
        found = original(message, earlier)
        found.received += 1000.0
        return found

    return again


QUEUE: Final = (
    Mutant("acks past what is open", DeliveryTags, "take", past_what_is_open),
    Mutant("forgets what is open", DeliveryTags, "opened", before_it_is_back),
    Mutant("never acks", DeliveryTags, "settled", unlocked),
    Mutant("goes on with an ended channel", Slot, "unproven", returning(None)),
    Mutant("records what is not proven", Slot, "unproven", unproven),
    Mutant("takes what depends on the moment for lasting", slot, "TIME_DEPENDENT", lambda _: frozenset()),
    Mutant("answers who came later", RoundTripQueue, "answered", latecomers),
    Mutant("asks no second question", RoundTripQueue, "add", returning(False)),
    Mutant("gives back the last delivery", Slot, "is_last", always(False)),
    Mutant("gives back what is not ours", Slot, "is_ours", always(True)),
    Mutant("keeps claims of what is given back", QueueWork, "_release", unreleased),
    Mutant("releases what was handled", QueueWork, "_release", released_though_handled),
    Mutant("holds for ever", Hold, "is_over", returning(False)),
    Mutant("holds at a stop", Hold, "stops", returning(False)),
    Mutant("keeps places of what is held", Hold, "take", kept_in_the_room),
    Mutant("holds without bounds", Hold, "has_room", returning(True)),
    Mutant("passes nothing by", Window, "passes_by", returning(False)),
    Mutant("stays cautious", Window, "settled", returning(False)),
    Mutant("ignores a loss", Window, "lost", returning(None)),
    Mutant("renews nothing", QueueLeases, "due", returning([])),
    Mutant("loses the time of receipt", progress, "again", received_anew),
    Mutant("gives back what was handled", HeldDelivery, "is_handled", always(False)),
    Mutant("suspends nothing", Hold, "wants_suspension", returning(False)),
    Mutant("never goes on", Window, "go_on", returning(None)),
    Mutant("consumes no more after a cancel", Window, "cancelled", returning(False)),
    Mutant("never leaves", Window, "leave", returning(None)),
    Mutant("forgets what it gave back", Progress, "keep", returning(None)),
    Mutant("knows no earlier delivery", Progress, "receive", unlike),
    Mutant(
        "judges beside a handler", Progress, "_wait", lambda _: lambda _p, _e, fence, delivery: fence(delivery)
    ),
)
