"""A message as JSON: the one form for files, tests, vectors, the command line and letters too large.

Value tags: ``str``, ``b64``, ``int``, ``float``, ``bool``, ``null``, ``time`` (RFC 3339 UTC, seconds),
``decimal``, ``list``, ``table``. On Kafka only ``b64``, ``str`` (its UTF-8 bytes) and ``null``. An ``int``
beyond 2^53 is written as text (RFC 7493, section 2.2), a ``float`` that is not finite as its name.

Writing never raises, whatever a sender put there: what no broker carries is named, not kept.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from mqauth.errors import MalformedMessage
from mqauth.wire import destination
from mqauth.wire import strict_json as strictjson
from mqauth.wire.encoding import MAX_DEPTH, epoch_seconds, is_carried_decimal, is_carried_integer
from mqauth.wire.message import NO_ORIGIN, PROTECTED_PROPERTIES, HeaderPair, HeaderValue, Message, Origin

PROPERTIES: Final = (
    *PROTECTED_PROPERTIES, "user-id", "expiration", "priority", "delivery-mode", "timestamp", "cluster-id",
)  # fmt: skip
JSON_DEPTH: Final = 3 + 3 * MAX_DEPTH + 1
"""Containers within each other in the deepest form, which every reader of the form allows.

Object, list and pair stand around a header's value; each table in it adds three, and the innermost value one.
"""
_MEMBERS: Final = frozenset(("destination", "key", "body", "properties", "headers", "origin"))
_DECIMAL = re.compile(r"-?[0-9]{1,300}(\.[0-9]{1,300})?")
_INTEGER = re.compile(r"-?[0-9]{1,20}")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_NOT_FINITE: Final = ("nan", "inf", "-inf")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TEXT_ORIGIN: Final = ("scope", "cluster", "topic", "topic_id", "queue", "exchange", "routing_key")
_NUMBER_ORIGIN: Final = ("partition", "offset", "timestamp_ms")


def to_form(message: Message) -> dict[str, Any]:
    """Return the JSON form of a message, as values ``json`` can write."""
    form: dict[str, Any] = {"destination": message.destination}
    if destination.is_kafka(message.destination):
        form["key"] = None if message.key is None else _base64(message.key)
    form["body"] = None if message.body is None else _base64(message.body)
    properties = message.properties.items()
    form["properties"] = {name.replace("-", "_"): writable(str(value)) for name, value in properties}
    form["headers"] = [[writable(name), value_to_form(value)] for name, value in message.headers]
    origin = _origin_to_form(message.origin)
    return form | ({"origin": origin} if origin else {})


def from_form(form: Any) -> Message:
    """Return the message a JSON value describes.

    Args:
        form: a parsed JSON value.

    Raises:
        MalformedMessage: the value is not in the form, or contradicts itself.
    """
    if not isinstance(form, Mapping) or form.keys() - _MEMBERS or not {"destination", "body"} <= form.keys():
        raise MalformedMessage("a message has destination, body and no unknown member")
    place = form["destination"]
    if not isinstance(place, str):
        raise MalformedMessage("destination is no text")
    parsed = destination.parse(place)
    on_kafka = parsed[0] == destination.KAFKA
    key, body = _octets(form, "key"), _octets(form, "body")
    if not on_kafka and (key is not None or body is None):
        raise MalformedMessage("only Kafka has record keys and tombstones")
    properties = _properties(form.get("properties", {}))
    headers = _headers(form.get("headers", []), on_kafka)
    if on_kafka:
        headers, properties = _as_headers(properties, headers), {}
    elif len({name for name, _ in headers}) != len(headers):
        raise MalformedMessage("a header stands twice")
    return Message(
        destination=place, key=key, body=body, properties=properties, headers=headers,
        origin=_origin(form.get("origin"), parsed),
    )  # fmt: skip


def writable(text: str) -> str:
    """Return text that UTF-8 can carry, lone surrogates escaped."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def value_to_form(value: HeaderValue, depth: int = MAX_DEPTH) -> dict[str, Any]:
    """Return one header value with its tag; what is nested deeper than 32 is cut off and said so."""
    if type(value) is str:  # nearly every header's
        return {"str": writable(value)}
    if type(value) is bytes:
        return {"b64": _base64(value)}
    if isinstance(value, Mapping | tuple) and depth == 0:
        return {"str": "(nested too deep)"}
    if isinstance(value, Mapping):
        return {"table": [[writable(str(name)), value_to_form(item, depth - 1)] for name, item in value.items()]}
    if isinstance(value, tuple):
        return {"list": [value_to_form(item, depth - 1) for item in value]}
    return _scalar_to_form(value)


