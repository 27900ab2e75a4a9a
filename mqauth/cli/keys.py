"""``mqauth keys``: makes, lists, rotates and publishes a producer's keys on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from mqauth.audit.record import iso_time
from mqauth.cli.app import (
    Json,
    PassphraseEnv,
    PassphraseFile,
    answer,
    group,
    print_json,
)
from mqauth.cli.serve import Host, Server, TLSCert, TLSKey, certificate_of, listen, origin
from mqauth.config.toml_file import read_passphrase
from mqauth.errors import ConfigurationError, require
from mqauth.keystore import Keystore, RingKey, public_keys
from mqauth.keystore.disk import ring
from mqauth.keystore.remote.keyserver import HEALTH, PATHS, KeyServer
from mqauth.wire.jwk import dump_key_set
from mqauth.wire.keys import ALGORITHMS

app: Final = group("Make, list and publish a producer's keys.", "mqauth keys new")
_FOLDER: Final = Path("keys")
_WIDTH: Final = 140
Dir = Annotated[Path, typer.Option("--dir", help="The keystore folder.")]
FolderOrPEM = Annotated[Path, typer.Option("--dir", help="The keystore folder, or a single PEM file.")]
Kid = Annotated[str, typer.Option("--kid", help="Id of the key.")]


def _time_with_zone(text: str) -> int:
    """Return the UTC seconds of an RFC 3339 time."""
    # Without a zone the moment of a revocation would depend on the machine on which it is typed.
    try:
        moment = datetime.fromisoformat(text)
        seconds = int(moment.timestamp())
    except (ValueError, OverflowError) as error:
        raise ConfigurationError("--from: must be a time like 2030-01-31T12:00:00Z") from error
    require(
        moment.tzinfo is not None and seconds >= 0, "--from: must be a time with a zone, like 2030-01-31T12:00:00Z"
    )
    return seconds


@app.command("new")
def new(
    *,
    folder: Dir = _FOLDER,
    algorithm: Annotated[str, typer.Option("--alg", help=", ".join(ALGORITHMS))] = "EdDSA",
    subjects: Annotated[
        list[str] | None,
        typer.Option("--subject", help="A producer that the key may speak for; by default those of the last key."),
    ] = None,
    publish_delay: Annotated[
        int | None, typer.Option("--publish-delay", help="Seconds for which a new key stays pending.")
    ] = None,
    pending: Annotated[bool, typer.Option("--pending", help="Do not sign with a first key at once.")] = False,
    passphrase_env: PassphraseEnv = None,
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Make a key. The first one of a folder signs at once; later ones are pending."""
    require(algorithm in ALGORITHMS, f"--alg: must be {', '.join(ALGORITHMS)}")
    keystore = Keystore(folder=folder, passphrase=_passphrase(passphrase_env, passphrase_file))
    made = keystore.create(
        algorithm=algorithm, subjects=subjects or None, publish_delay=publish_delay, pending=pending
    )
    _print_key(made, folder, as_json=as_json)


@app.command("jwks")
def jwks(
    folder: FolderOrPEM = _FOLDER, passphrase_env: PassphraseEnv = None, passphrase_file: PassphraseFile = None
) -> None:
    """Print the public keys as a JWK Set."""
    found = public_keys(folder, passphrase=_passphrase(passphrase_env, passphrase_file))
    print(json.dumps(dump_key_set(found), indent=2, ensure_ascii=False))


@app.command("list")
def list_keys(folder: Dir = _FOLDER, as_json: Json = False) -> None:
    """Show every key with its state and times."""
    keys = Keystore(folder=folder).ring().keys
    if as_json:
        print_json({"keys": [ring.describe(key) for key in keys]})
    else:
        _print_table(keys)


@app.command("rotate")
def rotate(folder: Dir = _FOLDER, as_json: Json = False) -> None:
    """Move every key on as its time has come. Safe in cron; running producers notice within seconds."""
    Keystore(folder=folder).change(ring.rotate)
    list_keys(folder, as_json=as_json)


@app.command("retire")
def retire(kid: Kid, folder: Dir = _FOLDER, as_json: Json = False) -> None:
    """Stop signing with a key. What it signed can still be verified."""
    after = Keystore(folder=folder).change(lambda before, now: ring.retire(before, kid, now))
    _print_key(after.get(kid), folder, as_json=as_json)


@app.command("revoke")
def revoke(
    kid: Kid,
    reason: Annotated[str, typer.Option("--reason", help="Why, for the readers of the JWK Set.")],
    folder: Dir = _FOLDER,
    since: Annotated[
        int,
        typer.Option(
            "--from",
            parser=_time_with_zone,
            metavar="<str>",
            show_default=False,
            help="Revoke from this time on; by default from the beginning.",
        ),
    ] = 0,
    as_json: Json = False,
) -> None:
    """Let nothing more be verified with a key."""
    after = Keystore(folder=folder).change(
        lambda before, now: ring.revoke(before, kid, now, reason=reason, since=since)
    )
    _print_key(after.get(kid), folder, as_json=as_json)


@app.command("serve")
def serve(
    *,
    folders: Annotated[
        list[Path] | None, typer.Option("--dir", help="A keystore folder; may be repeated.")
    ] = None,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65_535, help="0 for any that is free.")] = 8080,
    tls_cert: TLSCert = None,
    tls_key: TLSKey = None,
    as_json: Json = False,
) -> None:
    """Publish the public keys over HTTP(S) at /jwks.json, following rotation, until it is stopped."""
    certificate, keys = certificate_of(tls_cert, tls_key), KeyServer(folders or [_FOLDER])
    with listen(host, port, tls=certificate is not None) as listener:
        server = Server(keys, certificate, requests=512, verb="keys serve", extra="serve")
        address, count = origin(listener, tls=certificate is not None), keys.current.keys
        told = {"url": address + PATHS[0], "health": address + HEALTH, "keys": count}
        answer(as_json, told, f"{count} {'key' if count == 1 else 'keys'} at {told['url']}")
        server.run(listener)


def _passphrase(env: str | None, file: Path | None) -> bytes | None:
    require(env is None or file is None, "--passphrase-file contradicts --passphrase-env")
    return read_passphrase(env=env, file=file)


def _print_key(key: RingKey, folder: Path, *, as_json: bool) -> None:
    algorithm, state = key.key.algorithm, key.state.value
    until = f" until {_time(key.ready)}" if key.state is ring.State.PENDING else ""
    told = {"kid": key.kid, "algorithm": algorithm, "state": state}
    answer(as_json, told, f"{key.kid} ({algorithm}) is {state}{until} in {folder}")


def _print_table(keys: Sequence[RingKey]) -> None:
    table = Table("kid", "algorithm", "state", "created", "ready", "subjects")
    for key in keys:
        subjects = "any the consumer pins" if key.key.subjects is None else ", ".join(sorted(key.key.subjects))
        table.add_row(key.kid, key.key.algorithm, key.state.value, _time(key.created), _time(key.ready), subjects)
    console = Console(markup=False)
    console.width = max(console.width, _WIDTH) if not console.is_terminal else console.width
    console.print(table)


def _time(seconds: int) -> str:
    return iso_time(seconds).replace(".000Z", "Z")
