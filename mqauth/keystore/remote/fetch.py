"""From a URL to an ``Answer``: one attempt to get a JWK Set."""

from __future__ import annotations

import ssl
from typing import Protocol

from mqauth.clock import Clock
from mqauth.errors import ConfigurationError
from mqauth.keystore.remote.http import get
from mqauth.keystore.remote.http_answer import Response
from mqauth.keystore.remote.http_connection import Deadline, Dial, Endpoint, FetchFailed, check_timeout
from mqauth.keystore.remote.rules import Answer, publish_delay_of
from mqauth.wire.jwk import load_key_set


class Fetch(Protocol):
    """One attempt to get a JWK Set, bounded in time and bytes."""

    def __call__(self, etag: str | None, /) -> Answer:
        """Return a good answer.

        Args:
            etag: of the set we have; the answer may say that nothing changed.

        Raises:
            FetchFailed: there was none.
        """
        ...


class URLFetch:
    """Fetches a JWK Set from one URL.

    Args:
        endpoint: where.
        timeout: seconds for a whole attempt.
        context: TLS settings.
        clock: tells the time.
        dial: opens connections; for tests.

    Raises:
        ConfigurationError: the timeout is not more than 0 and at most 5 s.
    """

    def __init__(
        self, endpoint: Endpoint, *, timeout: float, context: ssl.SSLContext | None, clock: Clock,
        dial: Dial | None = None,
    ) -> None:  # fmt: skip
        self._endpoint = endpoint
        self._timeout = check_timeout(timeout)
        self._context = context
        self._clock = clock
        self._dial = dial

    def __call__(self, etag: str | None, /) -> Answer:
        """Fetch within the timeout."""
        deadline = Deadline(self._clock, self._timeout)
        return answer_of(get(self._endpoint, deadline=deadline, context=self._context, etag=etag, dial=self._dial))


def answer_of(response: Response) -> Answer:
    """Read a response as a JWK Set.

    Raises:
        FetchFailed: it has no list ``keys``.
    """
    document = response.document
    try:
        keys = None if document is None else load_key_set(document)
    except ConfigurationError as error:
        raise FetchFailed("no JSON object with a list of keys") from error
    return Answer(
        keys=keys,
        publish_delay=None if document is None else publish_delay_of(document),
        max_age=response.max_age,
        age=response.age,
        date=response.date,
        etag=response.etag,
    )
