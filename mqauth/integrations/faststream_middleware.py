"""What protects a FastStream broker: its middleware, with the pipeline behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from contextvars import ContextVar
from copy import copy
from functools import partial
from importlib import import_module
from inspect import unwrap
from typing import Any, Final
from weakref import WeakKeyDictionary

from faststream import BaseMiddleware
from faststream.exceptions import (
    AckMessage,
    IgnoredException,
    SkipMessage,
    StopConsume,
    SubscriberNotFound,
)

from mqauth.brokers.event_loop import ticking, was_cancelled
from mqauth.brokers.queue.processor import Processor
from mqauth.errors import (
    ConfigurationError,
    MqauthError,
    RejectNow,
    StaleDelivery,
    require,
)
from mqauth.flow import arun
from mqauth.integrations.faststream_unverified import (
    check_handlers,
    kinds_of,
    ours,
    passing,
    raise_for,
    require_manual,
    take_over,
)
from mqauth.integrations.framework import (
    LateLetters,
    Letters,
    Turn,
    handle,
    handle_unverified,
)
from mqauth.judging.pipeline import Outcome, Pipeline
from mqauth.judging.selftest import starting
from mqauth.judging.verified import Unverified, Verified
from mqauth.logs import emit
from mqauth.signer import Signer

LEAVES: Final = {
    "faststream.rabbit": "mqauth.integrations.faststream_rabbitmq",
    "faststream.kafka": "mqauth.integrations.faststream_kafka",
    "faststream.confluent": "mqauth.integrations.faststream_confluent",
}
"""FastStream's packages, each with the module that makes its client's calls."""
TESTING: Final = (
    "faststream._internal.testing.broker",
    *(f"{package}.testing" for package in LEAVES),
)
"""Modules of FastStream's test brokers."""
_DONE: Final = (AckMessage, SkipMessage)
_STOPS: Final = (StopConsume, SystemExit)
_ANSWER: Final[ContextVar[Any]] = ContextVar("mqauth_answer", default=LEAVES)
"""The answer that a request just got; no message is the default."""


class NotHandledError(MqauthError, IgnoredException):
    """A message was not handled: it was rejected, is a duplicate, or was given back.

    Attributes:
        outcome: what became of it; ``None`` where it is no longer ours.
    """

    code = "not_handled"

    def __init__(self, outcome: Outcome | None) -> None:
        verdict = (
            "the message is no longer ours" if outcome is None else outcome.verdict.value
        )
        why = None if outcome is None else outcome.reason or outcome.cause
        super().__init__(
            f"not handled: {verdict}"
            if why is None
            else f"not handled: {verdict}: {why.value}"
        )
        self.outcome = outcome


