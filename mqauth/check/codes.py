"""The registry: every code ``mqauth check`` can give; ``docs/check.md`` repeats it, and a test compares them."""

from __future__ import annotations

from typing import Final

from mqauth.check.findings import Code, Severity


def _error(name: str, why: str, instead: str) -> Code:
    return Code(name=name, severity=Severity.ERROR, why=why, instead=instead)


def _warning(name: str, why: str, instead: str) -> Code:
    return Code(name=name, severity=Severity.WARNING, why=why, instead=instead)


def _note(name: str, why: str, instead: str) -> Code:
    return Code(name=name, severity=Severity.NOTE, why=why, instead=instead)


# --- the file ---------------------------------------------------------------------------------------------

CONFIGURATION = _error(
    "configuration",
    "mqauth refuses the setting, so what it is for does not start.",
    "What the message asks for.",
)
TRUST_WRITABLE = _error(
    "trust_writable",
    "Whoever can write it decides whom you trust: keys, authorities, rules.",
    "chmod go-w, and an owner who is trusted.",
)
SECRET_READABLE = _error(
    "secret_readable",
    "Others on this machine can read the secret.",
    "chmod 600, and a new secret if others were there.",
)
CONFIG_READABLE = _note(
    "config_readable",
    "Others learn where the passphrase lies.",
    "chmod o-r on the configuration, or passphrase_env.",
)

# --- tokens -----------------------------------------------------------------------------------------------

LIFETIME_UNBOUNDED = _error(
    "lifetime_unbounded",
    "A token that lives for days, or for ever, is a password: whoever copies it can use it wherever it fits.",
    "lifetime = 60 for producers, max_lifetime of an hour at most for consumers.",
)
LIFETIME_LONG = _warning(
    "lifetime_long",
    "The longer a token lives, the longer a copy of it can be tried, and the more ids a replay store has to hold.",
    'Seconds to minutes; a backlog is what at = "append" with max_queue_age is for.',
)
AUDIENCE_MISSING = _error(
    "audience_missing",
    "Without an audience a message for one service is good for every other.",
    'audience = "billing": the name of the service or stream the messages are meant for.',
)
AUDIENCE_WILDCARD = _error(
    "audience_wildcard",
    "A wildcard accepts what was meant for somebody else.",
    "The names themselves; a consumer may list several.",
)
LEEWAY_LARGE = _warning(
    "leeway_large",
    "Every token lives longer by it, and it hides clocks that are wrong.",
    "leeway = 5, and clocks kept by NTP.",
)
APPEND_WITHOUT_EVIDENCE = _error(
    "append_without_evidence",
    "RabbitMQ's timestamps are the sender's word unless the broker overwrites them: every message is deferred.",
    'append_evidence = "interceptor", with the interceptor on at the broker, or at = "consume".',
)
UNSIGNED_HEADERS_HIDDEN = _note(
    "unsigned_headers_hidden",
    "Headers that nobody signed are hidden from Verified.headers; code that reads .native meets them still.",
    'unsigned_headers = "reject", where nothing on the way adds headers of its own.',
)

# --- issuers, their keys, and rules -----------------------------------------------------------------------

ISSUER_UNBOUND = _error(
    "issuer_unbound",
    "A key that speaks for nobody in particular is refused, for it could speak for any producer of its issuer.",
    "mqauth keys new --subject NAME for each producer, or subjects = { KID = [NAME] }.",
)
BINDING_UNSEEN = _note(
    "binding_unseen",
    "Keys without mqauth_sub are refused; whether the remote ones have it cannot be seen from here.",
    "Nothing, where mqauth keys jwks made the set; else subjects = { KID = [NAME] }.",
)
SUBJECTS_SHARED = _error(
    "subjects_shared",
    "Any key that names no subject may sign as each of these producers.",
    "One list for each kid, or mqauth keys new --subject NAME so that the keys say it themselves.",
)
ISSUER_VOUCHES = _warning(
    "issuer_vouches",
    "Each key of this issuer may sign as any of its producers: one stolen key is all of them.",
    "subjects, or keys that name theirs; vouches only for an authority that signs for others.",
)
ISSUERS_SHARE_KEYS = _warning(
    "issuers_share_keys",
    "Whoever signs for one issuer can sign for the other.",
    "The keys of each issuer in a place of its own.",
)
PIN_UNKNOWN = _warning(
    "pin_unknown",
    "The pin binds nothing: a misspelt kid, or a key that is gone.",
    "The kid as mqauth keys list shows it, or no pin.",
)
RELEASE_SELF = _error(
    "release_self",
    "Who signs messages could release them too: no second pair of eyes.",
    "An issuer of its own, with keys of its own, for whoever releases.",
)
RELEASE_WAIVES_MUCH = _warning(
    "release_waives_much",
    "A release that waives these lets through what a rule, a retired key or the replay store has refused.",
    'waive = ["expired", "queue_age_exceeded"].',
)
POLICY_EMPTY = _warning(
    "policy_empty",
    "Without a rule every message is dead-lettered as producer_forbidden.",
    "[[consumer.allow]] with subject and destinations.",
)
RULE_MATCHES_ALL = _error(
    "rule_matches_all",
    "The producer may publish anywhere: one stolen key is the whole broker.",
    "The topics or exchange and routing keys it really publishes to.",
)
RULE_BROAD = _warning(
    "rule_broad",
    "The producer may use any routing key of the exchange, those of its neighbours too.",
    "The first words of its own routing keys, like rabbitmq:shop/orders.#.",
)
SUBJECT_WITHOUT_KEY = _error(
    "subject_without_key",
    "Nothing can match the rule: each message of this producer is refused before it gets there.",
    "A key for the subject, or the subject as the keys spell it.",
)

