"""A dead letter read: totally, with nothing in it believed that was not checked, and the original restored.

Whoever may write to the dead-letter queue can write anything here. ``sound`` says that the original could be
restored and that the letter's id and digest, computed again, are the ones it names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

from mqauth.audit.record import MAX_SOURCE, harmless
from mqauth.errors import MalformedMessage, Reason, Rejection
from mqauth.letters.dead_letter import PREFIX, content_digest, letter_id
from mqauth.letters.release import MAX_HOPS
from mqauth.wire import batch, destination, envelope, jws
from mqauth.wire import claims as claim_set
from mqauth.wire import json_form as jsonform
from mqauth.wire import strict_json as strictjson
from mqauth.wire.claims import Claims
from mqauth.wire.message import TOKEN_HEADER, HeaderPair, HeaderValue, Message, Origin

UNKNOWN: Final = "unknown"
_LIVE: Final = frozenset(("user-id", "expiration", "reply-to", "message-id", "delivery-mode", "cluster-id"))
_OVERWRITTEN: Final = "timestamp_in_ms"
_ID = re.compile(r"[0-9a-f]{64}")
_COUNT = re.compile(r"[1-9][0-9]{0,6}")
_FORMS: Final = ("whole", "json", "reference")
_REASONS: Final = frozenset(Reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """One dead letter as it lies in its queue or topic.

    Args:
        message: as the broker has it.
        handle: the letter box's own: what it takes to remove this very letter.
    """

    message: Message
    handle: Any = field(default=None, compare=False)

    @property
    def mark(self) -> str:
        """SHA-256 over the letter as it lies: tells it from every letter that is not byte for byte the same."""
        return content_digest(self.message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a letter says; texts are harmless to show, and claims are claims.

    Args:
        mark: ``Letter.mark``.
        id: the dead letter's id; the mark, where the letter names none.
        reason: one of ``Reason``, or ``unknown``.
        detail, scope, destination, source, audit: as the letter says.
        time: UTC seconds of the verdict, ``None`` where the letter does not say.
        count: how often the message was dead-lettered, this letter included, as the letter says.
        history: the letters before, as the letter says: their ids, reasons and times of release.
        form: ``whole``, ``json`` or ``reference``.
        size: bytes of the letter's body.
        original: the message as it was rejected, ``None`` where it cannot be restored.
        sound: id and digest hold for the original.
        fault: why it is not sound.
        claims, kid, alg: what the token claims, as far as it could be parsed.
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
    sound: bool
    fault: str | None
    claims: Claims | None
    kid: str | None
    alg: str | None

    @property
    def issuer(self) -> str:
        """The claimed ``iss``, harmless; empty where there is none."""
        return "" if self.claims is None else harmless(self.claims.iss)

    @property
    def subject(self) -> str:
        """The claimed ``sub``, harmless; empty where there is none."""
        return "" if self.claims is None else harmless(self.claims.sub)

    def as_dict(self) -> dict[str, Any]:
        """Return the reading as JSON values, the original in the message form."""
        return {
            "id": self.id, "mark": self.mark, "reason": self.reason, "detail": self.detail, "time": self.time,
            "scope": self.scope, "destination": self.destination, "source": self.source, "audit": self.audit,
            "count": self.count, "history": [dict(hop) for hop in self.history],
            "form": self.form, "size": self.size, "sound": self.sound, "fault": self.fault,
            "kid": None if self.kid is None else harmless(self.kid), "alg": self.alg,
            "claimed": None if self.claims is None else self.claims.as_dict(),
            "message": None if self.original is None else jsonform.to_form(self.original),
        }  # fmt: skip


def read(letter: Letter) -> Reading:
    """Read a letter; never raises, whatever was written."""
    message = letter.message
    lines = lineage(message)
    form = lines.get("form", "whole")
    original, fault = _restored(message, lines, form)
    named = lines.get("id", "")
    if fault is None and original is not None:
        fault = _unsound(original, lines, named)
    opened, found = _token(original)
    mark = letter.mark
    return Reading(
        mark=mark,
        id=named if _ID.fullmatch(named) else mark,
        reason=lines.get("reason", "") if lines.get("reason") in _REASONS else UNKNOWN,
        detail=harmless(lines.get("detail", "")),
        scope=harmless(lines.get("scope", "")),
        destination=harmless(lines.get("destination", "")),
        source=harmless(lines.get("source", ""), MAX_SOURCE),
        audit=harmless(lines.get("audit", "")),
        time=_time(lines.get("time", "")),
        count=_count(lines.get("count", "")),
        history=_history(lines.get("history", "")),
        form=form if form in _FORMS else UNKNOWN,
        size=len(message.body or b""),
        original=original,
        sound=fault is None,
        fault=fault,
        claims=found,
        kid=None if opened is None else opened.kid,
        alg=None if opened is None else opened.algorithm,
    )


def restore(letter: Message) -> Message:
    """Return the message a letter was made of.

    Args:
        letter: as the broker has it, in any of its forms.

    Raises:
        MalformedMessage: it cannot be restored: only a reference is left, or the letter is in no form.
    """
    lines = lineage(letter)
    original, fault = _restored(letter, lines, lines.get("form", "whole"))
    if original is None:
        raise MalformedMessage(fault or "the letter cannot be restored")
    return original


def lineage(message: Message) -> dict[str, str]:
    """Return a letter's own headers without their prefix, as text; of a repeated one the first."""
    found: dict[str, str] = {}
    for name, value in message.headers:
        if name.startswith(PREFIX) and isinstance(value, str | bytes):
            text = value if isinstance(value, str) else value.decode("utf-8", "backslashreplace")
            found.setdefault(name.removeprefix(PREFIX), text)
    return found


