"""What holders of keys behind HTTP share: the options of a reference, one bounded request, and what failures say.

Requests share one connection that is kept, and each has one deadline. Whatever keeps a server from signing is
``Unavailable``, with the server named.
"""

from __future__ import annotations

import ssl
from collections.abc import Collection, Mapping
from typing import Any, Final
from urllib.parse import unquote

from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.errors import Cause, Unavailable, require
from mqauth.http.connection import Deadline, Dial, FetchFailed, Kept
from mqauth.http.exchange import Response, request
from mqauth.keystore.reference.key import TIMEOUT

LOOPBACK: Final = "unsafe_http_loopback"
"""The option that allows http on loopback."""


def options(query: str, known: Collection[str], name: str) -> dict[str, str]:
    """Return what stands behind the question mark of a reference.

    Args:
        query: joined by ``&``, values with percent signs.
        known: the options that there are.
        name: what such a reference is called in errors.

    Raises:
        ConfigurationError: an option is not known, or stands there twice.
    """
    pairs = [part.partition("=") for part in query.split("&") if part]
    found = {name: unquote(value) for name, _, value in pairs}
    require(
        len(found) == len(pairs) and found.keys() <= set(known) and "#" not in query,
        f"behind the ? of {name} stand, each at most once, {', '.join(sorted(known))}",
    )
    require(found.get(LOOPBACK, "true") == "true", f"{LOOPBACK} is true, or left out")
    return found


class Served:
    """A key that a server holds; each of its signatures is checked, since others may answer in its place.

    Args:
        shown: the key and its server, for people.
        said: what failures mean, by their text.
        context: TLS settings, for https.
        timeout: seconds for a request, everything included.
        clock: tells the time.
        dial: opens connections, in place of ``connect``.
    """

    def __init__(
        self, shown: str, said: Mapping[str, str], *, context: ssl.SSLContext | None, timeout: float = TIMEOUT,
        clock: Clock = SYSTEM_CLOCK, dial: Dial | None = None,
    ) -> None:  # fmt: skip
        self._shown = shown
        self._said = said
        self._context = context
        self._timeout = timeout
        self._clock = clock
        self._dial, self._kept = dial, Kept()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._shown!r})"

    @property
    def generation(self) -> None:
        """No number: others may stand between us and the server, so each signature is checked."""

    def _unavailable(self, detail: str) -> Unavailable:
        detail = ": ".join(filter(None, (detail, self._said.get(detail))))
        return Unavailable(Cause.KEYS_UNAVAILABLE, f"{self._shown}: {detail}")

    def _deadline(self) -> Deadline:
        return Deadline(self._clock, self._timeout)

    def _request(self, *endpoint: Any, deadline: Deadline, **asked: Any) -> Response:
        """Send one request, as ``mqauth.http`` does."""
        try:
            return request(
                *endpoint, deadline=deadline, context=self._context, dial=self._dial, kept=self._kept, **asked
            )
        except FetchFailed as error:
            raise self._unavailable(str(error)) from error
