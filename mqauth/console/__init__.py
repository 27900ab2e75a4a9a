"""The web console for dead letters behind ``mqauth console``, on Starlette and Jinja2.

``application`` makes the ASGI application over a ``Backend``: a review session with one background job at a time.
"""

from mqauth.console.access import REVIEWER, VIEWER, Sessions, Tokens
from mqauth.console.application import application, redirect_uri
from mqauth.console.backend import Backend
from mqauth.console.oidc_provider import Provider
from mqauth.console.oidc_settings import OIDCSettings, read_settings

__all__ = [
    "REVIEWER", "VIEWER", "Backend", "OIDCSettings", "Provider", "Sessions", "Tokens", "application",
    "read_settings", "redirect_uri",
]  # fmt: skip
