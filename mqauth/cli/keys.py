"""``mqauth keys``: makes, lists, rotates and publishes a producer's keys on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from mqauth.audit import disk
from mqauth.cli.app import (
    From,
    Json,
    PassphraseEnv,
    PassphraseFile,
    Yes,
    answer,
    group,
    options,
    print_error,
)
from mqauth.cli.forms import (
    TO_CHANGE,
    Column,
    Wide,
    confirmed,
    pick,
    shown_time,
    table_lines,
)
from mqauth.cli.serve import Serving, listen, origin
from mqauth.clock import SYSTEM_CLOCK
from mqauth.config.toml_file import read_passphrase
from mqauth.errors import require
from mqauth.keystore import Keystore, RingKey, public_keys
from mqauth.keystore.disk import ring
from mqauth.keystore.disk.folder import KEYSET
from mqauth.keystore.remote.keyserver import HEALTH, PATHS, KeyServer
from mqauth.wire.jwk import dump_key_set
from mqauth.wire.keys import ALGORITHMS

app: Final = group(
    "Make, list, rotate, revoke and publish a producer's keys.",
    "mqauth keys new --subject NAME",
)
_FOLDER: Final = Path("keys")
KEY: Final = (
    Column("kid", is_id=True, cut=False),
    Column("state", cut=False),
    Column("alg", cut=False),
    Column("subjects"),
    Column("created (UTC)", more=True),
    Column("ready (UTC)", cut=False),
)
Dir = Annotated[Path, typer.Option("--dir", help="The keystore folder.")]
Kid = Annotated[str, typer.Option("--kid", help="Id of the key.")]


def _ruled(
    *,
    subjects: Annotated[
        list[str] | None,
        typer.Option(
            "--subject",
            help="A producer that the key may speak for; by default those of the last key.",
        ),
    ] = None,
    publish_delay: Annotated[
        int | None,
        typer.Option(
            "--publish-delay", help="Seconds for which a new key stays pending."
        ),
    ] = None,
    pinned: Annotated[
        bool,
        typer.Option(
            "--pinned",
            help="The key names no producer: consumers say whom it speaks for.",
        ),
    ] = False,
    overlap: Annotated[
        int | None,
        typer.Option(
            "--overlap",
            help="Of an authority: seconds by which a retired key ends later, so that its identities live out.",
        ),
    ] = None,
) -> dict[str, Any]:
    """Return whom a key is for, and by which rules its folder lives."""
    return dict(locals())


@app.command("new")
@options(ruled=_ruled)
def new(
    *,
    folder: Dir = _FOLDER,
    ruled: dict[str, Any],
    algorithm: Annotated[
        str, typer.Option("--alg", help=", ".join(ALGORITHMS))
    ] = "EdDSA",
    pending: Annotated[
        bool, typer.Option("--pending", help="Do not sign with a first key at once.")
    ] = False,
    passphrase_env: PassphraseEnv = None,
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Make a key. The first one of a folder signs at once; later ones are pending."""
    require(algorithm in ALGORITHMS, f"--alg: must be {', '.join(ALGORITHMS)}")
    keystore = Keystore(
        folder=folder, passphrase=_passphrase(passphrase_env, passphrase_file)
    )
    _made(
        keystore,
        partial(keystore.create, algorithm=algorithm, pending=pending),
        **ruled,
        as_json=as_json,
    )


@app.command("adopt")
@options(ruled=_ruled)
def adopt(
    *,
    uri: Annotated[
        str,
        typer.Option(
            "--uri",
            help="Where the key is, pkcs11:token=prod;object=orders-1 for example.",
        ),
    ],
    ruled: dict[str, Any],
    folder: Dir = _FOLDER,
    as_json: Json = False,
) -> None:
    """Enter a key that an HSM or a service holds. It is pending; its private half stays there."""
    keystore = Keystore(folder=folder)
    _made(keystore, partial(keystore.adopt, uri), **ruled, as_json=as_json)


@app.command("jwks")
def jwks(
    folder: Annotated[
        Path, typer.Option("--dir", help="The keystore folder, or a single PEM file.")
    ] = _FOLDER,
    passphrase_env: PassphraseEnv = None,
    passphrase_file: PassphraseFile = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", help="Write this file, whole or not at all."),
    ] = None,
) -> None:
    """Print the public keys as a JWK Set."""
    keys = public_keys(folder, passphrase=_passphrase(passphrase_env, passphrase_file))
    text = json.dumps(dump_key_set(keys), indent=2, ensure_ascii=False)
    if output is None:
        print(text)
    else:
        # A new file would take the place of a device, such as /dev/stdout.
        require(
            disk.is_missing(output) or output.is_file(),
            f"--output {output}: not a regular file",
        )
        # Everybody may read public keys; the consumer often runs as another user.
        disk.write_whole(output, text.encode("utf-8") + b"\n", public=True)


