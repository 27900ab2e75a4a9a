"""mqauth: signed tokens on RabbitMQ and Kafka messages, verified before any handler runs.

Read the rooms from the ground up: ``errors`` and ``clock``; ``wire``, what is on the wire; ``signer``, ``replay``
and ``audit``; ``letters``; ``judging``, the verdict; ``delivery``, the engine; then a broker's wrapper,
``mqauth.brokers.rabbitmq`` or ``mqauth.brokers.kafka``. ``docs/architecture.md`` says what each holds.
"""

from mqauth._version import __version__
from mqauth.audit.file import AuditFile
from mqauth.audit.flood import FloodGate
from mqauth.audit.head import HeadFile
from mqauth.audit.misuse import Alert, Detector, Thresholds
from mqauth.audit.sinks import CallableSink, FanOut, LoggingSink, MisuseWatch
from mqauth.config.load import load
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
from mqauth.judging.pipeline import Outcome, Pipeline, Verdict
from mqauth.judging.policy import Allow, Decision, Rule, UnsafeAllowAll
from mqauth.judging.verified import Verified
from mqauth.judging.verifier import Issuer, Verifier
from mqauth.keystore import ActiveKey, JWKSFile
from mqauth.keystore.remote.jwks import JWKS, discover
from mqauth.replay.memory import MemoryReplayStore
from mqauth.signer import Signer
from mqauth.wire.keys import Key, KeySet
from mqauth.wire.message import Message, Origin

__all__ = [
    "JWKS",
    "ActiveKey",
    "Alert",
    "Allow",
    "Attempts",
    "AuditFile",
    "CallableSink",
    "Cause",
    "ConfigurationError",
    "Decision",
    "Detector",
    "FanOut",
    "FloodGate",
    "HeadFile",
    "Issuer",
    "JWKSFile",
    "Key",
    "KeySet",
    "LoggingSink",
    "MalformedMessage",
    "MemoryReplayStore",
    "Message",
    "MisuseWatch",
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
    "Thresholds",
    "Unavailable",
    "UnsafeAllowAll",
    "Verdict",
    "Verified",
    "Verifier",
    "__version__",
    "discover",
    "load",
]
