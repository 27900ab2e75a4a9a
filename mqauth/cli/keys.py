"""``mqauth keys``: a producer's keys on disk, and the JWK Set consumers read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mqauth.audit.record import iso_time
from mqauth.cli.output import print_json
from mqauth.config.toml_file import read_passphrase
from mqauth.errors import ConfigurationError
from mqauth.keystore import Keystore, RingKey, public_keys
from mqauth.keystore.disk import ring
from mqauth.wire.jwk import dump_key_set


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Which keystore, and where its passphrase is.

    Args:
        folder: a keystore folder or, for ``jwks``, a single PEM file.
        passphrase_env, passphrase_file: one of them at most.

    Raises:
        ConfigurationError: both are named.
    """

    folder: Path
    passphrase_env: str | None = None
    passphrase_file: Path | None = None

    def __post_init__(self) -> None:
        if self.passphrase_env is not None and self.passphrase_file is not None:
            raise ConfigurationError("--passphrase-file contradicts --passphrase-env")

    @property
    def passphrase(self) -> bytes | None:
        """The passphrase, ``None`` where there is none."""
        return read_passphrase(env=self.passphrase_env, file=self.passphrase_file)

    @property
    def keystore(self) -> Keystore:
        """The folder as a keystore."""
        return Keystore(folder=self.folder, passphrase=self.passphrase)


def new(
    place: Place,
    *,
    algorithm: str,
    subjects: Sequence[str],
    publish_delay: int | None,
    pending: bool,
    as_json: bool,
) -> int:
    """Make a key and print what it is."""
    made = place.keystore.create(
        algorithm=algorithm, subjects=subjects or None, publish_delay=publish_delay, pending=pending
    )
    _show(made, place.folder, as_json=as_json)
    return 0


def jwks(place: Place) -> int:
    """Print the public side as a JWK Set."""
    found = public_keys(place.folder, passphrase=place.passphrase)
    print(json.dumps(dump_key_set(found), indent=2, ensure_ascii=False))
    return 0


def show(place: Place, *, as_json: bool) -> int:
    """Print every key with its state and times."""
    keys = place.keystore.ring().keys
    if as_json:
        print_json({"keys": [ring.describe(key) for key in keys]})
    else:
        _table(keys)
    return 0


def rotate(place: Place, *, as_json: bool) -> int:
    """Advance every key by its clock and print what there is now."""
    place.keystore.change(ring.rotate)
    return show(place, as_json=as_json)


def retire(place: Place, kid: str, *, as_json: bool) -> int:
    """Retire one key and print what it is now."""
    after = place.keystore.change(lambda before, now: ring.retire(before, kid, now))
    _show(after.get(kid), place.folder, as_json=as_json)
    return 0


def revoke(place: Place, kid: str, *, since: str | None, reason: str, as_json: bool) -> int:
    """Revoke one key, from a moment or wholly, and print what it is now."""
    moment = 0 if since is None else parse_time(since)
    after = place.keystore.change(lambda before, now: ring.revoke(before, kid, now, reason=reason, since=moment))
    _show(after.get(kid), place.folder, as_json=as_json)
    return 0


def parse_time(text: str) -> int:
    """Return UTC seconds of an RFC 3339 time.

    Raises:
        ConfigurationError: it is none, or has no zone.
    """
    try:
        moment = datetime.fromisoformat(text)
        seconds = int(moment.timestamp())
    except (ValueError, OverflowError) as error:
        raise ConfigurationError("--from: must be a time like 2030-01-31T12:00:00Z") from error
    if moment.tzinfo is None or seconds < 0:
        raise ConfigurationError("--from: must be a time with a zone, like 2030-01-31T12:00:00Z")
    return seconds


def _show(key: RingKey, folder: Path, *, as_json: bool) -> None:
    """Print one key: for people a line, for programs an object."""
    algorithm, state = key.key.algorithm, key.state.value
    if as_json:
        print_json({"kid": key.kid, "algorithm": algorithm, "state": state})
        return
    until = f" until {_time(key.ready)}" if key.state is ring.State.PENDING else ""
    print(f"{key.kid} ({algorithm}) is {state}{until} in {folder}")


def _table(keys: Sequence[RingKey]) -> None:
    """Print the keys as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("kid", "algorithm", "state", "created", "ready", "subjects")
    for key in keys:
        subjects = "any the consumer pins" if key.key.subjects is None else ", ".join(sorted(key.key.subjects))
        table.add_row(key.kid, key.key.algorithm, key.state.value, _time(key.created), _time(key.ready), subjects)
    console = Console(markup=False)
    console.width = max(console.width, 140) if not console.is_terminal else console.width
    console.print(table)


def _time(seconds: int) -> str:
    """Return UTC seconds for people."""
    return iso_time(datetime.fromtimestamp(seconds, UTC).timestamp()).replace(".000Z", "Z")