# --- JWK Sets ---------------------------------------------------------------------------------------------

JWKS_SYMMETRIC = _error(
    "jwks_symmetric",
    "A shared secret cannot tell producers apart, and who can verify with it can sign; alg none signs nothing.",
    "Ed25519 keys: mqauth keys new, then mqauth keys jwks. Whoever saw the set has the secret.",
)
JWKS_PRIVATE = _error(
    "jwks_private",
    "Whoever can read the set can sign as its owner.",
    "mqauth keys jwks prints the public half; revoke this key, for it is known.",
)
KEY_WEAK = _error(
    "key_weak",
    "RSA under 2048 bits, or with a small exponent, can be broken or misused.",
    "mqauth keys new, which makes Ed25519 unless told otherwise.",
)
JWKS_SKIPPED = _warning(
    "jwks_skipped",
    "The key is not used: what it signs is dead-lettered as key_unknown.",
    "The key as mqauth keys jwks prints it.",
)
JWKS_HTTP = _error(
    "jwks_http",
    "Anyone on the way can put keys of his own into the answer.",
    'https://, with ca = "ca.pem" for an authority of your own.',
)
JWKS_LOOPBACK = _warning(
    "jwks_loopback",
    "Any process on this machine that gets hold of the port serves the keys.",
    "https:// in production; unsafe_http_loopback is for trying things out.",
)
STALE_BEYOND_ROTATION = _warning(
    "stale_beyond_rotation",
    "With the issuer out of reach keys are trusted for that long, also those revoked or gone meanwhile.",
    "max_stale = 3600: as long as an outage you mean to survive, and shorter than a key's life in the set.",
)
PUBLISH_DELAY_OVERSTATED = _error(
    "publish_delay_overstated",
    "The consumer calls a kid unknown because it believes that it would have seen it; a new key is refused.",
    "publish_delay no longer than the keystore's own.",
)

# --- a producer's keys ------------------------------------------------------------------------------------

KEY_READABLE = _error(
    "key_readable",
    "Who can read a private key can sign with it.",
    "chmod 600; a key that others could read is to be replaced: mqauth keys new, rotate, revoke.",
)
KEYSTORE_WRITABLE = _error(
    "keystore_writable",
    "Who can write the folder can put another key, or another state, in place.",
    "chmod 700.",
)
KEYSTORE_READABLE = _warning(
    "keystore_readable",
    "Others see which keys there are; a keystore is for its owner.",
    "chmod 700.",
)
KEY_PLAIN = _note(
    "key_plain",
    "A backup or a stolen disk gives the key away.",
    "mqauth keys new --passphrase-file FILE, and passphrase_file or passphrase_env here.",
)
PASSPHRASE_BESIDE_KEYS = _warning(
    "passphrase_beside_keys",
    "What copies the keys copies the passphrase with them.",
    "Another folder, on another disk, or passphrase_env.",
)
PASSPHRASE_UNAVAILABLE = _warning(
    "passphrase_unavailable",
    "The keys cannot be opened here, so they were checked from outside only.",
    "The variable or file as the producer will have it.",
)
KEY_ALONE = _note(
    "key_alone",
    "A single PEM file has no next key and no times: replacing it is an outage for those who have the old one.",
    "A keystore folder: mqauth keys new.",
)
KEY_OVERDUE = _warning(
    "key_overdue",
    "The longer a key is used, the likelier a copy of it exists.",
    "mqauth keys new, then mqauth keys rotate from cron.",
)
KEY_NO_NEXT = _warning(
    "key_no_next",
    "A new key has to be published before it signs; begun on the last day, that is late.",
    "mqauth keys new.",
)
ROTATION_STALLED = _warning(
    "rotation_stalled",
    "The next key has been ready for more than a day: nothing rotates.",
    "mqauth keys rotate from cron.",
)
PUBLISH_DELAY_SHORT = _warning(
    "publish_delay_short",
    "Consumers ask for keys every five minutes: a key that signs sooner is unknown to them.",
    "mqauth keys new --publish-delay 600.",
)
RETAIN_SHORT = _warning(
    "retain_short",
    "A retired key is taken out of the set while messages it signed may still wait: they are dead-lettered.",
    "A retain of at least lifetime + max_queue_age.",
)

