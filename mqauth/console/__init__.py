"""The web console for dead letters: ``mqauth console``; Starlette, Jinja2, no build step.

``application`` makes the ASGI application over a ``Desk``, the review core's letter box with one job at a time.
"""

from mqauth.console.access import REVIEWER, VIEWER, Sessions, Tokens
from mqauth.console.application import application
from mqauth.console.desk import Desk

__all__ = ["REVIEWER", "VIEWER", "Desk", "Sessions", "Tokens", "application"]
