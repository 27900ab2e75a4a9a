"""Targets: both native translations. The clients' own codecs stand between what was sealed and what arrives."""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, Final

import aio_pika
import aiokafka
import confluent_kafka
import pika
from aiormq.abc import DeliveredMessage
from kafka.consumer.fetcher import ConsumerRecord
from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from pamqp import commands
from pamqp import decode as pamqp_decode
from pamqp import encode as pamqp_encode
from pamqp.header import ContentHeader
from pika import data as pika_data

from integration.fuzz import seeds
from integration.fuzz.draw import Draw, sized
from integration.fuzz.oracles import plain
from mqauth.brokers.aiokafka import client as aiokafka_translate
from mqauth.brokers.confluent import client as confluent_translate
from mqauth.brokers.kafka import client as kafka_translate
from mqauth.brokers.log.records import to_message
from mqauth.brokers.pika import translate as pika_translate
from mqauth.brokers.rabbitmq import consumer as incoming
from mqauth.brokers.rabbitmq import translate as rabbitmq_translate
from mqauth.errors import MalformedMessage
from mqauth.letters.dead_letter import content_digest
from mqauth.wire import envelope, json_form, strict_json
from mqauth.wire.message import Message

_CHANNEL: Final = SimpleNamespace()
_BASIC: Final = b"\x00\x3c\x00\x00" + bytes(8)
"""The beginning of a content header frame: class, weight and body size."""


def _sound(message: Message) -> None:
    """Ask what holds of every translated message: it can be written, digested, and bound or refused."""
    strict_json.dumps(json_form.to_form(message))
    assert len(content_digest(message)) == 64
    with suppress(MalformedMessage):
        bound = envelope.bind(message)
        assert envelope.bind(message) == bound


def rabbitmq_frame(raw: bytes) -> None:
    """Read the header frame of a delivery by pamqp and by pika: never an error, and both read the same."""
    by_pamqp, by_pika = _by_pamqp(raw), _by_pika(raw)
    for message, translate in ((by_pamqp, rabbitmq_translate), (by_pika, pika_translate)):
        if message is not None:
            _sound(message)
            _sent_again(message, translate)
    if by_pamqp and by_pika and _portable(by_pamqp) and _portable(by_pika):
        assert plain(dict(by_pamqp.headers)) == plain(dict(by_pika.headers)), (
            "two clients read two tables"
        )


def _by_pamqp(raw: bytes) -> Message | None:
    header = ContentHeader()
    try:
        header.unmarshal(_BASIC + raw)
    # What pamqp cannot decode never reaches mqauth: the connection is closed.
    except Exception:
        return None
    deliver = commands.Basic.Deliver("c", 7, False, "shop", "k")
    given = DeliveredMessage(delivery=deliver, header=header, body=b"x", channel=_CHANNEL)  # type: ignore[arg-type]
    return rabbitmq_translate.from_native(incoming.as_incoming(given), queue="q")


def _by_pika(raw: bytes) -> Message | None:
    properties = pika.BasicProperties()
    try:
        properties.decode(raw)
    # As above.
    except Exception:
        return None
    method = pika.spec.Basic.Deliver("c", 7, False, "shop", "k")
    return pika_translate.from_native(method, properties, b"x", queue="q")


def _portable(message: Message) -> bool:
    """Tell whether every header is of the subset that all clients read alike (wire profile, section 4)."""
    return message.malformed is None and all(
        _is_portable(value) for _, value in message.headers
    )


def _is_portable(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_portable, value))
    if isinstance(value, dict):
        return all(map(_is_portable, value.values()))
    return (
        value is None
        or isinstance(value, str | bytes | bool)
        or (isinstance(value, int) and abs(value) <= 2**53)
    )


def _sent_again(message: Message, translate: Any) -> None:
    """Send the headers that the client is said to carry, and hold them against what arrives."""
    octets, write, read = _CODECS[translate]
    for name, value in message.headers:
        if translate.carries(name, value):
            table = translate.amqp_values.headers_out(((name, value),), octets)
            found = translate.amqp_values.headers_in(read(write(table)), [])
            assert plain(found) == plain(((name, value),)), (
                "carried, and arrives as something else"
            )