class Protection:
    """What protects one broker.

    Args:
        broker: FastStream's.
        guard: the pipeline.
        dead_letters: a sink, or what makes one.
        signer: signs what is published.
        max_body: bytes of body that RabbitMQ takes.

    Raises:
        ConfigurationError: the broker is of another kind.
    """

    def __init__(
        self,
        broker: Any,
        guard: Pipeline | None,
        dead_letters: Letters | None,
        signer: Signer | None,
        max_body: int,
    ) -> None:
        self.leaf = _leaf(broker)
        self.letters = LateLetters(dead_letters)
        self._broker = broker
        self._guard = guard
        self._signer = signer
        self.max_body = max_body
        self._processors: WeakKeyDictionary[Any, Processor] = WeakKeyDictionary()
        self._telling: asyncio.Task[None] | None = None

    def processor(self, subscriber: Any) -> Processor:
        """Return what takes the messages of a subscriber through the pipeline.

        Raises:
            ConfigurationError: the subscriber cannot be protected.
        """
        if subscriber in self._processors:
            return self._processors[subscriber]
        require(self._guard is not None, "subscribers need guard=")
        # without a handler, get_one and iteration would give messages to code that settles nothing
        require(
            subscriber is not None and len(subscriber.calls),
            "get_one and iteration are not protected: use a subscriber with a handler",
        )
        require_manual(subscriber)
        check_handlers(subscriber)
        self._processors[subscriber] = self.leaf.processor(subscriber)(
            self._guard,
            handle,
            dead_letters=self.letters,
            gives_back=True,
            unverified=dict.fromkeys(kinds_of(subscriber), handle_unverified) or None,
        )
        return self._processors[subscriber]

    async def check(self, broker: Any) -> None:
        """Refuse a broker whose subscribers or publishers cannot be protected.

        Raises:
            ConfigurationError: it has such a one.
        """
        for subscriber in broker.subscribers:
            self.processor(subscriber)
        for publisher in broker.publishers:
            self.check_publisher(publisher)
        if self._guard is not None:
            await arun(starting(self._guard))
        require(self._signer or not broker.publishers, "publishers need signer=")

    def check_publisher(self, publisher: Any) -> None:
        """Refuse a publisher of batches.

        Raises:
            ConfigurationError: it is one.
        """
        require(
            not isinstance(publisher, self.leaf.BATCHES),
            "a batch has one set of headers for many messages: leave the publisher's batch= out",
        )

    async def tell(self, *, last: bool = False) -> None:
        """Tell what a rollout has to tell: as a broker starts, each minute after it, and ``last`` as it stops."""
        guard = self._guard
        if self._telling is not None:
            self._telling.cancel()
        if guard is not None:
            await arun(guard.tick(last))
            if not last:
                self._telling = asyncio.create_task(ticking(guard))

    async def start(self, subscriber: Any, start: Callable[[], Any]) -> None:
        """Start a subscriber, which may have been declared after its broker started.

        Raises:
            ConfigurationError: it cannot be protected, or its broker does not prove the append times that are
                believed; no message was taken.
        """
        self.processor(subscriber)
        if self._guard is not None:
            await self.leaf.prove(self._guard.verifier.times, self._broker)
        await start()
        await self.started()

    async def started(self) -> None:
        """Begin what subscribers that have started were given; may be called again.

        Raises:
            OffsetsRefusedError: the broker does not let a group commit.
        """
        for positions in self._positions():
            await positions.started()

    async def stopping(self) -> None:
        """Before the broker stops: leave to others what was begun."""
        for positions in self._positions():
            await positions.stopping()

    def _positions(self) -> list[Any]:
        # Those of records; a queue keeps its own messages.
        return [
            each.positions
            for each in self._processors.values()
            if hasattr(each, "positions")
        ]

    async def prove(self, native: Any) -> None:
        """Have the broker of a delivery prove its append times, once a connection.

        Raises:
            NotHandledError: the connection ended; the broker delivers the message again.
            StopConsume: the broker does not prove them; the message stays unsettled.
        """
        try:
            if self._guard is not None:
                await self.leaf.prove(self._guard.verifier.times, self._broker, native)
        except StaleDelivery as error:
            raise NotHandledError(None) from error
        except ConfigurationError as error:
            emit("consumer.failed", "the subscriber stops: %s", error)
            raise StopConsume from error

    async def publish(self, call_next: Callable[[Any], Any], command: Any) -> Any:
        """Sign what a command publishes, have it published, and verify the answer of a request.

        Raises:
            ConfigurationError: it cannot be signed as it is sent.
            NotHandledError: the answer was not accepted.
        """
        # a copy, so that a middleware before ours can publish its command once more
        command = copy(command)
        # a handler's result may go to another broker than its message came from
        leaf = _leaf(command)
        send: Any = call_next
        # the producer's method is at the end of the chain of middlewares
        while isinstance(send, partial):
            send = send.args[-1]
        require(self._signer is not None, "publishing needs signer=")
        require(
            send.__name__ in ("publish", "request"),
            f"{send.__name__} has one set of headers for many messages",
        )
        asks = send.__name__ == "request"
        require(
            not asks or self._guard is not None,
            "request needs guard=: answers are verified",
        )
        # the test broker makes its answers itself: nobody published them, and so nobody signed them
        answers = asks and type(send.__self__).__module__ not in TESTING
        await leaf.seal(self._broker, command, send, self._signer, answers=answers)
        returned = await call_next(command)
        if answers:
            await self.verify(returned, self._guard, command.timeout)
        elif not asks:
            leaf.check(command, returned)
        _ANSWER.set(returned if asks else LEAVES)
        return returned

    async def verify(self, answer: Any, guard: Any, seconds: float | None) -> None:
        """Judge and settle the answer of a request, in so many seconds.

        Raises:
            NotHandledError: it was not accepted.
            TimeoutError: it could not be decided in time.
        """
        accepted: list[Verified] = []
        calls = Processor(
            self.leaf.ANSWERS,
            guard,
            accepted.append,
            dead_letters=self.letters,
            gives_back=True,
        )
        async with asyncio.timeout(seconds):
            outcome = await calls.process(answer)
        if not accepted:
            raise NotHandledError(outcome)