# --- brokers and stores -----------------------------------------------------------------------------------

BROKER_PLAINTEXT = _error(
    "broker_plaintext",
    "Bodies, tokens and the broker's password travel in the clear; a copy that arrives first is the one handled.",
    "amqps:// with an ssl_context; security_protocol=SASL_SSL or SSL.",
)
BROKER_UNVERIFIED = _error(
    "broker_unverified",
    "TLS with anyone: aio-pika verifies only with no_verify_ssl=0 or without it, so that =false turns it off.",
    "No no_verify_ssl, no ssl_check_hostname; cafile or ssl_cafile for an authority of your own.",
)
BROKER_TLS_IGNORED = _error(
    "broker_tls_ignored",
    "aio-pika takes TLS from the scheme alone: amqp:// with ssl=True or other TLS options stays plaintext.",
    "amqps://.",
)
REPLAY_PLAINTEXT = _error(
    "replay_plaintext",
    "Whoever is on the way can answer that no message was seen before, and reads the password.",
    "rediss://.",
)
REPLAY_UNVERIFIED = _error(
    "replay_unverified",
    "TLS with anyone who answers; mqauth refuses it.",
    "ssl_ca_certs=FILE in the URL, and neither ssl_cert_reqs nor ssl_check_hostname.",
)

# --- delivery ---------------------------------------------------------------------------------------------

REPLAY_MEMORY_SHARED = _error(
    "replay_memory_shared",
    "Each process remembers its own: a copy that reaches another is handled again.",
    'store = "rediss://...".',
)
REPLAY_CAPACITY = _error(
    "replay_capacity",
    "A full store defers every message (replay_store_full) until ids expire.",
    "capacity of at least rate x (max_lifetime + leeway + max_queue_age), or a shorter max_lifetime.",
)
AUDIT_MISSING = _error(
    "audit_missing",
    "Nothing is dead-lettered without its record: wrappers refuse a consumer without audit.",
    '[audit] file = "audit.jsonl".',
)
AUDIT_NOT_DURABLE = _error(
    "audit_not_durable",
    "The records are gone with the next restart; what was rejected, and why, cannot be shown.",
    "A file on a disk that is kept, like /var/log/mqauth/audit.jsonl.",
)
AUDIT_WRITABLE = _error(
    "audit_writable",
    "Who can write the file can rewrite what happened: the chain alone does not stop him.",
    "chmod 600, and signed heads on another disk.",
)
AUDIT_SHARED = _warning(
    "audit_shared",
    "An audit file has one writer: of several consumers on one machine all but one are refused.",
    'file = "audit-{pid}.jsonl".',
)
DEAD_LETTERS_MISSING = _warning(
    "dead_letters_missing",
    "A consumer that settles needs somewhere to put what it rejects.",
    "[dead_letters] with name.",
)
SETTLES_NOTHING = _note(
    "settles_nothing",
    "Without [audit] and [dead_letters] the file serves mqauth verify, and no consumer.",
    "Both tables, where messages are to be settled.",
)
DEAD_LETTERS_SOURCE = _error(
    "dead_letters_source",
    "The consumer would read its own dead letters, reject them, and write them again, for ever.",
    "A name of its own, which nothing reads but mqauth and reviewers.",
)
DEAD_LETTERS_REACHABLE = _warning(
    "dead_letters_reachable",
    "A rule lets a producer write to it; a consumer of the same pattern would read its own dead letters.",
    "A name that no rule matches, or narrower rules.",
)

CODES: Final = {found.name: found for found in tuple(globals().values()) if isinstance(found, Code)}
"""Every code by its name."""
