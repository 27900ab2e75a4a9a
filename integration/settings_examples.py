"""An example and a unit for each setting, for the reference page; a test holds each against its schema.

The keys are those of tables, ``table.key``, or a key alone where it means the same in all tables.
"""

from __future__ import annotations

from typing import Any, Final

UNITS: Final[dict[str, str]] = {
    "lifetime": "seconds", "linger": "seconds", "max_lifetime": "seconds", "leeway": "seconds",
    "max_queue_age": "seconds", "max_identity_lifetime": "seconds", "identities": "identities",
    "max_stale": "seconds", "publish_delay": "seconds", "heads_seconds": "seconds",
    "misuse.window": "seconds", "quiet": "seconds", "learn": "seconds", "rotation": "seconds",
    "batch": "messages", "rate": "messages a second", "max_bytes": "bytes", "heads_every": "records",
    "replay.capacity": "ids", "misuse.capacity": "entries", "burst": "rejections", "replays": "copies",
    "misuse.expired": "tokens", "skewed_producers": "producers", "unknown_kids": "kids",
    "flood_after": "rejections", "authority.rate": "WITs a minute", "refusal_rate": "refusals a minute",
    "instances": "WITs", "remember": "seconds", "timeout": "seconds",
    "consumers": "processes", "rollout.window": "hours or days", "until": "day", "since": "day",
}  # fmt: skip
"""Settings that measure something, and in what."""
_KID: Final = "8fJ2Lq0aVb3x"
EXAMPLES: Final[dict[str, Any]] = {
    # [producer] and [consumer]
    "issuer": "https://auth.example", "subject": "orders-api", "producer.audience": "billing",
    "audiences": {"kafka:orders": "billing"}, "keys": "keys", "lifetime": 60,
    "leave_unsigned": ["x-tenant-trace", "my-proxy-*"], "batch": 64, "linger": 0.002,
    "passphrase_env": "KEY_PASSPHRASE", "passphrase_file": "secrets/passphrase", "scope": "billing",
    "consumer.audience": ["billing", "billing-eu"], "max_lifetime": 3600, "leeway": 5, "consumer.at": "append",
    "max_queue_age": "7d", "append_evidence": "interceptor", "unsafe_append_evidence": False, "backlog": "expires",
    "consumer.without_evidence.destination": "kafka:orders", "through": {"0": 8_812_044, "1": 8_790_113},
    "consumer.without_evidence.why": "stamped by producers before 2026-12-01", "unsigned_headers": "reject",
    "allow_unsigned_headers": ["x-tenant-trace"], "require_headers": ["content-type", "tenant"],
    "user_id": {"orders-user": "orders-api"}, "exception_messages": False, "self_test": False,
    "consumer.accept_as.at": "kafka:eu.orders", "signed_for": ["kafka:orders"],
    # [producer.identity]
    "producer.identity.authority": "https://authority.prod.example", "algorithm": "ES256",
    "producer.identity.subject": "wimse://prod.example/shop/orders-api",
    "token_file": "/var/run/secrets/mqauth/token", "token_url": "https://auth.example/oauth2/token",
    # issuers and rules
    "file": "jwks.json", "audit.file": "log/audit-{host}-{pid}.jsonl", "jwks": "https://auth.example/jwks.json",
    "discovery": True, "max_stale": 3600, "publish_delay": 30, "ca": "ca.pem", "snapshot": "log/jwks.json",
    "unsafe_http_loopback": True, "subjects": {_KID: ["orders-api"]}, "vouches": True,
    "destinations": ["rabbitmq:shop/orders.#"], "destination": "rabbitmq:legacy/#", "kinds": ["invoice"],
    "until": "2027-02-01", "why": "the till in store 12 is replaced in January",
    "trust_domain": "wimse://prod.example", "max_identity_lifetime": 3600, "identities": 1024,
    "claims": {"env": "prod"}, "consumer.opa.url": "http://127.0.0.1:8181", "consumer.opa.path": "mqauth/allow",
    "remember": 10, "timeout": 0.5,
    # state, audit, misuse
    "store": "redis://cache.example:6379/0", "replay.file": "replay.sqlite", "capacity": 1_000_000,
    "misuse.capacity": 4096, "record": "all",
    "max_bytes": 268_435_456, "flood_after": 100, "unsafe_no_fsync": True, "heads": "/mnt/heads/audit.heads",
    "heads_key": "heads.pem", "heads_every": 1000, "heads_seconds": 60, "heads_passphrase_env": "HEADS_PASSPHRASE",
    "heads_passphrase_file": "secrets/heads", "misuse.window": 60, "quiet": 600, "burst": 100, "replays": 3,
    "expired": 20, "skewed_producers": 3, "unknown_kids": 10, "learn": 86_400,
    "authorities": ["https://auth.example"], "name": "orders.dead", "waive": ["expired", "key_expired"],
    # [[rollout]]
    "rung": "observe", "since": "2026-11-29", "owner": "orders-team",
    "rollout.window": "7d", "accepted": {"3fa09c11d2e0": "load test, unsigned on purpose"},
    # [authority]
    "authority.url": "https://authority.prod.example", "authority.keys": "authority-keys",
    "authority.lifetime": 3600, "authority.audit": "authority.jsonl", "authority.rate": 600, "refusal_rate": 60,
    "instances": 64, "authority.credentials.name": "cluster",
    "authority.credentials.issuer": "https://kubernetes.default.svc",
    "authority.credentials.jwks": "https://kubernetes.default.svc/openid/v1/jwks", "enrolment": True,
    "authority.credentials.max_lifetime": 7200, "credential": "cluster",
    "match": {"sub": "system:serviceaccount:shop:orders-api"},
    "authority.grants.subject": "wimse://prod.example/shop/orders-api", "authority.grants.lifetime": 900,
    # commands
    "broker.url": "amqps://mq.example/", "url": "https://console.example:8443", "url_env": "BROKER_URL",
    "queue": "orders.dead", "topic": "orders.dead", "tls": True, "cert": "reviewer.pem", "key": "reviewer-key.pem",
    "mechanism": "SCRAM-SHA-512", "user": "reviewer", "password_env": "BROKER_PASSWORD",
    "password_file": "secrets/broker",
    "token_callback": "shop.tokens:of_msk", "review.key": "review-keys", "audit": "log/reviewer.jsonl",
    "authority": "https://review.example", "review.reviewer": "ada",
    "audit_files": ["log/audit.jsonl", "log/reviewer.jsonl"], "brokers": ["amqps://mq.example/"], "consumers": 4,
    "rate": 500, "rotation": 7_776_000, "accept": ["replay_not_shared"],
    # sign-in at the console
    "client_id": "mqauth-console", "client_secret_file": "oidc.secret", "client_secret_env": "OIDC_SECRET",
    "label": "Example ID", "scopes": ["openid", "email"], "name_claim": "email",
    "role_claim": ["realm_access", "roles"], "viewer": ["support"], "roles.reviewer": ["orders-oncall"],
}  # fmt: skip
"""A value of each setting, as it is written in the file."""


def of(known: dict[str, Any], table: str, key: str) -> Any:
    """Return what is known of a setting, the more exact name first; ``None`` where there is nothing."""
    return known.get(f"{table}.{key}", known.get(key))
