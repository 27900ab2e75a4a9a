"""Wrappers of broker clients: they translate native messages and carry out verdicts, and hold no rule.

Importing one keeps tokens out of the logs of the client libraries (``mqauth.audit.redaction``).
"""

from mqauth.audit.redaction import redact_logging

redact_logging()
