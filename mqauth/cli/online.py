"""What ``mqauth check --online`` asks the network: issuers, authorities, an agent that decides, and brokers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mqauth.cli.broker import Place, check_stamps, opened, place_of, rabbitmq, reached, table_of
from mqauth.clock import SYSTEM_CLOCK
from mqauth.config.issuer_settings import SourceSettings
from mqauth.config.settings import FileSettings
from mqauth.errors import ConfigurationError, MqauthError, require
from mqauth.http.connection import Deadline, Endpoint, FetchFailed, tls_context
from mqauth.http.exchange import request
from mqauth.keystore import Keystore
from mqauth.keystore.remote.fetch import DiscoveredFetch, URLFetch
from mqauth.keystore.remote.keyserver import HEALTH, PATHS
from mqauth.policies.opa import OPA

_SECONDS = 5.0


class Asked(NamedTuple):
    """One question to the network, and its answer.

    Args:
        what: whom was asked.
        code: 0 where all is well, 1 where the answer is wrong, 3 where none came.
        said: in words.
    """

    what: str
    code: int
    said: str


def ask(settings: FileSettings) -> Iterator[Asked]:
    """Ask everybody that a file names, and that can be asked; nothing that was there is changed anywhere."""
    consumer, release, authority = settings.consumer, settings.release, settings.authority
    trusted = (*(consumer.issuers if consumer else ()), *(release.authorities if release else ()))
    for source in (*trusted, *(authority.credentials if authority else ())):
        if source.file is None:
            yield _issuer(source)
    if authority is not None:
        yield _authority(f"authority {authority.url}", authority.url, keys=authority.keys)
    identity = None if settings.producer is None else settings.producer.identity
    if identity is not None:
        yield _authority(f"identity from {identity.authority}", identity.authority, ca=identity.ca)
    if consumer is not None and consumer.opa is not None:
        yield agent(f"agent {consumer.opa.path}", partial(OPA, **consumer.opa.arguments(OPA)))
    names = [*([None] if settings.broker is not None else []), *(settings.brokers or {})]
    for name in names:
        yield _broker(name, settings)
        url = table_of(name, settings).unlocked().url or ""
        if consumer is not None and consumer.append_evidence is not None and not url.startswith("kafka:"):
            yield _interceptor(name, settings)


def _authority(what: str, url: str, *, ca: Path | None = None, keys: Path | None = None) -> Asked:
    """Ask an authority how it is, and for its set; that has the key which signs, where its keystore is here."""
    try:
        context = tls_context(ca)
        health, published = (Endpoint.parse(url + path, unsafe_http_loopback=True) for path in (HEALTH, PATHS[0]))
        told = request(health, deadline=Deadline(SYSTEM_CLOCK, _SECONDS), context=context).document or {}
        found = URLFetch(published, timeout=_SECONDS, context=context, clock=SYSTEM_CLOCK)(None).keys
        active = None if keys is None else Keystore(folder=keys).ring().active
    except FetchFailed as error:
        return Asked(what, 3, f"no answer: {error}")
    except ConfigurationError as error:
        return Asked(what, 1, str(error))
    if not told.get("active"):
        return Asked(what, 1, "none of its keys signs")
    if active is not None and (found is None or found.get(active.kid) is None):
        return Asked(what, 1, f"its set lacks the key that signs here, {active.kid}: another authority answers")
    return Asked(what, 0, f"well; {_counted(len(found.keys) if found is not None else 0)}")


def _issuer(source: SourceSettings) -> Asked:
    what, loopback = f"issuer {source.issuer}", source.unsafe_http_loopback
    given: dict[str, Any] = {"timeout": _SECONDS, "clock": SYSTEM_CLOCK}
    try:
        given["context"] = tls_context(source.ca)
        fetch = (
            DiscoveredFetch(source.issuer, unsafe_http_loopback=loopback, **given)
            if source.jwks is None
            else URLFetch(Endpoint.parse(source.jwks, unsafe_http_loopback=loopback), svid=source.svid, **given)
        )
        found = fetch(None).keys
    except FetchFailed as error:
        return Asked(what, 3, f"no keys: {error}")
    except ConfigurationError as error:
        return Asked(what, 1, str(error))
    keys = () if found is None else tuple(found.keys)
    unbound = sum(key.subjects is None for key in keys)
    if not keys:
        return Asked(what, 1, "its set has no key that can be used")
    said = _counted(len(keys))
    return Asked(what, 0, f"{said}, {unbound} without a subject" if unbound else said)


def _counted(keys: int) -> str:
    return f"{keys} {'key' if keys == 1 else 'keys'}"


def agent(what: str, opened: Callable[[], OPA]) -> Asked:
    """Ask an agent for a decision on what names no producer, which must be a refusal."""
    try:
        return Asked(what, 0, f"refuses what names no producer; {opened().probed()}")
    except FetchFailed as error:
        return Asked(what, 3, f"no decision: {error}")
    except ConfigurationError as error:
        return Asked(what, 1, str(error))


def _broker(name: str | None, settings: FileSettings) -> Asked:
    what = "[broker]" if name is None else f"[brokers.{name}]"
    try:
        place = place_of(name, None, None, None, settings)
        if place.on_kafka:
            _topic(place, settings)
        else:
            # It looks for the queue, and reads nothing yet.
            with opened(place):
                pass
    except MqauthError as error:
        return Asked(what, 3 if getattr(error, "exit_code", 1) == 3 else 1, str(error))
    return Asked(what, 0, f"reached; {place.topic or place.queue} is there")


def _interceptor(name: str | None, settings: FileSettings) -> Asked:
    """Have a RabbitMQ prove that it overwrites append times, as a consumer does at its start."""
    from mqauth.brokers.queue.interceptor import UnansweredError, question
    from mqauth.brokers.rabbitmq.interceptor import echoed

    what = f"append_evidence of {'[broker]' if name is None else f'[brokers.{name}]'}"
    try:
        with rabbitmq(table_of(name, settings).unlocked()) as (connection, call):
            call(question(connection.transport.connection, echoed))
    except MqauthError as error:
        unanswered = isinstance(error, UnansweredError) or getattr(error, "exit_code", 1) == 3
        return Asked(what, 3 if unanswered else 1, str(error))
    return Asked(what, 0, "proved: it overwrites what a sender writes")


def _topic(place: Place, settings: FileSettings) -> None:
    """Look for the topic, and at the stamps of those that are consumed.

    A review session would create the topic of resolutions beside it.
    """
    import kafka

    client: Any = kafka  # its classes have no types
    with (
        reached(place.broker, user=place.settings.user),
        contextlib.closing(client.KafkaAdminClient(**place.settings.for_kafka(place.broker))) as admin,
    ):
        require(place.topic in admin.list_topics(), f"there is no topic {place.topic}")
        check_stamps(admin, settings.consumer)