def _pika_written(table: dict[str, Any]) -> bytes:
    pieces: list[bytes] = []
    pika_data.encode_table(pieces, table)
    return b"".join(pieces)


_CODECS: Final[dict[Any, tuple[type, Callable[[Any], bytes], Callable[[bytes], Any]]]] = {
    rabbitmq_translate: (
        bytearray, pamqp_encode.field_table, lambda raw: pamqp_decode.field_table(raw)[1],
    ),
    pika_translate: (bytes, _pika_written, lambda raw: pika_data.decode_table(raw, 0)[0]),
}  # fmt: skip
"""Of each client: the type it sends as octets, and how it writes and reads a table."""


def rabbitmq_published(raw: bytes) -> None:
    """Seal properties and headers as a user gives them: what is signed is what arrives, or it is refused."""
    draw = Draw(raw)
    kinds = bytearray if draw.number() % 2 else bytes
    table = dict(draw.listed(lambda: (draw.name(), _native(draw.value(), kinds))))
    texts = {
        name: draw.text()
        for name in (
            "content_type",
            "type",
            "message_id",
            "reply_to",
            "app_id",
            "user_id",
        )
    }
    _published_by_aio_pika(table, texts)
    _published_by_pika(table, texts)


def _native(value: Any, octets: Any) -> Any:
    """Return a value as users write it: lists and dicts, and octets of a type."""
    if isinstance(value, tuple):
        return [_native(item, octets) for item in value]
    if isinstance(value, dict):
        return {name: _native(item, octets) for name, item in value.items()}
    return octets(value) if isinstance(value, bytes) else value


def _published_by_aio_pika(table: dict[str, Any], texts: dict[str, str]) -> None:
    try:
        native = aio_pika.Message(b"x", headers=table, **texts)  # type: ignore[arg-type]
    # aio-pika itself refuses a table before mqauth sees it.
    except Exception:
        return
    try:
        message = rabbitmq_translate.to_message(native, exchange="shop", routing_key="k")
        rabbitmq_translate.Measured.of(native).check()
    except MalformedMessage:
        return
    header = ContentHeader(properties=native.properties)
    _arrives(message, _by_pamqp(header.marshal()[12:]))


def _published_by_pika(table: dict[str, Any], texts: dict[str, str]) -> None:
    properties = pika.BasicProperties(headers=table, **texts)
    try:
        message = pika_translate.to_message(
            properties, b"x", exchange="shop", routing_key="k"
        )
        pika_translate.check_properties(properties, 131_072)
    except MalformedMessage:
        return
    _arrives(message, _by_pika(b"".join(properties.encode())))


def _arrives(sealed: Message, found: Message | None) -> None:
    assert found is not None, "what was sealed cannot be decoded"
    assert found.malformed is None, found.malformed
    assert plain(dict(found.headers)) == plain(dict(sealed.headers)), (
        "other headers arrive than were sealed"
    )
    names = (*sealed.properties, *envelope.PROTECTED_PROPERTIES)
    assert all(
        found.properties.get(name) == sealed.properties.get(name) for name in names
    )


def kafka_record(raw: bytes) -> None:
    """Read a record that kafka-python parsed from hostile bytes, by the wrapper of each client: never an error."""
    size = DefaultRecordBatch.HEADER_STRUCT.size
    head = DefaultRecordBatch.HEADER_STRUCT.pack(
        0, size - 12 + len(raw), 0, 2, 0, 0, 0, 0, 0, -1, -1, -1, 1
    )
    assert len(head) == size
    try:
        [record] = DefaultRecordBatch(head + raw)
    # What kafka-python cannot parse is a poison record, which mqauth never sees.
    except Exception:
        return
    found = [
        translate(record.key, record.value, record.headers) for translate in _RECORDS
    ]
    for message in found:
        _sound(message)
        assert (message.headers, message.key, message.body) == (
            found[0].headers, found[0].key, found[0].body
        ), "two clients read two records"  # fmt: skip


