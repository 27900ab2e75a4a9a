"""Reads a dead letter, whatever bytes it has, believes nothing unchecked, and restores the original message.

Whoever may write to the dead-letter queue can write anything into it. ``intact`` says that the original could be
restored, and that the letter's id and digest, computed again, are the ones that it names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

from mqauth.audit.query import RUNGS
from mqauth.audit.record import MAX_SOURCE, iso_time
from mqauth.errors import MalformedMessage, Reason, Rejection, refusing, require
from mqauth.letters.dead_letter import (
    LIVE_PROPERTIES,
    PREFIX,
    WRITTEN_ON_LETTERS,
    content_digest,
    letter_id,
)
from mqauth.letters.release import MAX_HOPS
from mqauth.logs import harmless
from mqauth.wire import destination, envelope, identity, json_form, strict_json
from mqauth.wire.claims import Claims
from mqauth.wire.message import TOKEN_HEADER, Message, Origin, fold

UNKNOWN: Final = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """One dead letter as it lies in its queue or topic.

    Args:
        message: as the broker has it.
        handle: what the letter box needs to remove this very letter.
    """

    message: Message
    handle: Any = field(default=None, compare=False)

    @property
    def mark(self) -> str:
        """SHA-256 of the letter as it lies; only letters that are byte for byte the same have the same mark."""
        return content_digest(self.message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a letter says. Its texts are harmless to show, and nothing in it but ``intact`` is proven.

    Args:
        mark: ``Letter.mark``.
        id: the dead letter's id; the mark, where the letter names none.
        reason: one of ``Reason``, or ``unknown``.
        detail, scope, destination, source, audit: as the letter says.
        time: UTC seconds of the verdict, ``None`` where the letter does not say.
        count: how often the message was dead-lettered, this letter included.
        history: earlier letters of the message: their ids, reasons and times of release.
        form: ``whole``, ``json``, ``reference`` or ``unknown``.
        size: bytes of the letter's body.
        original: the message as it was rejected, ``None`` where it cannot be restored.
        intact: whether id and digest hold for the original.
        fault: why it is not intact.
        claims, kid, alg: what the token claims, as far as it can be parsed.
        rung: of its destination, where a handler got the message without a proof of who sent it.
        consumer: the scope exactly as the letter says, for ids and releases; not harmless to show.
    """

    mark: str
    id: str
    reason: str
    detail: str
    scope: str
    destination: str
    source: str
    audit: str
    time: float | None
    count: int
    history: tuple[Mapping[str, str], ...]
    form: str
    size: int
    original: Message | None
    intact: bool
    fault: str | None
    claims: Claims | None
    kid: str | None
    alg: str | None
    rung: str | None = None
    consumer: str = field(default="", repr=False)

    @property
    def issuer(self) -> str:
        """The claimed ``iss``, harmless to show; empty where there is none."""
        return "" if self.claims is None else harmless(self.claims.iss)

    @property
    def subject(self) -> str:
        """The claimed ``sub``, harmless to show; empty where there is none."""
        return "" if self.claims is None else harmless(self.claims.sub)

    def as_dict(self) -> dict[str, Any]:
        """Return the reading as JSON values, the original in the JSON form of a message."""
        same = (
            "id",
            "mark",
            "reason",
            "detail",
            "time",
            "scope",
            "destination",
            "source",
            "audit",
            "count",
        )
        return {name: getattr(self, name) for name in same} | {
            "history": [dict(hop) for hop in self.history],
            "form": self.form,
            "size": self.size,
            "intact": self.intact,
            "fault": self.fault,
            "rung": self.rung,
            "kid": None if self.kid is None else harmless(self.kid),
            "alg": self.alg,
            "claimed": None if self.claims is None else self.claims.as_dict(),
            "message": None
            if self.original is None
            else json_form.to_form(self.original),
        }


