"""``mqauth check``: finds the pitfalls of a configuration file.

``findings`` has the registry of them, ``target`` is what the rules look at, ``tokens``, ``issuers`` and
``deployment`` hold the rules, and ``run`` puts their findings together.
"""

from mqauth.check.findings import CODES, Code, Finding, Report, Severity
from mqauth.check.run import check

__all__ = ["CODES", "Code", "Finding", "Report", "Severity", "check"]
