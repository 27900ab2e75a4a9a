"""``mqauth sign``: messages in the JSON form in, the same out with a token in their headers."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mqauth
from mqauth.cli.messages import MAX_INPUT, Text, read_body, read_texts, standard_input
from mqauth.cli.output import print_json
from mqauth.errors import ConfigurationError, MalformedMessage
from mqauth.signer import Prepared, Signer
from mqauth.wire import destination
from mqauth.wire import json_form as jsonform
from mqauth.wire.message import TOKEN_HEADER, Message


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A message that waits for the signature of its batch.

    Args:
        place: where it stood, for errors.
        form: as it came in.
        prepared: the same, hashed.
    """

    place: str
    form: dict[str, Any]
    prepared: Prepared


def sign_forms(config: Path, *, lines: bool, batch: int = 1) -> int:
    """Sign what standard input holds; stops at the first message that cannot be signed.

    Args:
        config: the configuration file.
        lines: one message a line; blank lines are skipped.
        batch: messages that share a signature, 1 to 1,024; each waits for the last of its batch.

    Raises:
        ConfigurationError: the file, or its ``[producer]``, cannot be used.
        MalformedMessage: a text is no message, with its line; the ones before it are signed and printed.
    """
    signer = mqauth.load(config).signer
    waiting: list[_Waiting] = []
    for text in read_texts(standard_input(), lines=lines):
        place = f"line {text.number}" if lines else "standard input"
        try:
            form = _form(text)
            waiting.append(_Waiting(place, form, signer.prepare(jsonform.from_form(form))))
        except MalformedMessage as error:
            _print_sealed(signer, waiting)
            raise MalformedMessage(f"{place}: {error}") from error
        if len(waiting) == batch:
            _print_sealed(signer, waiting)
            waiting = []
    _print_sealed(signer, waiting)
    return 0


def _print_sealed(signer: Signer, waiting: Sequence[_Waiting]) -> None:
    """Sign what waits and print it, in order."""
    try:
        sealed = signer.seal([found.prepared for found in waiting])
    except MalformedMessage as error:
        raise MalformedMessage(f"{waiting[0].place}: {error}") from error
    for found, message in zip(waiting, sealed, strict=True):
        print_json(_with_token(found.form, message))


def sign_body(
    config: Path, place: str, *, key: str | None, headers: Sequence[str], properties: Sequence[str]
) -> int:
    """Sign one message whose body is standard input.

    Args:
        config: the configuration file.
        place: its destination, canonical.
        key: the Kafka record key, as text.
        headers: ``name=value`` each, text.
        properties: ``name=value`` each; underscores and hyphens are one.

    Raises:
        ConfigurationError: the file cannot be used, or an argument is not in its form.
        MalformedMessage: such a message cannot exist on its broker.
    """
    signer = mqauth.load(config).signer
    form = _form_of(place, key, headers, properties)
    body = read_body(standard_input())
    if body is None:
        raise MalformedMessage(f"the body is over {MAX_INPUT} bytes")
    form["body"] = _base64(body)
    print_json(_with_token(form, signer.sign(jsonform.from_form(form))))
    return 0


def _with_token(form: dict[str, Any], signed: Message) -> dict[str, Any]:
    """Return the form with the token header of the signed message appended and everything else as it was."""
    name, token = signed.headers[-1]
    if name != TOKEN_HEADER or not isinstance(token, str | bytes):
        raise MalformedMessage("the signer added no token")
    text = token if isinstance(token, str) else token.decode("ascii")
    return form | {"headers": [*form.get("headers", []), [TOKEN_HEADER, {"str": text}]]}


def _form(text: Text) -> dict[str, Any]:
    """Return a parsed text that is an object."""
    form = text.parse()
    if not isinstance(form, dict):
        raise MalformedMessage("a message is an object")
    return form


def _form_of(place: str, key: str | None, headers: Sequence[str], properties: Sequence[str]) -> dict[str, Any]:
    """Return the form of a message given by arguments, its body still to come."""
    try:
        destination.parse(place)
    except MalformedMessage as error:
        raise ConfigurationError(f"--to: {error}") from error
    form: dict[str, Any] = {"destination": place}
    if destination.is_kafka(place):
        form["key"] = None if key is None else _base64(_octets("--key", key))
    elif key is not None:
        raise ConfigurationError("--key: only Kafka has record keys")
    form["body"] = ""
    form["properties"] = _properties(properties)
    form["headers"] = [[name, {"str": value}] for name, value in (_pair("--header", text) for text in headers)]
    return form


def _properties(texts: Sequence[str]) -> dict[str, str]:
    """Return the properties of the arguments, as the form spells them."""
    found: dict[str, str] = {}
    for name, value in (_pair("--property", text) for text in texts):
        if name.replace("_", "-") not in jsonform.PROPERTIES:
            raise ConfigurationError(f"--property: {name}: no such property")
        if name.replace("-", "_") in found:
            raise ConfigurationError(f"--property: {name}: stands twice")
        found[name.replace("-", "_")] = value
    return found


def _pair(option: str, text: str) -> tuple[str, str]:
    """Return name and value of ``name=value``; the value may hold more equals signs."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ConfigurationError(f"{option}: must be name=value")
    _octets(option, text)
    return name, value


def _octets(option: str, text: str) -> bytes:
    """Return an argument's UTF-8; the system hands over other bytes as lone surrogates."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigurationError(f"{option}: not UTF-8") from error


def _base64(raw: bytes) -> str:
    """Return standard base64 text."""
    return base64.b64encode(raw).decode("ascii")