def read(letter: Letter) -> Reading:
    """Read a letter. It never raises, whatever the letter holds."""
    message = letter.message
    lines = letter_headers(message)
    form = lines.get("form", "whole")
    original, fault, named = None, None, lines.get("id", "")
    try:
        if form == "whole":
            original = _from_whole(message, lines)
        elif form == "json":
            original = json_form.from_form(_parse(message.body or b"", "body"))
        else:
            fault = (
                "only a reference is left: the message was too large for a letter"
                if form == "reference"
                else "the letter has no known form"
            )
    except MalformedMessage as error:
        fault = str(error)
    # A forged letter must not end the pass over all letters, whatever it makes a parser raise.
    except Exception as error:
        fault = f"{type(error).__name__} while it was read"
    if original is not None:
        digest = content_digest(original)
        if digest != lines.get("digest"):
            fault = "the digest belongs to another message"
        elif letter_id(original, lines.get("scope", ""), digest=digest) != named:
            fault = "the id belongs to another letter"
    # The earlier letters; none where what the letter says of them is not in its form.
    hops: Any = None
    with suppress(strict_json.StrictJSONError):
        hops = strict_json.loads(
            lines.get("history", "").encode("utf-8", "backslashreplace"), depth=2
        )
    good = (
        type(hops) is list
        and len(hops) <= MAX_HOPS
        and all(type(hop) is dict for hop in hops)
    )
    mark = letter.mark
    return Reading(
        mark=mark,
        id=named if re.fullmatch("[0-9a-f]{64}", named) else mark,
        reason=lines.get("reason", "") if lines.get("reason") in set(Reason) else UNKNOWN,
        detail=harmless(lines.get("detail", "")),
        scope=harmless(lines.get("scope", "")),
        destination=harmless(lines.get("destination", "")),
        source=harmless(lines.get("source", ""), MAX_SOURCE),
        audit=harmless(lines.get("audit", "")),
        time=_seconds(lines.get("time", "")),
        count=int(lines["count"])
        if re.fullmatch(r"[1-9][0-9]{0,6}", lines.get("count", ""))
        else 1,
        history=tuple(
            {
                name: harmless(str(hop.get(name) or ""))
                for name in ("id", "reason", "released")
            }
            for hop in (hops if good else ())
        ),
        form=form if form in ("whole", "json", "reference") else UNKNOWN,
        size=len(message.body or b""),
        original=original,
        intact=fault is None,
        fault=fault,
        rung=lines["rung"] if lines.get("rung") in RUNGS else None,
        consumer=lines.get("scope", ""),
        **_token_fields(original),
    )


def letter_headers(message: Message) -> dict[str, str]:
    """Return a letter's own headers as text, by their names without prefix; of a repeated one the first."""
    return {
        name.removeprefix(PREFIX): value
        if isinstance(value, str)
        else value.decode("utf-8", "backslashreplace")
        for name, value in reversed(message.headers)
        if name.startswith(PREFIX) and isinstance(value, str | bytes)
    }


def _from_whole(message: Message, lines: Mapping[str, str]) -> Message:
    """Return the original of a letter that kept body and headers."""
    address = lines.get("destination", "")
    parsed = destination.parse(address)
    metadata: Any = _parse(
        lines.get("metadata", "{}").encode("utf-8", "backslashreplace"), "metadata"
    )
    require(
        isinstance(metadata, dict), "the letter's metadata is no object", MalformedMessage
    )
    require(
        not metadata.get("stripped"),
        "headers in mqauth's own names were stripped from it",
        MalformedMessage,
    )
    # The headers that stayed headers of the letter, the token under its own name.
    written = WRITTEN_ON_LETTERS if parsed[0] == destination.RABBITMQ else ()
    kept = [
        (TOKEN_HEADER if name == f"{PREFIX}token" else name, value)
        for name, value in message.headers
        if name == f"{PREFIX}token"
        or (name not in written and not fold(name).startswith(PREFIX))
    ]
    # Those of the metadata go back into their places among them; the order of headers is signed.
    pairs = metadata.get("headers", [])
    require(
        isinstance(pairs, list)
        and all(isinstance(pair, list) and len(pair) == 2 for pair in pairs),
        "the letter's metadata has no list of headers",
        MalformedMessage,
    )
    total = len(kept) + len(pairs)
    places = metadata.get("places", list(range(len(kept), total)))
    require(
        isinstance(places, list)
        and all(type(at) is int and 0 <= at < total for at in places),
        "the letter's metadata has a header at a place that does not exist",
        MalformedMessage,
    )
    require(
        len(set(places)) == len(pairs) and len(places) == len(pairs),
        "the letter's metadata does not have one place for each header",
        MalformedMessage,
    )
    require(
        all(isinstance(name, str) for name, _ in pairs),
        "a header's name is text",
        MalformedMessage,
    )
    moved, stayed = (
        dict(
            zip(
                places,
                [(name, json_form.value_from_form(tagged)) for name, tagged in pairs],
                strict=True,
            )
        ),
        iter(kept),
    )
    headers = tuple(moved[at] if at in moved else next(stayed) for at in range(total))
    own = {
        name: value
        for name, value in message.properties.items()
        if name not in LIVE_PROPERTIES
    }
    live = metadata.get("properties", {})
    require(
        isinstance(live, dict) and all(isinstance(value, str) for value in live.values()),
        "the letter's metadata has no table of properties",
        MalformedMessage,
    )
    own |= {name: value for name, value in live.items() if name in LIVE_PROPERTIES}
    # Where it came from, as the letter says. Its id proves whether that is true.
    scope, source = lines.get("scope"), lines.get("source", "")
    origin = (
        Origin(scope=scope, queue=source, exchange=parsed[1], routing_key=parsed[2])
        if parsed[0] == destination.RABBITMQ
        else Origin.of_record(source, scope=scope)
    )
    return Message(
        destination=address,
        body=message.body,
        key=message.key,
        properties=own if parsed[0] == destination.RABBITMQ else {},
        headers=headers,
        origin=require(
            origin, "the letter's source is not a place in a topic", MalformedMessage
        ),
    )