def _scalar_to_form(value: object) -> dict[str, Any]:
    """Return a value that holds no others with its tag."""
    if value is None:
        return {"null": None}
    if isinstance(value, bool):
        return {"bool": value}
    if isinstance(value, int):
        return _integer_to_form(value)
    if isinstance(value, float):
        return {"float": value if math.isfinite(value) else str(value)}
    if isinstance(value, str):
        return {"str": writable(value)}
    if isinstance(value, bytes):
        return {"b64": _base64(value)}
    if isinstance(value, datetime):
        return _time_to_form(value)
    if isinstance(value, Decimal) and is_carried_decimal(value):
        return {"decimal": format(value, "f")}
    return {"str": f"({type(value).__name__} no broker carries)"}


def _integer_to_form(value: int) -> dict[str, Any]:
    """Return an integer with its tag, as text where JSON readers would round it."""
    if not is_carried_integer(value):
        return {"str": "(integer beyond 64 bits)"}
    return {"int": value if abs(value) <= strictjson.MAX_INTEGER else str(value)}


def _time_to_form(value: datetime) -> dict[str, Any]:
    """Return a time with its tag; a zone may carry it out of the calendar."""
    try:
        moment = _EPOCH + timedelta(seconds=epoch_seconds(value))
    except OverflowError:
        return {"str": "(time beyond the calendar)"}
    return {"time": moment.isoformat(timespec="seconds").replace("+00:00", "Z")}


def value_from_form(tagged: Any, depth: int = MAX_DEPTH) -> HeaderValue:
    """Return the value of a tagged form.

    Raises:
        MalformedMessage: no single known tag, or a value not of its tag.
    """
    if not isinstance(tagged, Mapping) or len(tagged) != 1:
        raise MalformedMessage("a header value is one tag and its value")
    ((tag, value),) = tagged.items()
    if tag in ("list", "table") and depth == 0:
        raise MalformedMessage(f"a header value is nested deeper than {MAX_DEPTH}")
    if tag == "list" and isinstance(value, list):
        return tuple(value_from_form(item, depth - 1) for item in value)
    if tag == "table":
        return _table(value, depth)
    reader = _READERS.get(tag)
    if reader is None:
        raise MalformedMessage("a header value has an unknown tag")
    return reader(value)


def _table(value: Any, depth: int) -> Mapping[str, HeaderValue]:
    """Return a table: an object of tagged values, or a list of name and tagged value."""
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, list) or not all(_is_pair(pair) for pair in pairs):
        raise MalformedMessage("a table is an object of tagged values")
    table = {name: value_from_form(item, depth - 1) for name, item in pairs}
    if len(table) != len(pairs):
        raise MalformedMessage("a table names a member twice")
    return table


def _is_pair(pair: Any) -> bool:
    """Tell whether a value is a name and something."""
    return isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str)


def _text(value: Any) -> str:
    """Read ``str``."""
    if not isinstance(value, str):
        raise MalformedMessage("a str is text")
    return value


def _boolean(value: Any) -> bool:
    """Read ``bool``."""
    if not isinstance(value, bool):
        raise MalformedMessage("a bool is true or false")
    return value


def _integer(value: Any) -> int:
    """Read ``int``."""
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        value = int(value)
    if type(value) is not int or not is_carried_integer(value):
        raise MalformedMessage("an int is an integer of 64 bits")
    return value


def _float(value: Any) -> float:
    """Read ``float``."""
    try:
        if type(value) not in (int, float) and value not in _NOT_FINITE:
            raise MalformedMessage("a float is a number")
        return float(value)
    except OverflowError as error:
        raise MalformedMessage("a float is a number of 64 bits") from error


def _nothing(value: Any) -> None:
    """Read ``null``."""
    if value is not None:
        raise MalformedMessage("a null is null")


