"""The words of the console: one for each thing, short and usual, the same in the command and the manual."""

from __future__ import annotations

from typing import Final

TERMS: Final = {
    "letter": "Dead letter",
    "letters": "Dead letters",
    "balance": "Balance",
    "recalculate": "Recalculate",
    "not_calculated": "Not calculated yet",
    "refresh": "Refresh",
    "preview": "Preview",
    "cancel": "Cancel",
    "check_again": "Check again",
    "verdict_now": "Verdict now",
    "intact": "Intact",
    "metadata": "Metadata",
    "rate": "Rate limit (dead letters per second)",
    "progress": "Show progress",
    "reason": "Reason (kept in the audit log)",
    "waive": "Waive if needed",
    "no_match": "No dead letters match",
    "lost": "Cannot reach the broker",
    "sign_in": "Sign in",
    "sign_out": "Sign out",
    "switch_user": "Switch user",
}
"""What a page calls a thing, by the name that templates use."""
OLD: Final = (
    "Letters", "Letter", "Read letters", "Look what it would do", "Show what it would do", "Finding out",
    "Leave it", "Do nothing", "Reckon", "Reckoned", "Compare now", "Compared", "Account", "Today",
    "Holds", "Sound",
    "Properties", "a second at most", "Judge", "Judged", "Judging", "Watch", "Why?", "Why", "None is open",
    "where a letter needs it", "No open letter fits", "out of reach", "Would be refused", "Enter the console",
    "Log in", "Log out", "Logged in", "come in as",
)  # fmt: skip
"""Words that pages no longer use."""
