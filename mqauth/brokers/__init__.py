"""Broker wrappers: thin leaves that translate native messages and carry out the verdict; they hold no rule.

Importing one keeps tokens out of the client libraries' logs (``mqauth.audit.redaction``).
"""

from mqauth.audit.redaction import redact_logging

redact_logging()
