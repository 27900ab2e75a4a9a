"""The web console for dead letters behind ``mqauth console``, on Starlette and Jinja2.

``application`` makes the ASGI application over a ``Backend``: a review session with one background job at a time.
"""

from mqauth.console.application import application, redirect_uri
from mqauth.console.backend import Backend
from mqauth.console.oidc import OIDCSettings, read_settings
from mqauth.console.oidc_provider import Provider
from mqauth.console.site import REVIEWER, VIEWER, Sessions, Tokens

__all__ = [
    "REVIEWER",
    "VIEWER",
    "Backend",
    "OIDCSettings",
    "Provider",
    "Sessions",
    "Tokens",
    "application",
    "read_settings",
    "redirect_uri",
]
