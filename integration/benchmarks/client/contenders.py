"""Contenders: the ways of sending and receiving messages that a benchmark compares on one broker.

``bare`` is the client as its users write it. ``carried`` is the same with the bytes of a token in a header that
nobody checks: it shows how much of the cost is the size alone. ``message`` is mqauth with a token for each
message, and ``batch`` with one signature for up to 64. Other contenders can be handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

from integration.benchmarks.client.rounds import (
    Measured,
    Progress,
    Rounds,
    Variant,
    alternate,
)
from integration.benchmarks.client.workload import LIFETIME
from mqauth.testing.forge import Forge

HEADER: Final = "authorization"
"""The header in which a wrapper's token travels."""
WORK: Final = 100e-6
"""Seconds for which a handler keeps the CPU busy in the comparison with a handler that works."""
Opener = Callable[[bytes, str | None], bytes]
"""Takes body and token as delivered, and returns the authenticated body or raises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much is measured on one broker.

    Args:
        rounds: measured rounds of each contender.
        publish: messages in a publish round.
        consume: messages in a consume round.
        paced: messages in a latency round, which are sent at ``pace``; 0 skips the latency.
        pace: messages a second.
        paced_rounds: latency rounds; these take the same time on any machine.
        enough: asked before each round; once it returns true, no comparison begins another round.
    """

    rounds: int
    publish: int
    consume: int
    paced: int
    pace: float = 200.0
    paced_rounds: int = 3
    enough: Callable[[], bool] = lambda: False


class Wrapper(Protocol):
    """What a contender does to messages around the bare client."""

    name: str
    headed: bool
    """Whether it has a token, which travels in a header."""
    heavy: bool
    """Whether it makes a signature for each message."""

    def seal(self, destination: str, body: bytes, /) -> tuple[bytes, str | None]:
        """Return the body to send, and the token for its header."""

    def opener(self, destination: str, /) -> Opener:
        """Return a function that opens messages, with an empty memory of those it has seen."""


class Bare:
    """The wrapper that does nothing: the client as it is."""

    name = "bare"
    headed = False
    heavy = False

    def seal(self, _destination: str, body: bytes, /) -> tuple[bytes, str | None]:
        """Return the body, and no token."""
        return body, None

    def opener(self, _destination: str, /) -> Opener:
        """Return a function that returns the body."""
        return lambda body, _token: body


class Carried(Bare):
    """A wrapper that sends a token and checks nothing.

    Args:
        token: a token of the size that is to be carried.
    """

    name = "carried"
    headed = True

    def __init__(self, token: str) -> None:
        self._token = token

    def seal(self, _destination: str, body: bytes, /) -> tuple[bytes, str | None]:
        """Return the body and the token."""
        return body, self._token


class Contender(Protocol):
    """One contender on one broker."""

    name: str
    heavy: bool

    def publish(self, count: int, /) -> Measured:
        """Publish ``count`` messages, until the broker has confirmed the last."""

    def consume(self, count: int, work: float, /) -> Measured:
        """Consume ``count`` messages that wait already, with a handler that works ``work`` seconds on each."""

    def paced(self, count: int, pace: float, /) -> Measured:
        """Publish ``pace`` messages a second while consuming, and measure from each publish to its handler."""

    def added(self) -> float:
        """Return by how many bytes a message is larger than a bare one."""

    def close(self) -> None:
        """Delete what it made at the broker."""


Make = Callable[[Any], Contender]
"""Makes a contender on the connections of its broker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerResult:
    """The result on one broker: the comparisons by name, and the bytes added to a message by each contender."""

    comparisons: Mapping[str, Rounds]
    added: Mapping[str, float]


def benchmark_of(
    wrapped: Callable[[Any, Wrapper], Contender],
    signed: Callable[[Any, Forge], Contender],
    batched: Callable[[Any, Forge], Any],
    works: Sequence[float] = (0.0,),
) -> tuple[Callable[..., Iterator[Contender]], Callable[..., BrokerResult]]:
    """Return what yields the contenders of a client, and what compares them all on one broker.

    Both take connections to the broker and what makes further contenders; the second also takes the ``Effort``,
    and ``progress``, which is called with what is measured next.

    Args:
        wrapped: makes a contender of the broker's client and a wrapper.
        signed: makes the contender that signs each message.
        batched: makes the contender that signs in batches; its ``token`` is the one that is carried.
        works: seconds for which handlers keep the CPU busy, one comparison each.
    """

    def contenders(connections: Any, others: Iterable[Make] = ()) -> Iterator[Contender]:
        forge = Forge(lifetime=LIFETIME)
        yield wrapped(connections, Bare())
        yield signed(connections, forge)
        batch = batched(connections, forge)
        yield batch
        yield wrapped(connections, Carried(batch.token()))
        for make in others:
            yield make(connections)

    def measure(
        connections: Any,
        effort: Effort,
        others: Iterable[Make] = (),
        *,
        progress: Progress = lambda _: None,
    ) -> BrokerResult:
        return compare_all(
            contenders(connections, others), effort, works=works, progress=progress
        )

    return contenders, measure


def compare(
    contenders: Sequence[Contender],
    effort: Effort,
    *,
    works: Iterable[float] = (0.0,),
    progress: Progress = lambda _: None,
) -> BrokerResult:
    """Compare contenders in alternating rounds: publish, consume, latency.

    Args:
        contenders: in the order in which they take turns.
        effort: how much is measured.
        works: seconds that a handler works; each makes a comparison ``consume_<n>us``, and 0 makes ``consume``.
        progress: called with what is measured next.
    """

    def rounds_of(
        name: str, bind: Callable[[Contender], Callable[[], Measured]], rounds: int
    ) -> Rounds:
        variants = [Variant(one.name, bind(one)) for one in contenders]
        return alternate(
            variants,
            rounds,
            progress=lambda who: progress(f"{name}, {who}"),
            enough=effort.enough,
        )

    found = {
        "publish": rounds_of(
            "publish",
            lambda one: partial(one.publish, share(one, effort.publish)),
            effort.rounds,
        )
    }
    for work in works:
        # A handler that works gets fewer messages, so that its rounds take as long as the others.
        count = effort.consume // 4 if work else effort.consume
        found[consume_name(work)] = rounds_of(
            consume_name(work), partial(_consuming, count, work), effort.rounds
        )
    if effort.paced:
        found["paced"] = rounds_of(
            "latency",
            lambda one: partial(one.paced, effort.paced, effort.pace),
            effort.paced_rounds,
        )
    return BrokerResult(
        comparisons=found, added={one.name: round(one.added(), 1) for one in contenders}
    )


def compare_all(
    made: Iterable[Contender],
    effort: Effort,
    *,
    works: Iterable[float] = (0.0,),
    progress: Progress = lambda _: None,
) -> BrokerResult:
    """Compare contenders as ``compare`` does, and close them, also where one of them could not be made."""
    contenders: list[Contender] = []
    try:
        contenders += made
        return compare(contenders, effort, works=works, progress=progress)
    finally:
        for contender in contenders:
            contender.close()


def share(contender: Contender, count: int) -> int:
    """Return how many of ``count`` messages a contender gets in one round."""
    # With a signature for each message, a quarter of the messages takes about as long.
    return max(1, count // 4) if contender.heavy else count


def consume_name(work: float) -> str:
    """Return the name of a consume comparison."""
    return f"consume_{work * 1e6:.0f}us" if work else "consume"


def _consuming(count: int, work: float, contender: Contender) -> Callable[[], Measured]:
    return partial(contender.consume, share(contender, count), work)
