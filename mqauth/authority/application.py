"""The authority on HTTP, an ASGI application: ``POST /v1/identity``, and its JWK Set as of ``mqauth keys serve``.

A request is read in an event loop, and judged on a thread: keys are fetched, signatures asked of an HSM, and
records written to a disk meanwhile. Whoever was refused too often is not read any more. Refusals are counted by
address and by whose credential is shown: who has none shuts nobody out that shares the address.
Sources: ASGI 3.0; RFC 6749, section 5.2 (errors); RFC 9449 (DPoP).
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, Final

from mqauth import logs
from mqauth.authority.credential import (
    ISSUED,
    SLOW_DOWN,
    UNAVAILABLE,
    Answer,
    Refusal,
    Refused,
    grant_only,
)
from mqauth.authority.issuing import PATH, IdentityAuthority, Rate, Trace
from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.errors import Unavailable, refusing, require
from mqauth.keystore.remote.keyserver import KeyServer, Message
from mqauth.wire import claims, identity, strict_json

MAX_BODY: Final = 16 * 1024
MAX_AGE: Final = 60
"""Seconds for which a copy of the JWK Set is fresh: after them a cut-off is seen."""
REFUSALS: Final = 60
"""Refusals a minute of one address and one holder of a credential; whoever asks on is not read."""
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
Reply = tuple[Answer, dict[str, Any], int]
"""Status, body, and seconds of ``Retry-After``, 0 for none."""


class AuthorityServer:
    """The ASGI application behind ``mqauth authority serve``.

    Args:
        authority: judges requests.
        keys: serves the authority's JWK Set.
        refusals: a minute of one address and one holder of a credential, 0 for any number, where a proxy stands
            in front.
        observers: called with each answer; for metrics. What they raise is logged and changes nothing. They get
            ``answer``, which is ``issued`` or the code of RFC 6749 in the answer, ``refusal``, which is a
            ``Refusal``, a ``Cause``, ``unread``, or empty where an identity was given, ``credential``, the name of
            what was shown, ``subject``, whose identity was given, and ``seconds``. Every text is of a closed list,
            or configured.
        clock: tells the time.
    """

    def __init__(
        self,
        authority: IdentityAuthority,
        keys: KeyServer,
        *,
        refusals: int = REFUSALS,
        observers: Iterable[Callable[..., None]] = (),
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._authority = authority
        self._keys = keys
        self._refusals = Rate(refusals, clock)
        self._lines = logs.Rate(clock)
        self._observers = tuple(observers)
        self._clock = clock

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["path"] != PATH:
            await self._keys(scope, receive, send)
            return
        if scope["method"] != "POST":
            await _send(send, Answer(405, "invalid_request"), {}, [(b"allow", b"POST")])
            return
        began, trace, headers = (
            self._clock.monotonic(),
            Trace(_address(scope)),
            list(scope["headers"]),
        )
        # Refusals are counted by address and holder. Anybody can name a holder, but only with a credential of its
        # issuer's form, and once for each holder.
        shown = [value for name, value in headers if name == b"authorization"]
        credential = (
            shown[0].decode("latin-1").partition(" ")[2].strip(" ")
            if len(shown) == 1
            else ""
        )
        asks = f"{trace.address} {self._authority.desk.holder(credential)}"
        wait = self._refusals.take(asks, counts=False)
        reply: tuple[Reply, str] = (SLOW_DOWN, {}, wait), "unread"
        if not wait:
            raw = None
            try:
                with suppress(TimeoutError):
                    raw = await asyncio.wait_for(_body(receive), timeout=10.0)
            except ConnectionError:
                # Nobody asked for anything, and nobody listens: there is nothing to judge, to record or to answer.
                self._refusals.take(asks)
                return
            reply = await asyncio.to_thread(self._judged, headers, raw, trace, asks)
        (answer, body, wait), why = reply
        # Observers are told; metrics must not keep an identity back.
        told = {
            "answer": answer.error,
            "refusal": why,
            "credential": ""
            if trace.credential is None
            else trace.credential.issuer.name,
            "subject": trace.subject or "" if answer is ISSUED else "",
            "seconds": self._clock.monotonic() - began,
        }
        for observer in self._observers:
            try:
                observer(**told)
            except Exception as error:
                logs.emit(
                    "observer.failed", "an observer failed: %s", type(error).__name__
                )
        challenge = (
            b"www-authenticate",
            f'DPoP algs="{" ".join(identity.ALGORITHMS)}"'.encode(),
        )
        more = [(b"retry-after", str(wait).encode())] if wait else []
        await _send(
            send, answer, body, [*more, *([challenge] if answer.status == 401 else [])]
        )

    def _judged(
        self, headers: Headers, body: bytes | None, trace: Trace, asks: str
    ) -> tuple[Reply, str]:
        """Return the answer to a request, and why it is none with an identity."""
        try:
            try:
                wit, lifetime = self._authority.issue(
                    **_asked(headers, body), trace=trace
                )
            except Refused as refused:
                # What is refused for its rate is honest, and must not shut out others of its address.
                if refused.refusal is not Refusal.RATE_EXCEEDED:
                    self._refusals.take(asks)
                self._authority.refuse(refused, trace)
                return (refused.answer, {}, refused.wait), refused.refusal.value
        except Unavailable as error:
            if self._lines.admits("authority.unavailable", (error.cause.value,), {}):
                logs.emit("authority.unavailable", "no identity can be given: %s", error)
            return (UNAVAILABLE, {}, 5), error.cause.value
        # Seconds from now, so that the clock of whoever asked does not matter.
        return (
            ISSUED,
            {
                "wit": wit,
                "sub": trace.subject,
                "expires_in": lifetime,
                "renew_in": lifetime // 2,
            },
            0,
        ), ""


def _asked(headers: Headers, body: bytes | None) -> dict[str, Any]:
    """Return what a request asks for, as ``IdentityAuthority.issue`` takes it.

    Raises:
        Refused: ``request_malformed``, or ``dpop_invalid`` where there is not exactly one proof.
    """
    given = [value for name, value in headers if name == b"authorization"]
    proofs = [value for name, value in headers if name == b"dpop"]
    scheme, _, credential = (
        (given[0] if len(given) == 1 else b"").decode("latin-1").partition(" ")
    )
    grant_only(
        (
            body is not None,
            Refusal.REQUEST_MALFORMED,
            f"the body is over {MAX_BODY} bytes, or came too slowly",
        ),
        (
            scheme.lower() in ("bearer", "dpop") and credential.isascii(),
            Refusal.CREDENTIAL_MALFORMED,
            "there is not exactly one Authorization, of Bearer or DPoP",
        ),
        (
            len(proofs) == 1 and proofs[0].isascii(),
            Refusal.DPOP_INVALID,
            "there is not exactly one proof",
        ),
    )
    # The subject that the body names, if there is one.
    with refusing(
        ValueError,
        lambda error: f"the body: {error}",
        partial(Refused, Refusal.REQUEST_MALFORMED),
    ):
        named: Any = strict_json.loads(body, depth=2) if body else {}
        require(
            type(named) is dict and named.keys() <= {"sub"},
            "no object with sub",
            ValueError,
        )
        require(claims.is_name(named.get("sub", "-")), "its sub is no name", ValueError)
    return {
        "shown": credential.strip(" "),
        "proof": proofs[0].decode("ascii"),
        "subject": named.get("sub"),
        "bound": scheme.lower() == "dpop",
    }


async def _body(receive: Receive) -> bytes | None:
    """Return the body of a request, ``None`` where it is too large.

    Raises:
        ConnectionError: its sender went away.
    """
    raw, more = b"", True
    while more and len(raw) <= MAX_BODY:
        message = await receive()
        require(
            message["type"] == "http.request", "its sender went away", ConnectionError
        )
        raw, more = raw + message.get("body", b""), message.get("more_body", False)
    return raw if len(raw) <= MAX_BODY else None


def _address(scope: Message) -> str:
    """Return the address that a request came from; of IPv6 the /64, which one site has all of."""
    try:
        address = ipaddress.ip_address(scope["client"][0])
    except (KeyError, TypeError, ValueError):
        return "unknown"
    mapped = getattr(address, "ipv4_mapped", None)
    return (
        str(mapped or address)
        if address.version == 4 or mapped
        else str(ipaddress.ip_network((address, 64), strict=False))
    )


async def _send(
    send: Send, answer: Answer, body: dict[str, Any], more: list[tuple[bytes, bytes]]
) -> None:
    raw = strict_json.dumps(body or {"error": answer.error})
    await send(
        {
            "type": "http.response.start",
            "status": answer.status,
            "headers": [
                (b"content-type", b"application/json"),
                (b"cache-control", b"no-store"),
                (b"x-content-type-options", b"nosniff"),
                (b"content-length", str(len(raw)).encode()),
                *more,
            ],
        }
    )
    await send({"type": "http.response.body", "body": raw})
