"""The web console for dead letters: ``mqauth console``; Starlette, Jinja2, no build step.

``application`` makes the ASGI application over a ``Desk``, the review core's letter box with one job at a time.
"""

from mqauth.console.access import REVIEWER, VIEWER, Sessions, Tokens
from mqauth.console.application import application, redirect_uri
from mqauth.console.desk import Desk
from mqauth.console.oidc_provider import Provider
from mqauth.console.oidc_settings import OIDCSettings, read_settings

__all__ = [
    "REVIEWER", "VIEWER", "Desk", "OIDCSettings", "Provider", "Sessions", "Tokens", "application", "read_settings",
    "redirect_uri",
]  # fmt: skip