def _restored(message: Message, lines: Mapping[str, str], form: str) -> tuple[Message | None, str | None]:
    """Return the original, or why there is none."""
    try:
        if form == "whole":
            return _from_whole(message, lines), None
        if form == "json":
            return _from_body(message), None
        if form == "reference":
            return None, "only a reference is left: the message was too large for a letter"
        return None, "the letter is in no known form"
    except MalformedMessage as error:
        return None, str(error)
    except Exception as error:  # the law of the edge: a forged letter is a fault, never an exception
        return None, f"{type(error).__name__} while it was read"


def _from_whole(message: Message, lines: Mapping[str, str]) -> Message:
    """Return the original of a letter that kept body and headers."""
    place = lines.get("destination", "")
    parsed = destination.parse(place)
    metadata = _metadata(lines.get("metadata"))
    if metadata.get("stripped"):
        raise MalformedMessage("headers in mqauth's own names were stripped from it")
    headers = _merged([*_kept(message, parsed[0])], metadata)
    properties: dict[str, str] = {}
    if parsed[0] == destination.RABBITMQ:
        properties = {name: value for name, value in message.properties.items() if name not in _LIVE}
        properties |= _properties(metadata)
    return Message(
        destination=place, body=message.body, key=message.key, properties=properties, headers=headers,
        origin=_origin(lines, parsed),
    )  # fmt: skip


def _kept(message: Message, scheme: str) -> list[HeaderPair]:
    """Return the headers that stayed headers, the token under its own name."""
    kept: list[HeaderPair] = []
    for name, value in message.headers:
        if name == f"{PREFIX}token":
            kept.append((TOKEN_HEADER, value))
        elif scheme == destination.RABBITMQ and name in (_OVERWRITTEN, "x-delivery-count", "x-acquired-count"):
            continue  # written by the broker on the letter
        elif not name.lower().startswith(PREFIX):
            kept.append((name, value))
    return kept


def _from_body(message: Message) -> Message:
    """Return the original of a letter whose body is the JSON form."""
    try:
        form = strictjson.loads(message.body or b"", depth=jsonform.JSON_DEPTH, wide=True)
    except strictjson.StrictJSONError as error:
        raise MalformedMessage(f"the letter's body is {error}") from error
    return jsonform.from_form(form)


def _metadata(text: str | None) -> dict[str, Any]:
    """Return a letter's metadata."""
    if text is None:
        return {}
    try:
        found = strictjson.loads(text.encode("utf-8", "backslashreplace"), depth=jsonform.JSON_DEPTH, wide=True)
    except strictjson.StrictJSONError as error:
        raise MalformedMessage(f"the letter's metadata is {error}") from error
    if not isinstance(found, dict):
        raise MalformedMessage("the letter's metadata is no object")
    return found


def _merged(headers: list[HeaderPair], metadata: Mapping[str, Any]) -> tuple[HeaderPair, ...]:
    """Return the headers with those kept as metadata back in their places."""
    pairs = metadata.get("headers", [])
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise MalformedMessage("the letter's metadata has no list of headers")
    total = len(headers) + len(pairs)
    places = metadata.get("places", list(range(len(headers), total)))
    if not isinstance(places, list) or not all(type(at) is int and 0 <= at < total for at in places):
        raise MalformedMessage("the letter's metadata has a header at no place among them")
    if len(set(places)) != len(pairs) or len(places) != len(pairs):
        raise MalformedMessage("the letter's metadata has not one place for each header")
    moved, kept = dict(zip(places, pairs, strict=True)), iter(headers)
    return tuple(_header(moved[at]) if at in moved else next(kept) for at in range(total))