def _parse(raw: bytes, part: str) -> Any:
    with refusing(
        strict_json.StrictJSONError,
        lambda error: f"the letter's {part} is {error}",
        MalformedMessage,
    ):
        return strict_json.loads(raw, depth=json_form.JSON_DEPTH, wide=True)


def _token_fields(original: Message | None) -> dict[str, Any]:
    """Return what the token of an original claims: ``kid``, ``alg`` and ``claims``, ``None`` where unreadable."""
    with suppress(Rejection):
        if original is not None:
            opened, claims = identity.opened_token(envelope.token_of(original))
            return {"kid": opened.kid, "alg": opened.algorithm, "claims": claims}
    return {"kid": None, "alg": None, "claims": None}


def _seconds(text: str) -> float | None:
    try:
        moment = datetime.fromisoformat(text)
        return None if moment.tzinfo is None else moment.timestamp()
    except (ValueError, OverflowError):
        return None


def time_text(seconds: float | None) -> str:
    """Return UTC seconds as RFC 3339; empty where there are none, or no calendar has the time."""
    try:
        return "" if seconds is None else iso_time(seconds)
    except (OverflowError, ValueError, OSError):
        return ""


def proven(reading: Reading, original: Message) -> Reading:
    """Return the reading of a letter whose original was found elsewhere and has the id that the letter names."""
    return replace(
        reading,
        original=original,
        intact=True,
        fault=None,
        destination=harmless(original.destination),
        **_token_fields(original),
    )


def redeliverable(
    original: Message, *, scope: str, now: float, proven: bool = True
) -> Message:
    """Return an original as it would be delivered again.

    It has no headers and properties that brokers write, or that would make one send copies elsewhere or delay it.
    A ``CC`` stays where the producer's token covers it, since the producer wanted it then.

    Args:
        original: restored.
        scope: for which it is judged.
        now: UTC seconds, at which the broker would append it.
        proven: whether the token is verified before anything is sent; otherwise it covers nothing.
    """
    claims = _token_fields(original)["claims"] if proven else None
    dropped = {"BCC", "x-delay", "timestamp_in_ms", "CC"} - set(
        () if claims is None else claims.mqa.hdr
    )
    live = ("user-id", "expiration", "delivery-mode", "cluster-id")
    return replace(
        original,
        headers=tuple(
            pair
            for pair in original.headers
            if pair[0] not in dropped and not envelope.is_broker_written(pair[0])
        ),
        properties={
            name: value for name, value in original.properties.items() if name not in live
        },
        origin=replace(
            original.origin,
            scope=scope,
            timestamp_ms=int(now * 1000),
            timestamp_type="append",
            redelivered=False,
        ),
    )
