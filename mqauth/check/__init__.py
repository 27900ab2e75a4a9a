"""``mqauth check``: the pitfalls of a configuration file, found before they bite.

``codes`` is the registry; each other module looks at one area and yields findings; ``run`` puts them together.
"""

from mqauth.check.codes import CODES
from mqauth.check.findings import Code, Finding, Report, Severity
from mqauth.check.run import check

__all__ = ["CODES", "Code", "Finding", "Report", "Severity", "check"]
