"""Our two cookies: the session's, sent from our own pages only, and that of a login under way at a provider."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from starlette.requests import Request
from starlette.responses import Response


@dataclass(frozen=True, slots=True, kw_only=True)
class Cookie:
    """A cookie that scripts cannot read; with TLS it is Secure and bound to our host by its name.

    Args:
        name: without the prefix ``__Host-`` that it has with TLS.
        tls: whether people reach us by https.
        samesite: ``strict`` is not sent when another site leads here, ``lax`` is.
        max_age: seconds; ``None`` until the browser ends.
    """

    name: str
    tls: bool
    samesite: Literal["strict", "lax"] = "strict"
    max_age: int | None = None

    @property
    def full_name(self) -> str:
        """The name as it is sent."""
        return f"__Host-{self.name}" if self.tls else self.name

    def read(self, request: Request) -> str | None:
        """Return its value, if it was sent."""
        return request.cookies.get(self.full_name)

    def give(self, response: Response, value: str) -> None:
        """Set it."""
        response.set_cookie(
            self.full_name, value, max_age=self.max_age, path="/", secure=self.tls, httponly=True,
            samesite=self.samesite,
        )  # fmt: skip

    def take(self, response: Response) -> None:
        """Have it forgotten."""
        response.delete_cookie(self.full_name, path="/", secure=self.tls, httponly=True, samesite=self.samesite)