def _bytes(value: Any) -> bytes:
    """Read ``b64``."""
    try:
        return base64.b64decode(_text(value).encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise MalformedMessage("not base64") from error


def _time(value: Any) -> datetime:
    """Read ``time``."""
    try:
        if not _TIME.fullmatch(_text(value)):
            raise ValueError
        return datetime.fromisoformat(value)
    except ValueError as error:
        raise MalformedMessage("a time is RFC 3339 UTC in whole seconds") from error


def _decimal(value: Any) -> Decimal:
    """Read ``decimal``."""
    if not _DECIMAL.fullmatch(_text(value)):
        raise MalformedMessage("a decimal is digits with a point")
    return Decimal(value)


_READERS: Final[dict[str, Callable[[Any], HeaderValue]]] = {
    "str": _text, "b64": _bytes, "int": _integer, "float": _float, "bool": _boolean, "null": _nothing,
    "time": _time, "decimal": _decimal,
}  # fmt: skip


def _octets(form: Mapping[str, Any], name: str) -> bytes | None:
    """Return a base64 member, ``None`` where it is null or absent."""
    value = form.get(name)
    return None if value is None else _bytes(value)


def _properties(found: Any) -> dict[str, str]:
    """Return the properties by their hyphenated names."""
    if not isinstance(found, Mapping):
        raise MalformedMessage("properties is no object")
    result: dict[str, str] = {}
    for name, value in found.items():
        hyphenated = str(name).replace("_", "-")
        if hyphenated not in PROPERTIES or "-" in str(name):
            raise MalformedMessage("properties has an unknown member")
        if value is not None:
            result[hyphenated] = str(_integer(value)) if type(value) is int else _utf8(_text(value)).decode()
    return result


def _headers(found: Any, on_kafka: bool) -> tuple[HeaderPair, ...]:
    """Return the header pairs in order, in the types their broker carries."""
    if not isinstance(found, list) or not all(_is_pair(pair) for pair in found):
        raise MalformedMessage("headers is a list of name and tagged value")
    pairs = tuple((name, value_from_form(tagged)) for name, tagged in found)
    return tuple((name, _on_kafka(value)) for name, value in pairs) if on_kafka else pairs


def _on_kafka(value: HeaderValue) -> HeaderValue:
    """Return a value as Kafka carries it."""
    if isinstance(value, str):
        return _utf8(value)
    if value is None or isinstance(value, bytes):
        return value
    raise MalformedMessage("Kafka headers are str, b64 or null")


def _as_headers(properties: Mapping[str, str], headers: tuple[HeaderPair, ...]) -> tuple[HeaderPair, ...]:
    """Return Kafka headers that carry the properties: on Kafka those are headers of these names."""
    return (*((name, _utf8(value)) for name, value in properties.items()), *headers)


def _utf8(text: str) -> bytes:
    """Return UTF-8, or refuse a lone surrogate."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise MalformedMessage("a header has no UTF-8 form") from error


def _origin(found: Any, parsed: tuple[str, ...]) -> Origin:
    """Return the origin, which may not contradict the destination."""
    if found is None:
        return NO_ORIGIN
    if not isinstance(found, Mapping) or found.keys() - set(Origin.__dataclass_fields__):
        raise MalformedMessage("origin is an object without unknown members")
    _check_types(found)
    origin = Origin(**found)
    said = (destination.KAFKA, origin.topic) if parsed[0] == destination.KAFKA else (
        destination.RABBITMQ, origin.exchange, origin.routing_key)  # fmt: skip
    if any(value is not None and value != place for value, place in zip(said, parsed, strict=True)):
        raise MalformedMessage("origin contradicts destination")
    _check_broker(origin, parsed[0])
    return origin


def _check_broker(origin: Origin, scheme: str) -> None:
    """Refuse coordinates of the other broker."""
    foreign = (origin.queue, origin.exchange, origin.routing_key)
    if scheme == destination.RABBITMQ:
        foreign = (origin.cluster, origin.topic, origin.topic_id)
    numbers = (origin.partition, origin.offset) if scheme == destination.RABBITMQ else ()
    if any(value is not None for value in (*foreign, *numbers)):
        raise MalformedMessage("origin names another broker than destination")


def _check_types(found: Mapping[str, Any]) -> None:
    """Refuse origin members of a wrong type."""
    good = (
        all(isinstance(found.get(name, ""), str | None) for name in _TEXT_ORIGIN)
        and all(type(found.get(name, 0)) in (int, type(None)) for name in _NUMBER_ORIGIN)
        and all((found.get(name) or 0) >= 0 for name in _NUMBER_ORIGIN)
        and type(found.get("redelivered", False)) is bool
        and found.get("timestamp_type") in (None, "append", "create")
    )
    if not good:
        raise MalformedMessage("origin has a member of a wrong type")


def _origin_to_form(origin: Origin) -> dict[str, Any]:
    """Return the members of an origin that say something."""
    found = ((name, getattr(origin, name)) for name in Origin.__dataclass_fields__)
    return {
        name: writable(value) if isinstance(value, str) else value
        for name, value in found
        if value is not None and value is not False
    }


def _base64(raw: bytes) -> str:
    """Return standard base64 text."""
    return base64.b64encode(raw).decode("ascii")
