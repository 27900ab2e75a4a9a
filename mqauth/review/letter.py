"""Reads a dead letter, whatever bytes it has, and restores the original message.

Whoever may write to the dead-letter queue can write anything into it, so nothing in a
letter is believed unchecked. ``intact`` says that the original could be restored, and
that the letter's id and digest, computed again, are the ones that it names.
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
from mqauth.errors import MalformedMessage, Reason, Rejection, refusing
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
        """SHA-256 of the letter as it lies.

        Only letters that are byte for byte the same have the same mark.
        """
        return content_digest(self.message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a letter says. Its texts are harmless to show; only ``intact`` is proven.

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
        rung: of its destination, where a handler got the message without a proof of who
            sent it.
        consumer: the scope exactly as the letter says, for ids and releases; not harmless
            to show.
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
        kid = None if self.kid is None else harmless(self.kid)
        claims = None if self.claims is None else self.claims.as_dict()
        original = None if self.original is None else json_form.to_form(self.original)

        return {
            "id": self.id,
            "mark": self.mark,
            "reason": self.reason,
            "detail": self.detail,
            "time": self.time,
            "scope": self.scope,
            "destination": self.destination,
            "source": self.source,
            "audit": self.audit,
            "count": self.count,
            "history": [dict(hop) for hop in self.history],
            "form": self.form,
            "size": self.size,
            "intact": self.intact,
            "fault": self.fault,
            "rung": self.rung,
            "kid": kid,
            "alg": self.alg,
            "claimed": claims,
            "message": original,
        }


def read(letter: Letter) -> Reading:
    """Read a letter. It never raises, whatever the letter holds."""
    mark = letter.mark
    message = letter.message
    headers = letter_headers(message)
    original, fault = _restore(message, headers)

    # What is not in its form counts as not said.
    id = headers.get("id", "")
    if not re.fullmatch("[0-9a-f]{64}", id):
        id = mark
    reason = headers.get("reason", "")
    if reason not in set(Reason):
        reason = UNKNOWN
    form = headers.get("form", "whole")
    if form not in ("whole", "json", "reference"):
        form = UNKNOWN
    count = headers.get("count", "")
    if not re.fullmatch("[1-9][0-9]{0,6}", count):
        count = "1"
    rung = headers.get("rung")
    if rung not in RUNGS:
        rung = None

    scope = headers.get("scope", "")
    return Reading(
        mark=mark,
        id=id,
        reason=reason,
        detail=harmless(headers.get("detail", "")),
        scope=harmless(scope),
        destination=harmless(headers.get("destination", "")),
        source=harmless(headers.get("source", ""), MAX_SOURCE),
        audit=harmless(headers.get("audit", "")),
        time=_seconds(headers.get("time", "")),
        count=int(count),
        history=_history(headers),
        form=form,
        size=len(message.body or b""),
        original=original,
        intact=fault is None,
        fault=fault,
        rung=rung,
        consumer=scope,
        **_token_fields(original),
    )


def letter_headers(message: Message) -> dict[str, str]:
    """Return a letter's own headers as text, by their names without prefix.

    Of a repeated header the first counts.
    """
    headers: dict[str, str] = {}
    for name, value in message.headers:
        if not name.startswith(PREFIX):
            continue
        text: object = value
        if isinstance(value, bytes):
            text = value.decode("utf-8", "backslashreplace")
        if isinstance(text, str):
            headers.setdefault(name.removeprefix(PREFIX), text)
    return headers


def _restore(
    message: Message, headers: Mapping[str, str]
) -> tuple[Message | None, str | None]:
    """Return the original of a letter, and why the letter is not intact, if it is not."""
    form = headers.get("form", "whole")
    try:
        if form == "whole":
            original = _from_whole(message, headers)
        elif form == "json":
            original = json_form.from_form(_parse(message.body or b"", "body"))
        elif form == "reference":
            raise MalformedMessage(
                "only a reference is left: the message was too large for a letter"
            )
        else:
            raise MalformedMessage("the letter has no known form")
    except MalformedMessage as error:
        return None, str(error)
    # A forged letter must not end the pass over all letters, whatever a parser raises.
    except Exception as error:
        return None, f"{type(error).__name__} while it was read"

    digest = content_digest(original)
    if digest != headers.get("digest"):
        return original, "the digest belongs to another message"
    scope = headers.get("scope", "")
    if letter_id(original, scope, digest=digest) != headers.get("id", ""):
        return original, "the id belongs to another letter"
    return original, None


def _history(headers: Mapping[str, str]) -> tuple[dict[str, str], ...]:
    """Return the earlier letters; none where what the letter says of them has a fault."""
    raw = headers.get("history", "").encode("utf-8", "backslashreplace")
    try:
        hops: Any = strict_json.loads(raw, depth=2)
    except strict_json.StrictJSONError:
        return ()
    if type(hops) is not list or len(hops) > MAX_HOPS:
        return ()

    names = ("id", "reason", "released")
    history = []
    for hop in hops:
        if type(hop) is not dict:
            return ()
        history.append({name: harmless(str(hop.get(name) or "")) for name in names})
    return tuple(history)


def _from_whole(message: Message, headers: Mapping[str, str]) -> Message:
    """Return the original of a letter that kept body and headers."""
    address = headers.get("destination", "")
    parts = destination.parse(address)
    on_rabbitmq = parts[0] == destination.RABBITMQ

    metadata: Any = _parse(
        headers.get("metadata", "{}").encode("utf-8", "backslashreplace"), "metadata"
    )
    if not isinstance(metadata, dict):
        raise MalformedMessage("the letter's metadata is no object")
    if metadata.get("stripped"):
        raise MalformedMessage("headers in mqauth's own names were stripped from it")

    restored = _original_headers(message, metadata, on_rabbitmq=on_rabbitmq)

    # The broker may change the live properties of a letter, so the metadata has them.
    live = metadata.get("properties", {})
    if not isinstance(live, dict) or not all(
        isinstance(value, str) for value in live.values()
    ):
        raise MalformedMessage("the letter's metadata has no table of properties")
    own = {
        name: value
        for name, value in message.properties.items()
        if name not in LIVE_PROPERTIES
    }
    own |= {name: value for name, value in live.items() if name in LIVE_PROPERTIES}

    # Where it came from, as the letter says. Its id proves whether that is true.
    scope = headers.get("scope")
    source = headers.get("source", "")
    origin: Origin | None
    if on_rabbitmq:
        origin = Origin(
            scope=scope, queue=source, exchange=parts[1], routing_key=parts[2]
        )
    else:
        origin = Origin.of_record(source, scope=scope)
    if origin is None:
        raise MalformedMessage("the letter's source is not a place in a topic")

    return Message(
        destination=address,
        body=message.body,
        key=message.key,
        properties=own if on_rabbitmq else {},
        headers=restored,
        origin=origin,
    )


def _original_headers(
    message: Message, metadata: Mapping[str, Any], *, on_rabbitmq: bool
) -> tuple[tuple[str, Any], ...]:
    """Return the headers of an original, in their order: it is signed."""
    # Those that stayed headers of the letter, the token under its own name.
    written = WRITTEN_ON_LETTERS if on_rabbitmq else ()
    kept = []
    for name, value in message.headers:
        if name == f"{PREFIX}token":
            kept.append((TOKEN_HEADER, value))
        elif name not in written and not fold(name).startswith(PREFIX):
            kept.append((name, value))

    # Those in the metadata would act on the letter, or the client could not send them.
    pairs = metadata.get("headers", [])
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 for pair in pairs
    ):
        raise MalformedMessage("the letter's metadata has no list of headers")

    # The place of each among all; by default they come after those that were kept.
    total = len(kept) + len(pairs)
    places = metadata.get("places", [*range(len(kept), total)])
    if not isinstance(places, list) or not all(
        type(place) is int and 0 <= place < total for place in places
    ):
        raise MalformedMessage(
            "the letter's metadata has a header at a place that does not exist"
        )
    if len(places) != len(pairs) or len(set(places)) != len(pairs):
        raise MalformedMessage(
            "the letter's metadata does not have one place for each header"
        )

    if not all(isinstance(pair[0], str) for pair in pairs):
        raise MalformedMessage("a header's name is text")
    moved = {}
    for place, (name, tagged) in zip(places, pairs, strict=True):
        moved[place] = (name, json_form.value_from_form(tagged))

    rest = iter(kept)
    return tuple(moved[place] if place in moved else next(rest) for place in range(total))


def _parse(raw: bytes, part: str) -> Any:
    with refusing(
        strict_json.StrictJSONError,
        lambda error: f"the letter's {part} is {error}",
        MalformedMessage,
    ):
        return strict_json.loads(raw, depth=json_form.JSON_DEPTH, wide=True)


def _token_fields(original: Message | None) -> dict[str, Any]:
    """Return what the token of an original claims; ``None`` where it is unreadable."""
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
    """Return UTC seconds as RFC 3339; empty for none, or if no calendar has the time."""
    try:
        return "" if seconds is None else iso_time(seconds)
    except (OverflowError, ValueError, OSError):
        return ""


def proven(reading: Reading, original: Message) -> Reading:
    """Return the reading of a letter whose original was found elsewhere.

    The original has the id that the letter names.
    """
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

    It has no headers and properties that brokers write, or that would make one send
    copies elsewhere or delay it. A ``CC`` stays where the producer's token covers it,
    since the producer wanted it then.

    Args:
        original: restored.
        scope: for which it is judged.
        now: UTC seconds, at which the broker would append it.
        proven: whether the token is verified before anything is sent; otherwise it covers
            nothing.
    """
    claims = _token_fields(original)["claims"] if proven else None
    covered = () if claims is None else claims.mqa.hdr
    dropped = {"BCC", "x-delay", "timestamp_in_ms", "CC"}.difference(covered)
    headers = tuple(
        (name, value)
        for name, value in original.headers
        if name not in dropped and not envelope.is_broker_written(name)
    )

    live = ("user-id", "expiration", "delivery-mode", "cluster-id")
    properties = {
        name: value for name, value in original.properties.items() if name not in live
    }

    origin = replace(
        original.origin,
        scope=scope,
        timestamp_ms=int(now * 1000),
        timestamp_type="append",
        redelivered=False,
    )
    return replace(original, headers=headers, properties=properties, origin=origin)
