"""Several queues and topics in one console: their names in addresses, and the page that lists them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from mqauth.console.backend import Backend, BusyError
from mqauth.console.pages import SEE_OTHER, Fields, for_everybody, posted
from mqauth.console.site import Place, Session, Site
from mqauth.errors import require


def places_of(backends: Mapping[str, Backend]) -> list[Place]:
    """Return the queues and topics with the addresses of their pages.

    Raises:
        ConfigurationError: there is none, or two would have the same address.
    """
    if len(backends) == 1:
        return [Place(backend, name=name) for name, backend in backends.items()]
    bases = {f"/at/{_address(name)}": name for name in backends}
    require(
        backends and len(bases) == len(backends), "[brokers]: each needs a name of its own, of letters or digits"
    )
    for name, backend in backends.items():
        backend.beside = [other for called, other in backends.items() if called != name]
    return [Place(backends[name], base, name) for base, name in bases.items()]


def _address(name: str) -> str:
    """Return a name as it stands in addresses."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.").lower()


class Lobby:
    """The pages before those of one queue or topic.

    Args:
        site: what all pages share.
    """

    def __init__(self, site: Site) -> None:
        self.site = site

    @for_everybody
    async def show(self, request: Request, session: Session) -> Response:
        """Show the queues and topics with their counts."""
        found = [(place, await run_in_threadpool(place.backend.letters.overview)) for place in self.site.places]
        return self.site.page("places.html", session, found=found)

    @posted(viewers=True)
    async def refresh(self, request: Request, session: Session, fields: Fields) -> Response:
        """Read the letters of all of them again; one that is at work goes on with that."""
        for place in self.site.places:
            with contextlib.suppress(BusyError):
                place.backend.read(session.name)
        return RedirectResponse("/", SEE_OTHER)

    @posted(viewers=True)
    async def log_out(self, request: Request, session: Session, fields: Fields) -> Response:
        """End the session."""
        self.site.sessions.end(self.site.cookie.read(request) or "")
        response = RedirectResponse("/login", SEE_OTHER)
        self.site.cookie.delete(response)
        return response
