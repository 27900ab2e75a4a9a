"""The declaration of ``[consumer.opa]``: who may publish where, decided by an Open Policy Agent."""

# No ``from __future__ import annotations``, as in ``settings``.

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from mqauth.config.declaration import Settings
from mqauth.config.kinds import PATH, seconds, text, url
from mqauth.policies.opa import MAX_REMEMBER, MIN_TIMEOUT, REMEMBER, TIMEOUT, is_path


def _path_fault(found: str) -> str | None:
    return None if is_path(found) else "must be words of letters, digits, _ and -, with / between them"


@dataclass(frozen=True, slots=True, kw_only=True)
class OPASettings(Settings):
    """``[consumer.opa]``: the arguments of ``OPA``."""

    url: Annotated[
        str,
        url("https", "http"),
        "The agent; https, or http on this machine.",
    ]
    path: Annotated[
        str,
        text("path", _path_fault),
        "The rule, which gives a boolean: `mqauth/allow` is `allow` of `package mqauth`.",
    ]
    remember: Annotated[
        float, seconds(0, MAX_REMEMBER, fractions=True), "How long a decision is remembered, refusals too."
    ] = REMEMBER
    timeout: Annotated[
        float,
        seconds(MIN_TIMEOUT, 5, fractions=True),
        "How long a whole request may take; after that the message waits.",
    ] = TIMEOUT
    ca: Annotated[Path | None, PATH, "A PEM file of the CAs to trust in place of the system's."] = None
    token_file: Annotated[
        Path | None, PATH, "A file with the bearer token to send, read again for each request."
    ] = None