class Middleware(BaseMiddleware):
    """One message on its way through FastStream, in or out.

    Args:
        msg: the client's, ``None`` where one is published.
        context: FastStream's.
        protection: of the broker.
    """

    def __init__(self, msg: Any, /, *, context: Any, protection: Protection) -> None:
        super().__init__(msg, context=context)
        self._protection = protection
        self._reached: Any = None
        self._turn: Turn | None = None
        self._message: Verified | Unverified | None = None
        self._scope = ExitStack()

    async def on_receive(self) -> None:
        """Judge a message before FastStream parses it.

        Raises:
            NotHandledError: it is not to be handled; it is settled.
            StopConsume: the pipeline cannot settle messages.
            ConfigurationError: its subscriber cannot be protected.
        """
        subscriber = self.context.get_local("handler_")
        # an answer was verified where it was awaited
        if self.msg is _ANSWER.get():
            return
        # FastStream's ``TestBroker`` made a subscriber, to see what a publisher publishes
        calls = [
            unwrap(call.handler._original_call)
            for call in getattr(subscriber, "calls", ())
        ]
        if calls and all(call.__module__ in TESTING for call in calls):
            return
        processor = self._protection.processor(subscriber)
        await self._protection.prove(self.msg)
        self._turn = Turn(partial(processor.process, self.msg))
        self._message = await self._turn.wanted()
        if self._message is None:
            raise _not_handled(self._turn)
        self._scope.enter_context(
            self.context.scope(type(self._message).__name__.lower(), self._message)
        )
        self._scope.enter_context(passing(subscriber, self._message))

    async def consume_scope(self, call_next: Callable[[Any], Any], msg: Any) -> Any:
        """Call the handler, as often as the pipeline wants.

        Raises:
            NotHandledError: it failed for good; its message is settled.
        """
        while self._turn is not None:
            # a middleware before ours calls again what has failed for good
            if self._turn.is_over:
                raise _not_handled(self._turn)
            # Answered only where somebody who is known has asked for that.
            if isinstance(self._message, Unverified):
                msg.reply_to = ""
            else:
                self._protection.leaf.only_signed(msg, self._message)
            take_over(msg)
            try:
                result = await call_next(msg)
                raise_for(msg.committed)
                return result
            except (Exception, asyncio.CancelledError) as error:
                if isinstance(error, (*_DONE, *_STOPS)) or was_cancelled():
                    raise
                self._turn.end(ours(error))
                if await self._turn.wanted() is None:
                    raise _not_handled(self._turn) from error
        return await call_next(msg)

    async def after_processed(
        self, exc_type: Any = None, exc_val: Any = None, exc_tb: Any = None
    ) -> bool:
        """Settle a message once its handler's result is published; give it back where that may succeed later.

        Raises:
            StopConsume: the pipeline cannot settle messages.
            NotHandledError: no handler takes the message.
        """
        turn = self._turn
        with self._scope:
            if turn is None or turn.is_over:
                return False
            # only a publish meets a broker: a file that a parser does not find is an OSError, too
            published = exc_val is not None and self._reached is not None
            stops = exc_val is not None and (
                not isinstance(exc_val, Exception) or isinstance(exc_val, _STOPS)
            )
            if stops or (published and self._reached.is_out_of_reach(exc_val)):
                await turn.give_back()
                return False
            # FastStream cannot be asked to parse, or to publish a result, once more
            end = (
                None
                if exc_val is None or isinstance(exc_val, _DONE)
                else RejectNow(type(exc_val).__name__)
            )
            turn.end(end)
            while await turn.wanted() is not None:
                turn.end(end)
            stop = _not_handled(turn)
            # the text of SubscriberNotFound, which FastStream logs, is the message with its token and its body
            if isinstance(stop, StopConsume) or isinstance(exc_val, SubscriberNotFound):
                raise stop from stop.__cause__
        return False

    async def publish_scope(self, call_next: Callable[[Any], Any], cmd: Any) -> Any:
        """Sign what is published."""
        self._reached = _leaf(cmd)
        return await self._protection.publish(call_next, cmd)


def _leaf(broker: Any) -> Any:
    modules = [kind.__module__ for kind in type(broker).__mro__]
    leaves = [
        leaf
        for each in modules
        for package, leaf in LEAVES.items()
        if each.startswith(f"{package}.")
    ]
    require(
        leaves,
        "protect takes FastStream's RabbitBroker, KafkaBroker or Confluent's KafkaBroker",
    )
    return import_module(leaves[0])


def _not_handled(turn: Turn) -> Exception:
    try:
        return NotHandledError(turn.outcome())
    except Exception as error:
        emit("consumer.failed", "the subscriber stops: %s", error)
        stop = StopConsume()
        stop.__cause__ = error
        return stop
