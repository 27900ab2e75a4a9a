"""FastStream: ``protect`` a ``RabbitBroker``, a ``KafkaBroker`` or Confluent's ``KafkaBroker``.

Its subscribers handle only what was verified, what they reject becomes a dead letter, and what the broker
publishes is signed. Install the ``faststream`` extra.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Final, TypeVar

from mqauth.errors import needs_extra, require

with needs_extra("faststream"):
    from faststream import AckPolicy, Context

from mqauth.brokers.amqp_messages import DEFAULT_MAX_BODY
from mqauth.brokers.event_loop import Leaving
from mqauth.integrations.faststream_middleware import (
    Middleware,
    NotHandledError,
    Protection,
)
from mqauth.integrations.faststream_unverified import kinds_of, require_manual, unverified
from mqauth.integrations.framework import Letters
from mqauth.judging.pipeline import Pipeline
from mqauth.judging.verified import Unverified, Verified
from mqauth.signer import Signer

__all__ = [
    "NotHandledError",
    "UnverifiedMessage",
    "VerifiedMessage",
    "protect",
    "unverified",
]

VerifiedMessage = Annotated[Verified, Context("verified")]
"""The type of a handler's parameter that gets the verified message."""
UnverifiedMessage = Annotated[Unverified, Context("unverified")]
"""The type of a parameter of the handler behind ``filter=unverified``: the message that nothing proved."""
SIGNED: Final = "Signed: every message carries an mqauth token, and no handler gets one whose token does not hold."
ROLLING: Final = "Signed, with exceptions: a handler of its own gets messages that nothing has proved yet."
B = TypeVar("B")


def protect(
    broker: B,
    *,
    guard: Pipeline | None = None,
    dead_letters: Letters | None = None,
    signer: Signer | None = None,
    max_body: int = DEFAULT_MAX_BODY,
) -> B:
    """Have a broker handle only what was verified, and sign what it publishes; call it before its subscribers.

    mqauth settles the messages, whatever FastStream's ``AckPolicy`` would do: subscribers get
    ``AckPolicy.MANUAL``. A deferred message holds its subscriber on Kafka, and a place of the prefetch on
    RabbitMQ. Subscribers that cannot be protected are refused: other acknowledgements where they are declared,
    batches, several workers and streams when the broker starts.

    While a rollout goes on, messages that nothing proved reach the handler behind ``filter=unverified`` alone.

    Args:
        broker: FastStream's; it is changed, and returned.
        guard: the pipeline; without it there may be no subscribers.
        dead_letters: where rejected messages go, or a function that returns that once the broker starts; it may be
            asynchronous. A sink that blocks is called on a thread.
        signer: signs what is published; without it nothing may be.
        max_body: bytes of body that RabbitMQ takes, its ``max_message_size``: a larger message is refused alone.
            Clients of Kafka have such a setting themselves.

    Raises:
        ConfigurationError: neither guard nor signer is given, a guard has no dead letters or no audit, the broker
            is of another kind, is protected already, or has subscribers.
    """
    require(
        guard is not None or signer is not None, "protect takes guard=, signer= or both"
    )
    if guard is not None:
        require(guard.audit is not None, "a consumer's pipeline needs audit=")
        require(dead_letters is not None, "guard= needs dead_letters=")
    protected: Any = broker
    protection = Protection(protected, guard, dead_letters, signer, max_body)
    require(
        not protected.subscribers, "protect a broker before its subscribers are declared"
    )
    require(
        not hasattr(protected, "_mqauth"),
        "the broker is protected already: give guard= and signer= in one call",
    )
    protected.config.broker_config.ack_policy = AckPolicy.MANUAL
    protected.add_middleware(partial(Middleware, protection=protection))
    protected.__class__ = _protected(type(protected))
    protected._mqauth = protection
    return broker


def _protected(kind: Any) -> type:
    """Return a class of brokers that refuse what cannot be protected, and tell on their page what is signed."""

    class Protected(kind):  # type: ignore[misc]
        __slots__ = ()
        __doc__ = kind.__doc__

        @property
        def subscribers(self) -> Any:
            return _marked(super().subscribers)

        @property
        def publishers(self) -> Any:
            return _marked(super().publishers)

        def subscriber(self, *args: Any, **settings: Any) -> Any:
            subscriber = super().subscriber(*args, **settings)
            require_manual(subscriber)
            subscriber.start = partial(self._mqauth.start, subscriber, subscriber.start)
            return subscriber

        def publisher(self, *args: Any, **settings: Any) -> Any:
            publisher = super().publisher(*args, **settings)
            self._mqauth.check_publisher(publisher)
            return publisher

        def include_router(self, router: Any, **settings: Any) -> None:
            for subscriber in router.subscribers:
                require_manual(subscriber)
            for publisher in router.publishers:
                self._mqauth.check_publisher(publisher)
            super().include_router(router, **settings)

        async def start(self) -> None:
            await self._mqauth.check(self)
            await self._mqauth.letters.start()
            await self._mqauth.tell()
            await super().start()
            await self._mqauth.started()

        async def stop(self, *error: Any, **named: Any) -> None:
            leaving = Leaving(self.config.graceful_timeout or 0.0)
            await leaving.wait(self._mqauth.stopping())
            await leaving.wait(super().stop(*error, **named))
            await leaving.wait(self._mqauth.tell(last=True))

    Protected.__name__, Protected.__qualname__ = kind.__name__, kind.__qualname__
    return Protected


def _marked(endpoints: list[Any]) -> list[Any]:
    """Have the AsyncAPI page say of each channel that it is signed."""
    for endpoint in endpoints:
        if "schema" not in endpoint.__dict__:
            endpoint.schema = partial(_signed, endpoint, endpoint.schema)
    return endpoints


def _signed(endpoint: Any, schema: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    told, channels = ROLLING if kinds_of(endpoint) else SIGNED, schema().items()
    return {
        name: replace(spec, description=f"{spec.description or ''}\n\n{told}".strip())
        for name, spec in channels
    }
