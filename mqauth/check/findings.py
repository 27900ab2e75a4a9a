"""Findings, and the registry of the codes they can have; a test compares ``docs/check.md`` with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from mqauth.check.target import Path, Target
from mqauth.config.toml_file import spelt


class Severity(StrEnum):
    """How bad a finding is: an error fails the check, a warning fails it with ``--strict``, a note never does."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Code:
    """One pitfall; its name and severity are stable.

    Args:
        name: what programs look for.
        severity: how bad it is.
        why: why it matters.
        instead: what to write instead.
    """

    name: str
    severity: Severity
    why: str
    instead: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A pitfall at a place; ``line`` counts from 1, and is ``None`` if not even the table stands in the file."""

    code: Code
    severity: Severity
    path: Path
    message: str
    line: int | None = None

    @property
    def key(self) -> str:
        """The place as people read it, like ``consumer.issuers[0].jwks``."""
        parts = (f"[{part}]" if isinstance(part, int) else f".{spelt(part)}" for part in self.path)
        return "".join(parts).removeprefix(".")

    def as_dict(self) -> dict[str, Any]:
        """Return the finding as JSON values."""
        return {
            "code": self.code.name, "severity": self.severity.value, "line": self.line, "key": self.key,
            "message": self.message, "why": self.code.why, "instead": self.code.instead,
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All findings of one file, by severity, and within a severity by line.

    Args:
        findings: what was found.
        unseen: what could not be looked at, and the setting that makes it visible.
        accepted: how many findings ``[check] accept`` left out.
    """

    findings: tuple[Finding, ...]
    unseen: tuple[str, ...] = ()
    accepted: int = 0

    def count(self, severity: Severity) -> int:
        """Return how many findings have a severity."""
        return sum(finding.severity is severity for finding in self.findings)

    def strict(self) -> Report:
        """Return the report with every warning as an error."""
        findings = (
            replace(finding, severity=Severity.ERROR) if finding.severity is Severity.WARNING else finding
            for finding in self.findings
        )
        return replace(self, findings=ordered(findings))

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "findings": [finding.as_dict() for finding in self.findings],
            "errors": self.count(Severity.ERROR),
            "warnings": self.count(Severity.WARNING),
        }


def ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return findings by severity, then by line."""
    ranks = list(Severity)
    return tuple(sorted(findings, key=lambda found: (ranks.index(found.severity), found.line or 0)))


ERROR, WARNING, NOTE = Severity

_TABLE: Final = (
    # The file.
    Code("configuration", ERROR,
         "mqauth refuses the setting, and the producer or consumer that needs it does not start.",
         "The change that the message asks for."),
    Code("trust_writable", ERROR,
         "Anybody who can write it decides whom you trust: keys, authorities, rules.",
         "chmod go-w, and an owner who is trusted."),
    Code("secret_readable", ERROR,
         "Others on this machine can read the secret.",
         "chmod 600, and a new secret if others were there."),
    Code("config_readable", NOTE,
         "Others learn where the passphrase is.",
         "chmod o-r on the configuration, or passphrase_env."),
    # Tokens.
    Code("lifetime_unbounded", ERROR,
         "A token that lives for days, or without end, is a password: who has a copy can use it where it fits.",
         "lifetime = 60 for producers, max_lifetime of an hour at most for consumers."),
    Code("lifetime_long", WARNING,
         "The longer a token lives, the longer a copy of it can be used, and the more ids a replay store has to "
         "hold.",
         'Seconds to minutes; for a backlog, at = "append" with max_queue_age.'),
    Code("audience_missing", ERROR,
         "Without an audience, a message for one service is valid for every other.",
         'audience = "billing": the name of the service or stream the messages are meant for.'),
    Code("audience_wildcard", ERROR,
         "A wildcard accepts messages that are meant for somebody else.",
         "The names themselves; a consumer may list several."),
    Code("leeway_large", WARNING,
         "Every token lives longer by as much, and clocks that are wrong go unnoticed.",
         "leeway = 5, and clocks kept by NTP."),
    Code("append_without_evidence", ERROR,
         "A sender can write any timestamp unless RabbitMQ overwrites it, so every message is deferred.",
         'append_evidence = "interceptor", with the interceptor on at the broker, or at = "consume".'),
    Code("unsigned_headers_hidden", NOTE,
         "Unsigned headers are hidden from Verified.headers, but code that reads .native still sees them.",
         'unsigned_headers = "reject", where nothing on the way adds headers of its own.'),
    Code("allow_unsigned_headers_broad", ERROR,
         "A beginning that ends within a word may be that of an application's header, which then stands unsigned.",
         'Names, or beginnings up to a hyphen, such as "x-acme-trace-*".'),
    Code("accept_as_broad", WARNING,
         "With # messages that were signed for any destination of an exchange are taken for this one.",
         "The destinations that are moved here, one by one."),
    # Issuers, their keys, and rules.
    Code("issuer_unbound", ERROR,
         "A key that names no subject is refused, because it could sign for any producer of its issuer.",
         "mqauth keys new --subject NAME for each producer, or subjects = { KID = [NAME] }."),
    Code("binding_unseen", NOTE,
         "Keys without mqauth_sub are refused, and the check cannot see whether the remote keys have it.",
         "Nothing, if mqauth keys jwks made the set; otherwise subjects = { KID = [NAME] }."),
    Code("subjects_shared", ERROR,
         "Any key that names no subject may sign as each of these producers.",
         "One list for each kid, or mqauth keys new --subject NAME, so that the keys name their subjects."),
    Code("issuer_vouches", WARNING,
         "Each key of this issuer may sign as any of its producers: with one stolen key, a thief can be all of "
         "them.",
         "subjects, or keys that name their subjects; vouches only for an authority that signs for others."),
    Code("identity_outlives_keys", WARNING,
         "While the authority is out of reach its keys are dropped before the identities they vouched for end.",
         "max_stale of at least max_identity_lifetime."),
    Code("forms_both", WARNING,
         "A key on disk still opens what an identity should: the migration to a trust domain has no end.",
         "until at the direct issuer; its rule taken out once its producers have identities."),
    Code("issuer_ending", WARNING,
         "The day by which the producers of a direct issuer are to have identities is near.",
         "The issuer taken out; or another until, with its reason in the history of the file."),
    Code("issuer_overdue", ERROR,
         "A direct issuer was to be taken out, and its keys on disk still count.",
         "The issuer taken out with its rules, or another until."),
    Code("issuers_share_keys", WARNING,
         "Anybody who signs for one issuer can sign for the other.",
         "The keys of each issuer in a place of its own."),
    Code("pin_unknown", WARNING,
         "The pin has no effect: the kid is misspelt, or its key is gone.",
         "The kid as mqauth keys list shows it, or no pin."),
    Code("release_self", ERROR,
         "Anybody who signs messages could also release them, so nobody else looks at them.",
         "An issuer of its own, with keys of its own, for reviewers."),
    Code("release_waives_much", WARNING,
         "A release that waives these lets through what a rule, a retired key or the replay store has refused.",
         'waive = ["expired", "queue_age_exceeded"].'),
    Code("policy_empty", WARNING,
         "Without a rule every message is dead-lettered as producer_forbidden.",
         "[[consumer.allow]] with subject and destinations."),
    Code("rule_matches_all", ERROR,
         "The producer may publish anywhere: one stolen key opens the whole broker.",
         "The topics or exchange and routing keys it really publishes to."),
    Code("rule_broad", WARNING,
         "The producer may use any routing key of the exchange, including those of other producers.",
         "The first words of its own routing keys, like rabbitmq:shop/orders.#."),
    Code("subject_without_key", ERROR,
         "No message can match the rule, because each message of this producer is refused before.",
         "A key for the subject, or the subject as the keys spell it."),
    Code("opa_unbounded", NOTE,
         "What the policy of the agent allows by mistake, nothing refuses.",
         "[[consumer.allow]] beside it, as wide as it may ever be: both must allow."),
    Code("opa_loopback", NOTE,
         "Any process on this machine that takes the port can decide who may publish where.",
         "https://, where others may start processes on this machine."),
    # JWK Sets.
    Code("jwks_symmetric", ERROR,
         "With a shared secret, anybody who can verify can also sign as any producer; alg none signs nothing.",
         "Ed25519 keys: mqauth keys new, then mqauth keys jwks. Anybody who saw the set has the secret."),
    Code("jwks_private", ERROR,
         "Anybody who can read the set can sign as its owner.",
         "The public half, which mqauth keys jwks prints; revoke this key, because others may know it."),
    Code("key_weak", ERROR,
         "RSA under 2048 bits, or with a small exponent, can be broken or misused.",
         "mqauth keys new, which makes Ed25519 unless told otherwise."),
    Code("jwks_skipped", WARNING,
         "The key is not used: what it signs is dead-lettered as key_unknown.",
         "The key as mqauth keys jwks prints it."),
    Code("jwks_http", ERROR,
         "Anyone on the network path can replace the keys in the answer.",
         'https://, with ca = "ca.pem" for an authority of your own.'),
    Code("jwks_loopback", WARNING,
         "Any process on this machine that takes the port can serve other keys.",
         "https:// in production; unsafe_http_loopback is for tests."),
    Code("authority_http", ERROR,
         "Anyone on the network path reads the credential, and asks for the identity in your place.",
         'https://, with ca = "ca.pem" for an authority of your own.'),
    Code("authority_loopback", WARNING,
         "Any process on this machine that takes the port is shown the credential.",
         "https:// in production; unsafe_http_loopback is for tests."),
    Code("stale_beyond_rotation", WARNING,
         "While the issuer cannot be reached, keys are trusted for that long, even if they were revoked or "
         "removed.",
         "max_stale = 3600: as long as an outage that you want to survive, and shorter than a key's life in the "
         "set."),
    Code("publish_delay_overstated", ERROR,
         "The consumer believes that it has seen every new key in time, and so refuses one that it has not seen.",
         "publish_delay no longer than the keystore's own."),
    # A producer's keys.
    Code("key_readable", ERROR,
         "Anybody who can read a private key can sign with it.",
         "chmod 600; replace a key that others could read: mqauth keys new, rotate, revoke."),
    Code("keystore_writable", ERROR,
         "Anybody who can write the folder can replace keys and their states.",
         "chmod 700."),
    Code("keystore_readable", WARNING,
         "Others see which keys exist; a keystore is for its owner only.",
         "chmod 700."),
    Code("key_plain", NOTE,
         "A backup or a stolen disk gives the key away.",
         "mqauth keys new --passphrase-file FILE, and passphrase_file or passphrase_env here."),
    Code("passphrase_beside_keys", WARNING,
         "Anybody who copies the keys copies the passphrase with them.",
         "Another folder, on another disk, or passphrase_env."),
    Code("passphrase_unavailable", WARNING,
         "The keys cannot be opened here, so only their files were checked.",
         "The variable or file as the producer will have it."),
    Code("key_alone", NOTE,
         "A single PEM file has no successor: replacing it is an outage for consumers that know only the old key.",
         "A keystore folder: mqauth keys new."),
    Code("key_overdue", WARNING,
         "The longer a key is used, the more likely it is that somebody has a copy.",
         "mqauth keys new, then mqauth keys rotate from cron."),
    Code("key_no_next", WARNING,
         "A new key has to be published before it signs, which takes time.",
         "mqauth keys new."),
    Code("rotation_stalled", WARNING,
         "The next key has been ready for more than a day, so nothing rotates the keys.",
         "mqauth keys rotate from cron."),
    Code("publish_delay_short", WARNING,
         "Consumers ask for keys every five minutes: a key that signs sooner is unknown to them.",
         "mqauth keys new --publish-delay 600."),
    Code("retain_short", WARNING,
         "A retired key leaves the set while messages that it signed may still wait, and these are dead-lettered.",
         "A retain of at least lifetime + max_queue_age."),
    # Brokers and stores.
    Code("broker_plaintext", ERROR,
         "Bodies, tokens and the broker's password can be read on the network, and a copy that arrives first is "
         "handled.",
         "amqps:// with an ssl_context; security_protocol=SASL_SSL or SSL."),
    Code("broker_unverified", ERROR,
         "TLS with anyone who answers: aio-pika verifies only without no_verify_ssl or with =0; even =false "
         "turns it off.",
         "No no_verify_ssl, no ssl_check_hostname; cafile or ssl_cafile for an authority of your own."),
    Code("broker_tls_ignored", ERROR,
         "aio-pika takes TLS from the scheme alone: amqp:// with ssl=True or other TLS options stays plaintext.",
         "amqps://."),
    Code("replay_plaintext", ERROR,
         "Anyone on the network path can answer that no message was seen before, and can read the password.",
         "rediss://."),
    Code("replay_unverified", ERROR,
         "TLS with anyone who answers; mqauth refuses it.",
         "ssl_ca_certs=FILE in the URL, and neither ssl_cert_reqs nor ssl_check_hostname."),
    # Delivery.
    Code("replay_memory_shared", ERROR,
         "Each process remembers only its own messages: a copy that reaches another process is handled again.",
         'store = "rediss://...".'),
    Code("replay_capacity", ERROR,
         "A full store defers every message (replay_store_full) until ids expire.",
         "capacity of at least rate x (max_lifetime + leeway + max_queue_age), or a shorter max_lifetime."),
    Code("audit_missing", ERROR,
         "Nothing is dead-lettered without its record: wrappers refuse a consumer without audit.",
         '[audit] file = "audit.jsonl".'),
    Code("audit_not_durable", ERROR,
         "The records are lost with the next restart, and nobody can show what was rejected and why.",
         "A file on a permanent disk, like /var/log/mqauth/audit.jsonl."),
    Code("audit_writable", ERROR,
         "Anybody who can write the file can rewrite the history, and compute its chain again.",
         "chmod 600, and signed heads on another disk."),
    Code("audit_shared", WARNING,
         "An audit file has one writer: of several consumers on one machine, all but one are refused.",
         'file = "audit-{host}-{pid}.jsonl".'),
    Code("trust_from_environment", NOTE,
         "Anybody who starts the process decides whom it trusts, and the file does not show it.",
         "Names, keys and rules in the file itself, unless the environment is as well guarded as the file."),
    Code("dead_letters_missing", WARNING,
         "A consumer that settles messages needs a place for those it rejects.",
         "[dead_letters] with name."),
    Code("self_test_off", WARNING,
         "Nobody tries at a start whether the consumer refuses unsigned and forged messages.",
         "self_test = true, which costs some milliseconds."),
    Code("settles_nothing", NOTE,
         "Without [audit] and [dead_letters], the file is enough for mqauth verify but not for a consumer.",
         "Both tables, if a consumer is to settle messages."),
    Code("dead_letters_source", ERROR,
         "The consumer would read its own dead letters, reject them, and write them again, without end.",
         "A name of its own, which only mqauth and reviewers read."),
    Code("dead_letters_reachable", WARNING,
         "A rule lets a producer write to it; a consumer of the same pattern would read its own dead letters.",
         "A name that no rule matches, or narrower rules."),
    # Rollout.
    Code("rollout_off", WARNING,
         "Nothing is judged: anybody who may write to the broker can send anything, and no report says who signs.",
         'rung = "observe", which changes no behaviour either.'),
    Code("rollout_observe", WARNING,
         "Forged messages reach a handler: observe measures, and protects nothing.",
         "mqauth rollout status, then mqauth rollout up."),
    Code("rollout_ending", WARNING,
         "The time of a rung or an exemption is nearly over.",
         "mqauth rollout up; or another until, with its reason in the history of the file."),
    Code("rollout_overdue", ERROR,
         "A rung or an exemption was to end, and still lets unsigned messages pass.",
         "mqauth rollout up, or mqauth rollout down --until with a reason."),
    Code("rollout_catch_all", WARNING,
         "Destinations that nobody thought of are not enforced, new ones included.",
         "The destinations by name."),
    Code("rollout_mark_unproven", ERROR,
         "A sender can write any timestamp unless RabbitMQ overwrites it; the consumer does not start.",
         'at = "append" with append_evidence = "interceptor", or a second queue.'),
    Code("rollout_weakest", NOTE,
         "A queue is as strong as the weakest destination by which it is reached.",
         "The bindings of each queue compared with this list."),
    Code("unsigned_exempt", WARNING,
         "Anybody who may write to the broker can send such a message, also at enforce.",
         "A producer that signs."),
    Code("exempt_broad", ERROR,
         "A wildcard without kinds exempts whatever anybody publishes there.",
         "One destination, or kinds with handlers of their own."),
    Code("exempt_long", ERROR,
         "An exemption of more than a year never ends.",
         "A date within a year."),
)  # fmt: skip
CODES: Final = {code.name: code for code in _TABLE}
"""Every code by its name."""


def finding(name: str, path: Path, message: str) -> Finding:
    """Return a finding.

    Args:
        name: one of ``CODES``.
        path: where in the file; the key may be absent from it.
        message: what is wrong, without key material, passphrase or a URL's credentials.
    """
    code = CODES[name]
    # Names and paths come from the file, and may hold commands for the terminal.
    printable = (character if character.isprintable() else ascii(character)[1:-1] for character in message)
    return Finding(code=code, severity=code.severity, path=path, message="".join(printable))


Rule = Callable[[Target], Iterable[Finding]]


def on(table: str) -> Callable[[Callable[[Target, Any], Iterable[Finding]]], Rule]:
    """Return the decorator of a rule on one table of the file: without the table there is nothing to find."""

    def decorated(rule: Callable[[Target, Any], Iterable[Finding]]) -> Rule:
        def asked(target: Target) -> Iterable[Finding]:
            settings = getattr(target.settings, table)
            return () if settings is None else rule(target, settings)

        return asked

    return decorated
