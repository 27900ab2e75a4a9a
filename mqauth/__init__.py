"""mqauth: signed tokens on RabbitMQ and Kafka messages, verified before any handler runs.

``docs/architecture.md`` says what each folder of the package holds, from the ground up.

``import mqauth`` imports nothing but this file. Each public name is imported from its module when it is first
used. So a program that only signs does not wait for the HTTP client of the key cache, and a command that only
prints its help waits for neither.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from mqauth._version import __version__

if TYPE_CHECKING:
    from mqauth.audit.file import AuditFile, HeadFile
    from mqauth.audit.misuse import Alert, Detector, Thresholds
    from mqauth.audit.sinks import (
        CallableSink,
        FanOut,
        FloodGate,
        LoggingSink,
        MisuseWatch,
    )
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
    from mqauth.judging.identities import TrustDomain
    from mqauth.judging.pipeline import Outcome, Pipeline, Verdict
    from mqauth.judging.policy import Allow, Decision, Rule
    from mqauth.judging.selftest import SelfTest, self_test
    from mqauth.judging.verified import Unverified, Verified
    from mqauth.judging.verifier import Issuer, Verifier
    from mqauth.keystore import ActiveKey, JWKSFile
    from mqauth.keystore.identity.identity_key import IdentityKey, WITKey
    from mqauth.keystore.identity.request import ClientCredentials, OwnKey, TokenFile
    from mqauth.keystore.remote.jwks import JWKS
    from mqauth.policies.opa import OPA
    from mqauth.replay.memory import MemoryReplayStore
    from mqauth.signer import Signer
    from mqauth.stores.file import FileReplayStore
    from mqauth.wire.keys import Key, KeySet
    from mqauth.wire.message import Message, Origin

__all__ = [
    "JWKS",
    "OPA",
    "ActiveKey",
    "Alert",
    "Allow",
    "Attempts",
    "AuditFile",
    "CallableSink",
    "Cause",
    "ClientCredentials",
    "ConfigurationError",
    "Decision",
    "Detector",
    "FanOut",
    "FileReplayStore",
    "FloodGate",
    "HeadFile",
    "IdentityKey",
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
    "OwnKey",
    "Pipeline",
    "Reason",
    "RejectNow",
    "Rejection",
    "RetryLater",
    "Rule",
    "SelfTest",
    "Signer",
    "Thresholds",
    "TokenFile",
    "TrustDomain",
    "Unavailable",
    "Unverified",
    "Verdict",
    "Verified",
    "Verifier",
    "WITKey",
    "__version__",
    "load",
    "self_test",
]
_NAMES: Final = {
    "audit.file": ("AuditFile", "HeadFile"),
    "audit.misuse": ("Alert", "Detector", "Thresholds"),
    "audit.sinks": ("CallableSink", "FanOut", "FloodGate", "LoggingSink", "MisuseWatch"),
    "config.load": ("load",),
    "errors": (
        "Cause",
        "ConfigurationError",
        "MalformedMessage",
        "MqauthError",
        "Reason",
        "Rejection",
        "RejectNow",
        "RetryLater",
        "Unavailable",
    ),
    "flow": ("Attempts",),
    "judging.pipeline": ("Outcome", "Pipeline", "Verdict"),
    "judging.policy": ("Allow", "Decision", "Rule"),
    "judging.selftest": ("SelfTest", "self_test"),
    "judging.verified": ("Unverified", "Verified"),
    "judging.identities": ("TrustDomain",),
    "judging.verifier": ("Issuer", "Verifier"),
    "keystore.disk.watch": ("ActiveKey", "JWKSFile"),
    "keystore.identity.identity_key": ("IdentityKey", "WITKey"),
    "keystore.identity.request": ("ClientCredentials", "OwnKey", "TokenFile"),
    "keystore.remote.jwks": ("JWKS",),
    "policies.opa": ("OPA",),
    "replay.memory": ("MemoryReplayStore",),
    "signer": ("Signer",),
    "stores.file": ("FileReplayStore",),
    "wire.keys": ("Key", "KeySet"),
    "wire.message": ("Message", "Origin"),
}
"""Which module has each public name; type checkers read the imports above instead."""
_MODULES: Final = {
    name: f"mqauth.{module}" for module, names in _NAMES.items() for name in names
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module 'mqauth' has no attribute {name!r}")
    exported = getattr(import_module(_MODULES[name]), name)
    globals()[name] = exported
    return exported


def __dir__() -> list[str]:
    """Return the public names, for ``dir`` and for completion in a shell."""
    return sorted({*globals(), *__all__})
