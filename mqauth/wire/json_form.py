"""A message as JSON: the one form for files, tests, vectors, the command line and oversize dead letters.

A value is an object of one tag: ``str``, ``b64``, ``int``, ``float``, ``bool``, ``null``, ``time`` (RFC 3339
UTC, whole seconds), ``decimal``, ``list`` or ``table``. On Kafka it is ``b64``, ``str`` (its UTF-8 bytes) or
``null``. An ``int`` beyond 2^53 is written as text, since JSON readers would round it (RFC 7493, section 2.2),
and a ``float`` that is not finite as its name.

Writing never raises, whatever a sender put there: a value that no broker carries is named instead of kept.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from types import NoneType
from typing import Any, Final

from mqauth.errors import MalformedMessage, refusing, require
from mqauth.wire import destination, envelope, strict_json
from mqauth.wire.message import (
    NO_ORIGIN,
    PROTECTED_PROPERTIES,
    HeaderPair,
    HeaderValue,
    Message,
    Origin,
)

PROPERTIES: Final = (
    *PROTECTED_PROPERTIES,
    "user-id",
    "expiration",
    "priority",
    "delivery-mode",
    "timestamp",
    "cluster-id",
)
JSON_DEPTH: Final = 3 + 3 * envelope.MAX_DEPTH + 1
"""How deep containers may stand within each other; every reader of the form allows it.