def kafka_values(raw: bytes) -> None:
    """Read records with any objects in their fields; send what may be sent, and find it again byte for byte."""
    draw = Draw(raw)
    key, value = draw.value(), draw.value()
    headers = draw.listed(
        lambda: (draw.name(), draw.value()) if draw.number() < 250 else draw.value()
    )
    for read in _FREE:
        _sound(read(key, value, headers))
    with suppress(MalformedMessage):
        sealed = to_message("orders", value, key, headers)
        builder = DefaultRecordBatchBuilder(2, 0, False, -1, -1, -1, 1 << 20)
        try:
            builder.append(0, 1, sealed.key, sealed.body, list(sealed.headers))
            written = bytes(builder.build())
        except UnicodeEncodeError:
            return
        [record] = DefaultRecordBatch(written)
        for translate in _RECORDS:
            found = translate(record.key, record.value, record.headers)
            assert (found.headers, found.key, found.body) == (
                sealed.headers,
                sealed.key,
                sealed.body,
            )


def _python_record(key: Any, value: Any, headers: Any) -> Message:
    record = ConsumerRecord("orders", 0, 0, 7, 1, 0, key, value, headers, None, 0, 0, 0)
    return kafka_translate.from_native(record, scope="s")


def _asyncio_record(key: Any, value: Any, headers: Any) -> Message:
    record = aiokafka.ConsumerRecord(
        "orders", 0, 7, 1, 0, key, value, None, 0, 0, tuple(headers)
    )
    return aiokafka_translate.from_native(record, scope="s")


def _confluent_record(key: Any, value: Any, headers: Any) -> Message:
    record = confluent_kafka.Message(
        topic="orders",
        partition=0,
        offset=7,
        key=key,
        value=value,
        headers=headers,
        timestamp=(1, 1),
    )
    return confluent_translate.from_native(record, scope="s")


_FREE: Final = (_python_record, _asyncio_record)
_RECORDS: Final = (*_FREE, _confluent_record)


def frames() -> list[bytes]:
    """Return seeds: the vectors' messages as pamqp and pika send them."""
    found = []
    for message in seeds.messages():
        if envelope.is_kafka(message.destination):
            continue
        with suppress(Exception):
            found.append(
                ContentHeader(properties=_aio_pika(message).properties).marshal()[12:]
            )
        with suppress(Exception):
            found.append(b"".join(pika_translate.to_properties(message).encode()))
    return [
        *found,
        *(
            _typed(tag, raw)
            for tag in b"bBsuIilLdDfFSATVxt"
            for raw in (bytes(8), _TENTH)
        ),
    ]


_TENTH: Final = struct.pack(">d", 0.1)


def _typed(tag: int, raw: bytes) -> bytes:
    """Return properties with a table of one field of a type."""
    field = b"\1a" + bytes((tag,)) + raw
    return b"\x20\x00" + len(field).to_bytes(4, "big") + field


def _aio_pika(message: Message) -> aio_pika.Message:
    texts = {name.replace("-", "_"): text for name, text in message.properties.items()}
    return aio_pika.Message(
        b"", headers=rabbitmq_translate.headers_out(message.headers), **texts
    )  # type: ignore[arg-type]


def published() -> list[bytes]:
    """Return seeds: drawn tables."""
    tenth = b"\1\1\xff\1a\5" + _TENTH
    return [
        tenth,
        *(
            bytes((at % 2,)) + raw[1:]
            for at, raw in enumerate(seeds.drawn())
            if raw[0] == 0
        ),
    ]


def records() -> list[bytes]:
    """Return seeds: the vectors' records as kafka-python writes them."""
    found = []
    for message in seeds.messages():
        if not envelope.is_kafka(message.destination):
            continue
        builder = DefaultRecordBatchBuilder(2, 0, False, -1, -1, -1, 1 << 20)
        with suppress(Exception):
            builder.append(0, 1, message.key, message.body, list(message.headers))
            found.append(bytes(builder.build())[DefaultRecordBatch.HEADER_STRUCT.size :])
    return found


def values() -> list[bytes]:
    """Return seeds: keys, values and headers of the vectors' records."""
    return [
        b"\0" + sized(message.key or b"") + b"\0" + sized(message.body or b"") + bytes((len(message.headers),))
        + b"".join(b"\0\xff" + sized(name) + b"\0" + sized(value)
                   for name, value in message.headers if isinstance(value, bytes))
        for message in seeds.messages() if envelope.is_kafka(message.destination)
    ]  # fmt: skip
