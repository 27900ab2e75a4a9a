"""Spans: a handler runs inside one that continues the message's trace, where it carries any.

Trace headers are never covered by a token and never looked at for a verdict: whoever may write to the broker
can forge them. The span is linked to, not parented by, them unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from opentelemetry import trace
from opentelemetry.propagate import extract
from opentelemetry.trace import Link, SpanKind, Tracer

from mqauth._version import __version__
from mqauth.flow import is_async
from mqauth.judging.pipeline import Handler
from mqauth.judging.verified import Verified
from mqauth.wire.message import Message

_TRACE_HEADERS = ("traceparent", "tracestate", "baggage")


def traced(handler: Handler, tracer: Tracer | None = None, *, trust_parent: bool = True) -> Handler:
    """Return a handler that runs inside a span named after its destination.

    Args:
        handler: of either colour; the result is of the same.
        tracer: by default the global provider's.
        trust_parent: continue the trace the message names; ``False`` starts a new one that links to it.
    """
    found = tracer or trace.get_tracer("mqauth", __version__)
    if is_async(handler):

        async def run_async(verified: Verified) -> Any:
            with _span(found, verified, trust_parent):
                result: Awaitable[Any] = handler(verified)
                return await result

        return run_async

    def run(verified: Verified) -> Any:
        with _span(found, verified, trust_parent):
            return handler(verified)

    return run


def carrier(message: Message) -> dict[str, str]:
    """Return the trace headers of a message as text; what is not text is left out."""
    found: dict[str, str] = {}
    for name, value in message.headers:
        if name in _TRACE_HEADERS and isinstance(value, str | bytes):
            found[name] = value.decode("ascii", "replace") if isinstance(value, bytes) else value
    return found


def _span(tracer: Tracer, verified: Verified, trust_parent: bool) -> Any:
    """Return a started span as a context; its attributes are the verified ones."""
    context = extract(carrier(verified._facts.message))
    remote = trace.get_current_span(context).get_span_context()
    return tracer.start_as_current_span(
        f"process {verified.destination}",
        context=context if trust_parent else None,
        kind=SpanKind.CONSUMER,
        links=[] if trust_parent or not remote.is_valid else [Link(remote)],
        attributes={
            "messaging.destination.name": verified.destination,
            "messaging.operation.type": "process",
            "mqauth.issuer": verified.issuer,
            "mqauth.subject": verified.subject,
        },
    )
