"""Mistakes in the engines that random schedules must find: what each replaces, and by what."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final
from unittest import mock

from mqauth.brokers.log import offsets
from mqauth.clock import Backoff
from mqauth.delivery import partition, queue_work, slot
from mqauth.delivery.assignment import Assignment
from mqauth.delivery.hold import HeldDelivery, Hold
from mqauth.delivery.log_work import EarlyClaims, LogWork
from mqauth.delivery.partition import Partition
from mqauth.delivery.queue_work import Progress, QueueLeases, QueueWork
from mqauth.delivery.slot import Ack, DeliveryTags, RoundTripQueue, Slot
from mqauth.delivery.start import Committed, Start
from mqauth.delivery.window import Window
from mqauth.judging.pipeline import Step
from mqauth.wire.message import Message

Mutation = Callable[[Any], Any]


@dataclass(frozen=True)
class Mutant:
    """A mistake.

    Args:
        name: what it does wrong.
        owner: the class or module it is made in.
        attribute: what is replaced there.
        mutation: makes the replacement of the original.
    """

    name: str
    owner: Any
    attribute: str
    mutation: Mutation

    @contextmanager
    def made(self) -> Iterator[None]:
        """Make the mistake within a ``with`` block."""
        original = getattr(self.owner, self.attribute)
        with mock.patch.object(self.owner, self.attribute, self.mutation(original)):
            yield


def returning(value: Any) -> Mutation:
    """Return a mutation that makes a function return a constant."""
    return lambda _: lambda *_args, **_kwargs: value


def left_out(*_: Any) -> Iterator[None]:
    """Do nothing, in place of a flow."""
    yield from ()


def without(name: str, empty: Any) -> Mutation:
    """Return a mutation that leaves one kind of client call out."""
    return lambda original: lambda *args: replace(original(*args), **{name: empty})


def received_as_settled(_: Any) -> Any:
    """Commit what was received."""
    return property(lambda each: None if each.last is None else each.last + 1)


def settled_at_once(_: Any) -> Any:
    """Settle a deferred record."""
    return lambda _book, each, _outcome: (each.settle(), True)[1]


def skipping(original: Any) -> Any:
    """Go on with what stands behind a deferred record."""

    def attempted(found: Assignment, each: Partition, outcome: Any) -> bool:
        head, waiting = each.waiting[0], len(each.waiting)
        goes_on: bool = original(found, each, outcome)
        if not goes_on and waiting > 1:
            each.waiting.popleft()
            each.receipts, each.last = (), None
            each.waiting.append(head)
        return goes_on

    return attempted


def unmarked(original: Any) -> Any:
    """Choose a partition without marking it."""

    def choose(found: Assignment) -> Partition | None:
        each: Partition | None = original(found)
        if each is not None:
            each.running = False
        return each

    return choose


def suspended_goes_on(original: Any) -> Any:
    """Revoke without suspending."""

    def revoking(found: Assignment, places: Any, held: Any) -> None:
        original(found, places, held)
        for each in found._partitions.values():
            each.suspended = False

    return revoking


def first_whatever(_: Any) -> Any:
    """Begin the next record of a chosen partition without looking whether it may begin."""
    return lambda _book, each: each.waiting[0] if each.waiting else None


def refused_as_taken(original: Any) -> Any:
    """Take a commit that failed for one that succeeded."""

    def refused(found: Assignment) -> None:
        original(found)
        for each in found._partitions.values():
            each.committed = each.settled

    return refused


def forgetting_what_is_open(_: Any) -> Any:
    """Forget records that were put back and are yet to be read again."""
    return property(
        lambda each: (
            partition.offset_of(each.waiting[0].message) if each.waiting else None
        )
    )


def received_just_now(original: Any) -> Any:
    """Take the time of receipt of a record that is read again for that of its first reading."""

    def receive(partition: Partition, messages: Sequence[Message], now: float) -> Any:
        partition.receipts = ()
        return original(partition, messages, now)

    return receive


def short_receipts(original: Any) -> Any:
    """Forget when the records behind those of the last poll were received."""

    def put_back(each: Partition) -> None:
        upto = partition.offset_of(each.waiting[-1].message)
        original(each)
        each.receipts = tuple(known for known in each.receipts if known.upto <= upto)

    return put_back


def kept_when_taken(original: Any) -> Any:
    """Keep the state of a partition that is another member's now."""

    def assigned(found: Assignment, held: Any) -> None:
        for each in found._partitions.values():
            each.suspended = False
        original(found, held)

    return assigned


def still_paused(original: Any) -> Any:
    """Drop partitions without their pauses."""

    def forget(found: Assignment, places: Any) -> None:
        paused = found._paused
        original(found, places)
        found._paused = paused

    return forget


def answered_alone(original: Any) -> Any:
    """Give back no claim whose answer was lost."""
    return lambda found: [each for each in original(found) if each.step is Step.HANDLE]


def unremembered(original: Any) -> Any:
    """Forget the claims of a batch whose answer was lost."""

    def judge(found: EarlyClaims, many: Any, deliveries: Any) -> Any:
        yield from original(found, many, deliveries)
        for each in deliveries:
            if each.step is Step.JUDGE:
                each.claim = None

    return judge


def never_too_old(_: Any) -> Any:
    """Judge a batch ahead, and settle it as done."""

    def judge_ahead(_ahead: EarlyClaims, waiting: Any) -> None:
        for each in list(waiting)[1:]:
            each.step = Step.SETTLE

    return judge_ahead


