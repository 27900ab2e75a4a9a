"""Rules on tokens and the private keys that sign them.

How long tokens live, whom they are meant for, and by which clock they are judged; who can read a producer's keys,
how strong and how old they are, and their successors.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from mqauth.check.findings import Finding, finding, on, those
from mqauth.check.issuers import DAY
from mqauth.check.target import Target, mode, others, unless_refused
from mqauth.config.consumer_settings import ConsumerSettings
from mqauth.errors import ConfigurationError
from mqauth.judging.token import BACKLOG, longest_wait
from mqauth.keystore import State
from mqauth.keystore.disk import files
from mqauth.signer import MAX_LIFETIME
from mqauth.wire.destination import is_kafka
from mqauth.wire.header_names import HeaderNames
from mqauth.wire.keys import MIN_RSA_BITS

_LIMITS: Final = (
    ("producer", "lifetime", 900, MAX_LIFETIME, "lifetime_long"),
    ("consumer", "max_lifetime", 3600, MAX_LIFETIME, "lifetime_long"),
    ("consumer", "max_lifetime", MAX_LIFETIME, math.inf, "lifetime_unbounded"),
    ("consumer", "leeway", 15, math.inf, "leeway_large"),
)
"""Table, setting, and of how many seconds on, up to how many, it has which code."""
_ENCRYPTED: Final = (b"-----BEGIN ENCRYPTED PRIVATE KEY-----", b"Proc-Type: 4,ENCRYPTED")
_WRITE: Final = 0o022


def limits(target: Target) -> Iterator[Finding]:
    """Find tokens that live longer than they need to, and a leeway that is larger than clocks differ."""
    for table, key, limit, most, name in _LIMITS:
        settings = getattr(target.settings, table)
        if settings is not None and limit < getattr(settings, key) <= most:
            yield finding(name, (table, key), f"{key} is {getattr(settings, key)} s, over {limit} s")


@on("consumer")
def backlog(target: Target, consumer: ConsumerSettings) -> Iterator[Finding]:
    """Find a consumer that cannot be stopped for a day without rejecting honest messages for their age."""
    # Producers in other files may sign for a shorter time, which this file does not say.
    lifetimes = [consumer.max_lifetime]
    lifetimes += [] if target.settings.producer is None else [target.settings.producer.lifetime]
    domains = [issuer.max_identity_lifetime for issuer in consumer.issuers if issuer.trust_domain is not None]
    waits = longest_wait(consumer.max_queue_age, lifetimes, domains)
    if waits < BACKLOG and consumer.backlog is None:
        key = "at" if consumer.at == "consume" else "max_queue_age"
        yield finding(
            "backlog_expires", ("consumer", key), f"a message that waits for more than {waits} s is rejected"
        )


@on("consumer")
def trust(_: Target, consumer: ConsumerSettings) -> Iterator[Finding]:
    """Find times and headers that a consumer gets without proof of who wrote them."""
    places = [place for rule in consumer.allow for place in rule.destinations]
    loose = HeaderNames("allow_unsigned_headers", consumer.allow_unsigned_headers).broad
    wide = [pattern for each in consumer.accept_as for pattern in each.build().broad]
    yield from those(
        (
            consumer.at != "consume" and consumer.append_evidence is None and not all(map(is_kafka, places)),
            "append_without_evidence",
            ("consumer", "append_evidence"),
            'at = "append" without append_evidence, and a rule names RabbitMQ',
        ),
        (
            consumer.unsafe_append_evidence,
            "append_evidence_unproved",
            ("consumer", "unsafe_append_evidence"),
            "append times are believed unproved",
        ),
        (
            loose,
            "allow_unsigned_headers_broad",
            ("consumer", "allow_unsigned_headers"),
            f"{', '.join(loose)} ends within a word",
        ),
        (wide, "accept_as_broad", ("consumer", "accept_as"), f"{', '.join(wide)} takes any number of words"),
        (
            consumer.unsigned_headers == "hide",
            "unsigned_headers_hidden",
            ("consumer", "unsigned_headers"),
            "unsigned headers are hidden, not refused",
        ),
    )


def pem_files(target: Target) -> Iterator[Finding]:
    """Find private keys that are open to others, too short, or without a passphrase."""
    for signs in target.signers:
        folder = signs.keys
        pems = sorted(folder.glob("*.pem")) if os.path.isdir(folder) else [folder] if folder.is_file() else []
        for path in pems:
            if others(path):
                yield finding(
                    "key_readable", signs.at, f"{target.shown(path)} is open to others (mode {mode(path)})"
                )
            # What is no key, or cannot be opened, is for the configuration's own reader.
            with suppress(ConfigurationError, TypeError, ValueError, UnsupportedAlgorithm):
                raw = _raw(path)
                key = serialization.load_pem_private_key(raw, signs.passphrase() if _is_encrypted(raw) else None)
                if isinstance(key, rsa.RSAPrivateKey) and key.key_size < MIN_RSA_BITS:
                    yield finding("key_weak", signs.at, f"{target.shown(path)}: RSA of {key.key_size} bits")
        if os.path.isdir(folder) and others(folder):
            name = "keystore_writable" if others(folder) & _WRITE else "keystore_readable"
            yield finding(name, signs.at, f"{target.shown(folder)} is open to others (mode {mode(folder)})")
        plain = [raw for raw in map(_raw, pems) if b"PRIVATE KEY-----" in raw and not _is_encrypted(raw)]
        if plain:
            said = f"{len(plain)} of {len(pems)} PEM files under {signs.at[1]} without a passphrase"
            yield finding("key_plain", signs.at, said)


def passphrases(target: Target) -> Iterator[Finding]:
    """Find a passphrase that cannot be read, or that lies beside the keys."""
    for signs in target.signers:
        table, settings, keys, *_ = signs
        file = settings.passphrase_file
        try:
            signs.passphrase()
        except ConfigurationError as error:
            key = "passphrase_env" if file is None else "passphrase_file"
            yield finding("passphrase_unavailable", (table, key), str(error))
        folder = keys if os.path.isdir(keys) else keys.parent
        if file is not None and file.absolute().parent == folder.absolute():
            said = f"{target.shown(file)} lies beside the keys"
            yield finding("passphrase_beside_keys", (table, "passphrase_file"), said)


def rotation(target: Target) -> Iterator[Finding]:
    """Find keys that are older than they should be, that have no successor, or that change too quickly."""
    now, limit = int(target.now), target.options.rotation
    for signs in target.signers:
        at, ring = signs.at, signs.ring
        if os.path.isfile(signs.keys):
            yield finding("key_alone", at, f"{target.shown(signs.keys)} is a single PEM file")
        if ring is None:
            continue
        delay, retain = ring.publish_delay, ring.retain
        yield from those(
            (
                delay < signs.fresh,
                "publish_delay_short",
                at,
                f"the keystore's publish_delay is {delay} s, under {signs.fresh} s",
            ),
            (
                retain < signs.retain,
                "retain_short",
                at,
                f"the keystore's retain is {retain} s, under {signs.retain} s",
            ),
        )
        # An active key that is overdue or due soon, and a pending one that nobody activates.
        if ring.active is not None and ring.active.activated is not None:
            kid, used = ring.active.kid, now - ring.active.activated
            waiting = [key for key in ring.keys if key.state is State.PENDING]
            soon = not waiting and used > limit - max(delay, limit // 10)
            yield from those(
                (
                    used > limit,
                    "key_overdue",
                    at,
                    f"the key {kid} has signed for {_days(used)}, longer than {_days(limit)}",
                ),
                (
                    soon,
                    "key_no_next",
                    at,
                    f"the key {kid} is due in {_days(max(limit - used, 0))}, and no other is pending",
                ),
                (
                    any(key.ready + DAY < now for key in waiting),
                    "rotation_stalled",
                    at,
                    "a pending key has been ready for more than a day",
                ),
            )


def references(target: Target) -> Iterator[Finding]:
    """Find holders of keys that are asked without TLS, or whose secret cannot be read here."""
    for signs, held in target.references:
        unreadable = held.secret is not None and not os.access(held.secret, os.R_OK)
        yield from those(
            (held.host, "transit_loopback", signs.at, f"{held.uri}: http to {held.host}"),
            (unreadable, "passphrase_unavailable", signs.at, f"{held.uri}: {held.secret} cannot be read"),
        )


def _raw(path: Path) -> bytes:
    """Return a PEM file's bytes; none if it cannot be read."""
    return unless_refused(lambda: files.read_bounded(path, 64 * 1024)) or b""


def _is_encrypted(raw: bytes) -> bool:
    return any(mark in raw for mark in _ENCRYPTED)


def _days(seconds: int) -> str:
    return f"{seconds // DAY} d" if seconds >= DAY else f"{seconds} s"


RULES: Final = (limits, backlog, trust, pem_files, passphrases, rotation, references)
