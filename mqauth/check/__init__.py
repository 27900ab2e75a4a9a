"""``mqauth check``: finds the pitfalls of a configuration file.

``codes`` has the registry of them, ``rule`` has what a rule looks at and what it yields, ``tokens``,
``issuers``, ``deployment`` and ``rollout`` hold the rules. The check as a whole reads the file, asks every rule,
builds the objects, and puts the findings in order.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Final

from mqauth.check import deployment, issuers, rollout, tokens
from mqauth.check.codes import CODES, Code, Severity
from mqauth.check.rule import Finding, Report, Rule, Target, finding, ordered, read, those
from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.config.load import Configuration
from mqauth.config.toml_file import (
    Place,
    RefusedSetting,
    lines_of,
    nearest,
    placeholders,
    read_toml,
)
from mqauth.errors import ConfigurationError

__all__ = ["CODES", "Code", "Finding", "Report", "Severity", "check"]
RULES: Final[tuple[Rule, ...]] = (
    *tokens.RULES,
    *issuers.RULES,
    *deployment.RULES,
    *rollout.RULES,
)
"""Each rule yields its findings on a target."""


def check(path: str | Path, *, clock: Clock = SYSTEM_CLOCK) -> Report:
    """Return what is wrong with a configuration file, without using the network or changing anything.

    Args:
        path: the file, usually ``mqauth.toml``.
        clock: tells how old keys are.

    Raises:
        ConfigurationError: the file cannot be read, or it is no TOML.
    """
    text, members = read_toml(Path(path))
    target = read(Path(path), members, now=clock.now())
    # What the reader refuses.
    findings = [
        finding("configuration", refusal.path, refusal.what)
        for refusal in target.refusals
    ]
    # Settings that say whom to trust, and have a placeholder.
    findings += [
        finding("trust_from_environment", at, f"takes {name} from the environment")
        for at, name in placeholders(tomllib.loads(text))
        if at[:2]
        in (("consumer", "issuers"), ("consumer", "allow"), ("release", "authorities"))
    ]
    # What the rules find; what is refused when the objects are built, where nothing was found wrong before; and
    # names in [check] accept that cannot be accepted.
    findings += [each for rule in RULES for each in rule(target)]
    wrong = {each.path for each in findings if each.severity is Severity.ERROR}
    for at, what in _refused(path, members, clock, target):
        if at not in wrong:
            wrong.add(at)
            findings.append(finding("configuration", at, what))
    for number, name in enumerate(target.options.accept):
        near = "".join(difflib.get_close_matches(name, CODES, 1))
        unknown = "no such code" + (f"; did you mean {near}?" if near else "")
        findings += those(
            (name not in CODES, "configuration", ("check", "accept", number), unknown),
            (
                name in CODES and CODES[name].severity is Severity.ERROR,
                "configuration",
                ("check", "accept", number),
                f"{name} is an error, and cannot be accepted",
            ),
        )
    lines = lines_of(text)
    every = ordered(replace(each, line=nearest(lines, each.path)) for each in findings)
    kept = tuple(
        each
        for each in every
        if each.severity is Severity.ERROR or each.code.name not in target.options.accept
    )
    # What could not be looked at, and the setting that makes it visible.
    given, replay, producer = (
        target.options.table.members,
        target.replay,
        target.settings.producer,
    )
    local = (
        target.settings.consumer is not None
        and replay is not None
        and replay.kind in ("memory", "file")
    )
    unseen = (
        ("brokers" not in given, "broker URLs ([check] brokers)"),
        (
            local and "consumers" not in given,
            "whether consumers share the replay store ([check] consumers)",
        ),
        (local and "rate" not in given, "replay capacity ([check] rate)"),
        (
            producer is not None and producer.identity is not None,
            "what the authority would give",
        ),
        (any(source.file is None for source in target.sources), "remote key sets"),
    )
    return Report(
        findings=kept,
        unseen=tuple(what for holds, what in unseen if holds),
        accepted=len(every) - len(kept),
    )


def _refused(
    path: str | Path, members: dict[str, Any], clock: Clock, target: Target
) -> Iterator[tuple[Place, str]]:
    """Yield what is refused when the objects are built, as each process builds its own at its start.

    No audit file is opened and nothing is connected.
    """
    settings = target.settings
    # Without their passphrase, keys cannot be opened here.
    openable = set()
    for signs in target.signers:
        with suppress(ConfigurationError):
            signs.settings.read_secret("passphrase")
            openable.add(signs.table)
    parts = {
        # A signer with an identity would ask the authority for it.
        "signer": "producer" in openable,
        "identity": settings.producer is not None
        and settings.producer.identity is not None,
        "trial": settings.consumer is not None,
        "authority.desk": settings.authority is not None,
        "authority.keys": "authority" in openable,
    }
    for name in [name for name, wanted in parts.items() if wanted]:
        try:
            attrgetter(name)(Configuration(str(path), members, clock))
        except RefusedSetting as refused:
            yield refused.path, refused.what
        except ConfigurationError as error:
            yield (), str(error)
        except OSError as error:
            yield (), f"{error.filename}: {error.strerror}"
