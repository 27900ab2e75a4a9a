"""What references of keys behind HTTP share: their options."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final
from urllib.parse import unquote

from mqauth.errors import require

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
    members = {name: unquote(value) for name, _, value in pairs}
    require(
        len(members) == len(pairs) and members.keys() <= set(known) and "#" not in query,
        f"behind the ? of {name} stand, each at most once, {', '.join(sorted(known))}",
    )
    require(members.get(LOOPBACK, "true") == "true", f"{LOOPBACK} is true, or left out")
    return members