def _header(pair: list[Any]) -> HeaderPair:
    """Return a header kept as metadata."""
    name, tagged = pair
    if not isinstance(name, str):
        raise MalformedMessage("a header's name is text")
    value: HeaderValue = jsonform.value_from_form(tagged)
    return name, value


def _properties(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return the properties kept as metadata."""
    found = metadata.get("properties", {})
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise MalformedMessage("the letter's metadata has no table of properties")
    return {name: value for name, value in found.items() if name in _LIVE}


def _origin(lines: Mapping[str, str], parsed: tuple[str, ...]) -> Origin:
    """Return where the original came from, as the letter says; its id tells whether that is so."""
    scope, source = lines.get("scope"), lines.get("source", "")
    if parsed[0] == destination.RABBITMQ:
        return Origin(scope=scope, queue=source, exchange=parsed[1], routing_key=parsed[2])
    origin = Origin.of_record(source, scope=scope)
    if origin is None:
        raise MalformedMessage("the letter's source is no place in a topic")
    return origin


def _unsound(original: Message, lines: Mapping[str, str], named: str) -> str | None:
    """Return what does not hold of a letter."""
    digest = content_digest(original)
    if digest != lines.get("digest"):
        return "the digest is of another message"
    if letter_id(original, lines.get("scope", ""), digest=digest) != named:
        return "the id is of another letter"
    return None


def _token(original: Message | None) -> tuple[jws.Opened | None, Claims | None]:
    """Return what the token of an original claims, as far as it can be parsed."""
    if original is None:
        return None, None
    opened: jws.Opened | None = None
    try:
        opened = jws.take_apart(batch.split(envelope.token_of(original))[0])
        return opened, claim_set.parse(opened.payload)
    except Rejection:
        return opened, None


def _count(text: str) -> int:
    """Return how often a message was dead-lettered, 1 where the letter does not say."""
    return int(text) if _COUNT.fullmatch(text) else 1


def _history(text: str) -> tuple[Mapping[str, str], ...]:
    """Return the letters before, none where what the letter says is in no form."""
    try:
        found = strictjson.loads(text.encode("utf-8", "backslashreplace"), depth=2)
    except strictjson.StrictJSONError:
        return ()
    if type(found) is not list or len(found) > MAX_HOPS or not all(type(hop) is dict for hop in found):
        return ()
    return tuple(
        {name: harmless(str(hop.get(name) or "")) for name in ("id", "reason", "released")} for hop in found
    )


def _time(text: str) -> float | None:
    """Return the UTC seconds of an RFC 3339 time."""
    try:
        moment = datetime.fromisoformat(text)
        return None if moment.tzinfo is None else moment.timestamp()
    except (ValueError, OverflowError):
        return None


def proven(reading: Reading, original: Message) -> Reading:
    """Return the reading of a letter whose original was found elsewhere and is the one its id names."""
    opened, found = _token(original)
    return replace(
        reading, original=original, sound=True, fault=None, destination=harmless(original.destination),
        claims=found, kid=None if opened is None else opened.kid, alg=None if opened is None else opened.algorithm,
    )  # fmt: skip


def redeliverable(original: Message, *, scope: str, now: float) -> Message:
    """Return an original as it would be delivered again: without what acts on its own or brokers write.

    A ``CC`` stays where the producer's token covers it: it is the producer's own word then.

    Args:
        original: restored.
        scope: on whose behalf it is judged.
        now: UTC seconds; the broker would append it then.
    """
    found = _token(original)[1]
    dropped = {"BCC", "x-delay", _OVERWRITTEN, "CC"} - set(() if found is None else found.mqa.hdr)
    headers = tuple(
        pair for pair in original.headers if pair[0] not in dropped and not envelope.is_broker_written(pair[0])
    )
    kept = ("user-id", "expiration", "delivery-mode", "cluster-id")
    properties = {name: value for name, value in original.properties.items() if name not in kept}
    origin = replace(
        original.origin, scope=scope, timestamp_ms=int(now * 1000), timestamp_type="append", redelivered=False
    )
    return replace(original, headers=headers, properties=properties, origin=origin)
