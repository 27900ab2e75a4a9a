"""Keys that something else holds, named by a URI: an HSM, for example. Each kind of holder has a module here."""

from typing import Final

TIMEOUT: Final = 2.0
"""Seconds that a holder may take for one attempt."""