@app.command("list")
def list_keys(folder: Dir = _FOLDER, as_json: Json = False, wide: Wide = False) -> None:
    """Show every key with its state and times."""
    keys = Keystore(folder=folder).ring().keys
    cells = [
        (
            key.kid,
            key.state.value,
            key.key.algorithm,
            "(pinned by consumers)"
            if key.key.subjects is None
            else ", ".join(sorted(key.key.subjects)),
            shown_time(key.created),
            shown_time(key.ready),
        )
        for key in keys
    ]
    answer(
        as_json,
        {"keys": [ring.describe(key) for key in keys]},
        *table_lines(
            f"{len(keys)} {'key' if len(keys) == 1 else 'keys'} in {folder}",
            KEY,
            cells,
            wide=wide,
        ),
    )


@app.command("rotate")
def rotate(folder: Dir = _FOLDER, as_json: Json = False) -> None:
    """Make pending keys active, and drop old ones, once it is time.

    Run it from cron. Running producers notice within seconds.
    """
    after = Keystore(folder=folder).change(ring.rotate)
    list_keys(folder, as_json=as_json)
    if after.active is not None and not any(
        key.state is ring.State.PENDING for key in after.keys
    ):
        print_error(
            f"note: {folder} has no next key; make one with mqauth keys new --dir {folder}"
        )


@app.command("retire")
def retire(
    kid: Kid, folder: Dir = _FOLDER, yes: Yes = False, as_json: Json = False
) -> None:
    """Stop signing with a key. What it signed can still be verified."""
    _end(folder, kid, ring.retire, yes=yes, as_json=as_json)


@app.command("revoke")
def revoke(
    *,
    kid: Kid,
    reason: Annotated[
        str, typer.Option("--why", help="Why, for the readers of the JWK Set.")
    ],
    folder: Dir = _FOLDER,
    since: From = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Revoke a key. Consumers reject what it signed.

    Asks first where no key could sign afterwards.
    """
    _end(
        folder,
        kid,
        partial(ring.revoke, reason=reason, since=int(since or 0)),
        yes=yes,
        as_json=as_json,
    )


def _end(
    folder: Path,
    kid: str,
    act: Callable[[ring.KeyRing, str, int], ring.KeyRing],
    *,
    yes: bool,
    as_json: bool,
) -> None:
    """Retire or revoke a key, once somebody agreed that nothing can be signed after it."""
    keystore = Keystore(folder=folder)
    before, now = keystore.ring(), int(SYSTEM_CLOCK.now())
    whole = pick(kid, (key.kid for key in before.keys), option="--kid", least=TO_CHANGE)
    after = act(before, whole, now)
    if before.active is not None and after.active is None and not yes:
        ready = min(
            (key.ready for key in after.keys if key.state is ring.State.PENDING),
            default=None,
        )
        warning = f"{whole} is the only active key: nothing can be signed until " + (
            "you make another key" if ready is None else f"{shown_time(ready)} UTC"
        )
        confirmed(
            f"{warning}. Go on?",
            f"{warning}; give --yes if that is what you want",
            quiet=as_json,
        )
    _print_key(
        keystore.change(lambda keys, moment: act(keys, whole, moment)).get(whole),
        folder,
        as_json=as_json,
    )


@app.command("serve")
@options(serving=Serving)
def serve(
    *,
    serving: Serving,
    folders: Annotated[
        list[Path] | None,
        typer.Option("--dir", help="A keystore folder; may be repeated."),
    ] = None,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65_535, help="0 for any that is free.")
    ] = 8080,
    as_json: Json = False,
) -> None:
    """Publish the public keys over HTTP(S) at /jwks.json.

    It follows rotation, and runs until Ctrl-C.
    """
    keys, tls = KeyServer(folders or [_FOLDER]), serving.certificate is not None
    with listen(serving.host, port, tls=tls) as listener:
        address, count = origin(listener, tls=tls), keys.current.keys
        found = {"url": address + PATHS[0], "health": address + HEALTH, "keys": count}
        told = partial(
            answer,
            as_json,
            found,
            f"{count} {'key' if count == 1 else 'keys'} at {found['url']}",
        )
        serving.run(keys, listener, told, requests=512, verb="keys serve", extra="serve")


def _made(
    keystore: Keystore,
    make: Callable[..., RingKey],
    *,
    subjects: list[str] | None,
    pinned: bool,
    as_json: bool,
    **settings: int | None,
) -> None:
    """Make or adopt a key, and print it.

    The first key of a folder has to say whom it speaks for, or that consumers say so.
    """
    require(not (subjects and pinned), "--pinned: contradicts --subject")
    require(
        subjects is not None or pinned or not disk.is_missing(keystore.folder / KEYSET),
        "--subject: name the producer that the key speaks for; or --pinned, if consumers say whom",
    )
    _print_key(
        make(subjects=subjects or None, **settings), keystore.folder, as_json=as_json
    )


def _passphrase(env: str | None, file: Path | None) -> bytes | None:
    require(env is None or file is None, "--passphrase-file contradicts --passphrase-env")
    return read_passphrase(env=env, file=file)


def _print_key(key: RingKey, folder: Path, *, as_json: bool) -> None:
    algorithm, state = key.key.algorithm, key.state.value
    until = (
        f" until {shown_time(key.ready)} UTC" if key.state is ring.State.PENDING else ""
    )
    answer(
        as_json,
        {"kid": key.kid, "algorithm": algorithm, "state": state},
        f"{key.kid} ({algorithm}) is {state}{until} in {folder}",
    )
