"""mqauth: signed tokens on RabbitMQ and Kafka messages, verified before any handler runs.

Read the modules in this order: ``errors``, ``message``, ``claims``, ``keys``, ``jws``, ``envelope``,
``signer``, ``verifier``, ``policy``, ``replay``, ``audit``, ``deadletter``, ``pipeline``, ``flow``; then a
broker wrapper, ``mqauth.brokers.rabbitmq`` or ``mqauth.brokers.kafka``.
"""

from mqauth._version import __version__
from mqauth.auditfile import AuditFile
from mqauth.config import load
from mqauth.errors import (
    Cause,
    ConfigurationError,
    MalformedMessage,
    MqauthError,
    Reason,
    Rejection,
    RejectNow,
    RetryLater,
    Unavailable,
)
from mqauth.flow import Attempts
from mqauth.keys import Key, KeySet
from mqauth.keystore import ActiveKey, JWKSFile
from mqauth.keystore.discovery import discover
from mqauth.keystore.jwks import JWKS
from mqauth.message import Message, Origin
from mqauth.pipeline import Outcome, Pipeline, Verdict
from mqauth.policy import Allow, Decision, Rule, UnsafeAllowAll
from mqauth.replay import MemoryReplayStore
from mqauth.signer import Signer
from mqauth.verified import Verified
from mqauth.verifier import Issuer, Verifier

__all__ = [
    "JWKS",
    "ActiveKey",
    "Allow",
    "Attempts",
    "AuditFile",
    "Cause",
    "ConfigurationError",
    "Decision",
    "Issuer",
    "JWKSFile",
    "Key",
    "KeySet",
    "MalformedMessage",
    "MemoryReplayStore",
    "Message",
    "MqauthError",
    "Origin",
    "Outcome",
    "Pipeline",
    "Reason",
    "RejectNow",
    "Rejection",
    "RetryLater",
    "Rule",
    "Signer",
    "Unavailable",
    "UnsafeAllowAll",
    "Verdict",
    "Verified",
    "Verifier",
    "__version__",
    "discover",
    "load",
]