Object, list and pair stand around the value of a header; each table in it adds three, and the innermost value one.
"""
_require: Final = partial(require, error=MalformedMessage)
_NUMBER_ORIGIN: Final = ("partition", "offset", "timestamp_ms")
_PLACE_TEXTS: Final = ("cluster", "topic", "topic_id", "queue", "exchange", "routing_key")


def to_form(message: Message) -> dict[str, Any]:
    """Return the JSON form of a message, as values that ``json`` can write."""
    key = {"key": None if message.key is None else _base64(message.key)}
    stated = (
        (name, getattr(message.origin, name)) for name in Origin.__dataclass_fields__
    )
    origin = {
        name: writable(value) if isinstance(value, str) else value
        for name, value in stated
        if value is not None and value is not False
    }
    return {
        "destination": message.destination,
        **(key if destination.is_kafka(message.destination) else {}),
        "body": None if message.body is None else _base64(message.body),
        "properties": {
            name.replace("-", "_"): writable(str(value))
            for name, value in message.properties.items()
        },
        "headers": [
            [writable(name), value_to_form(value)] for name, value in message.headers
        ],
        **({"origin": origin} if origin else {}),
    }


def from_form(form: Any) -> Message:
    """Return the message that a JSON value describes.

    Args:
        form: a parsed JSON value.

    Raises:
        MalformedMessage: the value is not in the form, or contradicts itself.
    """
    _require(
        isinstance(form, Mapping)
        and not form.keys()
        - frozenset(("destination", "key", "body", "properties", "headers", "origin"))
        and {"destination", "body"} <= form.keys(),
        "a message has destination, body and no unknown member",
    )
    target = form["destination"]
    _require(isinstance(target, str), "destination is no text")
    parsed = destination.parse(target)
    on_kafka = parsed[0] == destination.KAFKA
    key, body = _octets(form, "key"), _octets(form, "body")
    _require(
        on_kafka or (key is None and body is not None),
        "only Kafka has record keys and tombstones",
    )
    properties = _properties(form.get("properties", {}))
    listed = form.get("headers", [])
    _require(_are_pairs(listed), "headers is a list of name and tagged value")
    headers: tuple[HeaderPair, ...] = tuple(
        (name, value_from_form(tagged)) for name, tagged in listed
    )
    if on_kafka:
        carried = all(
            value is None or isinstance(value, str | bytes) for _, value in headers
        )
        _require(carried, "Kafka headers are str, b64 or null")
        # there the properties are headers of these names
        headers = tuple(
            (name, envelope.utf8(value) if isinstance(value, str) else value)
            for name, value in (*properties.items(), *headers)
        )
        properties = {}
    _require(on_kafka or len(dict(headers)) == len(headers), "a header stands twice")
    return Message(
        destination=target,
        key=key,
        body=body,
        properties=properties,
        headers=headers,
        origin=_origin(form.get("origin"), parsed),
    )


def writable(text: str) -> str:
    """Return text that UTF-8 can carry, with lone surrogates escaped."""
    return (
        text
        if text.isascii()
        else text.encode("utf-8", "backslashreplace").decode("utf-8")
    )


def value_to_form(value: HeaderValue, depth: int = envelope.MAX_DEPTH) -> dict[str, Any]:
    """Return one header value with its tag; what is nested deeper than 32 is cut off, and named."""
    if type(value) is str:  # nearly every header has one
        return {"str": writable(value)}
    if isinstance(value, Mapping | tuple) and depth == 0:
        return {"str": "(nested too deep)"}
    if isinstance(value, Mapping):
        return {
            "table": [
                [writable(str(name)), value_to_form(item, depth - 1)]
                for name, item in value.items()
            ]
        }
    if isinstance(value, tuple):
        return {"list": [value_to_form(item, depth - 1) for item in value]}
    return next(
        (write(value) for kind, write in _WRITERS if isinstance(value, kind)),
        _foreign(value),
    )


def value_from_form(tagged: Any, depth: int = envelope.MAX_DEPTH) -> HeaderValue:
    """Return the value of a tagged form.

    Raises:
        MalformedMessage: there is not one known tag, or the value is not of its tag.
    """
    _require(
        isinstance(tagged, Mapping) and len(tagged) == 1,
        "a header value is one tag and its value",
    )
    ((tag, value),) = tagged.items()
    _require(
        tag not in ("list", "table") or depth > 0,
        f"a header value is nested deeper than {envelope.MAX_DEPTH}",
    )
    if tag == "list" and isinstance(value, list):
        return tuple(value_from_form(item, depth - 1) for item in value)
    if tag == "table":
        # an object of tagged values, or a list of pairs of a name and a tagged value
        pairs = list(value.items()) if isinstance(value, Mapping) else value
        _require(_are_pairs(pairs), "a table is an object of tagged values")
        table = {name: value_from_form(item, depth - 1) for name, item in pairs}
        _require(len(table) == len(pairs), "a table names a member twice")
        return table
    _require(tag in _READERS, "a header value has an unknown tag")
    return _READERS[tag](value)


def _foreign(value: object) -> dict[str, Any]:
    return {"str": f"({type(value).__name__} no broker carries)"}


def _time_to_form(value: datetime) -> dict[str, Any]:
    try:
        moment = envelope.EPOCH + timedelta(seconds=envelope.epoch_seconds(value))
    except OverflowError:  # its zone carries it out of the calendar
        return {"str": "(time beyond the calendar)"}
    return {"time": moment.isoformat(timespec="seconds").replace("+00:00", "Z")}


_WRITERS: Final[tuple[tuple[type, Callable[[Any], dict[str, Any]]], ...]] = (
    (NoneType, lambda value: {"null": value}),
    (bool, lambda value: {"bool": value}),
    (
        int,
        lambda value: (
            {"int": value if abs(value) <= strict_json.MAX_INTEGER else str(value)}
            if envelope.is_carried_integer(value)
            else _foreign(value)
        ),
    ),
    (float, lambda value: {"float": value if math.isfinite(value) else str(value)}),
    (str, lambda value: {"str": writable(value)}),
    (bytes, lambda value: {"b64": _base64(value)}),
    (datetime, _time_to_form),
    (
        Decimal,
        lambda value: (
            {"decimal": format(value, "f")}
            if envelope.is_carried_decimal(value)
            else _foreign(value)
        ),
    ),
)
"""What writes a value that holds no others, by its type; ``bool`` before ``int``, for every ``bool`` is one."""


def _are_pairs(value: Any) -> bool:
    """Tell whether a value is a list of pairs of a name and something."""
    return isinstance(value, list) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str)
        for pair in value
    )


def _of(kind: type, refusal: str) -> Callable[[Any], Any]:
    """Return a reader of values of one type."""

    def read(value: Any) -> Any:
        _require(isinstance(value, kind), refusal)
        return value

    return read


_text = _of(str, "a str is text")


def _integer(value: Any) -> int:
    if isinstance(value, str) and re.fullmatch(r"0|-?[1-9][0-9]{0,18}", value):
        value = int(value)
    _require(
        type(value) is int and envelope.is_carried_integer(value),
        "an int is an integer of 64 bits",
    )
    return int(value)


def _float(value: Any) -> float:
    _require(
        type(value) in (int, float) or value in ("nan", "inf", "-inf"),
        "a float is a number",
    )
    with refusing(OverflowError, "a float is a number of 64 bits", MalformedMessage):
        return float(value)


def _bytes(value: Any) -> bytes:
    with refusing((UnicodeEncodeError, binascii.Error), "not base64", MalformedMessage):
        raw = base64.b64decode(_text(value).encode("ascii"), validate=True)
    _require(_base64(raw) == value, "not canonical base64")
    return raw


def _time(value: Any) -> datetime:
    refusal = "a time is RFC 3339 UTC in whole seconds"
    _require(
        re.fullmatch(
            r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z", _text(value)
        ),
        refusal,
    )
    with refusing(ValueError, refusal, MalformedMessage):
        return datetime.fromisoformat(value)


def _decimal(value: Any) -> Decimal:
    _require(
        re.fullmatch(r"-?[0-9]{1,300}(\.[0-9]{1,300})?", _text(value)),
        "a decimal is digits with a point",
    )
    return Decimal(value)


_READERS: Final[dict[str, Callable[[Any], HeaderValue]]] = {
    "str": _text,
    "b64": _bytes,
    "int": _integer,
    "float": _float,
    "bool": _of(bool, "a bool is true or false"),
    "null": _of(NoneType, "a null is null"),
    "time": _time,
    "decimal": _decimal,
}


def _octets(form: Mapping[str, Any], name: str) -> bytes | None:
    """Return a base64 member, ``None`` if it is null or absent."""
    value = form.get(name)
    return None if value is None else _bytes(value)


def _properties(form: Any) -> dict[str, str]:
    """Return the properties by their hyphenated names."""
    _require(isinstance(form, Mapping), "properties is no object")
    result: dict[str, str] = {}
    for name, value in form.items():
        hyphenated = str(name).replace("_", "-")
        _require(
            hyphenated in PROPERTIES and "-" not in str(name),
            "properties has an unknown member",
        )
        if value is not None:
            result[hyphenated] = (
                str(_integer(value))
                if type(value) is int
                else envelope.utf8(_text(value)).decode()
            )
    return result


def _origin(form: Any, parsed: tuple[str, ...]) -> Origin:
    """Return the origin, which may not contradict the destination."""
    if form is None:
        return NO_ORIGIN
    _require(
        isinstance(form, Mapping) and not form.keys() - set(Origin.__dataclass_fields__),
        "origin is an object without unknown members",
    )
    # a member that is null is an absent one
    origin_members = {name: value for name, value in form.items() if value is not None}
    texts, numbers = (
        ("scope", *_PLACE_TEXTS),
        [origin_members.get(name, 0) for name in _NUMBER_ORIGIN],
    )
    _require(
        all(isinstance(origin_members.get(name, ""), str) for name in texts)
        and all(type(number) is int and number >= 0 for number in numbers)
        and type(origin_members.get("redelivered", False)) is bool
        and origin_members.get("timestamp_type", "append") in ("append", "create"),
        "origin has a member of a wrong type",
    )
    origin = Origin(**origin_members)
    scheme, *names = parsed
    on_kafka = scheme == destination.KAFKA
    own = ("topic",) if on_kafka else ("exchange", "routing_key")
    _require(
        all(
            getattr(origin, member) in (None, name)
            for member, name in zip(own, names, strict=True)
        ),
        "origin contradicts destination",
    )
    of_record, of_delivery = (
        (*_PLACE_TEXTS[:3], "partition", "offset"),
        (*_PLACE_TEXTS[3:], "redelivered"),
    )
    others = [getattr(origin, name) for name in (of_delivery if on_kafka else of_record)]
    _require(
        all(value is None or value is False for value in others),
        "origin names another broker than destination",
    )
    return origin


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")