def only_the_last(original: Any) -> Any:
    """Settle all that was received together with what is handled."""

    def settle(each: Partition) -> None:
        while len(each.waiting) > 1:
            each.waiting.popleft()
        original(each)

    return settle


def uncommitted(original: Any) -> Any:
    """Begin partitions without committing where."""

    def begin(calls: Any, places: Any, early: Any, unchanged: Any) -> Any:
        return original(Uncommitting(calls), places, early, unchanged)

    return begin


class Uncommitting:
    """The calls of a client, of which every commit succeeds and none is made."""

    def __init__(self, calls: Any) -> None:
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        return getattr(self._calls, name)

    def send_commit(self, _offsets: Any, /) -> None:
        """Do nothing."""


def nothing_added(original: Any) -> Any:
    """Take every partition without a commit for one that was always there."""
    return lambda *args: original(*args)._replace(added=frozenset())


def unsought(original: Any) -> Any:
    """Go on where the client stands, past what came too early or is to be read first."""

    def begun(place: Any, start: Start, _early: Any) -> Any:
        return original(place, start._replace(seek=False), None)

    return begun


def begun_anyway(original: Any) -> Any:
    """Begin partitions whose start could not be committed, where the client stands."""

    def begin(found: Assignment, starts: Any, among: Any) -> None:
        anyway = {
            place: Start(found.early.get(place, 0), Committed(0, ""), True)
            for place in among
        }
        original(found, anyway | dict(starts), among)

    return begin


LOG: Final = (
    Mutant("begins without a commit", offsets, "beginning", uncommitted),
    Mutant("begins although nothing was committed", Assignment, "begin", begun_anyway),
    Mutant("takes what was added for old", offsets, "topic_start", nothing_added),
    Mutant("begins with what came too early", Partition, "begun", unsought),
    Mutant("commits received, not settled", Partition, "settled", received_as_settled),
    Mutant(
        "takes what was put off for settled", Assignment, "attempted", settled_at_once
    ),
    Mutant("settles all with the first", Partition, "settle", only_the_last),
    Mutant("skips behind a deferral", Assignment, "attempted", skipping),
    Mutant(
        "forgets what stands behind a deferral",
        Assignment,
        "client_calls",
        without("seek", {}),
    ),
    Mutant("never pauses", Assignment, "client_calls", without("pause", frozenset())),
    Mutant("never resumes", Assignment, "client_calls", without("resume", frozenset())),
    Mutant("ignores back-off", Backoff, "wait", returning(0.0)),
    Mutant("never commits", Assignment, "due_commits", returning({})),
    Mutant(
        "takes a refused commit for taken", Assignment, "commit_failed", refused_as_taken
    ),
    Mutant("runs a partition twice", Assignment, "choose", unmarked),
    Mutant("never comes to an end", Assignment, "visit_ended", returning(None)),
    Mutant("gives nothing back", LogWork, "giving_back", lambda _: left_out),
    Mutant(
        "gives back what was answered alone",
        Assignment,
        "unhandled_claims",
        answered_alone,
    ),
    Mutant("forgets which claims it asked for", EarlyClaims, "_judge", unremembered),
    Mutant("renews nothing", LogWork, "renewing", lambda _: left_out),
    Mutant("loses the time of receipt", Partition, "receive", received_just_now),
    Mutant(
        "loses the time of receipt of the rest", Partition, "put_back", short_receipts
    ),
    Mutant(
        "stops behind what was put back", Partition, "first_open", forgetting_what_is_open
    ),
    Mutant("ignores a revoke", Assignment, "revoked", returning(None)),
    Mutant("suspends nothing", Assignment, "revoked", suspended_goes_on),
    Mutant("keeps what did not come back", Assignment, "assigned", kept_when_taken),
    Mutant("ignores a loss", Assignment, "lost", returning(None)),
    Mutant("goes on whatever happened", Assignment, "next_delivery", first_whatever),
    Mutant("goes on before a rebalance", Assignment, "hold_back", returning(None)),
    Mutant("ignores a stop", Assignment, "stop", returning(None)),
    Mutant(
        "takes the steps of what is stale", Partition, "refuse_stale", returning(None)
    ),
    Mutant("ignores a pause of the process", Assignment, "heartbeat", returning(None)),
    Mutant("keeps a pause of a partition it lost", Assignment, "_forget", still_paused),
    Mutant("settles what was judged ahead", EarlyClaims, "judge_ahead", never_too_old),
)


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
            delivery.step = (
                Step.HANDLE if delivery.step is Step.CONFIRM else delivery.step
            )
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
    Mutant(
        "takes what depends on the moment for lasting",
        slot,
        "TIME_DEPENDENT",
        lambda _: frozenset(),
    ),
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
    Mutant("loses the time of receipt", queue_work, "again", received_anew),
    Mutant("gives back what was handled", HeldDelivery, "is_handled", always(False)),
    Mutant("suspends nothing", Hold, "wants_suspension", returning(False)),
    Mutant("never goes on", Window, "go_on", returning(None)),
    Mutant("consumes no more after a cancel", Window, "cancelled", returning(False)),
    Mutant("never leaves", Window, "leave", returning(None)),
    Mutant("forgets what it gave back", Progress, "keep", returning(None)),
    Mutant("knows no earlier delivery", Progress, "receive", unlike),
    Mutant(
        "judges beside a handler",
        Progress,
        "_wait",
        lambda _: lambda _p, _e, fence, delivery: fence(delivery),
    ),
)
