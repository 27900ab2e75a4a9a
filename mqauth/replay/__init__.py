"""Which messages were handled before: the rules of claims, and the store in memory."""
